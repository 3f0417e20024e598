"""The amortized mixture is the mixture of its parts, within its bounds."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.distributions import AmortizedMixture, mixture_raw_shape


class Given(nn.Module):
    """A network that gives what it was given."""

    def forward(self, x):
        return x


def mixture(num_components=3, dim=2, **settings):
    raw = mixture_raw_shape((dim,), num_components)
    made = AmortizedMixture(dim, raw, Given(), num_components=num_components, **settings).double()
    with torch.no_grad():
        made.anchors.normal_()
    return made


def test_densities_are_those_of_torch():
    torch.manual_seed(0)
    made = mixture(mean_bound=4.0, scale_bound=2.0)
    raw, z = torch.randn(5, 15).double(), torch.randn(7, 5, 2).double()
    mean = made.anchors + raw[:, 3:9].view(5, 3, 2)
    mean = mean / (1 + mean.abs() / 4)
    log_scale = raw[:, 9:].view(5, 3, 2)
    log_scale = log_scale / (1 + log_scale.abs() / 2)
    expected = MixtureSameFamily(
        Categorical(logits=raw[:, :3]), Independent(Normal(mean, log_scale.exp()), 1)
    )
    torch.testing.assert_close(made(raw).log_prob(z), expected.log_prob(z))
    torch.testing.assert_close(made(raw).mean, expected.mean)


def test_one_component_is_a_gaussian_and_draws_follow_each_context():
    made = mixture(1)
    raw = torch.tensor([[0.0, 3.0, 0.0, -2.0, -2.0], [0.0, -3.0, 1.0, -2.0, -2.0]]).double()
    q = made(raw)
    with noise.stream(0):
        x = q.sample((4000,))
    error = (x.mean(0) - q.mean) / (x.std(0) / 4000**0.5)
    assert error.abs().max() < 5
    assert q.log_prob(x).isfinite().all()


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_means_and_scales_stay_within_their_bounds_with_gradients(size):
    made = mixture(mean_bound=3.0, scale_bound=1.5)
    raw = (size * torch.randn(8, 15).double()).requires_grad_()
    parts = made(raw).components
    assert parts.mean.abs().max() < 3
    assert parts.log_scale.abs().max() < 1.5
    if size == 1.0:
        (gradient,) = torch.autograd.grad(parts.mean.sum() + parts.log_scale.sum(), raw)
        assert (gradient[:, 3:] > 0).all()


def test_components_start_apart():
    made = AmortizedMixture(2, 15, nn.Linear(15, 15), num_components=3)
    assert torch.pdist(made(torch.zeros(1, 15)).components.mean[0]).min() > 0.05


def test_settings_and_networks_that_do_not_fit_are_refused():
    for settings in ({"num_components": 0}, {"mean_bound": 0.0}, {"scale_bound": -1.0}, {"spread": 0.0}):
        with pytest.raises(ConfigurationError, match=f"`{next(iter(settings))}` must be"):
            AmortizedMixture(2, 3, Given(), **({"num_components": 2} | settings))
    with pytest.raises(ShapeError, match=r"must give \(10,\); got \(3,\)"):
        AmortizedMixture(2, 3, Given(), num_components=2)(torch.zeros(1, 3))
