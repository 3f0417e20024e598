"""Sampling a Transformer autoregressive layer: cached keys and values, the naive loop, Jacobi iteration.

    python -m benchmarks.transformer_cache

One small layer over sequences is fitted for a few seconds to a process with known structure; its weights serve every
length, as its positions are relative. Then each way of sampling, and the density pass, take turns in rounds within one
process per length, in float32 without gradients.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from latentflows.bijections import TransformerAutoregressive

CHANNELS, WIDTH, DEPTH, HEADS = 4, 64, 2, 2
FIT_LENGTH = 64
WAYS = {
    "density": "density pass (x to u)",
    "cached": "**cached loop**",
    "loop": "naive loop",
    "jacobi": "Jacobi",
}

NOTES = f"""\
One layer, tokens of {CHANNELS} numbers, width {WIDTH}, {DEPTH} attention layers of {HEADS} heads, fitted for {{steps}}
steps to x_t = 0.8 R x_(t-1) + exp(tanh(x_(t-1)) / 2) e_t / 2 with a fixed rotation R. `ms` is wall-clock time for a
batch of {{batch}} sequences, median over rounds with the smallest and the largest; `x density` the median over rounds
of the ratio to the density pass of the same round, `x naive` of the naive loop's time to this. FLOPs are those of
PyTorch's counter per sequence, attention included. `off` is the largest difference in any entry: of samples from the
cached loop's, of the density pass from the noise that they were made of. Jacobi stops when a further pass changes no
entry of a sequence by more than 100 float32 roundings, or after 30 passes; the rest is solved by the cached loop. Both
loops do T steps; the naive one passes over all tokens before, for every token.
"""


def layer(tokens: int) -> TransformerAutoregressive:
    return TransformerAutoregressive((CHANNELS, tokens), width=WIDTH, depth=DEPTH, heads=HEADS)


def sequences(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw from the process, (count, C, length)."""
    rotation = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(7)))[0]
    x, frames = torch.zeros(count, CHANNELS), []
    for _ in range(length):
        noise = torch.randn(count, CHANNELS, generator=generator)
        x = 0.8 * x @ rotation + (x.tanh() / 2).exp() * noise / 2
        frames.append(x)
    return torch.stack(frames, 2)


def fit(steps: int, path: Path) -> None:
    """Fit the layer by maximum likelihood and save its weights."""
    torch.manual_seed(0)
    generator, made = torch.Generator().manual_seed(0), layer(FIT_LENGTH)
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-3)
    for _ in range(steps):
        u, log_det = made.inverse(sequences(32, FIT_LENGTH, generator))
        loss = (0.5 * u.square().sum((1, 2)) - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(made.state_dict(), path)


def work(task: dict) -> dict:
    """Inside a worker process: fit (no length given), or time every way of sampling at one length."""
    torch.set_num_threads(task["threads"])
    if task["tokens"] is None:
        fit(task["steps"], Path(task["weights"]))
        return {}
    made = layer(task["tokens"]).eval().requires_grad_(False)
    made.load_state_dict(torch.load(task["weights"], weights_only=True))
    u = torch.randn(task["batch"], CHANNELS, task["tokens"], generator=torch.Generator().manual_seed(1))
    x, log_det = made(u)
    report = made.jacobi(u)
    runs = {way: runner(made, way, x if way == "density" else u) for way in WAYS}
    off = {
        way: max_difference(run(), (u, -log_det) if way == "density" else (x, log_det))
        for way, run in runs.items()
    }
    rounds = [{way: milliseconds(run) for way, run in runs.items()} for _ in range(task["repeats"])]
    return {
        "tokens": task["tokens"],
        "threads": task["threads"],
        "rounds": rounds,
        "off": off,
        "flops": {way: flops(made, way, (x if way == "density" else u)[:1]) for way in WAYS},
        "passes": report.passes,
        "fallback": int(report.fallback.sum()),
    }


def runner(made: TransformerAutoregressive, way: str, value: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """What is timed: one call on a batch, without gradients."""
    chosen = copy.deepcopy(made)
    if way != "density":
        chosen.inversion = way

    def run() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return chosen.inverse(value) if way == "density" else chosen(value)

    return run


def max_difference(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def flops(made: TransformerAutoregressive, way: str, value: Tensor) -> int:
    """FLOPs of one sequence. In float64 and with plain attention: the counter knows no kernels made for a CPU."""
    run = runner(copy.deepcopy(made).double(), way, value.double())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def section(result: dict) -> list[str]:
    """The table of one length."""
    rounds, rows = result["rounds"], []
    jacobi = f", {result['passes']} passes, {result['fallback']} rows fell back"
    for way, label in WAYS.items():
        times = [one[way] for one in rounds]
        rows.append(
            (
                label + (jacobi if way == "jacobi" else ""),
                measure.spread(times, 1),
                f"{measure.median(one[way] / one['density'] for one in rounds):.1f}",
                f"{measure.median(one['loop'] / one[way] for one in rounds):.1f}",
                f"{result['flops'][way] / 1e6:,.1f}",
                f"{result['off'][way]:.0e}",
            )
        )
    header = ("", "ms", "x density", "x naive", "MFLOP per sequence", "off")
    return [f"## T = {result['tokens']}, {result['threads']} thread(s)", "", *measure.table(header, rows), ""]


def main() -> None:
    """Read the arguments and run, or be one worker."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(work(json.loads(arguments.worker))))
        return
    load_average, results = measure.load_average(), []
    module = "benchmarks.transformer_cache"
    with tempfile.TemporaryDirectory() as folder:
        task = {
            "weights": str(Path(folder) / "weights.pt"),
            "steps": arguments.steps,
            "batch": arguments.batch,
            "repeats": arguments.repeats,
        }
        measure.in_own_process(module, task | {"tokens": None, "threads": 1}, 1)
        for threads in arguments.threads:
            for tokens in arguments.tokens:
                here = task | {"tokens": tokens, "threads": threads}
                results.append(measure.in_own_process(module, here, threads))
                print("\n".join(section(results[-1])), flush=True)
    body = [NOTES.format(steps=arguments.steps, batch=arguments.batch)]
    for result in results:
        body += section(result)
    facts = {"load_average": load_average, "quick": arguments.quick, "runs": results}
    name = "transformer-cache-quick" if arguments.quick else "transformer-cache"
    print(measure.write(name, facts, body, arguments.out))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Sampling with a key/value cache, naively, and by Jacobi iteration."
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300, help="of the fit")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=5, help="rounds; every way runs once in each")
    parser.add_argument(
        "--quick", action="store_true", help="short sequences, a short fit: does it run at all"
    )
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.steps, arguments.batch = [8, 16], 20, 4
    return arguments


if __name__ == "__main__":
    main()
