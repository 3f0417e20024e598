"""Importance-weighted log p(x) at K = 1,000, beside pythae's `get_nll`: same weights, same images.

    python -m benchmarks.likelihood --data-root DATA/mnist

A VAE is trained briefly with the bare loop; every contender then takes over its weights and estimates the
mean log-likelihood of the same images, each in a process of its own, in turns, with a new seed in every round.
"""

import argparse
import importlib
import json
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure


@dataclass(frozen=True)
class Estimator:
    """One contender: name for `--only`, label, `module:function` under `benchmarks.peers`, module it needs."""

    name: str
    label: str
    function: str
    module: str


ESTIMATORS = (
    Estimator("pythae", "pythae `get_nll`", "pythae_likelihood:log_likelihood", "pythae"),
    Estimator(
        "pythae-no-grad",
        "pythae `get_nll` inside `torch.no_grad()`",
        "pythae_likelihood:log_likelihood_without_gradient",
        "pythae",
    ),
    Estimator(
        "ours", "**latentflows** `evaluate_bounds`", "latentflows_likelihood:log_likelihood", "latentflows"
    ),
)

NOTES = """\
Each contender estimates the mean of log p(x) over the same images with the same weights and K importance
samples per image. The value is the mean over the rounds; its error is the standard error of that mean,
which comes from finite K alone, since the images are fixed. `x pythae` is the median over the rounds of the
ratio of seconds to the call as pythae documents it. Seconds are those of the call alone, after a throwaway
call on one image.

All take the same networks in float32. `get_nll` returns the log-likelihood, not its negative; takes one image
at a time in passes of 100 samples; repeats the encoder for every sample; and rounds K down to whole passes, so K
is a multiple of 100 here. latentflows encodes once, takes K as given, and returns the error of every image and
the effective sample size beside the value.
"""


def main() -> None:
    """Read the arguments and run, or be one worker."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(work(json.loads(arguments.worker))))
        return
    print(run(arguments))


def run(arguments: argparse.Namespace) -> Path | None:
    """Train once, estimate with every contender installed, write the result file; returns its path."""
    load_average = measure.load_average()
    estimators = installed(arguments.only)
    if not estimators:
        return None
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        task = {
            "folder": folder,
            "num_samples": arguments.num_samples,
            "num_images": arguments.num_images,
            "train_epochs": 1 if arguments.quick else 5,
            "data_root": str(arguments.data_root) if arguments.data_root else None,
        }
        for size in arguments.sizes:
            here = task | {"size": size}
            measure.in_own_process("benchmarks.likelihood", here | {"function": None, "threads": 1}, 1)
            for threads in arguments.threads:
                for repeat in range(arguments.repeats):
                    for estimator in estimators:
                        runs.append(measured(estimator, here, threads, repeat))
    body = [NOTES]
    for size in arguments.sizes:
        for threads in arguments.threads:
            body += section(runs, size, threads, arguments)
    facts = {"load_average": load_average, "quick": arguments.quick, "runs": runs}
    return measure.write("likelihood-quick" if arguments.quick else "likelihood", facts, body, arguments.out)


def installed(only: list[str] | None) -> list[Estimator]:
    """The contenders asked for; one line for each that cannot run here."""
    chosen = [estimator for estimator in ESTIMATORS if not only or estimator.name in only]
    for estimator in chosen:
        if not measure.is_installed(estimator.module):
            print(
                f"skipping {estimator.name}: `{estimator.module}` is not installed "
                "(benchmarks/requirements.txt)"
            )
    return [estimator for estimator in chosen if measure.is_installed(estimator.module)]


def measured(estimator: Estimator, task: dict, threads: int, repeat: int) -> dict:
    """One estimate by one contender in its own process."""
    task = task | {"function": estimator.function, "threads": threads, "seed": repeat}
    result = measure.in_own_process("benchmarks.likelihood", task, threads)
    print(
        f"{task['size']:7}{threads} thread(s)  round {repeat + 1}  {estimator.name:16}"
        f"{result['value']:10.3f} nats{result['seconds']:9.2f} s  peak {result['peak_mib']:.0f} MiB",
        flush=True,
    )
    return {"name": estimator.name, "size": task["size"], "threads": threads, "round": repeat, **result}


def work(task: dict) -> dict:
    """Inside a worker process: train and save the networks (no function given), or estimate with them."""
    import torch

    from benchmarks.peers.bare_loop import networks, trained_networks
    from benchmarks.peers.problem import PROBLEMS, load

    torch.set_num_threads(task["threads"])
    problem = PROBLEMS[task["size"]]
    weights = Path(task["folder"]) / f"{problem.name}.pt"
    data, description = load(problem, Path(task["data_root"]) if task["data_root"] else None)
    if task["function"] is None:
        torch.save(trained_networks(problem, data, task["train_epochs"], seed=0).state_dict(), weights)
        return {}
    model = networks(problem)
    model.load_state_dict(torch.load(weights, weights_only=True))
    images = data[-task["num_images"] :]
    module, function = task["function"].split(":")
    log_likelihood = getattr(importlib.import_module(f"benchmarks.peers.{module}"), function)
    log_likelihood(problem, model, images[:1], task["num_samples"], 0)  # warms up
    value, seconds = log_likelihood(problem, model, images, task["num_samples"], task["seed"])
    _, peak = measure.memory()
    return {"value": value, "seconds": seconds, "peak_mib": round(peak, 1), "data": description}


def section(runs: list[dict], size: str, threads: int, arguments: argparse.Namespace) -> list[str]:
    """The table of one size at one number of threads."""
    here = [run for run in runs if run["size"] == size and run["threads"] == threads]
    mine = {
        estimator.name: [run for run in here if run["name"] == estimator.name] for estimator in ESTIMATORS
    }
    rows = []
    for estimator in ESTIMATORS:
        found = mine[estimator.name]
        if not found:
            continue
        seconds = [run["seconds"] for run in found]
        reference = [run["seconds"] for run in mine["pythae"]]
        ratios = [b / a for a, b in zip(seconds, reference, strict=True)] if reference else []
        values = [run["value"] for run in found]
        rows.append(
            (
                estimator.label,
                f"{statistics.mean(values):.3f}",
                f"{statistics.stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else "",
                measure.spread(seconds, 2),
                measure.spread(ratios, 1) if ratios else "",
                f"{measure.median(run['peak_mib'] for run in found):,.0f}",
            )
        )
    header = ("contender", "log p(x), nats", "error", "seconds", "x pythae", "peak MiB")
    about = f"{here[0]['data']}; images: {arguments.num_images}, K = {arguments.num_samples:,}."
    return [f"## {size}, {threads} thread(s)", "", about, "", *measure.table(header, rows), ""]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Importance-weighted log p(x), beside pythae's get_nll.")
    parser.add_argument("--sizes", nargs="+", choices=["mnist", "digits"], default=["mnist", "digits"])
    parser.add_argument("--num-images", type=int, default=100)
    parser.add_argument("--num-samples", type=int, default=1_000, help="K, a multiple of 100")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="rounds; every contender runs once in each")
    parser.add_argument("--only", nargs="+", choices=[estimator.name for estimator in ESTIMATORS])
    parser.add_argument(
        "--data-root", type=Path, help="folder of MNIST's IDX .gz files; else synthetic images"
    )
    parser.add_argument("--quick", action="store_true", help="train one epoch only: does it run at all")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.num_samples % 100:
        parser.error(f"--num-samples must be a multiple of 100; got {arguments.num_samples}.")
    return arguments


if __name__ == "__main__":
    main()
