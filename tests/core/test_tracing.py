"""Whoever looks at plain operations is noticed."""

from typing import ClassVar

import pytest
import torch
from torch.autograd import forward_ad

from latentflows.core.tracing import is_traced


class Spy(torch.autograd.Function):
    """Note in `seen` what `is_traced` says while gradients flow."""

    seen: ClassVar[list[bool]] = []

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        Spy.seen.append(is_traced(*gradients))
        return gradients[0]


def noted(run):
    seen = []

    def look(x):
        seen.append(is_traced())
        return 2 * x

    run(look)
    return seen


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.jacrev, torch.func.jacfwd])
def test_transforms_of_functions_are_seen(transform):
    assert noted(lambda look: transform(look)(torch.ones(3))) == [True]


def test_forward_mode_is_seen():
    def run(look):
        with forward_ad.dual_level():
            look(forward_ad.make_dual(torch.ones(3), torch.ones(3)))

    assert noted(run) == [True]


def test_a_compiler_is_seen():
    compiled = torch.compile(lambda x: x + 1 if is_traced() else x - 1, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())) == 1


def test_eager_mode_is_not():
    assert noted(lambda look: look(torch.ones(3, requires_grad=True))) == [False]


@pytest.mark.parametrize("vectorized", [False, True])
def test_vectorized_gradients_are_seen(vectorized):
    Spy.seen.clear()
    torch.autograd.functional.jacobian(lambda x: Spy.apply(x), torch.ones(2), vectorize=vectorized)
    assert set(Spy.seen) == {vectorized}
