"""Two-level models and deep latent Gaussian models train, evaluate and draw like any other."""

from functools import partial

import pytest
import torch
from torch import nn

from latentflows.core.errors import ConfigurationError
from latentflows.data import ArraySplit
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    Conditional,
    Flow,
    Hierarchical,
    VampPrior,
)
from latentflows.evaluation import evaluate_bounds
from latentflows.models import VAE, presets
from latentflows.models.hierarchical import Select, dlgm, two_level
from latentflows.networks import MLP
from latentflows.objectives import ELBO
from latentflows.training import Stage, fit

SHAPE = (1, 3, 3)
net = partial(MLP, width=8, depth=1)
likelihood = AmortizedBernoulli


def nvp(base: Conditional) -> Conditional:
    (dim,), context = base.event_shape, base.context_shape
    return Flow(base, presets.real_nvp(dim, num_layers=2, width=4, context=context[0]))


def vamp(q: Conditional) -> Conditional:
    return VampPrior(q, 5)


MODELS = {
    "two_level": lambda: two_level(SHAPE, (2, 3), network=net, likelihood=likelihood, features=4),
    "vamp": lambda: two_level(SHAPE, (2, 3), network=net, likelihood=likelihood, features=4, top_prior=vamp),
    "dlgm": lambda: dlgm(SHAPE, (2, 3, 4), network=net, likelihood=likelihood, features=4),
    "dlgm_flows": lambda: dlgm(
        SHAPE,
        (2, 3),
        network=net,
        likelihood=likelihood,
        features=4,
        posterior_level=nvp,
        prior_level=nvp,
    ),
    "one_level": lambda: dlgm(SHAPE, (2,), network=net, likelihood=likelihood, features=4),
    "gaussian": lambda: dlgm(
        SHAPE, (2, 3), network=net, likelihood=partial(AmortizedGaussian, scale=0.5), features=4
    ),
}


def data(count: int = 32) -> ArraySplit:
    x = torch.rand(count, 1, 3, 1).expand(count, *SHAPE) > 0.5
    return ArraySplit(x.float().contiguous(), values="binary")


@pytest.mark.parametrize("name", MODELS)
def test_models_train_evaluate_and_draw(name):
    torch.manual_seed(1)
    model = MODELS[name]()
    source = ArraySplit(data().x, values="continuous") if name == "gaussian" else data()
    stage = Stage("joint", ELBO(), max_epochs=25, batch_size=16, learning_rate=2e-2)
    history = fit(model, [stage], source, seed=1)
    losses = [line["train"]["loss"] for line in history.epochs]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5
    bounds = evaluate_bounds(model, source, num_importance_samples=20, num_images=4)
    assert (bounds.nll <= -bounds.elbo + 1e-6).all()
    assert model.sample(3).shape == (3, *SHAPE)
    for parameter in model.parameters():
        assert parameter.grad is not None, "a parameter that nothing reads"


def test_the_lowest_level_alone_is_decoded_and_levels_read_the_one_above():
    model = dlgm(SHAPE, (2, 3, 4), network=net, likelihood=likelihood, features=4)
    z = torch.randn(6, 9)
    changed = z.clone()
    changed[:, :5] += 1
    assert torch.equal(model.decode_mean(z), model.decode_mean(changed))
    assert not torch.equal(model.decode_mean(z), model.decode_mean(z + 1))
    assert isinstance(model.prior, Hierarchical)
    lowest = model.prior.members[2]
    above = z[:, :5].clone()
    above[:, :2] += 1
    torch.testing.assert_close(lowest(z[:, :5]).mean, lowest(above).mean)
    assert not torch.equal(lowest(z[:, :5]).mean, lowest(above + 1).mean)


def test_both_levels_are_decoded_in_the_two_level_model():
    model = two_level(SHAPE, (2, 3), network=net, likelihood=likelihood, features=4, top_prior=vamp)
    assert isinstance(model, VAE)
    z = torch.randn(6, 5)
    for part in (slice(0, 2), slice(2, 5)):
        changed = z.clone()
        changed[:, part] += 1
        assert not torch.equal(model.decode_mean(z), model.decode_mean(changed))
    assert isinstance(model.posterior, Hierarchical)
    assert isinstance(model.prior, Hierarchical)
    prior = model.prior.members[0]
    assert isinstance(prior, VampPrior)
    assert prior.posterior is model.posterior.members[0]


def test_raw_shape_is_what_the_likelihood_needs():
    model = two_level(
        SHAPE, (2, 3), network=net, likelihood=AmortizedGaussian, raw_shape=(2, 3, 3), features=4
    )
    assert model.sample(2).shape == (2, *SHAPE)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="`features` must differ from the 4 numbers of a data point"):
        dlgm((4,), (2, 3), network=net, likelihood=likelihood, features=4)
    with pytest.raises(ConfigurationError, match="`latent_dims` must hold at least one"):
        dlgm(SHAPE, (), network=net, likelihood=likelihood)
    for start, stop in ((2, 2), (-1, 3)):
        with pytest.raises(ConfigurationError, match=f"got {start} and {stop}"):
            nn.Sequential(Select(start, stop))
