"""Flows: where the context goes, what a draw costs, and what is refused."""

import re

import pytest
import torch
from torch import distributions, nn

from latentflows.bijections import ActNorm, Chain, Inverse, InverseAutoregressive, Planar
from latentflows.core.errors import CombinationError, MissingDirectionError
from latentflows.distributions import Flow, LearnedGaussian, StandardGaussian
from latentflows.models import presets
from latentflows.networks import MLP, MaskedMLP
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli, gaussian, network


def test_a_linear_flow_has_the_density_of_the_scaled_normal():
    flow = Flow(StandardGaussian(3), ActNorm(3)).double()
    randomize(flow, 1.0)
    shift, scale = flow.bijection.shift.detach(), flow.bijection.log_scale.detach().exp()
    expected = distributions.Independent(distributions.Normal(shift, scale), 1)
    x = expected.sample((5,))
    torch.testing.assert_close(flow().log_prob(x), expected.log_prob(x))


@pytest.mark.parametrize(
    ("preset", "sampling", "scoring"), [("iaf", 2, 8), ("maf", 8, 2), ("real_nvp", 2, 2)]
)
def test_a_draw_with_its_log_prob_costs_one_sampling_direction(preset, sampling, scoring):
    flow, calls = Flow(StandardGaussian(4), getattr(presets, preset)(4, num_layers=2, width=6)), []
    for module in flow.modules():
        if isinstance(module, (MLP, MaskedMLP)):
            module.register_forward_hook(lambda *_: calls.append(1))
        if isinstance(module, InverseAutoregressive):
            module.inversion = "loop"  # the only one that calls the network
    x, _ = flow().sample_and_log_prob((3,))
    assert len(calls) == sampling
    flow().log_prob(x)
    assert len(calls) == sampling + scoring


def test_embed_runs_once_and_feeds_base_and_bijection():
    embed, calls = network((1, 2, 2), 4), []
    embed.register_forward_hook(lambda *_: calls.append(1))
    bijection = presets.planar(2, num_layers=1, context=4)
    flow = Flow(gaussian((2,), (4,)), bijection, embed=embed, context_shape=(1, 2, 2))
    randomize(flow, 1.0)
    context = torch.randn(5, 1, 2, 2)
    distribution = flow(context)
    distribution.sample((3,))
    assert len(calls) == 1
    assert flow.context_shape == (1, 2, 2)
    torch.testing.assert_close(distribution.context, embed(context))
    torch.testing.assert_close(distribution.base.mean, flow.base(embed(context)).mean)


def test_with_a_base_that_ignores_the_context_every_row_gets_its_own_noise():
    flow = Flow(StandardGaussian(2), presets.iaf(2, width=4, context=3))
    x = flow(torch.zeros(5, 3)).sample((2,))
    assert x.shape == (2, 5, 2)
    assert len(x.flatten(0, 1).unique(dim=0)) == 10


def test_a_flow_without_an_inverse_draws_but_has_no_density():
    flow = Flow(StandardGaussian(2), Planar(2))
    assert not flow.has_density
    x, log_p = flow().sample_and_log_prob((5,))
    assert torch.isfinite(log_p).all()
    with pytest.raises(MissingDirectionError, match="`Planar` has no inverse"):
        flow().log_prob(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Flow(StandardGaussian(3), Planar(2)),
            "The base draws events of shape (3,), but the bijection starts from (2,)",
        ),
        (
            lambda: Flow(StandardGaussian(2), Inverse(Chain([ActNorm(2), Planar(2)]))),
            "but `Inverse` has no forward map, since `Chain` has no inverse, since `Planar` has no inverse. Leave "
            "`Inverse` out, or choose a bijection with both directions",
        ),
        (
            lambda: Flow(StandardGaussian(2), Chain([Inverse(Planar(2))])),
            "but `Chain` has no forward map, since `Inverse` has no forward map, since `Planar` has no inverse. Turn "
            "it around by `Inverse`",
        ),
        (
            lambda: Flow(bernoulli((2,), (3,)), Planar(2)),
            "A flow needs a continuous base, but `AmortizedBernoulli` draws discrete values",
        ),
        (
            lambda: Flow(gaussian((2,), (3,)), Planar(2, context_shape=4)),
            "Base and bijection must share one context shape; got ['(3,)', '(4,)']",
        ),
        (
            lambda: Flow(gaussian((2,), (3,)), Planar(2), embed=nn.Identity()),
            "`embed` and `context_shape` (the shape before it) go together; give both or none",
        ),
        (
            lambda: Flow(gaussian((2,), (3,)), Planar(2), context_shape=3),
            "`embed` and `context_shape` (the shape before it) go together; give both or none",
        ),
        (
            lambda: Flow(LearnedGaussian(2), Planar(2), embed=nn.Identity(), context_shape=3),
            "`embed` is given, but neither base nor bijection takes a context",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_built(make, message):
    with pytest.raises(CombinationError, match=re.escape(message)):
        make()
