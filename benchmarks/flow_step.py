"""Milliseconds of a training step of a flow, beside zuko, normflows, nflows and FrEIA.

    python -m benchmarks.flow_step

One step is log p(x) of a batch, the gradient of its mean, and Adam. All contenders live in one process and take turns
in rounds of a few steps (A B C A B C ...), so that a slow minute of the machine falls on all of them; ratios are formed
within a round and their median is reported.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.peers import density_flows
from benchmarks.peers.density_flows import Size


@dataclass(frozen=True)
class Entry:
    """One contender: the flow, the library, and the module that must be importable."""

    flow: str
    library: str

    @property
    def name(self) -> str:
        return f"{self.library}-{self.flow}"

    def build(self, size: Size) -> density_flows.Density:
        return getattr(density_flows, f"{self.library}_{self.flow}")(size)


FLOWS = {
    "coupling": "Affine coupling",
    "maf": "Masked autoregressive flow, affine",
    "spline": "Rational-quadratic spline coupling",
}
MODULES = {
    "ours": "latentflows",
    "zuko": "zuko",
    "normflows": "normflows",
    "nflows": "nflows",
    "freia": "FrEIA",
}
LABELS = {"ours": "**latentflows**", "freia": "FrEIA"}
ENTRIES = tuple(
    Entry(flow, library)
    for flow in FLOWS
    for library in MODULES
    if library != "freia" or flow == "coupling"  # FrEIA 0.2 has neither of the others
)

BATCH = 512
NUM_BATCHES = 32

NOTES = """\
A step is log p(x) of 512 rows of 64 variables, the gradient of the mean, and `torch.optim.Adam` with its default
settings (learning rate 1e-3). Eight layers, each with a network of two hidden layers of 256 units and ReLU; splines of
8 bins on [-3, 3], the identity outside. `ms` is wall-clock time of a step, the median over rounds with the smallest and
the largest; `CPU ms` is the processor time of it, which says more where the machine is busy. `x fastest peer` is the
time over that of the peer with the lowest median, formed within a round, eager rows over eager peers and compiled rows
over compiled ones: below 1 is quicker than every peer. The loss is -log p(x) in nats per row, over the first and the
last round, to show that the same work is done. Float32, everything in memory. Compiled: log p(x) through
`torch.compile`, with `fullgraph=True` for latentflows and with graph breaks allowed for the others.

Where the contenders differ:

- Scales: latentflows and zuko bound the log-scale by a / (1 + |a| / b), FrEIA by an arctangent, nflows takes a sigmoid
  or a softplus, normflows the bare exponential (coupling) or a sigmoid (MAF). Splines: latentflows' bins are shares of
  sigmoids, the others' softmaxes.
- latentflows and normflows' coupling start as the identity, the others at a random map: hence other losses after the
  same number of steps.
- normflows' MADE has no activation after the first of its two hidden layers; the weights are as many.
- zuko cuts by alternating variables, the others in halves.
- FrEIA's block moves both halves, so four of them are eight layers. Version 0.2 has no autoregressive layer and no
  spline.
- normflows' `MaskedAffineAutoregressive` needs D passes for a density; `Reverse` turns it round. Its spline coupling is
  taken without its wrapper, which has a residual network and splines of the other half.
- latentflows looks at its input for NaN in every step here, as it does everywhere but inside `fit`; the others do not.
"""


@dataclass
class Contender:
    """A model with its optimizer, ready to step, and what was measured of it."""

    entry: Entry
    label: str
    compiled: bool
    parameters: int
    step: Callable[[Tensor], Tensor]


def main() -> None:
    """Read the arguments, measure, and say where the table is."""
    print(run(_arguments()))


def run(arguments: argparse.Namespace) -> Path:
    """Measure every contender that is installed and write the result file; returns its path."""
    load_average = measure.load_average()
    runs, body = [], [NOTES]
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for flow in arguments.flows:
            found = measured(flow, arguments)
            for row in found:
                row["threads"] = threads
            runs += found
            body += section(flow, threads, found)
    facts = {"load_average": load_average, "size": asdict(Size()), "batch": BATCH, "runs": runs}
    return measure.write("flow-step-quick" if arguments.quick else "flow-step", facts, body, arguments.out)


def measured(flow: str, arguments: argparse.Namespace) -> list[dict]:
    """All contenders of one flow, in turns."""
    batches = data(seed=0)
    contenders = list(contenders_of(flow, arguments))
    rows = [
        {
            "name": contender.entry.name,
            "flow": flow,
            "label": contender.label,
            "compiled": contender.compiled,
            "parameters": contender.parameters,
            "ms": [],
            "cpu_ms": [],
            "loss": [],
        }
        for contender in contenders
    ]
    for contender in contenders:
        for x in batches[: arguments.warmup]:
            contender.step(x)
    for round_ in range(arguments.repeats):
        picked = [batches[(round_ * arguments.steps + i) % NUM_BATCHES] for i in range(arguments.steps)]
        for contender, row in zip(contenders, rows, strict=True):
            wall, processor = time.perf_counter(), time.process_time()
            losses = [contender.step(x) for x in picked]
            row["ms"].append(1e3 * (time.perf_counter() - wall) / arguments.steps)
            row["cpu_ms"].append(1e3 * (time.process_time() - processor) / arguments.steps)
            row["loss"].append(torch.stack(losses).mean().item())
    for row in rows:
        print(f"{row['name']:20}{row['label']:28}{measure.spread(row['ms'], 2)} ms", flush=True)
    return rows


def contenders_of(flow: str, arguments: argparse.Namespace) -> Iterator[Contender]:
    """Build those that are installed, from one seed each; one line for each that cannot run here."""
    for entry in ENTRIES:
        if entry.flow != flow or (arguments.only and entry.library not in arguments.only):
            continue
        if not measure.is_installed(MODULES[entry.library]):
            print(f"skipping {entry.name}: `{MODULES[entry.library]}` is not installed")
            continue
        label = LABELS.get(entry.library, entry.library)
        yield contender(entry, label, compiled=False)
        if arguments.compiled:
            yield contender(entry, f"{label}, compiled", compiled=True)


def contender(entry: Entry, label: str, *, compiled: bool) -> Contender:
    """Build one model; `compiled` puts log p(x) through `torch.compile`, ours as one graph."""
    torch.manual_seed(0)
    density = entry.build(Size())
    density.model.train()
    parameters = [p for p in density.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    log_prob = density.log_prob
    if compiled:
        log_prob = torch.compile(log_prob, fullgraph=entry.library == "ours")

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = -log_prob(x).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Contender(entry, label, compiled, sum(p.numel() for p in parameters), step)


def data(*, seed: int) -> list[Tensor]:
    """Batches of correlated, curved, standardized rows."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(BATCH * NUM_BATCHES, Size.dim, generator=generator)
    mix = torch.randn(Size.dim, Size.dim, generator=generator) / Size.dim**0.5
    x = u @ mix + (2 * u.roll(1, 1)).sin()
    return list(((x - x.mean(0)) / x.std(0)).split(BATCH))


def section(flow: str, threads: int, rows: list[dict]) -> list[str]:
    """The table of one flow at one number of threads."""
    if not rows:
        return []
    lines = [
        (
            row["label"],
            measure.spread(row["ms"], 1),
            ratio(row, rows, "ms"),
            measure.spread(row["cpu_ms"], 1),
            ratio(row, rows, "cpu_ms"),
            f"{row['loss'][0]:.2f}",
            f"{row['loss'][-1]:.2f}",
            f"{row['parameters']:,}",
        )
        for row in rows
    ]
    header = (
        "contender",
        "ms",
        "x fastest peer",
        "CPU ms",
        "x fastest peer",
        "first loss",
        "last loss",
        "parameters",
    )
    return [f"## {FLOWS[flow]}, {threads} thread(s)", "", *measure.table(header, lines), ""]


def ratio(row: dict, rows: list[dict], figure: str) -> str:
    """Median over rounds of the ratio to the peer of the same kind with the lowest median, with its range."""
    peers = [
        peer for peer in rows if not peer["name"].startswith("ours") and peer["compiled"] == row["compiled"]
    ]
    if not peers:
        return ""
    fastest = min(peers, key=lambda peer: measure.median(peer[figure]))
    return measure.spread([a / b for a, b in zip(row[figure], fastest[figure], strict=True)], 2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Milliseconds of a training step of a flow, beside the peers."
    )
    parser.add_argument("--flows", nargs="+", choices=list(FLOWS), default=list(FLOWS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=15, help="rounds; every contender runs once in each")
    parser.add_argument("--steps", type=int, default=20, help="steps in a round")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the first round")
    parser.add_argument("--only", nargs="+", choices=list(MODULES), help="libraries")
    parser.add_argument("--compiled", action="store_true", help="also every contender through torch.compile")
    parser.add_argument("--quick", action="store_true", help="few steps: does it run at all")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = 3
    return arguments


if __name__ == "__main__":
    main()
