"""Schedules and free bits of the ELBO, against their formulas."""

import math
import re

import pytest
import torch
from torch import distributions

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.distributions import DiagonalNormal, Pushforward, StandardNormal
from latentflows.distributions.kl import kl_divergence, kl_per_dimension
from latentflows.models import Trace
from latentflows.objectives import ELBO
from latentflows.objectives.base import cyclical, joint_warm_up
from tests.models.parts import vae
from tests.objectives.cases import made_up_trace

CYCLES = ELBO(3, beta=2.0, warmup_epochs=5.0, cycle_epochs=10.0, num_cycles=3)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0),
        (2.5, 0.5),
        (5, 1),
        (9.9, 1),
        (10, 0),
        (11, 0.2),
        (20, 0),
        (24, 0.8),
        (25, 1),
        (30, 1),
        (31, 1),
        (math.inf, 1),
    ],
)
def test_a_cyclical_weight_falls_to_zero_at_the_start_of_every_cycle_and_stays_after_the_last(
    epoch, expected, as_tensor
):
    time = torch.tensor(float(epoch)) if as_tensor else epoch
    assert float(cyclical(time, 5.0, 10.0, 3)) == pytest.approx(expected)
    assert float(cyclical(time, 5.0, 10.0, 3, joint=True)) == pytest.approx(min(1, expected + 0.01))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("epoch", "length", "expected"),
    [(0, 10, 0.01), (5, 10, 0.51), (9.9, 10, 1), (10, 10, 1), (0, 0, 1), (math.inf, 5, 1)],
)
def test_the_weight_on_the_joint_rises_from_a_hundredth(epoch, length, expected, as_tensor):
    time = torch.tensor(float(epoch)) if as_tensor else epoch
    assert float(joint_warm_up(time, length)) == pytest.approx(expected)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_cycles_weigh_the_kl_alone(as_tensor):
    trace = made_up_trace()
    kl = (trace.log_posterior - trace.log_prior).mean()
    for epoch, weight in ((2.5, 1.0), (12.5, 1.0), (21.0, 0.4), (math.inf, 2.0)):
        time = torch.tensor(epoch).double() if as_tensor else epoch
        torch.testing.assert_close(CYCLES(trace, time).loss, weight * kl - trace.log_likelihood.mean())
        assert CYCLES.settings(epoch) == {"beta": pytest.approx(weight)}


def test_patience_counts_from_the_last_rise():
    assert CYCLES.schedule_epochs == 25
    assert ELBO(warmup_epochs=4).schedule_epochs == 4
    assert ELBO().schedule_epochs == 0


def test_annealing_the_joint_weighs_prior_and_likelihood_and_not_the_entropy():
    trace, objective = made_up_trace(), ELBO(3, anneal="joint", warmup_epochs=10)
    joint = (trace.log_likelihood + trace.log_prior).mean()
    for epoch, weight in ((0.0, 0.01), (5.0, 0.51), (math.inf, 1.0)):
        value = objective(trace, epoch)
        torch.testing.assert_close(value.loss, trace.log_posterior.mean() - weight * joint)
        torch.testing.assert_close(value.metrics["elbo"], trace.log_weight.mean(0).detach())
        assert objective.settings(epoch) == {"beta": pytest.approx(weight)}
    torch.testing.assert_close(objective(trace).loss, ELBO(3)(trace).loss)


def gaussian_trace(*event, points=6, prior=None) -> Trace:
    """Diagonal Gaussians over latents of any shape, some close to the prior and some far from it."""
    mean = torch.randn(points, *event).double() * torch.linspace(0.1, 2, math.prod(event)).view(event)
    q = DiagonalNormal(
        mean.requires_grad_(), 0.1 * torch.randn(points, *event).double(), event_ndim=len(event)
    )
    p = prior or StandardNormal(event, like=mean)
    nothing = torch.zeros(1, points).double()
    return Trace(torch.zeros(points, 1), q.sample((1,)), nothing, nothing, nothing, levels=((q, p),))


def by_hand(trace, groups, nats):
    """sum_j max(nats, mean over the batch of KL_j), the KL from torch's normals, summed over each group."""
    q, p = trace.levels[0]
    scale = torch.full_like(q.mean, p.scale)
    kl = distributions.kl_divergence(
        distributions.Normal(q.mean, q.log_scale.exp()), distributions.Normal(torch.zeros_like(scale), scale)
    )
    return groups(kl).mean(0).clamp(min=nats).sum()


GROUPS = {
    "dimension": lambda kl: kl.flatten(1),
    "channel": lambda kl: kl.flatten(2).sum(-1) if kl.ndim > 2 else kl,
    "latent": lambda kl: kl.flatten(1).sum(-1, keepdim=True),
}


@pytest.mark.parametrize("nats", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("event", [(5,), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("per", GROUPS)
def test_free_bits_are_the_larger_of_kl_and_lambda_of_each_group_on_batch_average(per, event, nats):
    trace = gaussian_trace(*event)
    mean = trace.levels[0][0].mean
    expected = by_hand(trace, GROUPS[per], nats)
    loss = ELBO(free_bits=nats, free_bits_per=per, kl="closed_form")(trace).loss
    torch.testing.assert_close(loss, expected)
    if expected.requires_grad:
        (wanted,) = torch.autograd.grad(expected, mean)
        (found,) = torch.autograd.grad(loss, mean)
        torch.testing.assert_close(found, wanted)


def test_free_bits_leave_a_kl_below_them_without_a_gradient_and_a_metric_as_it_is():
    trace = gaussian_trace(5)
    value = ELBO(free_bits=100.0, kl="closed_form")(trace)
    assert value.loss.item() == 500
    assert (
        not value.loss.requires_grad or not torch.autograd.grad(value.loss, trace.levels[0][0].mean)[0].any()
    )
    torch.testing.assert_close(value.metrics["kl"], kl_divergence(*trace.levels[0]).detach())


def test_free_bits_of_a_whole_monte_carlo_kl():
    trace = made_up_trace(3, 6)
    kl = (trace.log_posterior - trace.log_prior).mean()
    reconstruction = trace.log_likelihood.mean()
    for nats in (kl.item() + 0.1, kl.item() - 0.1):
        if nats > 0:
            value = ELBO(3, free_bits=nats, free_bits_per="latent", beta=2.0)(trace)
            torch.testing.assert_close(value.loss, 2 * kl.clamp(min=nats) - reconstruction)
    value = ELBO(3, free_bits=abs(kl.item()) + 1, free_bits_per="latent")(trace)
    torch.testing.assert_close(value.loss, abs(kl.detach()) + 1 - reconstruction.detach())


def test_the_kl_of_single_latents_adds_up_and_knows_the_prior():
    trace = gaussian_trace(4)
    q = trace.levels[0][0]
    mean, log_scale = torch.randn(2, 4).double()
    for p in (
        StandardNormal((4,), like=mean, scale=1.7),
        DiagonalNormal(mean, log_scale),
        DiagonalNormal(mean.expand(6, 4), log_scale),
    ):
        each = kl_per_dimension(q, p)
        assert each.shape == (6, 4)
        assert (each > 0).all()
        torch.testing.assert_close(each.sum(-1), kl_divergence(q, p))


@pytest.mark.parametrize("names", [("full", "standard"), ("gaussian", "full"), ("iaf", "standard")])
def test_free_bits_of_single_latents_are_refused_where_their_kl_is_unknown(names):
    objective = ELBO(free_bits=0.5, kl="closed_form")
    with pytest.raises(CombinationError, match=r"No closed-form KL|known for diagonal Gaussians alone"):
        objective.check(vae(*names))
    ELBO(free_bits=0.5, free_bits_per="latent").check(vae(*names))
    objective.check(vae("gaussian", "diagonal"))


def test_the_kl_of_single_latents_itself_refuses_others():
    with pytest.raises(CombinationError, match="got `DiagonalNormal` and `Pushforward`"):
        kl_per_dimension(gaussian_trace(4).levels[0][0], object.__new__(Pushforward))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anneal": "prior"}, "`anneal` must be one of ('kl', 'joint'); got 'prior'."),
        (
            {"gradient": "score"},
            "`gradient` must be one of ('reparameterized', 'stick_the_landing'); got 'score'.",
        ),
        ({"free_bits": -1.0}, "`free_bits` must be at least 0 and finite; got -1.0."),
        ({"free_bits": math.nan}, "`free_bits` must be at least 0 and finite; got nan."),
        ({"free_bits_per": "pixel"}, "`free_bits_per` must be one of"),
        ({"num_cycles": 0}, "`num_cycles` must be at least 1; got 0."),
        (
            {"cycle_epochs": 5.0},
            "A cycle of `cycle_epochs` 5.0 must hold a rise of `warmup_epochs`, above 0; got 0.0.",
        ),
        ({"cycle_epochs": 5.0, "warmup_epochs": 6.0}, "must hold a rise"),
        (
            {"anneal": "joint", "beta": 2.0},
            "it needs kl=\"monte_carlo\", beta=1 and free_bits=0; got 'monte_carlo', 2.0",
        ),
        ({"anneal": "joint", "kl": "closed_form"}, '`anneal` "joint" weighs log p(x, z) as a whole'),
        ({"anneal": "joint", "free_bits": 1.0, "free_bits_per": "latent"}, "free_bits=0"),
        (
            {"gradient": "stick_the_landing", "kl": "closed_form"},
            "needs kl=\"monte_carlo\"; got 'closed_form'",
        ),
        ({"free_bits": 1.0}, 'Free bits per dimension need the KL of each, which kl="closed_form" gives'),
    ],
)
def test_settings_that_exclude_one_another_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        ELBO(**settings)
