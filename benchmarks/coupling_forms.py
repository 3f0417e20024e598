"""Parameters and time of the two classic forms of one affine coupling, here and in normflows.

    python -m benchmarks.coupling_forms

64 variables, two hidden layers of 128, 512 rows; a pass is the map from data to noise with its log-determinant, a step
the gradient of the mean log-determinant as well. All forms live in one process and take turns; the time is
that of the lowest tenth of the rounds, in milliseconds on one thread, since other work can only add to it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import measure
from latentflows.bijections import AffineCoupling, half_mask
from latentflows.networks import MLP

DIM, WIDTH, ROWS = 64, 128, 512
Map = Callable[[Tensor], tuple[Tensor, Tensor]]


class TwoNetworks(nn.Module):
    """Shift and log-scale from a network each, event to event."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.log_scale = (MLP(DIM, DIM, width=WIDTH, depth=2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shift(x), self.log_scale(x)], 1)


def forms() -> dict[str, tuple[nn.Module, Map]]:
    """Build every form that can be built; those of normflows only where it is installed."""
    mask = half_mask(DIM, first=True)

    def one(in_shape: tuple, out_shape: tuple, context: int) -> nn.Module:
        return MLP(in_shape, out_shape, width=WIDTH, depth=2)

    masked = AffineCoupling(DIM, mask=mask, network=lambda *_: TwoNetworks(), layout="masked")
    split = AffineCoupling(DIM, mask=mask, network=one)
    made = {
        "latentflows, layout masked, two networks": (masked, masked.inverse),
        "latentflows, layout split": (split, split.inverse),
    }
    if measure.is_installed("normflows"):
        import normflows

        networks = (normflows.nets.MLP([DIM, WIDTH, WIDTH, DIM]) for _ in range(2))
        theirs = normflows.flows.MaskedAffineFlow(mask.float(), *networks)
        block = normflows.flows.AffineCouplingBlock(normflows.nets.MLP([DIM // 2, WIDTH, WIDTH, DIM]))
        made["normflows MaskedAffineFlow"] = (theirs, theirs.inverse)
        made["normflows AffineCouplingBlock"] = (block, block.inverse)
    return made


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Write one row per form to the folder of results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    rounds, load_average = arguments.rounds, measure.load_average()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, made = torch.randn(ROWS, DIM), forms()

    def forward(run: Map) -> None:
        with torch.no_grad():
            run(x)

    def step(module: nn.Module, run: Map) -> None:
        module.zero_grad()
        value, log_det = run(x)
        (value.square().mean() - log_det.mean()).backward()

    passes: dict[str, list[float]] = {name: [] for name in made}
    steps: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, (module, run) in made.items():
            passes[name].append(timed(lambda run=run: forward(run)))
            steps[name].append(timed(lambda module=module, run=run: step(module, run)))
    results = []
    for name, (module, _) in made.items():
        count = sum(parameter.numel() for parameter in module.parameters())
        lowest = [statistics.quantiles(times[name], n=10)[0] for times in (passes, steps)]
        results.append({"form": name, "parameters": count, "pass_ms": lowest[0], "step_ms": lowest[1]})
    header = ["form", "parameters", "density pass, ms", "with gradients, ms"]
    rows = [
        [row["form"], f"{row['parameters']:,}", f"{row['pass_ms']:.2f}", f"{row['step_ms']:.2f}"]
        for row in results
    ]
    body = [
        "64 variables, two hidden layers of 128, 512 rows, one thread; the lowest tenth of the rounds.",
        "",
    ]
    body += measure.table(header, rows)
    print("\n".join(body))
    facts = {"load_average": load_average, "rounds": rounds, "forms": results}
    print(measure.write("coupling-forms", facts, body, arguments.out))


if __name__ == "__main__":
    main()
