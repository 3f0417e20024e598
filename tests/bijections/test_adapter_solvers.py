"""An adaptive solver that would shrink its step for ever, because a velocity is NaN, is stopped."""

import subprocess
import sys

import pytest
import torch

from latentflows.bijections import FromZuko
from latentflows.core import noise
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import NonFiniteError
from tests.peers import peer

zuko = peer("zuko")
D, FEATURES, ROWS = 3, 2, 5


def continuous(context=0):
    with noise.stream(0):
        return FromZuko(
            zuko.flows.CNF(D, context, hidden_features=[8]).transform, D, context_shape=context or None
        )


NEVER_ENDS = """
import sys
import torch
from latentflows.core.errors import NonFiniteError
from tests.bijections.test_adapter_solvers import D, continuous
bijection = continuous()
for parameter in bijection.parameters():
    torch.nn.init.constant_(parameter, torch.nan)
for mode in (True, False):
    bijection.train(mode)
    for direction in (bijection, bijection.inverse):
        try:
            direction(torch.zeros(4, D))
        except NonFiniteError as error:
            assert "The velocity of a continuous flow is NaN or infinite" in str(error)
        else:
            sys.exit("no refusal")
"""


def test_a_solver_ends_under_weights_that_are_nan():
    done = subprocess.run([sys.executable, "-c", NEVER_ENDS], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_path_that_diverges_is_refused_and_in_training_it_is_nan():
    bijection = continuous(FEATURES)
    u, context = torch.randn(2, ROWS, D), torch.zeros(ROWS, FEATURES)
    weight = next(bijection.parameters()).data
    before = weight[0, 0].item()
    weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="its weights, its context or the path have diverged"):
        bijection(u, context)
    with values_unchecked():
        x, log_det = bijection(u.requires_grad_(), context)
        assert x.shape == (2, ROWS, D)
        assert log_det.shape == (2, ROWS)
        assert x.isnan().all()
        assert log_det.isnan().all()
        (x.sum() + log_det.sum()).backward()
        assert u.grad is not None
        assert u.grad.isnan().all()
        assert all(p.grad is not None and p.grad.isnan().all() for p in bijection.parameters())
    weight[0, 0] = before
    assert torch.isfinite(bijection(u, context)[0]).all()
    assert not any(module._forward_hooks for module in bijection.modules())
