"""The segmentation model: what its parts read, their bounds, and that it learns masks of more than one mode."""

from functools import partial

import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.data import ambiguous_shapes
from latentflows.distributions import AmortizedMixture, Flow
from latentflows.evaluation import evaluate_bounds, evaluate_segmentation
from latentflows.models import presets, segmentation_vae
from latentflows.objectives import ELBO
from latentflows.training import Stage, fit

SHAPE = (1, 12, 12)
DATA = ambiguous_shapes(64, 8, 20, size=12)
FLOW = partial(presets.real_nvp, 3, num_layers=2, width=8)
SMALL = {"latent_dim": 3, "num_components": 2, "width": 2, "decoder_width": 4}


@pytest.mark.parametrize("flow", [None, FLOW], ids=["mixture", "flow"])
def test_every_part_reads_the_picture_and_every_parameter_learns(flow):
    torch.manual_seed(0)
    model = segmentation_vae(SHAPE, flow=flow, **SMALL)
    assert (model.event_shape, model.latent_shape, model.context_shape) == (SHAPE, (3,), SHAPE)
    assert isinstance(model.prior, AmortizedMixture if flow is None else Flow)
    batch = DATA.train.batch(torch.arange(6))
    other = batch.context.flip(0)
    z = torch.randn(6, 3)
    assert not torch.equal(model.decode_mean(z, batch.context), model.decode_mean(z, other))
    assert not torch.equal(model.encode(batch.x, batch.context).mean, model.encode(batch.x, other).mean)
    assert not torch.equal(model.prior_at(batch.context).log_prob(z), model.prior_at(other).log_prob(z))
    for _ in range(2):  # the flow's last layers start at zero
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        optimizer.zero_grad()
        trace = model.trace(batch.x, context=batch.context)
        (-trace.log_weight).mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.sample(6, context=batch.context).shape == (6, *SHAPE)


def test_posterior_and_mixture_are_bounded():
    model = segmentation_vae(SHAPE, mean_bound=2.0, scale_bound=0.5, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
        q = model.encode(DATA.train.masks[:4, 1].float(), DATA.train.pictures[:4])
        p = model.prior_at(DATA.train.pictures[:4]).components
    for part in (q, p):
        assert 1 < part.mean.abs().max() <= 2
        assert 0.3 < part.log_scale.abs().max() <= 0.5


def test_masks_of_several_modes_are_learned():
    data = ambiguous_shapes(300, 8, 20, size=12)
    with noise.stream(0):
        model = segmentation_vae(SHAPE, latent_dim=2, num_components=4, width=4, decoder_width=8)
    before = evaluate_segmentation(model, data.test, num_samples=20, matched=False)
    stage = Stage("joint", ELBO(kl="monte_carlo"), max_epochs=8, batch_size=16, learning_rate=1e-2)
    fit(model, [stage], data.train, seed=0)
    after = evaluate_segmentation(model, data.test, num_samples=20, matched=False)
    assert after.energy_distance.value < 0.5 * before.energy_distance.value
    assert sum(share.value > 0.05 for share in after.frequencies) >= 2
    bounds = evaluate_bounds(model, data.test, num_importance_samples=5)
    assert float(bounds.nll.mean()) > float(data.test.entropy().mean())  # nothing beats the truth


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match=r"`picture_shape` must be \(C, H, W\); got \(12, 12\)"):
        segmentation_vae((12, 12))
    with pytest.raises(ConfigurationError, match="`latent_dim`"):
        segmentation_vae(SHAPE, latent_dim=0)
    with pytest.raises(ConfigurationError, match="`mean_bound` must be positive"):
        segmentation_vae(SHAPE, mean_bound=0.0)
    with pytest.raises(CombinationError, match="bijection starts from"):
        segmentation_vae(SHAPE, latent_dim=4, flow=FLOW)
