"""The bound of a model of codes is a bound, by enumeration of all codes, and its figures say what they are."""

import itertools
import math

import pytest
import torch

from latentflows.core.errors import CombinationError, DataError, NonFiniteError, ShapeError
from latentflows.distributions import AmortizedLogisticMixture, StandardGaussian, logistic_raw_shape
from latentflows.evaluation import (
    Pixels,
    evaluate_bounds,
    evaluate_codes,
    evaluate_likelihood,
    evaluate_samples,
    manifold_figures,
)
from latentflows.generation import sample
from latentflows.models import DensityModel, vq_vae
from tests.models.codes import DATA, SMALL, Points, binary, tiny, two_levels
from tests.models.parts import vae


def test_the_bound_lies_below_the_likelihood_of_all_codes_together():
    model = tiny()
    x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5))).double()
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    log_prior = model.prior().log_prob(every)
    log_likelihood = model.decode(model.embed(every)[:, None]).log_prob(x)  # (codes, data)
    exact = (log_prior[:, None] + log_likelihood).logsumexp(0)
    assert exact.exp().sum().item() == pytest.approx(1)  # it is a distribution over the data
    found = evaluate_codes(model, Points(x))
    assert (found.elbo < exact).all()
    assert (found.elbo > exact - 20).all()
    index = (found.codes * torch.tensor([3, 1])).sum(1)
    by_hand = log_prior[index] + log_likelihood[index, torch.arange(len(x))]
    torch.testing.assert_close(found.elbo, by_hand)
    torch.testing.assert_close(model.trace(x).log_weight[0], by_hand)
    assert len(index.unique()) > 1


def test_figures_of_the_bound():
    model = two_levels()
    x = binary(9)
    found = evaluate_codes(model, Points(x), num_images=7)
    figures = found.figures()
    assert found.reconstruction.shape == (7,)
    assert figures["nll_bound"]["mean"] == pytest.approx(-figures["elbo"]["mean"])
    assert figures["nll_bound"]["standard_error"] == pytest.approx(float(found.elbo.std() / math.sqrt(7)))
    assert figures["bits_per_dim_bound"]["mean"] == pytest.approx(
        -figures["elbo"]["mean"] / (64 * math.log(2))
    )
    assert "nll" not in figures  # that column is importance weighted
    assert found.protocol()["num_importance_samples"] is None
    torch.testing.assert_close(found.elbo, model.trace(x[:7]).log_weight[0].double())
    for level, perplexity, used in zip((0, 1), found.perplexity, found.code_usage, strict=True):
        codes = found.codes.split([4, 16], 1)[level].flatten()
        shares = torch.bincount(codes, minlength=6) / len(codes)
        assert perplexity == pytest.approx(float(torch.special.entr(shares).sum().exp()), rel=1e-5)
        assert used == pytest.approx(float((shares > 0).float().mean()))


def test_the_first_images_of_a_larger_evaluation_are_the_same(monkeypatch):
    model, source = two_levels(), Points(binary(11))
    whole = evaluate_codes(model, source)
    monkeypatch.setattr("latentflows.evaluation.codes._BLOCK_TOKENS", 60)
    torch.testing.assert_close(evaluate_codes(model, source, num_images=4).elbo, whole.elbo[:4])


def test_evaluations_of_other_models_are_refused():
    model = two_levels()
    with pytest.raises(CombinationError, match="For a `VQVAE` use `evaluate_codes`"):
        evaluate_bounds(model, Points(binary()))
    with pytest.raises(CombinationError, match="Use `evaluate_bounds` for a `VAE`"):
        evaluate_codes(vae(), Points(binary()))
    with pytest.raises(CombinationError, match="is discrete"):
        evaluate_codes(model, Points(binary(), values="unit"))
    with pytest.raises(ShapeError, match="must have the model's shape"):
        evaluate_codes(model, Points(binary(2, (1, 4, 4))))
    with pytest.raises(DataError, match="needs binary data"):
        evaluate_codes(model, Points(torch.rand(2, *DATA)))
    with torch.no_grad():
        model.prior.members[0].embedding.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="Log-probabilities must be finite"):
        evaluate_codes(model, Points(binary()))
    assert evaluate_likelihood(DensityModel(StandardGaussian(2)), Points(torch.randn(3, 2), "continuous"))


def test_codes_of_gray_levels_have_bits_per_dimension():
    raw = logistic_raw_shape(DATA)
    model = vq_vae(DATA, (4, 4), likelihood=AmortizedLogisticMixture, raw_shape=raw, **SMALL).eval()
    x = torch.randint(0, 256, (3, *DATA)) / 255
    figures = evaluate_codes(model, Points(x, "unit")).figures()
    assert figures["code_nll"]["mean"] == pytest.approx(16 * math.log(6), rel=1e-5)  # the prior is uniform
    assert 4 < figures["bits_per_dim_bound"]["mean"] < 20


def test_samples_of_codes_are_measured_as_others():
    model, x = two_levels(), binary(40)
    quality = evaluate_samples(
        model, Points(x), Pixels(), data="noise", split="test", num_neighbors=3, temperature=0.7, seed=4
    )
    drawn = sample(model, 40, temperature=0.7, seed=4).flatten(1)
    expected = manifold_figures(x.flatten(1), drawn, num_neighbors=3)
    assert quality.manifold == expected
