"""Figures: of which points, with which noise, of which likelihood, and never better for what is broken."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal

from latentflows.core import noise
from latentflows.core.errors import LatentFlowsError
from latentflows.data import ArraySplit
from latentflows.evaluation import (
    Annealing,
    Pixels,
    evaluate_annealed,
    evaluate_bidirectional,
    evaluate_bounds,
    evaluate_gaps,
    evaluate_holes,
    evaluate_information,
    evaluate_likelihood,
    evaluate_neighbors,
    evaluate_samples,
    evaluate_units,
)
from latentflows.evaluation import bounds as bounds_module
from latentflows.evaluation import exact as exact_module
from latentflows.evaluation.bounds import evaluate_reconstruction
from latentflows.generation import attribute_vector, class_means, interpolate, reconstruct, sample, traverse
from latentflows.models import DensityModel
from latentflows.studies.building.build import build_model
from latentflows.studies.measuring.measure import finish_prior
from latentflows.testing import randomize
from tests.evaluation.test_bounds import Points
from tests.known_defects.parts import POSTERIORS, PRIORS, configuration, fitted, points, posterior_model
from tests.known_defects.parts import data as clouds
from tests.linear_gaussian import LinearGaussian
from tests.studies.matrix import KINDS, SHAPE
from tests.training.tiny import Fixed, vae

pytestmark = pytest.mark.filterwarnings("ignore")

# -- the likelihood of images of 16 pixels, given 3 latents ---------------------------------------------------------


def continuous(kind: str):
    with noise.stream(4):
        model = build_model(configuration("latent_dim=3", likelihood=kind), SHAPE).double().eval()
        randomize(model, 0.7)
    return model


@pytest.mark.parametrize(
    "kind", [k for k in KINDS["likelihood"] if k not in ("categorical", "logistic", "flow")]
)
def test_a_likelihood_of_images_sums_over_their_pixels_and_over_nothing_else(kind):
    """Wrong: the constant of as many dimensions as there are latents, a shape that broadcasts to (B, B, B)."""
    model = continuous(kind)
    z, x = torch.randn(4, 5, 3).double(), torch.rand(5, *SHAPE).double().round()
    p = model.decode(z)
    log_p = p.log_prob(x)
    assert log_p.shape == (4, 5)
    pixels = torch.zeros(4, 5, 16).double()
    if kind in ("gaussian", "laplace"):
        scale = p.log_scale.exp().expand(4, 5, *SHAPE)
        family = Normal if kind == "gaussian" else Laplace
        pixels = family(p.mean, scale).log_prob(x).flatten(2)
        torch.testing.assert_close(log_p, pixels.sum(-1))
    alone = torch.stack([model.decode(z[:, i : i + 1]).log_prob(x[i : i + 1])[:, 0] for i in range(5)], 1)
    torch.testing.assert_close(log_p, alone)


# -- the whole set, and the same figure twice -----------------------------------------------------------------------


def test_figures_are_means_over_the_whole_set_also_where_the_last_block_is_smaller(monkeypatch):
    """Wrong: a return inside the loop over batches, a sum divided by their number."""
    monkeypatch.setattr(bounds_module, "_BLOCK_LATENTS", 40)
    monkeypatch.setattr(bounds_module, "_RECONSTRUCTED", 10)
    monkeypatch.setattr(exact_module, "_BLOCK_NUMBERS", 20)
    example = LinearGaussian()
    x = example.data(23)
    by_hand = sum(-float(example.log_evidence(point[None])) for point in x) / 23
    figures = evaluate_bounds(example.model, Points(x), num_importance_samples=4).figures()
    assert figures["nll"]["mean"] == pytest.approx(by_hand, abs=1e-9)
    assert -figures["elbo"]["mean"] == pytest.approx(by_hand, abs=1e-9)
    for parameter in example.model.likelihood.parameters():
        torch.nn.init.zeros_(parameter)  # now p(x|z) does not depend on z
    expected = Normal(torch.zeros(()).double(), 0.7).log_prob(x).sum(-1).mean()
    figure = evaluate_reconstruction(example.model, Points(x), 23)
    assert figure["mean"] == pytest.approx(float(expected), abs=1e-9)
    model = DensityModel(vae(prior="real_nvp").prior).double()
    z = torch.randn(23, 2).double()
    mean = -model.density().log_prob(z).mean()
    assert evaluate_likelihood(model, Points(z)).figures()["nll"]["mean"] == pytest.approx(
        float(mean), abs=1e-6
    )


LABELS = torch.arange(8) % 2
GIVEN = {
    "bounds": lambda m, x: evaluate_bounds(m, Points(x), num_importance_samples=3).nll,
    "samples": lambda m, x: sample(m, 4),
    "reconstructions": lambda m, x: reconstruct(m, x),
    "interpolations": lambda m, x: interpolate(m, x[:2], x[2:4], 3),
    "traversals": lambda m, x: traverse(m, x[0], x=x, steps=3)[0],
    "class means": lambda m, x: class_means(m, x, LABELS)[0],
    "attributes": lambda m, x: attribute_vector(m, x, LABELS.bool()),
    "units": lambda m, x: evaluate_units(m, Points(x)).figures()["posterior_scale"]["mean"],
}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("kind", ["gaussian", "iaf", "planar"])
def test_what_is_measured_or_shown_is_the_same_the_second_time(kind, name):
    """Wrong: an embedding that is drawn anew in eval mode, whatever the seed says."""
    model, x = posterior_model(kind).float(), points(8).float()
    first = torch.as_tensor(GIVEN[name](model, x))
    torch.rand(7)
    noise.standard_normal((3,), like=first)
    assert torch.equal(torch.as_tensor(GIVEN[name](model.train(), x)), first)


@pytest.mark.parametrize("kind", [kind for kind in POSTERIORS if "gaussian" not in kind and kind != "noisy"])
def test_reconstructions_start_from_the_end_of_the_flow(kind):
    model, x = posterior_model(kind), points(3)
    with noise.stream(1):
        shown = model.reconstruct(x)
    with noise.stream(1), torch.no_grad():
        z = model.encode(x).sample()
    torch.testing.assert_close(shown, model.decode_mean(z))


# -- NaN ------------------------------------------------------------------------------------------------------------

IMAGES = Fixed(32)
SHORT = Annealing(2, num_chains=1, num_leapfrog_steps=1, num_pilot_chains=1, num_pilot_moves=1)
FIGURES = {
    "bounds": lambda m: evaluate_bounds(m, IMAGES, num_importance_samples=3).figures(),
    "reconstruction": lambda m: {"reconstruction": evaluate_reconstruction(m, IMAGES, 8)},
    "annealed": lambda m: evaluate_annealed(m, IMAGES, SHORT, num_images=4).figures(),
    "bidirectional": lambda m: evaluate_bidirectional(m, SHORT, num_images=4).figures(),
    "gaps": lambda m: evaluate_gaps(m, IMAGES, num_images=4, num_samples=20, num_steps=3).figures(),
    "holes": lambda m: evaluate_holes(m, IMAGES, num_permutations=19).figures(),
    "information": lambda m: evaluate_information(m, IMAGES).figures(),
    "samples": lambda m: evaluate_samples(
        m, IMAGES, Pixels(), data="t", split="t", extrapolate=False
    ).figures(),
    "neighbors": lambda m: evaluate_neighbors(sample(m, 16), IMAGES, IMAGES).figures(),
}
OF_PARTS = {
    "posterior": ("bounds", "reconstruction", "gaps", "holes", "information"),
    "prior": ("bounds", "annealed", "bidirectional", "gaps", "holes", "information", "samples", "neighbors"),
    "likelihood": (
        "bounds", "reconstruction", "annealed", "bidirectional", "gaps", "samples", "neighbors",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part, names in OF_PARTS.items() for name in names]
)
def test_a_nan_gives_an_error_or_no_figure_and_never_a_number(part, name):
    """Wrong: nan_to_num, a comparison that NaN passes, draws that take NaN for 0."""
    with noise.stream(7):
        model = vae("gaussian", "real_nvp")
    with torch.no_grad():
        for parameter in getattr(model, part).parameters():
            parameter.view(-1)[0] = math.nan
    try:
        figures = FIGURES[name](model)
    except LatentFlowsError:
        return
    assert all(figure is None or figure["mean"] is None for figure in figures.values())


@pytest.mark.parametrize(
    ("part", "kind"),
    [("prior", kind) for kind in PRIORS if kind != "standard"]
    + [("likelihood", kind) for kind in KINDS["likelihood"]],
)
def test_draws_of_what_is_nan_are_nan(part, kind):
    model = build_model(configuration(**{part: kind}), SHAPE).eval()
    with torch.no_grad():
        for parameter in [*getattr(model, part).parameters(), *model.posterior.parameters()]:
            parameter.fill_(math.nan)
    try:
        finish_prior(model, 0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            drawn = model.sample_latents(3) if part == "prior" else model.decode(torch.randn(3, 2)).sample()
    except LatentFlowsError:
        return
    if kind == "bpf":  # its tails do not read the weights: the numeric inverse warned that it failed
        assert any("numeric inverse failed" in str(warning.message) for warning in told)
        return
    assert drawn.isnan().flatten(1).any(1).all()


def test_a_nan_in_the_data_is_refused_before_anything_learns():
    broken = clouds().train.x.clone()
    broken[3, 0, 0, 0] = math.nan
    with pytest.raises(LatentFlowsError, match="finite"):
        ArraySplit(broken, values="continuous")


def test_data_outside_the_unit_interval_are_no_mistake():
    """Wrong: an assertion of [0, 1] in a sampler that only reads latents."""
    source = clouds()
    model = fitted(configuration(prior="real_nvp"), source)
    drawn: Tensor = sample(model, 200)
    assert drawn.min() < -1
    assert drawn.max() > 2
    assert evaluate_bounds(model, source.test, num_importance_samples=3).nll.isfinite().all()
