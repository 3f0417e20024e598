"""Milliseconds of sampling from a masked autoregressive flow, beside its density pass, zuko, normflows and nflows.

    python -m benchmarks.inversion

All contenders live in one process and take turns (A B C A B C ...), so that a slow minute of the machine falls on all
of them; ratios are formed within a round and their median is reported. Every draw is mapped back to its noise, and the
largest error stands in the table.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.peers import autoregressive_flows as flows

BATCH = 512
METHODS = ("auto", "incremental", "jacobi", "loop")


@dataclass(frozen=True)
class Problem:
    """A size of the comparison: variables, and whether the elementwise map is a spline."""

    dim: int
    spline: bool = False

    @property
    def name(self) -> str:
        return f"{'spline' if self.spline else 'affine'}-{self.dim}"

    @property
    def title(self) -> str:
        return f"{'Splines of 8 bins' if self.spline else 'Affine'}, D = {self.dim}"


@dataclass(frozen=True)
class Entry:
    """One contender: its label, the module that must be importable, and how to build it."""

    name: str
    label: str
    module: str
    build: Callable[[int, bool], flows.Model]
    splines: bool = True


PROBLEMS = {problem.name: problem for problem in (Problem(64), Problem(256), Problem(64, spline=True))}
DENSITY = "density"
ENTRIES = (
    Entry(
        DENSITY,
        "latentflows, density pass (noise from x)",
        "latentflows",
        partial(flows.ours, inversion="auto"),
    ),
    *(
        Entry(
            f"ours-{method}",
            f"**latentflows, {method}**",
            "latentflows",
            partial(flows.ours, inversion=method),
        )
        for method in METHODS
    ),
    Entry("zuko", "zuko", "zuko", flows.zuko),
    Entry("nflows", "nflows", "nflows", flows.nflows),
    Entry(
        "normflows", "normflows, plain", "normflows", partial(flows.normflows, residual=False), splines=False
    ),
    Entry(
        "normflows-residual",
        "normflows, 2 residual blocks",
        "normflows",
        partial(flows.normflows, residual=True),
        splines=False,
    ),
)

NOTES = """\
Five masked autoregressive layers with two hidden layers of 256 units each, ReLU, order reversed from layer to layer;
512 rows at once, float32, no gradient. `ms` is wall-clock time of one draw of the batch, after an untimed one (in the
row of the density pass, of one map from data to noise), the median over rounds with the smallest and the largest;
`CPU ms` the processor time of it. `x density` is the time over that of our own density pass, `x auto` over that of our
sampling as it comes, both formed within a round. `round trip` is the largest |u - u'| over (1 + |u|), with u' from the
model's own map from data to noise. Weights are drawn anew, with variance 1 / (4 inputs): at their start some of the
flows are the identity.

Where the contenders differ:

- Scales: latentflows and zuko bound the log-scale by a / (1 + |a| / b), nflows takes a softplus, normflows a sigmoid.
- All peers run the whole network once per variable and layer. So does our `loop`.
- normflows' class called masked autoregressive is cheap to sample; timed is its other direction, which inverts as the
  others do. Its plain network has no activation after the first of the two hidden layers. Two residual blocks are its
  default: five hidden layers instead of two, and 2.7 times the parameters.
- `jacobi` depends on the weights; it ends when every row is at rest to rounding, or is solved otherwise.
"""


def main() -> None:
    """Read the arguments, measure, and say where the table is."""
    print(run(_arguments()))


def run(arguments: argparse.Namespace) -> Path:
    """Measure every contender that is installed and write the result file; returns its path."""
    load_average = measure.load_average()
    runs, body = [], [NOTES]
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.problems:
            found = measured(PROBLEMS[name], threads, arguments)
            runs += found
            body += section(PROBLEMS[name], threads, found)
    facts = {"load_average": load_average, "batch": BATCH, "runs": runs}
    return measure.write("inversion-quick" if arguments.quick else "inversion", facts, body, arguments.out)


@torch.no_grad()
def measured(problem: Problem, threads: int, arguments: argparse.Namespace) -> list[dict]:
    """All contenders of one problem, in turns."""
    u = torch.randn(BATCH, problem.dim, generator=torch.Generator().manual_seed(0))
    rows, tasks = [], []
    for entry, model in contenders(problem, arguments):
        x = model.sample(u)
        error = ((model.invert(x) - u).abs() / (1 + u.abs())).max().item()
        tasks.append(partial(model.invert, x) if entry.name == DENSITY else partial(model.sample, u))
        parameters = sum(p.numel() for p in model.module.parameters())
        row = {"name": entry.name, "label": entry.label, "parameters": parameters, "error": error}
        rows.append(row | {"problem": problem.name, "threads": threads, "ms": [], "cpu_ms": []})
    for _ in range(arguments.repeats):
        for row, task in zip(rows, tasks, strict=True):
            task()  # memory that the contender before it gave back is not its to fetch again
            wall, processor = time.perf_counter(), time.process_time()
            task()
            row["ms"].append(1e3 * (time.perf_counter() - wall))
            row["cpu_ms"].append(1e3 * (time.process_time() - processor))
    for row in rows:
        print(f"{problem.name:12}{row['name']:20}{measure.spread(row['ms'], 1)} ms", flush=True)
    return rows


def contenders(problem: Problem, arguments: argparse.Namespace) -> Iterator[tuple[Entry, flows.Model]]:
    """Build those that are installed; one line for each that cannot run here."""
    for entry in ENTRIES:
        if (problem.spline and not entry.splines) or (arguments.only and entry.name not in arguments.only):
            continue
        if not measure.is_installed(entry.module):
            print(f"skipping {entry.name}: `{entry.module}` is not installed")
            continue
        yield entry, entry.build(problem.dim, problem.spline)


def section(problem: Problem, threads: int, rows: list[dict]) -> list[str]:
    """The table of one problem at one number of threads."""
    header = ("contender", "ms", "x density", "x auto", "CPU ms", "round trip", "parameters")
    lines = [
        (
            row["label"],
            measure.spread(row["ms"], 1),
            ratio(row, rows, DENSITY),
            ratio(row, rows, "ours-auto"),
            measure.spread(row["cpu_ms"], 1),
            f"{row['error']:.0e}",
            f"{row['parameters']:,}",
        )
        for row in rows
    ]
    return [f"## {problem.title}, {threads} thread(s)", "", *measure.table(header, lines), ""]


def ratio(row: dict, rows: list[dict], name: str) -> str:
    """Median over rounds of the ratio of two contenders' times, with its range."""
    found = [other for other in rows if other["name"] == name]
    if not found:
        return ""
    return measure.spread([a / b for a, b in zip(row["ms"], found[0]["ms"], strict=True)], 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Milliseconds of sampling from a masked autoregressive flow."
    )
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=11, help="rounds; every contender runs once in each")
    parser.add_argument("--only", nargs="+", choices=[entry.name for entry in ENTRIES])
    parser.add_argument("--quick", action="store_true", help="64 variables, affine: does it run at all")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.problems = ["affine-64"]
    return arguments


if __name__ == "__main__":
    main()
