"""KL(q || p) in nats of six families of flows fitted to the four 2-D energies of Rezende & Mohamed.

    python -m benchmarks.energies

Every family is fitted with 2, 8 and 32 layers to every energy, from several seeds, by minimizing the reverse KL with
samples of q. log Z of the energies is known from quadrature (`targets.py`), so that the KL is absolute: 0 is a perfect
fit. All energies and seeds of one family and depth have equally many parameters and are trained at once, by
`torch.func.vmap` over stacked parameters. Finished fits are kept in `--work`; a run that was cut goes on there.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from benchmarks import measure
from benchmarks.energies_families import DEPTHS, FAMILIES
from benchmarks.targets import ENERGIES, bin_masses, histogram, integrals, missed, walled
from latentflows.core.noise import stream

BINS = 40  # for the mass that a fit misses
PIXELS = 128  # of the picture
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Protocol:
    """How every family is trained and measured.

    Args:
        steps: Steps of Adam.
        batch: Samples of q in a step.
        first_beta: Weight of the energy in the first step; it rises linearly to 1.
        annealed: Share of the steps after which the weight is 1.
        max_norm: Largest norm of one fit's gradient.
        decay: Share of the last steps in which the learning rate falls to 0, along a cosine.
        samples: Fresh samples for the reported KL, and for the histogram.
    """

    steps: int = 3_000
    batch: int = 256
    first_beta: float = 0.01
    annealed: float = 0.5
    max_norm: float = 10.0
    decay: float = 0.5
    samples: int = 200_000

    def beta(self, step: int) -> float:
        """Weight of the energy."""
        ramp = self.annealed * self.steps
        return 1.0 if step >= ramp else self.first_beta + (1 - self.first_beta) * step / ramp

    def rate(self, step: int) -> float:
        """Factor of the learning rate."""
        done = max(0.0, (step / self.steps - (1 - self.decay)) / self.decay) if self.decay else 0.0
        return 0.5 * (1 + math.cos(math.pi * done))


class Fits:
    """One family at one depth: all energies times all seeds, their parameters stacked.

    Args:
        family: Name in `FAMILIES`.
        depth: Number of layers.
        seeds: One start each; a start is the same for all energies.
    """

    def __init__(self, family: str, depth: int, seeds: list[int]) -> None:
        self.rows = [(energy, seed) for energy in ENERGIES for seed in seeds]
        self.repeats = len(seeds)
        models = []
        for _, seed in self.rows:
            with stream(seed, depth):
                models.append(FAMILIES[family].make(depth))
        self.skeleton = models[0].train()
        stacked, self.buffers = stack_module_state(models)
        self.parameters = {name: nn.Parameter(value.detach()) for name, value in stacked.items()}
        self.count = sum(p[0].numel() for p in self.parameters.values())

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise (fits, N, 2) to samples and log q, with every fit's own parameters."""

        def one(parameters: dict, buffers: dict, u: Tensor) -> tuple[Tensor, Tensor]:
            x, log_det = functional_call(self.skeleton, (parameters, buffers), (u,))
            return x, -0.5 * u.square().sum(-1) - LOG_2PI - log_det

        return vmap(one)(self.parameters, self.buffers, noise)

    def energy(self, x: Tensor) -> Tensor:
        """The energy that each fit is trained on, (fits, N)."""
        parts = x.split(self.repeats)
        return torch.cat([walled(name, part) for name, part in zip(ENERGIES, parts, strict=True)])

    def clip(self, max_norm: float) -> None:
        """Shorten every fit's gradient on its own; a gradient that is not finite is a step not taken."""
        gradients = [p.grad.flatten(1) for p in self.parameters.values() if p.grad is not None]
        norm = torch.stack([g.square().sum(1) for g in gradients]).sum(0).sqrt()
        factor = (max_norm / norm).clamp_max(1.0)[:, None]
        for g in gradients:
            g.copy_(torch.where(norm[:, None].isfinite(), g * factor, 0.0))


def fit(family: str, depth: int, seeds: list[int], protocol: Protocol) -> tuple[list[dict], Tensor]:
    """Train and measure; return one row per energy and seed, and the histograms (fits, PIXELS, PIXELS)."""
    fits = Fits(family, depth, seeds)
    rate = FAMILIES[family].rate
    optimizer = torch.optim.Adam(fits.parameters.values(), lr=rate)
    generator = torch.Generator().manual_seed(depth)
    started = time.process_time()
    for step in range(protocol.steps):
        optimizer.param_groups[0]["lr"] = rate * protocol.rate(step)
        noise = torch.randn(len(fits.rows), protocol.batch, 2, generator=generator)
        optimizer.zero_grad()
        x, log_q = fits.draw(noise)
        (log_q + protocol.beta(step) * fits.energy(x)).mean(1).sum().backward()
        fits.clip(protocol.max_norm)
        optimizer.step()
    seconds = time.process_time() - started
    rows, pictures = evaluate(fits, protocol)
    shared = {
        "family": family,
        "depth": depth,
        "parameters": fits.count,
        "steps": protocol.steps,
        "learning_rate": rate,
        "cpu_seconds_for_all": round(seconds, 1),
    }
    return [{**shared, **row} for row in rows], pictures


@torch.no_grad()
def evaluate(fits: Fits, protocol: Protocol) -> tuple[list[dict], Tensor]:
    """KL(q || p) with its Monte Carlo error, the mass missed, and histograms, from fresh samples."""
    generator = torch.Generator().manual_seed(2**40)
    samples, ratios = [], []
    for _ in range(protocol.samples // 5_000):
        x, log_q = fits.draw(torch.randn(len(fits.rows), 5_000, 2, generator=generator))
        samples.append(x)
        ratios.append((log_q + fits.energy(x)).double())
    z, ratio = torch.cat(samples, 1), torch.cat(ratios, 1)
    rows, pictures = [], []
    for index, (energy, seed) in enumerate(fits.rows):
        kl = ratio[index].mean().item() + integrals(energy, cells=1_000).log_z
        error = ratio[index].std().item() / math.sqrt(ratio.shape[1])
        if kl < -5 * error:
            raise RuntimeError(
                f"KL(q || p) = {kl:.4f} < 0 for {energy}, seed {seed}: a log-determinant is wrong."
            )
        share, mass = histogram(z[index], BINS), bin_masses(energy, BINS)
        rows.append(
            {
                "energy": energy,
                "seed": seed,
                "kl": kl,
                "error": error,
                "missed": missed(mass, share),
                "outside": 1 - share.sum().item(),
            }
        )
        pictures.append(histogram(z[index], PIXELS).float())
    return rows, torch.stack(pictures)


def run(arguments: argparse.Namespace) -> Path:
    """Fit what is not there yet, and write the table."""
    load_average = measure.load_average()
    torch.set_num_threads(arguments.threads)
    protocol = Protocol(**({"steps": arguments.steps} if arguments.steps else {}))
    if arguments.rate:
        FAMILIES.update({name: replace(family, rate=arguments.rate) for name, family in FAMILIES.items()})
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for family in arguments.families:
        for depth in arguments.depths:
            path = arguments.work / f"{family}-{depth}.pt"
            key = {"seeds": arguments.repeats, **asdict(protocol), "rate": FAMILIES[family].rate}
            kept = torch.load(path) if path.exists() else None
            if kept is None or kept["key"] != key:
                found, pictures = fit(family, depth, list(range(arguments.repeats)), protocol)
                kept = {"key": key, "rows": found, "pictures": pictures}
                torch.save(kept, path)
            rows += kept["rows"]
            print(summary(kept["rows"]), flush=True)
    facts = {
        "load_average": load_average,
        "protocol": asdict(protocol),
        "integrals": {name: asdict(integrals(name)) for name in ENERGIES},
        "runs": rows,
    }
    name = "energies-quick" if arguments.quick else "energies"
    return measure.write(name, facts, table(rows, protocol, arguments.repeats), arguments.out)


def summary(rows: list[dict]) -> str:
    """One line about the fits of a family at a depth."""
    first = rows[0]
    middle = {
        energy: statistics.median(row["kl"] for row in rows if row["energy"] == energy) for energy in ENERGIES
    }
    values = "  ".join(f"{energy} {kl:.3f}" for energy, kl in middle.items())
    return (
        f"{first['family']:10}K = {first['depth']:<3}{first['parameters']:>7,} parameters  "
        f"{first['cpu_seconds_for_all']:6.0f} s  {values}"
    )


NOTES = """\
KL(q || p) in nats of the fit with the median over {seeds} seeds, and in brackets the smallest and the largest; from
{samples:,} fresh samples each. 0 is a perfect fit. `missed` is the share of p in squares of side 0.2 that get less than
a tenth of their mass from q: a dropped mode, which the reverse KL forgives (half of p missed costs log 2 = 0.69).
Parameters include the base's four (mean and log-scale). Seconds are processor time of one fit: all fits of a row were
trained at once, and their time was divided by their number.

All fits: Adam, {steps:,} steps of {batch} samples, gradient norm at most {max_norm:g}, learning rate constant over the
first half and falling to 0 along a cosine over the second; the energy is multiplied by a factor that rises from
{first_beta} to 1 over the first half. Learning rates by family: {rates}.

| | {names} |
| --- | {marks} |
| log Z on the box [-4, 4]^2 | {boxes} |
| log Z with the wall | {logs} |
| entropy of p | {entropies} |

Largest Monte Carlo error of a KL in the table: {error:.4f} nats.
"""


def table(rows: list[dict], protocol: Protocol, seeds: int) -> list[str]:
    """The body of the result file."""
    known = {name: integrals(name) for name in ENERGIES}
    families = list(dict.fromkeys(row["family"] for row in rows))

    def cells(value: Callable[[str], float]) -> str:
        return " | ".join(f"{value(name):.6f}" for name in ENERGIES)

    notes = NOTES.format(
        seeds=seeds,
        names=" | ".join(ENERGIES),
        marks=" | ".join("---:" for _ in ENERGIES),
        boxes=cells(lambda name: known[name].log_z_box),
        logs=cells(lambda name: known[name].log_z),
        entropies=cells(lambda name: known[name].entropy),
        error=max(row["error"] for row in rows),
        rates=", ".join(f"{FAMILIES[family].label} {FAMILIES[family].rate:g}" for family in families),
        **asdict(protocol),
    )
    header = ("family", "K", "parameters", *(f"{n} KL (missed)" for n in ENERGIES), "CPU seconds per fit")
    lines = []
    for family in families:
        for depth in sorted({row["depth"] for row in rows}):
            mine = [row for row in rows if row["family"] == family and row["depth"] == depth]
            if mine:
                lines.append(line(mine))
    return [notes, *measure.table(header, lines), ""]


def line(rows: list[dict]) -> tuple[str, ...]:
    """One row of the table: a family at a depth."""
    first = rows[0]
    cells = []
    for energy in ENERGIES:
        mine = sorted((row for row in rows if row["energy"] == energy), key=lambda row: row["kl"])
        middle = mine[(len(mine) - 1) // 2]
        cells.append(f"{measure.spread([row['kl'] for row in mine], 3)} ({100 * middle['missed']:.0f} %)")
    seconds = f"{first['cpu_seconds_for_all'] / len(rows):.1f}"
    return (
        FAMILIES[first["family"]].label,
        str(first["depth"]),
        f"{first['parameters']:,}",
        *cells,
        seconds,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="KL in nats of flows fitted to four 2-D energies.")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--depths", nargs="+", type=int, default=list(DEPTHS))
    parser.add_argument("--repeats", type=int, default=3, help="starts of every fit")
    parser.add_argument("--steps", type=int, help="steps of every fit, if not the protocol's")
    parser.add_argument("--rate", type=float, help="learning rate of every fit, if not the family's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few steps and one seed: does it run at all")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/energies"), help="folder of the finished fits"
    )
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    parser.add_argument(
        "--picture", type=Path, help="file to draw the fits into, e.g. docs/pictures/energies.png"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.steps = 1, 20
        arguments.work = arguments.work.with_name("energies-quick")
    return arguments


def main() -> None:
    """Fit, write the table, and draw."""
    arguments = _arguments()
    print(run(arguments))
    if arguments.picture:
        from benchmarks.energies_picture import draw

        draw(arguments.work, arguments.picture)


if __name__ == "__main__":
    main()
