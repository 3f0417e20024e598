"""When does a flow prior that learns together with the encoder stay stable, and what helps where it does not?

    python -m benchmarks.prior_stability

VAEs with a flow prior on digits: one stage at rising learning rates, with one remedy at a time, beside two stages and
two stages then joint, from several seeds. The second group has a likelihood of small fixed variance, under which the
posterior may grow needle-sharp and the prior has to follow it. What is shown of a run is its test NLL, how far the
validation ELBO fell after its best epoch, steps skipped and states restored, and the diagnostics of its last epoch.
"""

import argparse
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import measure
from latentflows.core.noise import stream
from latentflows.data import ImageData, load
from latentflows.evaluation import evaluate_bounds
from latentflows.studies import build_model, build_options, build_stages, configuration_from
from latentflows.training import fit

EPOCHS = 40
COMMON = [
    "latent_dim=8", "network=gated_mlp", "network.width=64", "network.depth=1", "prior.num_layers=4", "prior.width=32",
    f"training.epochs={EPOCHS}", "training.batch_size=64",
]  # fmt: skip
SETUPS = {
    "one stage": [],
    "one stage, warm-up of the KL over 10 epochs": ["objective.warmup_epochs=10"],
    "one stage, gradients clipped at 20": ["training.gradient_clip=20"],
    "one stage, moving average of weights (0.99)": ["training.ema_decay=0.99"],
    "one stage, learning rate rises over 200 steps": ["training.warmup_steps=200"],
    "one stage, warm-up, clipping and cosine": [
        "objective.warmup_epochs=10", "training.gradient_clip=20", "training.schedule=cosine",
    ],
    "two stages": ["training.plan=two_stage", f"training.prior_epochs={EPOCHS}"],
    "two stages, then joint": [
        "training.plan=two_stage_joint", f"training.prior_epochs={EPOCHS // 2}", f"training.joint_epochs={EPOCHS // 2}",
    ],
}  # fmt: skip
GROUPS = {
    "binary digits, Bernoulli likelihood": [],
    "dequantized digits, Gaussian likelihood of standard deviation 0.02": [
        "data.preparation=dequantized", "likelihood=gaussian", "likelihood.variance=fixed", "likelihood.scale=0.02",
    ],
}  # fmt: skip
BINARY, NARROW = GROUPS
CASES = [  # group, prior, learning rate
    (BINARY, "real_nvp", 3e-3),
    (BINARY, "real_nvp", 3e-2),
    (NARROW, "real_nvp", 3e-3),
    (NARROW, "real_nvp", 3e-2),
]


@dataclass(frozen=True)
class Outcome:
    """What became of one run; NLL on all test images with K = 100."""

    group: str
    prior: str
    rate: float
    setup: str
    seed: int
    status: str
    nll: float
    fall: float
    skipped: int
    rollbacks: int
    ratio: float
    latent_scale: float
    active: float
    mmd: float
    seconds: float


def run(group: str, prior: str, rate: float, setup: str, seed: int, data: ImageData, epochs: int) -> Outcome:
    """Train and measure one model."""
    lines = [
        f"prior={prior}",
        *COMMON,
        *GROUPS[group],
        *SETUPS[setup],
        f"training.learning_rate={rate}",
        f"seed={seed}",
    ]
    if epochs != EPOCHS:
        lines += [f"training.epochs={epochs}"]
        lines += [line.rpartition("=")[0] + f"={epochs}" for line in SETUPS[setup] if "_epochs=" in line]
    configuration = configuration_from({}, lines)
    model = build_model(configuration, data.train.event_shape)
    started = time.perf_counter()
    stages = build_stages(configuration, model, len(data.train))
    options = build_options(configuration)
    history = fit(model, stages, data.train, validation=data.validation, seed=seed, options=options)
    seconds = time.perf_counter() - started
    try:
        with stream(0):
            nll = float(evaluate_bounds(model, data.test, num_importance_samples=100).nll.mean())
    except Exception:  # a model that diverged has no figure
        nll = math.nan
    last = history.epochs[-1]["diagnostics"]
    elbo = [line["validation"]["elbo"] for line in history.epochs if "elbo" in (line["validation"] or {})]
    elbo = [value for value in elbo if value is not None]
    return Outcome(
        group, prior, rate, setup, seed, history.status, nll,
        fall=max(elbo) - elbo[-1] if elbo else math.nan,
        skipped=history.skipped_steps,
        rollbacks=history.rollbacks,
        ratio=last.get("posterior_scale", math.nan) / (last.get("latent_scale") or math.nan),
        latent_scale=last.get("latent_scale", math.nan),
        active=last.get("active_units", math.nan),
        mmd=last.get("mmd", math.nan),
        seconds=seconds,
    )  # fmt: skip


def spread(values: list[float], decimals: int) -> str:
    """Mean and standard deviation over seeds; of what is finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "none finite"
    deviation = statistics.stdev(finite) if len(finite) > 1 else 0.0
    lost = f" ({len(values) - len(finite)} not finite)" if len(finite) < len(values) else ""
    return f"{statistics.fmean(finite):.{decimals}f} ± {deviation:.{decimals}f}{lost}"


def table(outcomes: list[Outcome], group: str, prior: str, rate: float) -> list[str]:
    lines = [
        "", f"### {group}; {prior}, learning rate {rate:g}", "",
        "| training | test NLL, nats | fall of validation ELBO after its best epoch | skipped steps, rollbacks | "
        "posterior / latent scale | latent scale | active units of 8 | MMD² of q(z) to p(z) |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for setup in SETUPS:
        rows = [o for o in outcomes if (o.group, o.prior, o.rate, o.setup) == (group, prior, rate, setup)]
        if rows:
            lines.append(
                f"| {setup} | {spread([o.nll for o in rows], 2)} | {spread([o.fall for o in rows], 2)} | "
                f"{sum(o.skipped for o in rows)}, {sum(o.rollbacks for o in rows)} | "
                f"{spread([o.ratio for o in rows], 3)} | {spread([o.latent_scale for o in rows], 2)} | "
                f"{spread([o.active for o in rows], 1)} | {spread([o.mmd for o in rows], 4)} |"
            )
    return lines


def body(outcomes: list[Outcome], seeds: int, epochs: int) -> list[str]:
    lines = [
        f"Protocol: digits, 8 latents, gated MLP of width 64, Real NVP priors of 4 layers of width 32, {epochs} epochs "
        "of Adam at batch 64 (two stages: as many for the prior; then joint: half as many for each), "
        f"{seeds} seeds; test NLL with K = 100 on 400 images, of the weights of the best validation epoch. ± is the "
        "standard deviation over seeds. The last four columns are of the last epoch of the last stage, on a "
        "sixteenth as many validation images as there are for training.",
    ]
    for case in CASES:
        if any((o.group, o.prior, o.rate) == case for o in outcomes):
            lines += table(outcomes, *case)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs: does it run")
    parser.add_argument("--repeats", type=int, help="not used: seeds are the repeats")
    parser.add_argument("--threads", type=int, help="not used: set OMP_NUM_THREADS")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    arguments = parser.parse_args()
    seeds, epochs = (1, 2) if arguments.quick else (arguments.seeds, EPOCHS)
    outcomes: list[Outcome] = []
    load_average = measure.load_average()
    for group, prior, rate in CASES[:1] if arguments.quick else CASES:
        data = load("digits", preparation="dequantized" if GROUPS[group] else "dynamic_binary")
        for setup in SETUPS:
            for seed in range(seeds):
                outcomes.append(run(group, prior, rate, setup, seed, data, epochs))
            last = outcomes[-1]
            print(f"{group} {prior} {rate:g} {setup}: NLL {last.nll:.2f}, {last.seconds:.0f} s", flush=True)
    facts = {"load_average": load_average, "runs": [asdict(outcome) for outcome in outcomes]}
    name = "prior-stability-quick" if arguments.quick else "prior-stability"
    print(measure.write(name, facts, body(outcomes, seeds, epochs), arguments.out))


if __name__ == "__main__":
    main()
