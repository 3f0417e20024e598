"""A step, or the metrics of a block of data, of several models of one shape as one program of plain operations.

`torch.func` writes it: `vmap` over the models of `grad_and_value` of a `functional_call` of the whole step. Run as it
is, every operation would pass through its interpreters each time; so it is run once, the operations that reach the
tensors are noted (`stacked_recorder`), and their list is run from then on, with no autograd.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from latentflows.core import noise
from latentflows.core.checks import values_noted, values_unchecked
from latentflows.core.errors import CombinationError
from latentflows.training.learner import Learner, sums_of
from latentflows.training.stacked_recorder import recorded_operations
from latentflows.training.stacked_state import Named, Stack, learning_names

_MET = {
    "calling .item()": "a decision depends on values",
    "data-dependent control flow": "a decision depends on values",
    "random operation": "random numbers are drawn, and not by `latentflows.core.noise`",
}


class Inputs(NamedTuple):
    """What S models are given: data (S, B, ...), contexts, the draws that the models make, each (S, ...), the time."""

    x: Tensor
    context: Tensor | None
    draws: tuple[Tensor, ...]
    time: Tensor


class Result(NamedTuple):
    """Gradients (S, P), losses (S,), and sums over data of the objective's metrics (S, M)."""

    gradients: Tensor
    losses: Tensor
    sums: Tensor


Program = Callable[[Tensor, Inputs], Result]


def write_program(
    learner: Learner,
    stack: Stack,
    own: Named,
    common: Named,
    draws: Sequence[noise.Draw],
    inputs: Inputs,
    *,
    gradient: bool,
) -> Program:
    """Trace the program that does for all rows of a stack what `Learner.step` or `Learner.measure` does for one.

    Cost: a step, and some 0.2 ms for each of its operations. Memory: S times all values of a step, for that moment.

    Args:
        learner: One of the stack's, in the mode that the program is for.
        stack: Rows of all learners.
        own: Fixed tensors of every model, see `fixed_tensors`.
        common: Fixed tensors that are the same in all.
        draws: What a step draws after its batch is read.
        inputs: Of this step, or this block; later ones must have the same shapes.
        gradient: Whether the loss is differentiated, at the time that the inputs say; else metrics are computed with
            every schedule at its end.

    Raises:
        CombinationError: for a decision that depends on values, or a random draw besides those of `core.noise`.
        Exception: of any kind, for whatever else `torch.func` cannot do.
    """
    names, objective = learning_names(learner), learner.stage.objective

    def one(
        row: Tensor, fixed: Named, x: Tensor, context: Tensor | None, values: Sequence[Tensor], time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        def loss(weights: Named) -> tuple[Tensor, Tensor]:
            everything = weights | fixed | common
            looks = values_unchecked() if gradient else values_noted()
            with noise.given(draws, values), looks as noted, learner.prior(), learner.autocast():
                value = functional_call(
                    learner.module, everything, (x, context, time if gradient else math.inf)
                )
            sums = sums_of(value.metrics, objective.metrics)
            if noted:  # what a part would have refused is NaN, as in `Learner.measure`
                sums = torch.where(torch.stack(noted).all(), sums, torch.nan)
            return value.loss, sums

        weights = dict(zip(names, stack.pieces(row), strict=True))
        if not gradient:
            value, sums = loss(weights)
            return row.new_zeros(0), value, sums
        gradients, (value, sums) = grad_and_value(loss, has_aux=True)(weights)
        return torch.cat([gradients[name].reshape(-1) for name in names]), value, sums

    def program(rows: Tensor, fixed: Named, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        vectorized = vmap(one, in_dims=(0, 0, 0, None if inputs.context is None else 0, 0, None))
        return vectorized(rows, fixed, inputs.x, inputs.context, inputs.draws, inputs.time)

    rows = stack.rows.detach()
    with torch.no_grad(), _in_plain_words():
        graph = recorded_operations(lambda: program(rows, own, inputs), [rows, *own.values(), *_flat(inputs)])

    def run(rows: Tensor, inputs: Inputs) -> Result:
        with torch.no_grad():
            return Result(*graph(rows, *own.values(), *_flat(inputs)))

    return run


def _flat(inputs: Inputs) -> list[Tensor]:
    return [inputs.x, *([] if inputs.context is None else [inputs.context]), *inputs.draws, inputs.time]


@contextmanager
def _in_plain_words() -> Iterator[None]:
    """Say what `vmap` has met in a few words, and keep to ourselves that it vectorizes by a loop: that is measured."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RuntimeError as error:
        for sign, words in _MET.items():
            if sign in str(error):
                raise CombinationError(words) from error
        raise
