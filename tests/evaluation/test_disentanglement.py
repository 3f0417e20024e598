import json
import math
import sys

import pytest
import sklearn.metrics
import torch
from torch import nn

from latentflows.core.errors import ConfigurationError, DataError, NonFiniteError, ShapeError
from latentflows.data import ArraySplit
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, Flow, StandardGaussian
from latentflows.evaluation.disentanglement import (
    dci,
    evaluate_disentanglement,
    mutual_information,
    mutual_information_gap,
    sap,
    score_disentanglement,
)
from latentflows.models import VAE, presets
from latentflows.networks import MLP

COUNT = 1200
KINDS = ["perfect", "rotated", "noise"]


def factors(count=COUNT, sizes=(4, 5, 6)):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], 1)


def codes(kind, v):
    generator = torch.Generator().manual_seed(1)
    scaled = (v - v.double().mean(0)) / v.double().std(0)
    if kind == "perfect":  # in another order, one reversed, and two latents that hold nothing
        z = torch.cat([-scaled[:, [2]], torch.zeros(len(v), 1), scaled[:, :2], torch.zeros(len(v), 1)], 1)
    elif kind == "rotated":
        even = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]).double().T).Q.T
        spread = torch.tensor([[2.0, 2, -1], [-1, 2, 2], [2, -1, 2]]).double() / 3
        z = scaled @ (even @ spread)
    else:
        z = torch.zeros(len(v), 4).double()
    return z + (1.0 if kind == "noise" else 1e-3) * torch.randn(
        z.shape, generator=generator, dtype=torch.float64
    )


@pytest.fixture(scope="module")
def scores():
    v = factors()
    return {kind: score_disentanglement(codes(kind, v), v, categorical=[0], num_blocks=3) for kind in KINDS}


def test_one_latent_a_factor_scores_one(scores):
    perfect = scores["perfect"]
    assert perfect.mutual_information_gap.value > 0.93  # the empty latents keep the bias of histograms
    assert perfect.disentanglement.value > 0.99
    assert perfect.completeness.value > 0.99
    assert perfect.informativeness.value > 0.99
    assert (
        perfect.separated_attribute_predictability.value > 0.8
    )  # against chance, 1/4, for the categorical one


def test_a_rotation_keeps_the_information_and_loses_the_rest(scores):
    rotated = scores["rotated"]
    assert rotated.informativeness.value > 0.6
    assert rotated.mutual_information_gap.value < 0.3
    assert rotated.disentanglement.value < 0.5
    assert rotated.completeness.value < 0.5
    assert rotated.separated_attribute_predictability.value < 0.3


def test_noise_scores_nothing(scores):
    noise = scores["noise"]
    assert noise.mutual_information_gap.value < 0.05
    assert noise.disentanglement.value < 0.05
    assert noise.completeness.value < 0.05
    assert noise.informativeness.value == pytest.approx((1 / 4 + 1 / 5 + 1 / 6) / 3, abs=0.05)
    assert noise.separated_attribute_predictability.value < 0.06


def test_figures_have_errors(scores):
    figures = json.loads(json.dumps(scores["rotated"].figures()))
    assert len(figures) == 5
    for figure in figures.values():
        assert figure["standard_error"] > 0
        assert figure["unit"] == "score"


def test_mutual_information_agrees_with_scikit_learn():
    v = factors(400)
    z = codes("rotated", v)
    information, entropy = mutual_information(z, v, num_bins=7)
    for i in range(3):
        edges = torch.linspace(float(z[:, i].min()), float(z[:, i].max()), 8, dtype=torch.float64)
        bins = torch.bucketize(z[:, i].contiguous(), edges[1:-1].contiguous(), right=True)
        for j in range(3):
            exact = sklearn.metrics.mutual_info_score(bins, v[:, j])
            assert float(information[i, j]) == pytest.approx(exact, abs=1e-9)
    assert float(entropy[0]) == pytest.approx(sklearn.metrics.mutual_info_score(v[:, 0], v[:, 0]), rel=1e-9)


def test_the_gap_is_between_the_two_best_latents_over_the_entropy():
    v = torch.arange(400)[:, None] % torch.tensor([4, 5])
    z = torch.stack([v[:, 0], v[:, 0] // 2, v[:, 1]], 1).double()  # 2 bits and 1 bit of the first factor
    assert mutual_information_gap(z, v) == pytest.approx((0.5 + 1) / 2)
    information, entropy = mutual_information(z, v)
    assert information[:, 0].tolist() == pytest.approx([math.log(4), math.log(2), 0])
    assert entropy.tolist() == pytest.approx([math.log(4), math.log(5)])


def test_importances_are_weighed_as_stated():
    from latentflows.evaluation.disentanglement import _concentration

    importance = torch.tensor([[0.6, 0.2], [0.0, 0.8], [0.4, 0.0]]).double()
    mixed = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    first = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4)) / math.log(3)
    second = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)) / math.log(3)
    d, c = _concentration(importance)
    assert d == pytest.approx((0.8 * (1 - mixed) + 0.8 + 0.4) / 2)
    assert c == pytest.approx(((1 - first) + (1 - second)) / 2)
    assert _concentration(torch.zeros(3, 2).double()) == (0, 0)


def test_sap_is_the_gap_of_squared_correlations():
    v = factors(500)[:, :1]
    generator = torch.Generator().manual_seed(3)
    z = torch.stack(
        [v[:, 0] + 2 * torch.randn(500, generator=generator), torch.randn(500, generator=generator)], 1
    )
    r = torch.corrcoef(torch.cat([z, v], 1).T)[:2, 2].square()
    assert sap(z, v) == pytest.approx(float((r[0] - r[1]).abs()), rel=1e-5)


def test_sap_of_a_category_is_the_gap_of_balanced_accuracies():
    generator = torch.Generator().manual_seed(0)
    v = (torch.rand(4000, 1, generator=generator) < 0.1).long()  # 90 % right without looking
    place = torch.where(v[:, 0] == 1, 0.0, 1.0 - 2.0 * torch.randint(2, (4000,), generator=generator))
    z = torch.stack(
        [place, torch.randn(4000, generator=generator)], 1
    )  # between the others: no line finds it
    v3 = torch.where(v == 1, 2, (place[:, None] > 0).long())
    assert sap(z, v3, categorical=[0]) == pytest.approx(1 - 1 / 3, abs=0.06)
    assert sap(torch.stack([v[:, 0] + 0.0, z[:, 1]], 1), v, categorical=[0]) == pytest.approx(0.5, abs=0.06)
    assert sap(z, v3) < 0.6


def vae(mean_of):
    """A model whose posterior mean is known: a linear map of the data, which are one-hot factors."""
    posterior = AmortizedGaussian(3, 15, nn.Linear(15, 6))
    with torch.no_grad():
        posterior.network.weight.zero_()
        posterior.network.bias.zero_()
        posterior.network.weight[:3] = mean_of
    return VAE(posterior, StandardGaussian(3), AmortizedBernoulli(15, 3, MLP(3, 15, width=4, depth=1)))


def test_a_model_is_scored_by_its_posterior_means():
    v = factors(900)
    x = torch.cat([nn.functional.one_hot(v[:, j], size) for j, size in enumerate((4, 5, 6))], 1).float()
    source = ArraySplit(x, values="binary", factors=v)
    perfect = torch.zeros(3, 15)
    perfect[0, :4], perfect[1, 4:9], perfect[2, 9:] = torch.arange(4), torch.arange(5), torch.arange(6)
    model = vae(perfect).train()
    before = torch.get_rng_state()
    found = evaluate_disentanglement(model, source, source.factors, num_blocks=2)
    assert found.mutual_information_gap.value > 0.9
    assert found.separated_attribute_predictability.value > 0.98
    assert found.disentanglement.value > 0.99
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    few = evaluate_disentanglement(model, source, source.factors, num_blocks=2, num_images=100)
    assert few.block_size == 50
    with pytest.raises(ShapeError, match="must have 900 rows"):
        evaluate_disentanglement(model, source, source.factors[:5])
    with pytest.raises(ConfigurationError, match="`num_images` must be from 1 to the 900"):
        evaluate_disentanglement(model, source, source.factors, num_images=901)


def test_the_protocol_says_how_the_latents_were_got():
    v = factors(200)
    x = torch.cat([nn.functional.one_hot(v[:, j], size) for j, size in enumerate((4, 5, 6))], 1).float()
    source, model = ArraySplit(x, values="binary"), vae(torch.randn(3, 15))
    settings = {"num_images": 120, "num_blocks": 2, "num_bins": 5, "seed": 7}
    stated = {"num_images": 120, "block_size": 60, "num_bins": 5, "seed": 7}
    found = evaluate_disentanglement(model, source, v, **settings)
    assert found.protocol() == stated | {"posterior_mean": "closed form"}
    model.posterior = Flow(model.posterior, presets.real_nvp(3, num_layers=2, width=4))
    found = evaluate_disentanglement(model, source, v, **settings)
    assert found.protocol() == stated | {"posterior_mean": "mean of 64 draws"}
    given = score_disentanglement(codes("rotated", v), v, num_blocks=4)
    assert given.protocol() == {"num_images": 200, "block_size": 50, "num_bins": 20, "seed": 0}


def test_the_seed_decides_the_blocks():
    v = factors(300)
    z = codes("rotated", v)
    found = [score_disentanglement(z, v, num_blocks=3, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_scored_is_refused():
    v = factors(100)
    z = codes("rotated", v)
    for wrong in ((z[:, :1], v), (z[:50], v), (z, v.float()), (z[:, 0], v)):
        with pytest.raises(ShapeError, match=r"`codes` must be \(N, L\)"):
            mutual_information_gap(*wrong)
    with pytest.raises(DataError, match=r"Factors \[1\] have one value"):
        sap(z, v * torch.tensor([1, 0, 1]))
    with pytest.raises(NonFiniteError):
        dci(z * torch.nan, v)
    with pytest.raises(ShapeError, match="needs two"):
        dci(z, v[:, :1])
    with pytest.raises(ConfigurationError, match="columns 0 to 2"):
        sap(z, v, categorical=[3])
    with pytest.raises(ConfigurationError, match="`num_bins` must be an integer of at least 2"):
        mutual_information_gap(z, v, num_bins=1)
    for blocks in (0, 6):
        with pytest.raises(ConfigurationError, match="from 1 to 5"):
            score_disentanglement(z, v, num_blocks=blocks)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    v = factors(100)
    with pytest.raises(ConfigurationError, match=r"pip install 'latentflows\[digits\]'"):
        dci(codes("rotated", v), v)
