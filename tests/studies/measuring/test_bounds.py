"""What the stored protocol says a figure is: a probability mass, a density on which data, or no likelihood."""

import json

import pytest
import torch

from latentflows.data.base import ArraySplit, ImageData, ImageSplit
from latentflows.studies.building.build import build_model
from latentflows.studies.measuring.measure import evaluate
from latentflows.studies.results.records import Protocol
from latentflows.studies.settings.evaluation import EvaluationSettings
from latentflows.studies.settings.overrides import configuration_from

PIXELS = (torch.arange(24 * 16).view(24, 1, 4, 4) * 7 % 17).to(torch.uint8)
SETTINGS = {"information": 0, "holes": 0, "num_importance_samples": 2, "num_images": 8}
SIZES = ["latent_dim=2", "network.width=8", "network.depth=1"]
BOUNDED = ["likelihood.variance=fixed", "likelihood.scale=0.2"]


def data(preparation):
    if preparation == "continuous":
        split = ArraySplit(PIXELS / 17, values="continuous")
    else:
        split = ImageSplit(PIXELS, preparation, levels=17)
    return ImageData("dots", split, split, split, description="dots")


def protocol_of(overrides, preparation):
    sizes = [] if "model=flow" in overrides else SIZES
    configuration = configuration_from({}, [f"data.preparation={preparation}", *sizes, *overrides])
    model = build_model(configuration, (1, 4, 4)).eval()
    return evaluate(
        model,
        data(preparation),
        EvaluationSettings(**SETTINGS),  # pyright: ignore[reportArgumentType]
        None,
    )["protocol"]


@pytest.mark.parametrize(
    ("overrides", "preparation", "kind"),
    [
        ([], "dynamic_binary", "probability mass"),
        (["likelihood=categorical", "likelihood.levels=17"], "unit", "probability mass"),
        (["likelihood=logistic", "likelihood.levels=17"], "unit", "probability mass"),
        (["likelihood=gaussian"], "dequantized", "density on dequantized data"),
        (["likelihood=continuous_bernoulli"], "dequantized", "density on dequantized data"),
        (["likelihood=gaussian"], "continuous", "density on real values"),
        (["likelihood=continuous_bernoulli"], "unit", "density on gray levels without noise"),
        (["likelihood=gaussian", *BOUNDED], "unit", "density on gray levels without noise"),
        (["model=flow", "prior=real_nvp"], "dequantized", "density on dequantized data"),
    ],
)
def test_the_protocol_says_what_the_figure_is(overrides, preparation, kind):
    protocol = protocol_of(overrides, preparation)
    assert protocol["likelihood"] == kind
    read = Protocol.model_validate(protocol)
    assert read.compared["likelihood"] == kind
    assert read.conditions.endswith(f"; dots; log p(x): {kind}")


@pytest.mark.parametrize(
    ("known", "why"), [(False, "a few draws carry all its weight"), (True, "comes out below zero")]
)
def test_a_prior_whose_normalizer_misses_mass_has_no_bound(known, why):
    overrides = [
        "data.preparation=dynamic_binary",
        "prior=noise_contrastive",
        "training.plan=two_stage",
        *SIZES,
    ]
    model = build_model(configuration_from({}, overrides), (1, 4, 4)).eval()
    model.prior.normalizer.known.fill_(known)
    model.prior.normalizer.log_mean.fill_(-100.0)
    settings = EvaluationSettings(**SETTINGS)  # pyright: ignore[reportArgumentType]
    found = evaluate(model, data("dynamic_binary"), settings, None)
    assert list(found["figures"]) == ["reconstruction"]
    assert why in found["protocol"]["without_bound"]
    assert "no importance samples" in Protocol.model_validate(found["protocol"]).conditions


@pytest.mark.filterwarnings("ignore:A Bernoulli cross-entropy")
def test_a_cross_entropy_is_no_likelihood():
    protocol = protocol_of(["likelihood=gray_bernoulli"], "unit")
    assert protocol["likelihood"] == "no likelihood"
    assert Protocol.model_validate(protocol).likelihood == "no likelihood"


def test_what_an_earlier_version_measured_is_not_measured_again(tmp_path):
    model = build_model(configuration_from({}, SIZES), (1, 4, 4)).eval()
    settings = EvaluationSettings(**SETTINGS)  # pyright: ignore[reportArgumentType]
    before = evaluate(model, data("dynamic_binary"), settings, tmp_path)
    del before["protocol"]["likelihood"]
    (tmp_path / "evaluation.json").write_text(json.dumps(before))
    again = evaluate(model, data("dynamic_binary"), settings, tmp_path)
    assert again["protocol"] == before["protocol"]
    assert Protocol.model_validate(again["protocol"]).likelihood is None
