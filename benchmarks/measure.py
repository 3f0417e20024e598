"""What the benchmark scripts share: one process per measurement, the machine in words, dated result files."""

import importlib.util
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "latentflows", "pythae", "pyro-ppl", "zuko", "normflows", "nflows", "FrEIA")


def is_installed(module: str) -> bool:
    """Whether a module could be imported; nothing is imported."""
    return importlib.util.find_spec(module) is not None


def in_own_process(module: str, task: dict, threads: int) -> dict:
    """Run `python -m module --worker TASK` with `threads` CPU threads and return the JSON it prints last.

    A process of its own makes the peak memory that of one contender, and lets none of them warm up another.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", module, "--worker", json.dumps(task)]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=False
        )
        log.seek(0)
        if done.returncode != 0:
            raise RuntimeError(f"{task} ended with exit status {done.returncode}:\n{log.read()[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory() -> tuple[float, float]:
    """Resident memory of this process now and at its peak, MiB.

    Linux keeps the peak of an earlier program in `ru_maxrss` across `exec`, so `/proc` is asked first.
    """
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status.read_text()))
        return int(kilobytes["VmRSS"]) / 1024, int(kilobytes["VmHWM"]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    return peak, peak


def hardware() -> dict:
    """The processor in words and how many of it there are."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        text = information.read_text()
        found = re.search(r"model name\s*:\s*(.+)", text)
        name = found.group(1).strip() if found else name
        for key in ("cpu family", "model"):  # tells generations of one maker apart where the name does not
            found = re.search(rf"^{key}\s*:\s*(\d+)", text, re.MULTILINE)
            name += f", {key.removeprefix('cpu ')} {found.group(1)}" if found else ""
        name += " (AVX-512, bfloat16)" if "avx512_bf16" in text else ""
    return {"cpu": name, "cpus": os.cpu_count(), "platform": platform.system()}


def versions() -> dict:
    """Versions of Python and of every package of the comparison that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The command as typed, with folders of this machine replaced by `FOLDER`."""
    words = ["FOLDER" if os.sep in word else word for word in sys.argv[1:]]
    return " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *words])


def load_average() -> float:
    """Processes that wanted a CPU in the last minute; above 0.3 at the start, the machine is not quiet."""
    return round(os.getloadavg()[0], 2)


def median(values: Iterable[float]) -> float:
    """The median, of an iterable."""
    return statistics.median(list(values))


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median and, in brackets, the smallest and the largest of several repeats."""
    middle = f"{median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, first column left, the others right."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, marks, *rows)]


def write(name: str, facts: dict, body: list[str], folder: Path = RESULTS) -> Path:
    """Write `DATE-NAME.md` and `.json`: the command, the machine and the versions, then the body."""
    now = datetime.now().astimezone()
    head = {
        "date": now.strftime("%Y-%m-%d"),
        "command": command_line(),
        "hardware": hardware(),
        "versions": versions(),
        **facts,
    }
    machine = head["hardware"]
    lines = [
        f"# {name.replace('-', ' ').capitalize()}, {head['date']}",
        "",
        f"- command: `{head['command']}`",
        f"- machine: {machine['cpu']}, {machine['cpus']} CPUs, {machine['platform']}",
        "- versions: " + ", ".join(f"{package} {version}" for package, version in head["versions"].items()),
        f"- load average at the start: {facts['load_average']}",
        "",
        *body,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{head['date']}-{name}.md"
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".json").write_text(json.dumps(head, indent=1) + "\n")
    return path
