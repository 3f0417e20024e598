"""Wall time of 8 seeds trained one after another, together, and in two processes: where does training together pay?

    python -m benchmarks.stacked

Every way of training 8 runs that differ in their seed is timed over whole runs: steps, validation, diagnostics, and
with "auto" the measurement that chooses. Each has processes of its own; the ways take turns.
"""

import argparse
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import measure

SEEDS = 8
Way = Literal["auto", "together", "alone"]


@dataclass(frozen=True)
class Case:
    """One model.

    Args:
        label: For the table.
        points: Training points, and validation points.
        batch: Batch size.
        epochs: Of each run.
    """

    label: str
    points: tuple[int, int]
    batch: int
    epochs: int


CASES = {
    "digits": Case("gated MLP VAE 64-64-64-8, prior N(0, I)", (1408, 360), 64, 40),
    "digits-nvp": Case("the same, Real NVP prior (4 layers, width 64)", (1408, 360), 64, 40),
    "flow-2": Case("Real NVP density of 2-D data (8 layers, width 64)", (1408, 360), 64, 40),
    "flow-16": Case("Real NVP density of 16-D data (8 layers, width 64)", (1408, 360), 64, 40),
    "mnist": Case("gated MLP VAE 784-300-300-40, prior N(0, I)", (6400, 1000), 128, 8),
}


@dataclass(frozen=True)
class Mode:
    """A way of training all seeds: how, with how many threads, in how many processes."""

    label: str
    way: Way
    threads: int = 1
    processes: int = 1


MODES = {
    "alone": Mode("one after another, 1 thread", "alone"),
    "alone-2": Mode("one after another, 2 threads", "alone", threads=2),
    "together": Mode("together, 1 thread", "together"),
    "together-2": Mode("together, 2 threads", "together", threads=2),
    "auto": Mode("chosen by measurement, 1 thread", "auto"),
    "pool": Mode("2 processes, one after another in each", "alone", processes=2),
    "pool-together": Mode("2 processes, together in each", "together", processes=2),
    "pool-auto": Mode("2 processes, chosen by measurement", "auto", processes=2),
}

NOTES = """\
Wall and processor seconds of `fit_together` for 8 seeds, without imports and the building of models; of several
repeats the smallest of each, since the machine was shared. `x wall` and `x CPU` are ratios to the first row that
trains one after another: for two processes the wall time is that of the slower one, both started at the same moment,
and processor time is their sum. Below 1 is faster.
"""


def main() -> None:
    """Read the arguments and run, or be one worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(**json.loads(arguments.worker))))
        return
    print(run(arguments))


def run(arguments: argparse.Namespace) -> Path:
    """Measure and write the result file; returns its path."""
    load = measure.load_average()
    runs = []
    for case in arguments.only:
        for repeat in range(arguments.repeats):
            for mode in arguments.modes:
                runs.append({"case": case, "mode": mode, "repeat": repeat, **timed(case, MODES[mode])})
                print(case, mode, runs[-1]["wall"], runs[-1]["cpu"], *runs[-1]["told"], flush=True)
    body = [NOTES]
    for case in arguments.only:
        body += section(case, arguments.modes, [each for each in runs if each["case"] == case])
    return measure.write("stacked", {"load_average": load, "runs": runs}, body, arguments.out)


def timed(case: str, mode: Mode) -> dict:
    """Train all seeds in one way: wall seconds, processor seconds, and what the runs said of themselves."""
    share = SEEDS // mode.processes
    start = time.time() + (
        0 if mode.processes == 1 else 25
    )  # until then both have imported and built everything
    parts: list[dict] = []

    def one(number: int) -> None:
        seeds = list(range(number * share, (number + 1) * share))
        task = {"case": case, "way": mode.way, "seeds": seeds, "start": start}
        parts.append(measure.in_own_process("benchmarks.stacked", task, mode.threads))

    workers = [threading.Thread(target=one, args=(number,)) for number in range(mode.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if len(parts) < mode.processes:
        raise RuntimeError(f"A process of {mode} did not end well.")
    return {
        "wall": max(part["wall"] for part in parts),
        "cpu": sum(part["cpu"] for part in parts),
        "late": max(part["late"] for part in parts),
        "load": measure.load_average(),
        "told": sorted({line for part in parts for line in part["told"]}),
        "loss": sum(part["loss"] for part in parts) / len(parts),
    }


def work(case: str, way: Way, seeds: list[int], start: float) -> dict:
    """Train these seeds in this process."""
    import torch

    from latentflows.training import History, fit_together

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    fit_together(jobs(case, seeds[:1], epochs=1), way="alone")  # what is loaded at the first use is loaded
    work = jobs(case, seeds, epochs=CASES[case].epochs)
    told: list[str] = []
    late = time.time() - start
    time.sleep(max(0.0, -late))
    wall, cpu = time.perf_counter(), time.process_time()
    histories = fit_together(work, way=way, announce=told.append)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    losses = [history.epochs[-1]["train"]["loss"] for history in histories if isinstance(history, History)]
    if len(losses) < len(seeds):
        raise RuntimeError(f"A run failed: {histories}")
    return {
        "wall": round(wall, 3),
        "cpu": round(cpu, 3),
        "late": round(late, 1),
        "told": told if way == "auto" else [],
        "loss": sum(losses) / len(losses),
    }


def jobs(case: str, seeds: list[int], *, epochs: int) -> list:
    """Build one run for each seed."""
    import torch

    from latentflows.objectives import ELBO, MaximumLikelihood
    from latentflows.training import Job, Stage

    is_flow, settings = case.startswith("flow"), CASES[case]
    train, validation = data(case)
    objective = MaximumLikelihood() if is_flow else ELBO()
    stage = Stage("joint", objective, batch_size=settings.batch, max_epochs=epochs, gradient_clip_val=10.0)
    built = []
    for seed in seeds:
        torch.manual_seed(seed)
        built.append(Job(model(case), [stage], train, validation, None, seed))
    return built


def model(case: str):
    """Build the model of a case."""
    from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, Flow, StandardGaussian
    from latentflows.models import VAE
    from latentflows.models.density import DensityModel
    from latentflows.models.presets import real_nvp
    from latentflows.networks import GatedMLP

    if case.startswith("flow"):
        size = int(case.removeprefix("flow-"))
        return DensityModel(Flow(StandardGaussian(size), real_nvp(size, num_layers=8, width=64, depth=1)))
    pixels, width, latents = (784, 300, 40) if case == "mnist" else (64, 64, 8)
    prior = StandardGaussian(latents)
    if case == "digits-nvp":
        prior = Flow(prior, real_nvp(latents, num_layers=4, width=64, depth=1))
    encoder = GatedMLP((pixels,), (2 * latents,), width=width, depth=2)
    decoder = GatedMLP((latents,), (pixels,), width=width, depth=2)
    return VAE(
        AmortizedGaussian(latents, (pixels,), encoder), prior, AmortizedBernoulli((pixels,), latents, decoder)
    )


def data(case: str) -> tuple:
    """Draw binary images of a few blobs, or points of a bent distribution: the speeds are those of any data."""
    import torch

    generator = torch.Generator().manual_seed(0)
    count, size = sum(CASES[case].points), {"flow-2": 2, "flow-16": 16, "mnist": 784}.get(case, 64)
    z = torch.randn(count, 2, generator=generator)
    x = (z @ torch.randn(2, size, generator=generator)).tanh() + 0.3 * torch.randn(
        count, size, generator=generator
    )
    if not case.startswith("flow"):
        x = (x > 0).float()
    first = CASES[case].points[0]
    return Points(x[:first]), Points(x[first:])


class Points:
    """A data set in memory."""

    bits_offset = 0.0

    def __init__(self, x) -> None:
        self.x, self.event_shape = x, tuple(x.shape[1:])
        self.values = "binary" if bool((x.square() == x).all()) else "continuous"

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices):
        """Return the data points at `indices`."""
        from latentflows.core.batches import Batch

        return Batch(self.x[indices])


def section(case: str, modes: list[str], runs: list[dict]) -> list[str]:
    """The table of one model."""
    best = {
        mode: {key: min(each[key] for each in runs if each["mode"] == mode) for key in ("wall", "cpu")}
        for mode in modes
    }
    reference = next((best[mode] for mode in modes if MODES[mode].way == "alone"), None)
    rows = []
    for mode in modes:
        ratios = (
            ["", ""]
            if reference is None
            else [f"{best[mode][key] / reference[key]:.2f}" for key in ("wall", "cpu")]
        )
        rows.append([MODES[mode].label, f"{best[mode]['wall']:.2f}", f"{best[mode]['cpu']:.2f}", *ratios])
    told = sorted({line for each in runs for line in each["told"]})
    loads = [each["load"] for each in runs]
    settings = CASES[case]
    return [
        f"## {case}",
        "",
        f"{settings.label}; {SEEDS} seeds, {settings.points[0]:,} points, batches of {settings.batch}, "
        f"{settings.epochs} epochs. Load average {min(loads):.1f} to {max(loads):.1f}.",
        "",
        *measure.table(["way", "wall, s", "CPU, s", "x wall", "x CPU"], rows),
        "",
        *(f"- {line}" for line in told),
        "",
    ]


if __name__ == "__main__":
    main()
