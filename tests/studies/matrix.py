"""What combines with what, found out by trying: the table in `docs/combinations.md`, and runs of 50 steps.

python -m tests.studies.matrix > docs/combinations.md      the table
python -m tests.studies.matrix --train                     every pair of kinds of any two parts, 50 steps each
"""

from __future__ import annotations

import re
import sys
import warnings
from functools import cache
from itertools import combinations

import torch

from latentflows.core.errors import CombinationError, ConfigurationError, LatentFlowsError
from latentflows.data import ImageData, ambiguous_shapes, from_tensors
from latentflows.generation import sample
from latentflows.studies.building.build import build_model, build_options, build_stages, context_shape_of
from latentflows.studies.measuring.measure import evaluate, finish_prior
from latentflows.studies.settings.combinations import LIKELIHOODS_OF
from latentflows.studies.settings.configuration import EvaluationSettings
from latentflows.studies.settings.options import parts
from latentflows.studies.settings.overrides import configuration_from
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
OWN_STAGE = tuple(name for name, kind in parts()["prior"].items() if kind.stage_of_its_own)
LEVELS = ("two_level", "dlgm")  # posterior and prior share them
WITHOUT_PRIOR = tuple(name for name, kind in parts()["objective"].items() if kind.without_prior)


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


MODELS = [kind for kind in parts()["model"] if kind != "vae"]
MODEL_SIZES = {
    "num_codes": 4, "dim": 2, "width": 4, "num_blocks": 1, "prior_width": 8, "prior_depth": 1, "prior_heads": 2,
    "num_components": 2, "decoder_width": 4,
}  # fmt: skip
DATA_OF_MODEL = {"segmentation_vae": ["data.name=ambiguous_shapes", "data.size=12", "latent_dim=4"]}
OTHER = {
    "posterior": "iaf",
    "prior": "maf",
    "likelihood": "gaussian",
    "objective": "iwae",
}  # than the usual one
PARTS_OF_MODEL = {
    "vq_vae": ("likelihood",),
    "vq_vae_2": ("likelihood",),
    "flow": ("prior",),
    "segmentation_vae": ("prior", "objective"),
}


def model_overrides(model: str, part: str | None = None, kind: str | None = None) -> list[str]:
    """A small configuration of a model that brings parts of its own, with one kind of one part."""
    kinds = {"prior": "real_nvp"} if model == "flow" else {}
    if part is not None and kind is not None:
        kinds[part] = kind
    fields = parts()["model"][model].model_fields
    lines = [
        f"model={model}",
        *(f"model.{key}={value}" for key, value in MODEL_SIZES.items() if key in fields),
    ]
    lines += ["training.epochs=2", "training.batch_size=16", *DATA_OF_MODEL.get(model, [])]
    lines += ["training.prior_epochs=2"] * model.startswith("vq_vae")
    for name, chosen in kinds.items():
        fields = parts()[name][chosen].model_fields
        lines += [f"{name}={chosen}"]
        lines += [f"{name}.{key}={value}" for key, value in SIZES.items() if key in fields and key != "width"]
        lines += [f"{name}.width=16" for key in fields if key == "width"]
    if part == "likelihood" and kind is not None:
        lines += [f"data.preparation={LIKELIHOODS_OF[kind][0]}"]
    return lines


@cache
def model_data(model: str, preparation: str) -> ImageData:
    """Data that a model of its own kind is one of."""
    return ambiguous_shapes(POINTS, 16, 16, size=12) if model in DATA_OF_MODEL else data_of(preparation)


@cache
def model_refusal(model: str, part: str, kind: str) -> str | None:
    """Why this kind of a part does not fit this model; None if it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            configuration = configuration_from({}, model_overrides(model, part, kind))
            data = model_data(model, configuration.data.preparation or "continuous")
            built = build_model(configuration, data.train.event_shape, context_shape_of(data))
            for stage in build_stages(configuration, built, POINTS):
                stage.check(built)
    except (CombinationError, ConfigurationError) as reason:
        return str(reason)
    return None


def train_model(model: str, part: str | None = None, kind: str | None = None) -> None:
    """Build, train a few steps of every stage, evaluate and draw samples."""
    configuration = configuration_from({}, model_overrides(model, part, kind))
    data = model_data(model, configuration.data.preparation or "continuous")
    shape = context_shape_of(data)
    built = build_model(configuration, data.train.event_shape, shape)
    stages = build_stages(configuration, built, len(data.train))
    history = fit(built, stages, data.train, validation=data.validation, options=build_options(configuration))
    assert history.status == "finished", history.reason
    assert history.skipped_steps == 0
    settings = EvaluationSettings(num_importance_samples=3, holes=0, information=0, segmentation=0)
    figures = evaluate(built, data, settings, None)["figures"]
    assert all(figure is None or figure["mean"] is not None for figure in figures.values())
    given = None if shape is None else torch.zeros(3, *shape)
    x = sample(built, 3, context=given)
    assert x.shape == (3, *data.train.event_shape)
    assert torch.isfinite(x).all()


def model_table(model: str) -> list[str]:
    """What of the other settings a model takes, a line for each part, and why the others are refused."""
    lines = [f"### {model}", "", "| part | kinds that it takes |", "|---|---|"]
    reasons: dict[str, list[str]] = {}
    for part in PARTS:
        refused = {kind: model_refusal(model, part, kind) for kind in KINDS[part]}
        if part not in PARTS_OF_MODEL[model]:
            lines += [f"| {part} | not looked at: {_instead(refused[OTHER[part]])} |"]
            continue
        lines += [f"| {part} | {', '.join(kind for kind, why in refused.items() if why is None)} |"]
        for kind, why in refused.items():
            if why is not None:
                reasons.setdefault(_without_kinds(why, kind), []).append(f"{part}={kind}")
    for why, kinds in reasons.items():
        lines += ["", f"**–** {', '.join(kinds)}: *{why}*"]
    return [*lines, ""]


def _instead(refused: str | None) -> str:
    """What decides instead of a part that a model does not look at, from the refusal of one of its kinds."""
    found = re.search(r"is not looked at by model.kind=\w+\. (.*?) Leave it out", refused or "")
    assert found is not None, refused
    return found[1]


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
    return [*lines, *refused_pairs(one, other), ""]


def refused_pairs(one: str, other: str) -> list[str]:
    """Which pairs are refused and why; those that are refused alike together."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for a in KINDS[one]:
        for b in KINDS[other]:
            why = refusal(((one, a), (other, b)))
            if why is not None:
                reasons.setdefault(_without_kinds(why, a, b), {}).setdefault(b, []).append(a)
    lines = []
    for why, pairs in reasons.items():
        listed = "; ".join(f"{b} with {', '.join(rows)}" for b, rows in pairs.items())
        lines += ["", f"**–** {listed}: *{why}*"]
    return lines


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
        "With a fixed variance `gaussian`, `laplace` and `student_t` are also trained on `unit` data; there they give",
        "no bits per dimension. Every likelihood works with every posterior, prior and objective but these:",
        *(line for part in ("posterior", "prior", "objective") for line in refused_pairs("likelihood", part)),
        "",
        "## Other models",
        "",
        "All of the above is `model=vae`. The other models bring parts of their own, and refuse settings that they",
        "would not look at. Those of codes are trained in two stages, the others in one.",
        "",
    ]
    for model in MODELS:
        lines += model_table(model)
    lines.pop()
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
