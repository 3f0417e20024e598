"""Which values are looked at, and when."""

from typing import ClassVar

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from latentflows.core.checks import all_finite, values_noted, values_unchecked


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_entry_that_is_not_finite_is_seen(bad):
    assert all_finite(torch.zeros(3))
    assert not all_finite(torch.tensor([0.0, bad]))


def test_nothing_is_looked_at_inside_a_training_step():
    with values_unchecked():
        assert all_finite(torch.tensor(torch.nan))
    assert not all_finite(torch.tensor(torch.nan))


def test_a_step_that_fails_gives_the_checks_back():
    with pytest.raises(KeyError), values_unchecked():
        raise KeyError
    assert not all_finite(torch.tensor(torch.nan))


def test_under_vmap_nothing_is_looked_at():
    seen = []
    torch.func.vmap(lambda v: (seen.append(all_finite(v)), v)[1])(torch.full((3, 1), torch.nan))
    assert seen == [True]


def test_looks_at_vectorized_values_are_noted():
    """One answer for each of the models that `vmap` runs."""

    def model(value):
        with values_noted() as noted:
            assert all_finite(value)
            assert all_finite(2 * value)
        return torch.stack(noted).all()

    rows = torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [0.0, 2e38]])  # twice the last is infinite
    assert torch.func.vmap(model)(rows).tolist() == [True, False, False]
    assert not all_finite(rows)


def looked(run):
    """Return what `all_finite` says of the value that a function of NaN is given."""
    seen = []

    def look(value):
        seen.append(all_finite(value))
        return value.sum()

    run(look)
    return set(seen)


def test_values_behind_vmap_and_another_transform_are_not_looked_at():
    bad = torch.full((3, 2), torch.nan)
    assert looked(lambda look: torch.func.vmap(torch.func.grad(look))(bad)) == {True}
    assert looked(lambda look: torch.func.jacfwd(torch.func.vmap(look))(bad)) == {True}


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd, torch.func.hessian])
def test_transforms_that_keep_one_value_do_not_hide_it(transform):
    assert looked(lambda look: transform(look)(torch.full((2,), torch.nan))) == {False}


class Look(torch.autograd.Function):
    """Note what `all_finite` says of the gradient."""

    seen: ClassVar[list[bool]] = []

    @staticmethod
    def forward(ctx, x):
        return x * torch.nan

    @staticmethod
    def backward(ctx, *gradients):
        Look.seen.append(all_finite(gradients[0] * torch.nan))
        return gradients[0]


@pytest.mark.parametrize("vectorized", [False, True])
def test_vectorized_gradients_are_not_looked_at(vectorized):
    Look.seen.clear()
    torch.autograd.functional.jacobian(lambda x: Look.apply(x), torch.ones(2), vectorize=vectorized)
    assert set(Look.seen) == {vectorized}


def test_values_that_do_not_exist_are_not_looked_at():
    assert all_finite(torch.full((3,), torch.nan, device="meta"))
    with FakeTensorMode():
        assert all_finite(torch.full((3,), torch.nan))
    assert looked(lambda look: make_fx(look)(torch.full((3,), torch.nan))) == {True}


class OnGPU(torch.Tensor):
    is_cuda = True


@pytest.mark.parametrize(("gradients", "capturing"), [(True, False), (False, True), (False, False)])
def test_a_gpu_is_not_waited_for_in_training_and_not_asked_while_a_graph_is_captured(
    monkeypatch, gradients, capturing
):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    with torch.set_grad_enabled(gradients):
        assert all_finite(torch.full((3,), torch.nan).as_subclass(OnGPU)) == (gradients or capturing)


def test_other_errors_are_not_hidden():
    class Broken(torch.Tensor):
        def isfinite(self):
            raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError, match="no memory left"):
        all_finite(torch.zeros(3).as_subclass(Broken))
