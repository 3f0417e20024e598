"""Ordinary differential equations: fixed steps, or Dormand-Prince with an error test and a step for every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import check_positive

Rows = Tensor | slice
Field = Callable[[Tensor, Tensor, Rows], Tensor]
# From times (N,), states (N, S) and which samples these are, for a field that differs between samples, to (N, S).
Method = Literal["euler", "midpoint", "rk4", "dopri5"]

_STAGES = {"euler": 1, "midpoint": 2, "rk4": 4, "dopri5": 6}
_FIRST_STEP = 0.02  # of the interval; the controller corrects it at once
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_SMALLEST = 1e-7  # of the interval; a step that falls below has met a singularity, or NaN
# Dormand & Prince, A family of embedded Runge-Kutta formulae, 1980, RK5(4)7M.
_TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ROWS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (
    71 / 57600,
    0.0,
    -71 / 16695,
    71 / 1920,
    -17253 / 339200,
    22 / 525,
    -1 / 40,
)


@dataclass(frozen=True)
class OdeSolver:
    r"""How dy/dt = f(t, y) is solved.

    | method | order | evaluations of f |
    |---|---|---|
    | "euler" | 1 | `num_steps` |
    | "midpoint" | 2 | 2 `num_steps` |
    | "rk4" | 4 | 4 `num_steps` |
    | "dopri5" | 5 | 6 per attempted step, and 1 |

    "dopri5" chooses its steps for every sample alone, by that sample's own error, so that a result does not depend on
    what else is in the batch. A sample whose step falls below 1e-7 of the interval ends as NaN.

    Args:
        method: As in the table.
        num_steps: Of the fixed-step methods.
        tolerance: Absolute and relative error per step, of "dopri5".

    Raises:
        ConfigurationError: for settings out of range.
    """

    method: Method = "rk4"
    num_steps: int = 20
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigurationError(f"`method` must be one of {get_args(Method)}; got {self.method!r}.")
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ConfigurationError(f"`num_steps` must be a positive integer; got {self.num_steps!r}.")
        check_positive("tolerance", self.tolerance)

    def __str__(self) -> str:
        if self.method == "dopri5":
            return f"dopri5 at tolerance {self.tolerance:g}"
        return f"{self.method} with {self.num_steps} steps"

    @property
    def num_evaluations(self) -> int | None:
        """Evaluations of f in one solution; None where the tolerance decides."""
        return None if self.method == "dopri5" else self.num_steps * _STAGES[self.method]

    def refined(self) -> OdeSolver:
        """Return the solver with half the step, or a tenth of the tolerance: their difference shows the error."""
        if self.method == "dopri5":
            return replace(self, tolerance=self.tolerance / 10)
        return replace(self, num_steps=2 * self.num_steps)

    def solve(self, field: Field, y: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        """Return y at time `end` and how often f was evaluated for each sample.

        Args:
            field: f; a sample's derivative must depend on that sample alone.
            y: (N, S), the state at time `start`.
            start: Where.
            end: Where to; may lie before `start`.

        Returns:
            (N, S) with gradient, and (N,).
        """
        if self.method == "dopri5":
            return _adaptive(field, y, start, end, self.tolerance)
        step = (end - start) / self.num_steps
        for i in range(self.num_steps):
            y = _step(self.method, field, y, start + i * step, step)
        assert self.num_evaluations is not None
        return y, torch.full((len(y),), self.num_evaluations, device=y.device)


def _step(method: str, field: Field, y: Tensor, time: float, step: float) -> Tensor:
    def slope(at: float, state: Tensor) -> Tensor:
        return field(
            torch.full((len(state),), at, dtype=state.dtype, device=state.device), state, slice(None)
        )

    first = slope(time, y)
    if method == "euler":
        return y + step * first
    second = slope(time + step / 2, y + step / 2 * first)
    if method == "midpoint":
        return y + step * second
    third = slope(time + step / 2, y + step / 2 * second)
    last = slope(time + step, y + step * third)
    return y + step / 6 * (first + 2 * (second + third) + last)


def _adaptive(field: Field, y: Tensor, start: float, end: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Solve by Dormand-Prince; samples that have arrived leave the batch. s in [0, 1] is the share of the way."""
    span = end - start

    def slope(share: Tensor, state: Tensor, rows: Tensor) -> Tensor:
        return span * field(start + span * share, state, rows)

    result, evaluations = (
        torch.full_like(y, torch.nan),
        torch.ones(len(y), dtype=torch.int64, device=y.device),
    )
    rows = torch.arange(len(y), device=y.device)
    share, step = y.new_zeros(len(y)), y.new_full((len(y),), _FIRST_STEP)
    first = slope(share, y, rows)
    while len(rows):
        step = torch.minimum(step, 1 - share)
        slopes, state = [first], y
        for time, row in zip(_TIMES, _ROWS, strict=True):
            change = torch.stack([w * k for w, k in zip(row, slopes, strict=True) if w]).sum(0)
            state = y + step[:, None] * change
            slopes.append(slope(share + time * step, state, rows))
        evaluations[rows] += _STAGES["dopri5"]
        with torch.no_grad():
            error = step[:, None] * torch.stack([w * k for w, k in zip(_ERROR, slopes, strict=True)]).sum(0)
            scale = tolerance * (1 + torch.maximum(y.abs(), state.abs()))
            ratio = (error / scale).square().mean(1).sqrt()
            accepted = ratio <= 1
            factor = (_SAFETY * ratio.clamp(min=1e-10) ** -0.2).clamp(_SHRINK, _GROW)
            factor = torch.where(ratio.isfinite(), factor, _SHRINK)
            share = torch.where(accepted, share + step, share)
            step = step * factor
            arrived = accepted & (share >= 1 - 1e-6)
            going = ~arrived & (step > _SMALLEST)
        y = torch.where(accepted[:, None], state, y)
        first = torch.where(accepted[:, None], slopes[-1], slopes[0])
        result = result.index_copy(0, rows[arrived], y[arrived])
        rows, y, first, share, step = (value[going] for value in (rows, y, first, share, step))
    return result, evaluations
