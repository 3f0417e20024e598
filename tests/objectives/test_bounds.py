"""ELBO, IWAE and the prior's likelihood: against known evidence, formulas by hand, and the classic mistakes."""

import dataclasses
import itertools
import math
import re

import pytest
import torch
from torch import distributions

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.objectives import ELBO, IWAE, Objective, PriorLikelihood, Value, elbo_parts, warm_up
from tests.linear_gaussian import LinearGaussian
from tests.models.parts import vae
from tests.objectives.cases import made_up_trace, model_and_data


@pytest.mark.parametrize("event_shape", [(5,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("objective", [ELBO(1), IWAE(1), IWAE(5), ELBO(3)], ids=repr)
def test_with_the_exact_posterior_the_loss_is_minus_the_evidence(objective, event_shape):
    known = LinearGaussian(event_shape)
    x = known.data(10)
    value = objective(objective.trace(known.model, x))
    evidence = known.log_evidence(x)
    torch.testing.assert_close(value.loss, -evidence.mean(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(value.metrics["elbo"], evidence, rtol=1e-10, atol=1e-10)


def test_closed_form_and_monte_carlo_kl_agree():
    known = LinearGaussian(exact=False)
    x = known.data(5)
    with torch.no_grad():
        trace = known.model.trace(x, 20_000)
        exact = ELBO(kl="closed_form")(trace).metrics["kl"]
        difference = trace.log_posterior - trace.log_prior
    q = known.model.posterior(x)
    torch.testing.assert_close(
        exact,
        distributions.kl_divergence(
            distributions.MultivariateNormal(q.mean.detach(), scale_tril=q.scale_tril.detach()),
            distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()),
        ),
    )
    assert ((difference.mean(0) - exact) / (difference.std(0) / 20_000**0.5)).abs().max() < 5


def test_closed_form_of_a_diagonal_model_is_used_in_the_loss():
    model, x = model_and_data("gaussian", "diagonal")
    objective = ELBO(2, beta=3.0, kl="closed_form")
    trace = objective.trace(model, x)
    value = objective(trace)
    q, p = trace.levels[0]
    normal = [distributions.Normal(d.mean, d.log_scale.exp()) for d in (q, p)]
    kl = distributions.kl_divergence(*normal).sum(-1)
    torch.testing.assert_close(value.metrics["kl"], kl.detach())
    torch.testing.assert_close(value.loss, (3 * kl - trace.log_likelihood.mean(0)).mean())


def test_the_bound_rises_with_the_number_of_samples_and_stays_below_the_evidence():
    known = LinearGaussian(exact=False)
    x = known.data(400)
    means, bounds = [], (1, 2, 5, 20, 100)
    with torch.no_grad():
        for samples in bounds:
            values = torch.cat(
                [
                    IWAE(samples)(known.model.trace(x, samples)).metrics["iwae"]
                    for _ in range(max(1, 40 // samples))
                ]
            )
            means.append(values.mean().item())
    assert all(low < high for low, high in itertools.pairwise(means)), means
    evidence = known.log_evidence(x).mean().item()
    assert means[-1] < evidence + 0.02
    assert evidence - means[-1] < 0.1 < evidence - means[0]


def test_iwae_weighs_gradients_by_normalized_importance():
    trace = made_up_trace(5, 4)
    IWAE(5)(trace).loss.backward()
    weights = torch.softmax(trace.log_weight.detach(), 0)
    torch.testing.assert_close(trace.log_likelihood.grad, -weights / 4)
    torch.testing.assert_close(trace.log_prior.grad, -weights / 4)
    torch.testing.assert_close(trace.log_posterior.grad, weights / 4)
    best = trace.log_weight.argmax(0)
    assert torch.equal(trace.log_likelihood.grad.abs().argmax(0), best)


def test_iwae_is_the_log_of_the_mean_weight():
    trace = made_up_trace(5, 4)
    value = IWAE(5)(trace)
    torch.testing.assert_close(value.metrics["iwae"], trace.log_weight.exp().mean(0).log().detach())
    torch.testing.assert_close(value.loss, -value.metrics["iwae"].mean())
    assert (value.metrics["iwae"] >= value.metrics["elbo"]).all()


def test_iwae_stays_finite_where_weights_leave_the_range_of_exp():
    trace = made_up_trace(2, 3)
    far = dataclasses.replace(trace, log_likelihood=trace.log_likelihood - 5000)
    assert torch.isfinite(IWAE(2)(far).loss)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_beta_weighs_the_kl_alone(beta):
    trace = made_up_trace()
    value = ELBO(3, beta=beta)(trace)
    kl = (trace.log_posterior - trace.log_prior).mean()
    torch.testing.assert_close(value.loss, beta * kl - trace.log_likelihood.mean())
    torch.testing.assert_close(value.metrics["elbo"], ELBO(3)(trace).metrics["elbo"])


def test_settings_are_what_schedules_have_reached():
    assert ELBO(beta=2.0, warmup_epochs=10).settings(2.5) == {"beta": 0.5}
    assert ELBO(beta=2.0).settings(0) == {"beta": 2.0}
    assert IWAE().settings(3) == {}


def test_elbo_parts_are_means_over_samples():
    trace = made_up_trace()
    parts = elbo_parts(trace)
    torch.testing.assert_close(parts["elbo"], trace.log_weight.mean(0))
    torch.testing.assert_close(parts["elbo"], parts["reconstruction"] - parts["kl"])
    torch.testing.assert_close(parts["kl"], (trace.log_posterior - trace.log_prior).mean(0))


@pytest.mark.parametrize(
    ("epoch", "length", "expected"),
    [(0, 10, 0.0), (2.5, 10, 0.25), (10, 10, 1.0), (25, 10, 1.0), (0, 0, 1.0), (math.inf, 10, 1.0)],
)
def test_warm_up_rises_linearly_and_ends(epoch, length, expected):
    assert warm_up(epoch, length) == expected
    assert float(warm_up(torch.tensor(float(epoch)), length)) == expected


@pytest.mark.parametrize("as_tensor", [False, True])
def test_warm_up_weighs_the_kl_of_the_loss_and_of_no_metric(as_tensor):
    trace, objective = made_up_trace(), ELBO(3, beta=2.0, warmup_epochs=10)
    kl = (trace.log_posterior - trace.log_prior).mean()
    value = objective(trace, torch.tensor(2.5).double() if as_tensor else 2.5)
    torch.testing.assert_close(value.loss, 0.5 * kl - trace.log_likelihood.mean())
    torch.testing.assert_close(objective(trace).loss, 2 * kl - trace.log_likelihood.mean())
    torch.testing.assert_close(value.metrics["elbo"], trace.log_weight.mean(0).detach())


def test_the_prior_alone_learns_in_the_second_stage_and_nothing_is_decoded():
    model, x = model_and_data("gaussian", "maf")
    objective = PriorLikelihood(2)
    trace = objective.trace(model, x)
    assert trace.log_likelihood.isnan().all()
    value = objective(trace)
    torch.testing.assert_close(value.loss, -model.prior().log_prob(trace.z).mean())
    value.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.prior.parameters())
    assert all(p.grad is None for p in model.likelihood.parameters())


def test_z_is_drawn_anew_at_every_call():
    model, x = model_and_data("gaussian", "maf")
    objective = PriorLikelihood(1)
    assert (objective.trace(model, x).z != objective.trace(model, x).z).all()


def test_second_stage_needs_a_prior_that_can_learn():
    with pytest.raises(CombinationError, match=r"needs a prior with parameters; this one has none\. Choose"):
        PriorLikelihood().check(vae("gaussian", "standard"))
    PriorLikelihood().check(vae("gaussian", "diagonal"))


@pytest.mark.parametrize("names", [("iaf", "standard"), ("gaussian", "maf"), ("planar", "real_nvp")])
def test_closed_form_is_refused_where_there_is_none(names):
    with pytest.raises(CombinationError, match=r'No closed-form KL between .* Use kl="monte_carlo"'):
        ELBO(kl="closed_form").check(vae(*names))
    ELBO().check(vae(*names))


@pytest.mark.parametrize("posterior", ["gaussian", "full"])
@pytest.mark.parametrize("prior", ["standard", "diagonal", "full"])
def test_closed_form_is_accepted_for_gaussians(posterior, prior):
    ELBO(kl="closed_form").check(vae(posterior, prior))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(0), "`num_samples` must be a positive integer; got 0."),
        (lambda: IWAE(-1), "`num_samples` must be a positive integer; got -1."),
        (lambda: PriorLikelihood(1.5), "`num_samples` must be a positive integer; got 1.5."),
        (lambda: ELBO(beta=-1.0), "`beta` and `warmup_epochs` must be at least 0; got -1.0 and 0.0."),
        (lambda: ELBO(beta=math.nan), "`beta` and `warmup_epochs` must be at least 0; got nan and 0.0."),
        (lambda: ELBO(warmup_epochs=-2), "`beta` and `warmup_epochs` must be at least 0; got 1.0 and -2."),
        (lambda: ELBO(kl="exact"), '`kl` must be "monte_carlo" or "closed_form"; got \'exact\'.'),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ELBO().beta = 2.0


def test_an_objective_of_ones_own_needs_one_method():
    class Reconstruction(Objective):
        def __call__(self, trace, epoch=math.inf):
            return Value(-trace.log_likelihood.mean(), {})

    model, x = model_and_data("gaussian", "standard")
    objective = Reconstruction()
    objective.check(model)
    assert objective(objective.trace(model, x)).loss > 0
