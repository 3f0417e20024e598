"""What combines with what, found out by trying: the table in `docs/combinations.md`, and runs of 50 steps.

python -m tests.studies.matrix > docs/combinations.md      the table
python -m tests.studies.matrix --train                     every pair of kinds of any two parts, 50 steps each
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from itertools import combinations

import torch

from latentflows.core.errors import CombinationError, ConfigurationError, LatentFlowsError
from latentflows.data import from_tensors
from latentflows.generation import sample
from latentflows.studies.build import build_model, build_options, build_stages
from latentflows.studies.combinations import LIKELIHOODS_OF
from latentflows.studies.configuration import EvaluationSettings
from latentflows.studies.measure import evaluate, finish_prior
from latentflows.studies.options import parts
from latentflows.studies.overrides import configuration_from
from latentflows.training import fit

PARTS = ("posterior", "prior", "likelihood", "objective")
KINDS = {part: list(parts()[part]) for part in PARTS}
SHAPE = (1, 4, 4)
POINTS = 64
SIZES = {
    "num_layers": 2, "num_blocks": 1, "width": 8, "heads": 1, "depth": 1, "num_components": 3, "num_exemplars": 8,
    "num_proposals": 20, "num_steps": 3, "num_normalizer_samples": 30, "num_features": 4,
}  # fmt: skip
USUAL = {"posterior": "gaussian", "prior": "standard", "likelihood": "bernoulli", "objective": "elbo"}
OWN_STAGE = ("noise_contrastive", "adversarial")
LEVELS = ("two_level", "dlgm")  # posterior and prior share them
WITHOUT_PRIOR = ("autoencoder", "regularized_autoencoder", "sparse_autoencoder")


def overrides(**kinds: str) -> list[str]:
    """A small configuration of these kinds, and what they need around them: data, a plan of two stages."""
    for one, other in (("posterior", "prior"), ("prior", "posterior")):
        if kinds.get(one) in LEVELS:
            kinds.setdefault(other, kinds[one])
    kinds = USUAL | kinds
    if kinds["posterior"] == "delta" and kinds["objective"] == "elbo":
        kinds["objective"] = "autoencoder"
    lines = [
        "latent_dim=4",
        "network.width=8",
        "network.depth=1",
        "training.epochs=13",
        "training.batch_size=16",
    ]
    lines += [f"{part}={kind}" for part, kind in kinds.items()]
    for part, kind in kinds.items():
        fields = parts()[part][kind].model_fields
        lines += [f"{part}.{key}={value}" for key, value in SIZES.items() if key in fields]
    lines += [f"data.preparation={LIKELIHOODS_OF[kinds['likelihood']][0]}"]
    apart = kinds["objective"] in WITHOUT_PRIOR and kinds["prior"] != "standard"
    if apart or kinds["prior"] in OWN_STAGE:
        lines += ["training.plan=two_stage", "training.prior_epochs=13"]
    return lines


@cache
def refusal(pairs: tuple[tuple[str, str], ...]) -> str | None:
    """Why these kinds do not fit; None if they do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            configuration = configuration_from({}, overrides(**dict(pairs)))
            model = build_model(configuration, SHAPE)
            for stage in build_stages(configuration, model, POINTS):
                stage.check(model)
    except (CombinationError, ConfigurationError) as reason:
        return str(reason)
    return None


def data_of(preparation: str):
    """Points that a likelihood of this preparation is one of, as three equal splits."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(POINTS, *SHAPE, generator=generator)
    x = {"dynamic_binary": (u > 0.5).float(), "unit": (u * 16).floor().clamp(max=16) / 16}.get(preparation, u)
    values = {"dynamic_binary": "binary", "unit": "unit"}.get(preparation, "continuous")
    return from_tensors(x, x[:16], x[:16], values=values)


def train(pairs: tuple[tuple[str, str], ...]) -> None:
    """Build, train about 50 steps of every stage, evaluate and draw samples."""
    configuration = configuration_from({}, overrides(**dict(pairs)))
    data = data_of(LIKELIHOODS_OF[configuration.likelihood.kind][0])
    model = build_model(configuration, SHAPE)
    stages = build_stages(configuration, model, len(data.train))
    history = fit(model, stages, data.train, validation=data.validation, options=build_options(configuration))
    assert history.status == "finished", history.reason
    assert history.skipped_steps == 0
    finish_prior(model, 0)
    settings = EvaluationSettings(num_importance_samples=3)
    figures = evaluate(model, data, settings, None)["figures"]
    assert all(figure is None or figure["mean"] is not None for figure in figures.values())
    x = sample(model, 3)
    assert x.shape == (3, *SHAPE)
    assert torch.isfinite(x).all()


def covering() -> list[tuple[tuple[str, str], ...]]:
    """Rows of one kind of each part in which every fitting pair of kinds of two parts stands at least once."""
    missing = {
        frozenset({(one, a), (other, b)})
        for one, other in combinations(PARTS, 2)
        for a in KINDS[one]
        for b in KINDS[other]
    }
    rows = []
    while missing:
        row: dict[str, str] = dict(sorted(min(missing, key=sorted)))
        for part in (part for part in PARTS if part not in row):
            row[part] = _most_useful(part, row, missing)
        missing -= {frozenset(pair) for pair in combinations(row.items(), 2)}
        rows.append(tuple((part, row[part]) for part in PARTS))
    return rows


def _most_useful(part: str, row: dict[str, str], missing: set[frozenset[tuple[str, str]]]) -> str:
    """The kind that covers most missing pairs with the row, among those that fit it, or among all if none does."""

    def gain(kind: str) -> int:
        return sum(frozenset({(part, kind), item}) in missing for item in row.items())

    kinds = sorted(KINDS[part], key=gain, reverse=True)
    for kind in kinds:
        if refusal(tuple((row | {part: kind}).items())) is None:
            return kind
    return kinds[0]


def _cell(one: str, a: str, other: str, b: str) -> str:
    return "yes" if refusal(((one, a), (other, b))) is None else "–"


def table(one: str, other: str) -> list[str]:
    """A table with a row for every kind of `one`, and why pairs are refused."""
    names = KINDS[other]
    lines = [f"| {one} \\ {other} | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    lines += [f"| {a} | {' | '.join(_cell(one, a, other, b) for b in names)} |" for a in KINDS[one]]
    reasons: dict[str, dict[str, list[str]]] = {}
    for a in KINDS[one]:
        for b in names:
            why = refusal(((one, a), (other, b)))
            if why is not None:
                reasons.setdefault(_without_kinds(why, a, b), {}).setdefault(b, []).append(a)
    for why, pairs in reasons.items():
        listed = "; ".join(f"{b} with {', '.join(rows)}" for b, rows in pairs.items())
        lines += ["", f"**–** {listed}: *{why}*"]
    return [*lines, ""]


def _without_kinds(text: str, *names: str) -> str:
    """A refusal with … for the kinds of this pair, so that pairs refused alike share one."""
    for name in names:
        text = text.replace(f"kind`={name} ", "kind`=… ").replace(f"kind={name} ", "kind=… ")
        text = text.replace(f"kind={name}.", "kind=….").replace(f"got {name}.", "got ….")
    return " ".join(text.split())


HEAD = """# What combines with what

Made by `python -m tests.studies.matrix`, which builds a small model of every pair and asks every stage whether it can
train it; nothing in these tables is written by hand. What is not in question stays at its default: a Gaussian
posterior, the prior N(0, I), a Bernoulli likelihood and the ELBO. A posterior without a density is trained as an
autoencoder; a posterior with several levels of latents goes with the prior of its name. Priors that learn by an
objective of their own, and all priors beside an autoencoder, are trained in two stages. A pair that is refused is
refused when the model is built, by the message that stands below its table.

Images alone fit the networks `gated_convolution` and `residual_convolution`; every kind works with every network.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for one, other in (("posterior", "prior"), ("objective", "posterior"), ("objective", "prior")):
        lines += [f"## {one.capitalize()} and {other}", "", *table(one, other)]
    lines += ["## Likelihood and data", "", "| likelihood | `data.preparation` |", "|---|---|"]
    lines += [f"| {kind} | {', '.join(fitting)} |" for kind, fitting in LIKELIHOODS_OF.items()]
    lines += [
        "",
        "Every likelihood works with every posterior, prior and objective. With a fixed variance `gaussian`,",
        "`laplace` and `student_t` are also trained on `unit` data; there they give no bits per dimension.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table, or train every row."""
    if sys.argv[1:] != ["--train"]:
        sys.stdout.write(page())
        return 0
    failed = refused = 0
    rows = covering()
    warnings.simplefilter("ignore")
    for number, row in enumerate(rows, 1):
        name = " ".join(f"{part}={kind}" for part, kind in row)
        if refusal(row) is not None:
            refused += 1
            continue
        try:
            train(row)
        except (AssertionError, LatentFlowsError, RuntimeError, ValueError) as error:
            failed += 1
            print(f"FAILED {number}/{len(rows)} {name}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(rows)} rows: {len(rows) - refused - failed} trained, {refused} refused, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
