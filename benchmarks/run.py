"""All benchmarks with quick settings: do they run here, and roughly where do things stand.

    python -m benchmarks.run

Peers that are not installed are skipped with a line that says so. Results go to `runs/benchmarks`; the figures to
quote come from the scripts themselves on a quiet machine, see README.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "training",
    "likelihood",
    "transformer_cache",
    "flow_step",
    "inversion",
    "energies",
    "likelihood_choice",
    "prior_stability",
    "segmentation",
)
READS_IMAGES = ("training", "likelihood")


def main() -> int:
    """Run each script in turn; the exit status is that of the first that failed."""
    parser = argparse.ArgumentParser(description="All benchmarks with quick settings.")
    parser.add_argument(
        "--data-root", type=Path, help="folder of MNIST's IDX .gz files; else synthetic images"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks"), help="folder of the result files"
    )
    arguments = parser.parse_args()
    for script in SCRIPTS:
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{script}",
            "--quick",
            "--repeats",
            "1",
            "--threads",
            "1",
        ]
        command += ["--out", str(arguments.out)]
        if arguments.data_root and script in READS_IMAGES:
            command += ["--data-root", str(arguments.data_root)]
        print(f"== {script}", flush=True)
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
