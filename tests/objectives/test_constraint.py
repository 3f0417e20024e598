"""A multiplier that climbs, a target that is met, and a KL held at a capacity."""

import dataclasses
import math
import re

import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.objectives import ELBO, GECO, Capacity
from latentflows.training import Stage, fit
from tests.models.parts import vae
from tests.objectives.cases import made_up_trace, model_and_data
from tests.training.tiny import Fixed
from tests.training.tiny import vae as tiny_vae

DIMENSIONS = 6  # of the data of `model_and_data`


def geco(target=0.3, **settings):
    objective = GECO(target, 2, **settings)
    return objective, *model_and_data("gaussian", "diagonal", objective=objective)


def error_of(trace):
    """-log p(x|z) per dimension, of the batch."""
    return (-trace.log_likelihood.mean() / DIMENSIONS).item()


def test_at_multiplier_one_the_model_gets_the_gradient_of_the_elbo():
    objective, model, x = geco()
    with torch.no_grad():
        model.auxiliary.raw.zero_()
    trace = objective.trace(model, x)
    parameters = [*model.posterior.parameters(), *model.likelihood.parameters()]
    found = torch.autograd.grad(objective(trace).loss, parameters, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(ELBO(2)(trace).loss, parameters), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("raw", [-0.4, 0.0, 0.3])
def test_the_multiplier_weighs_the_reconstruction_and_moves_against_its_own_gradient_of_the_loss(raw):
    objective, model, x = geco(speed=2.0)
    with torch.no_grad():
        model.auxiliary.raw.fill_(raw)
    trace = objective.trace(model, x)
    value = objective(trace)
    weight = math.exp(2 * raw / (1 + abs(2 * raw) / 12))
    excess = error_of(trace) - 0.3
    kl = (trace.log_posterior - trace.log_prior).mean().item()
    assert value.loss.item() == pytest.approx(kl + weight * DIMENSIONS * excess)
    assert value.metrics["multiplier"][0].item() == pytest.approx(weight)
    assert value.metrics["constraint"].mean().item() == pytest.approx(excess)
    value.loss.backward()
    slope = 2 / (1 + abs(2 * raw) / 12) ** 2  # of the log-multiplier
    assert model.auxiliary.raw.grad.item() == pytest.approx(-excess * slope)


@pytest.mark.parametrize(("target", "sign"), [(-100.0, 1), (100.0, -1)])
def test_descent_raises_the_multiplier_where_the_target_is_missed_and_lowers_it_where_it_is_met(target, sign):
    objective, model, x = geco(target)
    optimizer = torch.optim.SGD([model.auxiliary.raw], lr=1e-3)
    before = model.auxiliary.raw.item()
    objective(objective.trace(model, x)).loss.backward()
    optimizer.step()
    assert sign * (model.auxiliary.raw.item() - before) > 0


def test_the_average_follows_training_batches_and_no_others():
    objective, model, x = geco(decay=0.75)
    multiplier = model.auxiliary

    def excess():
        return error_of(objective.trace(model, x)) - 0.3

    first = excess()  # outside of a step: at once
    assert multiplier.average.item() == pytest.approx(first)
    multiplier.begin()
    pieces = [excess(), excess()]  # of one batch, which counts once
    multiplier.commit()
    second = 0.75 * first + 0.25 * sum(pieces) / 2
    assert multiplier.average.item() == pytest.approx(second)
    multiplier.begin()
    excess()  # of a step that is skipped
    multiplier.begin()
    model.eval()
    excess()
    model.train()
    with torch.no_grad():
        excess()
    multiplier.commit()
    assert multiplier.average.item() == pytest.approx(second)
    assert {"raw", "average", "started"} <= multiplier.state_dict().keys()


def test_the_multiplier_moves_by_the_average_and_not_by_the_batch():
    objective, model, x = geco(decay=0.9)
    model.auxiliary.moved(torch.full((3,), -5.0), 0.9)
    model.auxiliary.commit()
    trace = objective.trace(model, x)
    objective(trace).loss.backward()
    average = 0.9 * -5 + 0.1 * (error_of(trace) - 0.3)
    slope = objective.speed / (1 + abs(objective.speed * model.auxiliary.raw.item()) / 12) ** 2
    assert model.auxiliary.raw.grad.item() == pytest.approx(-average * slope)


def test_training_meets_a_target_that_can_be_met():
    """Between the error of an untrained decoder, log 2 = 0.69, and the best that the model can do."""
    target = 0.45
    objective = GECO(target, decay=0.5, speed=3.0)
    model = tiny_vae()
    model.auxiliary = objective.auxiliary(model)
    stage = Stage("geco", objective, max_epochs=240, batch_size=16, learning_rate=1e-2)
    history = fit(model, [stage], Fixed())
    constraints = [line["train"]["constraint"] for line in history.epochs]
    assert constraints[0] > 0.15
    assert abs(sum(constraints[-80:]) / 80) < 0.03
    assert history.epochs[-1]["train"]["multiplier"] < 0.3  # the target is looser than the ELBO's own error


def test_weights_that_meet_the_target_win_over_those_that_do_not():
    score = GECO(0.3).score
    met, missed = {"kl": 30.0, "constraint": -0.01}, {"kl": 1.0, "constraint": 0.01}
    assert score(met) > score(missed)
    assert score({"kl": 20.0, "constraint": 0.0}) > score(met)
    assert score({"kl": 50.0, "constraint": 0.005}) > score(missed)


def test_a_stage_without_the_multiplier_is_refused():
    with pytest.raises(
        CombinationError, match=r"`GECO` needs a module besides .* objective\.auxiliary\(model\)"
    ):
        Stage("s", GECO(0.3)).check(vae())


@pytest.mark.parametrize("epoch", [0.0, 2.5, 5.0, math.inf])
def test_capacity_is_the_distance_of_the_mean_kl_from_what_is_allowed(epoch):
    trace = made_up_trace(3, 5)
    trace = dataclasses.replace(trace, log_posterior=trace.log_posterior + 2)
    objective = Capacity(4.0, 3, gamma=7.0, warmup_epochs=5.0)
    allowed = 4 * min(1, epoch / 5)
    kl = (trace.log_posterior - trace.log_prior).mean()
    expected = 7 * (kl - allowed).abs() - trace.log_likelihood.mean()
    value = objective(trace, epoch)
    torch.testing.assert_close(value.loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value.loss, trace.log_prior, retain_graph=True)[0],
        torch.autograd.grad(expected, trace.log_prior)[0],
    )
    assert objective.settings(epoch) == {"capacity": allowed}


def test_training_holds_the_kl_at_the_capacity():
    model = tiny_vae()
    stage = Stage(
        "capacity",
        Capacity(1.5, gamma=50.0, kl="closed_form"),
        max_epochs=60,
        batch_size=16,
        learning_rate=1e-2,
    )
    history = fit(model, [stage], Fixed())
    assert history.epochs[-1]["train"]["kl"] == pytest.approx(1.5, abs=0.3)


@pytest.mark.parametrize(
    "objective", [GECO(0.1, kl="closed_form"), Capacity(1.0, kl="closed_form")], ids=repr
)
def test_a_closed_form_is_refused_where_there_is_none(objective):
    with pytest.raises(CombinationError, match="No closed-form KL between"):
        objective.check(vae("iaf", "standard"))
    objective.check(vae("full", "diagonal"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GECO(math.nan), "`target` must be finite and `decay` in [0, 1); got nan and 0.9."),
        (lambda: GECO(0.1, decay=1.0), "got 0.1 and 1.0."),
        (lambda: GECO(0.1, speed=0.0), "`speed` must be positive and finite; got 0.0."),
        (lambda: GECO(0.1, kl="exact"), "`kl` must be one of ('monte_carlo', 'closed_form'); got 'exact'."),
        (lambda: Capacity(-1.0), "`capacity` must be at least 0 and finite; got -1.0."),
        (lambda: Capacity(1.0, gamma=math.inf), "`gamma` must be at least 0 and finite; got inf."),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()
