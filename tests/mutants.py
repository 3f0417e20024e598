"""Plant one fault at a time in a copy of the source, and see a test fail: `python -m tests.mutants`.

A suite that passes on broken code is worth nothing. Each fault of `tests/faults/` is one exact replacement of text;
the copy lies in a temporary folder and is what the tests import. Exit status 1 if a mutant survives, if a text no
longer occurs exactly once, or if the unchanged suite is not green. `python -m tests.mutants actnorm kl` runs those
whose name contains one of the words.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shutil import copytree, ignore_patterns

from tests.faults import FAULTS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "latentflows"


def tests_of(file: str) -> str:
    """Return the tests that must notice a fault in `file`: those of its room."""
    room, _, name = file.rpartition("/")
    return f"tests/{room}" if room else f"tests/test_{name}"


def run(arguments: list[str], source: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where `latentflows` is the copy under `source`; no bytecode, since it could be stale."""
    variables = {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def check_import(source: Path) -> None:
    """Stop unless the copy is what gets imported, since the package may be installed in place."""
    found = run(["-c", "import latentflows; print(latentflows.__file__)"], source).stdout.strip()
    if not Path(found).is_relative_to(source):
        raise SystemExit(f"The copy in {source} is not what is imported, but {found!r}.")


def first_failure(tests: set[str], source: Path) -> str | None:
    """Run the tests on the copy until one fails, and return its name; None if all pass."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = run(["-m", "pytest", *options, *sorted(tests)], source)
    if result.returncode == 0:
        return None
    lines = [line for line in result.stdout.splitlines() if line.startswith("FAILED ")]
    failed = [line.removeprefix("FAILED ").partition(" - ")[0] for line in lines]
    if not failed:  # a fault that keeps the tests from running proves nothing about them
        raise SystemExit(f"pytest could not run (exit status {result.returncode}):\n{result.stdout[-3000:]}")
    return failed[0].rpartition("/")[2]


def verdict(file: str, old: str, new: str, source: Path) -> str:
    """Plant the fault in the copy, run the tests, and take it out again."""
    path = source / "latentflows" / file
    text = path.read_text()
    if text.count(old) != 1:
        return f"STALE (its text occurs {text.count(old)} times)"
    path.write_text(text.replace(old, new))
    try:
        failed = first_failure({tests_of(file)}, source)
        return f"caught by {failed}" if failed else "MISSED"
    finally:
        path.write_text(text)


def main(words: list[str]) -> int:
    """Run the mutants whose name contains one of the words, or all; return the exit status."""
    chosen = [
        (file, *fault)
        for file, faults in FAULTS.items()
        for fault in faults
        if not words or any(word.lower() in fault[0].lower() for word in words)
    ]
    if not chosen:
        print(f"No fault has a name with {' or '.join(words)} in it; the names stand in tests/faults/.")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder).resolve()
        copytree(PACKAGE, source / "latentflows", ignore=ignore_patterns("__pycache__"))
        check_import(source)
        failed = first_failure({tests_of(file) for file, *_ in chosen}, source)
        if failed:
            print(f"The suite is not green on unchanged code; mend {failed} first.")
            return 1
        caught = 0
        for file, name, old, new in chosen:
            start = time.perf_counter()
            found = verdict(file, old, new, source)
            caught += found.startswith("caught")
            print(f"{time.perf_counter() - start:5.1f} s  {file}: {name}: {found}", flush=True)
    print(f"{caught} of {len(chosen)} mutants caught.")
    return int(caught < len(chosen))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="parts of the names of faults; none for all")
    raise SystemExit(main(parser.parse_args().words))
