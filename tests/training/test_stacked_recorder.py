"""Operations that are noted once and repeated with other inputs; what depends on values is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from latentflows.core.errors import CombinationError
from latentflows.training.stacked_recorder import recorded_operations


def squared(weights: Tensor, x: Tensor) -> Tensor:
    return nn.functional.relu(x @ weights.view(3, 2).t() + 1).square().mean()


def test_gradients_of_other_inputs() -> None:
    """What ran under `vmap` and `grad` is repeated with other numbers; reshapes that change nothing are left out."""
    code = vmap(grad_and_value(squared))
    rows, x = torch.randn(4, 6), torch.randn(4, 5, 2)
    function = recorded_operations(lambda: code(rows, x), [rows, x])
    rows, x = torch.randn(4, 6), torch.randn(4, 5, 2)
    for found, expected in zip(function(rows, x), code(rows, x), strict=True):
        assert torch.equal(found, expected)
        assert not found.requires_grad


def test_writing_in_place_is_repeated() -> None:
    def code(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.view(-1).clone()
        z = y.view(2, 3)
        z.view(-1)[:2].add_(1)  # nobody reads the result, only what was written to
        first, second = y.split(3)
        return first * second, z

    x = torch.randn(2, 3)
    function = recorded_operations(lambda: code(x), [x])
    x = torch.randn(2, 3)
    for found, expected in zip(function(x), code(x), strict=True):
        assert torch.equal(found, expected)


def attention(x: Tensor, dropout: float = 0.0) -> Tensor:
    heads = x.expand(1, 2, 4, 3)
    return nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropout)


def test_attention_without_dropout_draws_nothing() -> None:
    """PyTorch marks it as an operation that draws."""
    x = torch.randn(3)
    function = recorded_operations(lambda: (attention(x),), [x])
    x = torch.randn(3)
    assert torch.equal(function(x)[0], attention(x))


def test_other_tensors_are_kept() -> None:
    table, x = torch.randn(3), torch.randn(3)
    order = torch.tensor([2, 0, 1])

    def code() -> tuple[Tensor]:
        two = torch.tensor(2.0)  # a constant may decide
        return ((x * table + two if two > 1 else x)[order],)

    function = recorded_operations(code, [x])
    (found,) = function(torch.ones(3))
    assert torch.equal(found, (table + 2)[order])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (lambda x: (x if x.sum() > 0 else -x,), "depends on values"),
        (lambda x: (x[x > 0],), "depends on values"),
        (lambda x: (x + torch.rand(3),), "random numbers"),
        (lambda x: (nn.functional.dropout(x, 0.5),), "random numbers"),
        (lambda x: (attention(x, dropout=0.5),), "random numbers"),
    ],
)
def test_what_a_list_of_operations_cannot_say_is_refused(code: Any, reason: str) -> None:
    x = torch.ones(3)
    with pytest.raises(CombinationError, match=reason):
        recorded_operations(lambda: code(x), [x])
