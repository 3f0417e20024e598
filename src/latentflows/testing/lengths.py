"""Padded sequences: what lies behind the end of a sequence neither moves nor counts."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from latentflows.bijections.inputs import fit_frames
from latentflows.core.shapes import Shape
from latentflows.testing.base import RESULTS, Direction, Subject, expect, expect_close, jacobian_of, run


def padding(subject: Subject) -> None:
    """Padding passes unchanged, is not counted, and changes nothing elsewhere; each row keeps to its own length."""
    for direction in subject.directions:
        _untouched_and_unheard(subject, direction)
        _log_det_of_the_padded_map(subject, direction)
        _no_padding_is_a_plain_call(subject, direction)
        _rows_of_other_lengths(subject, direction)


def padded_round_trip(subject: Subject) -> None:
    """With lengths given each direction undoes the other, and their log-determinants are opposite."""
    bijection = subject.build()
    lengths, context = _lengths(subject), subject.context(len(_lengths(subject)))
    u = subject.values(bijection, "forward", len(lengths), context=context)
    x, log_det = bijection(u, context, lengths=lengths)
    back, opposite = bijection.inverse(x, context, lengths=lengths)
    tolerance = subject.settings.tolerance
    expect_close(back, u, 10 * tolerance, "inverse of forward with lengths")
    expect_close(
        opposite, -log_det, tolerance, "log-determinant of the inverse with lengths, against minus forward's"
    )


def _lengths(subject: Subject) -> Tensor:
    """Return every length from 0 to that of the event, by whole groups of frames."""
    return torch.arange(0, subject.event_shape[-1] + 1, subject.settings.frame_group, device=subject.device)


def _valid(subject: Subject, lengths: Tensor, shape: Shape) -> Tensor:
    """Return which frames of values of that shape are no padding, (B, 1, T)."""
    frames = torch.arange(subject.event_shape[-1], device=subject.device)
    return fit_frames((frames < lengths[:, None])[None], shape[-1])[0][:, None]


def _untouched_and_unheard(subject: Subject, direction: Direction) -> None:
    bijection, lengths, tolerance = subject.build(), _lengths(subject), subject.settings.tolerance
    context = subject.context(len(lengths))
    value = subject.values(bijection, direction, len(lengths), context=context)
    valid_out = _valid(subject, lengths, subject.shape_out(direction))
    out, log_det = run(bijection, direction, value, context, lengths=lengths)
    if subject.base_shape == subject.event_shape:
        moved = ((out != value) & ~valid_out).flatten(1).any(1)
        expect(not moved.any(), f"{direction}: padding moved in rows of lengths {lengths[moved].tolist()}")
    zero = torch.zeros_like(log_det[:1])
    expect_close(log_det[:1], zero, tolerance, f"{direction}: log-determinant at length 0")
    for what, padded, padded_context in _other_padding(subject, direction, value, context, lengths):
        other, other_log_det = run(bijection, direction, padded, padded_context, lengths=lengths)
        where = f"before the end of the sequence, when only the {what} behind it changes"
        difference = torch.where(valid_out, other - out, 0.0)
        expect_close(difference, torch.zeros_like(out), tolerance, f"{direction}: change of values {where}")
        expect_close(other_log_det, log_det, tolerance, f"{direction}: log-determinant {where}")


def _other_padding(
    subject: Subject, direction: Direction, value: Tensor, context: Tensor | None, lengths: Tensor
) -> list[tuple[str, Tensor, Tensor | None]]:
    """Return what goes in with other padding in the value, and in a context that has the same frames."""
    valid = _valid(subject, lengths, subject.shape_in(direction))
    kinds = _junk(subject, direction, value)
    trials = [("value", torch.where(valid, value, junk), context) for junk in kinds]
    if context is not None and context.ndim == 3 and context.shape[-1] == subject.event_shape[-1]:
        heard = _valid(subject, lengths, subject.event_shape)
        largest = torch.full_like(context, torch.finfo(context.dtype).max)
        for junk in (torch.randn_like(context), largest):
            trials.append(("context", value, torch.where(heard, context, junk)))
    return trials


def _junk(subject: Subject, direction: Direction, value: Tensor) -> list[Tensor]:
    """Return what padding may hold: other numbers, and the largest finite ones of the support, of either sign."""
    low, high = subject.support_in(direction)
    limits, junk = torch.finfo(value.dtype), [value + 1 + torch.randn_like(value).abs()]
    junk += [torch.full_like(value, limits.min)] if math.isinf(low) else []
    return junk + ([torch.full_like(value, limits.max)] if math.isinf(high) else [])


def _log_det_of_the_padded_map(subject: Subject, direction: Direction) -> None:
    bijection, lengths = subject.build(), _lengths(subject)
    context = subject.context(len(lengths))
    value = subject.values(bijection, direction, 1, len(lengths), context=context).requires_grad_()
    out, log_det = run(bijection, direction, value, context, lengths=lengths)
    expected = torch.linalg.slogdet(jacobian_of(out, value)).logabsdet
    what = f"{direction}: log-determinant with lengths, against the Jacobian's"
    expect_close(log_det.detach(), expected, subject.settings.tolerance, what)


def _no_padding_is_a_plain_call(subject: Subject, direction: Direction) -> None:
    bijection, context = subject.build(), subject.context(3)
    value = subject.values(bijection, direction, 3, context=context)
    full = torch.full((3,), subject.event_shape[-1], device=subject.device)
    results = run(bijection, direction, value, context, lengths=full)
    for name, got, expected in zip(RESULTS, results, run(bijection, direction, value, context), strict=True):
        expect_close(
            got, expected, subject.settings.tolerance, f"{direction} with full lengths, against none: {name}"
        )


def _rows_of_other_lengths(subject: Subject, direction: Direction) -> None:
    """Lengths (K, B) that differ between rows and between samples of one context: each row is as it is alone."""
    every = _lengths(subject)
    lengths = every[[0, len(every) // 2, -1]]
    lengths = torch.stack([lengths, lengths.roll(1)])
    alone, context = subject.build(), subject.context(3)
    value = subject.values(alone, direction, 2, 3, context=context)
    contexts = [None] * 3 if context is None else list(context)
    together = alone
    if context is None:
        together, context = subject.beside_a_context(alone, 3)
    results = run(together, direction, value, context, lengths=lengths)
    for k, b in itertools.product(range(2), range(3)):
        expected = run(alone, direction, value[k, b], contexts[b], lengths=lengths[k, b])
        for name, got, one in zip(RESULTS, results, expected, strict=True):
            what = f"{direction} of row {(k, b)} with lengths {lengths.tolist()}, against that row alone"
            expect_close(got[k, b], one, subject.settings.tolerance, f"{what}: {name}")
