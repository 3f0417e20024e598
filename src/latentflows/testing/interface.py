"""The interface: shapes, rows, contexts, passes, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from latentflows.core.errors import LatentFlowsError, MissingDirectionError, NonFiniteError, ShapeError
from latentflows.testing.base import RESULTS, Direction, Subject, expect, expect_close, run

BATCHES = ((), (5,), (2, 5), (3, 2, 5), (0,), (0, 5))


def shapes(subject: Subject) -> None:
    """Value and log-determinant have the batch shape for batches (), (B,), (K, B), (S, K, B), also without rows."""
    bijection = subject.build()
    for direction in subject.directions:
        for batch in BATCHES:
            for rows in ((), batch[-1:] or (5,)) if subject.context_shape else ((),):
                context = subject.context(*rows)
                value = subject.values(bijection, direction, *batch, context=context)
                out, log_det = run(bijection, direction, value, context)
                full = torch.broadcast_shapes(batch, rows)
                where = f"{direction} of a batch {batch}" + (f" with contexts {rows}" if rows else "")
                expected = (*full, *subject.shape_out(direction))
                expect(out.shape == expected, f"{where}: expected value {expected}, got {tuple(out.shape)}")
                expect(
                    log_det.shape == full,
                    f"{where}: expected log-determinant {tuple(full)}, got {tuple(log_det.shape)}",
                )


def rows(subject: Subject) -> None:
    """A batch, also one of several samples of each point, is mapped as each of its rows alone."""
    bijection = subject.build()
    for direction in subject.directions:
        context = subject.context(5)
        value = subject.values(bijection, direction, 2, 5, context=context)
        together = {"a batch": run(bijection, direction, value, context)}
        if context is None:
            beside, contexts = subject.beside_a_context(bijection, 5)
            together["2 samples of 5 points"] = run(beside, direction, value, contexts)
        for k, b in itertools.product(range(2), range(5)):
            alone = run(bijection, direction, value[k, b], None if context is None else context[b])
            for what, results in together.items():
                where = f"{direction} of row {(k, b)} within {what}, against that row alone"
                for name, got, one in zip(RESULTS, results, alone, strict=True):
                    expect_close(got[k, b], one, subject.settings.tolerance, f"{where}: {name}")


def strides(subject: Subject) -> None:
    """Transposed and expanded tensors, which are not contiguous, are mapped as contiguous ones."""
    bijection = subject.build()
    for direction in subject.directions:
        context = subject.context(5)
        value = subject.values(bijection, direction, 2, 5, context=context)
        same = value[:, :1].expand_as(value)
        for strided in (_transposed(value, 0, 1), _transposed(value, 0, -1), same):
            got = run(bijection, direction, strided, None if context is None else _transposed(context, 0, -1))
            wanted = run(bijection, direction, strided.contiguous(), context)
            for name, one, other in zip(RESULTS, got, wanted, strict=True):
                what = f"{direction} of tensors that are not contiguous: {name}"
                expect_close(one, other, subject.settings.tolerance, what)


def _transposed(value: Tensor, first: int, second: int) -> Tensor:
    """Return the same numbers with two axes swapped in memory."""
    return value.transpose(first, second).contiguous().transpose(first, second)


def context_matters(subject: Subject) -> None:
    """Another context gives another value."""
    bijection = subject.build()
    direction = subject.cheap[0]
    context = subject.context(5)
    assert context is not None
    value = subject.values(bijection, direction, 5, context=context)
    out, _ = run(bijection, direction, value, context)
    other, _ = run(bijection, direction, value, context.roll(1, 0))
    change = (out - other).flatten(1).abs().amax(-1)
    expect(
        bool((change > 1e-3).all()),
        f"{direction}: expected every row to move by more than 0.001 with another context, got changes "
        f"{[round(c, 6) for c in change.tolist()]}",
    )


def passes(subject: Subject) -> None:
    """Declared passes are the calls of the submodules named `network`; with `inversion` set to "loop", exactly."""
    declared = dict(zip(("forward", "inverse"), subject.passes, strict=True))
    for direction in subject.directions:
        calls = _network_calls(subject, direction, loop=False)
        where = f"{direction} declares {declared[direction]} network passes"
        expect(calls <= (declared[direction] or 0), f"{where}; counted {calls} calls of `network`")
        calls = _network_calls(subject, direction, loop=True)
        expect(calls == declared[direction], f"{where}; counted {calls} calls of `network` without shortcuts")


def _network_calls(subject: Subject, direction: Direction, *, loop: bool) -> int:
    """Count calls of the submodules named `network`, and of their `step`: a step with a cache counts as a pass."""
    bijection, calls = subject.build(), []
    context = subject.context(5)
    value = subject.values(bijection, direction, 2, 5, context=context)
    for name, module in bijection.named_modules():
        if loop and hasattr(module, "inversion"):
            module.inversion = "loop"  # type: ignore[assignment]
        if name.rpartition(".")[2] == "network":
            module.register_forward_hook(lambda *_: calls.append(1))
            step = getattr(module, "step", None)
            if callable(step):
                vars(module)["step"] = lambda *given, step=step: (calls.append(1), step(*given))[1]
    run(bijection, direction, value, context)
    return len(calls)


def missing_direction(subject: Subject) -> None:
    """A direction that does not exist is refused, saying where the bijection can be used instead."""
    bijection = subject.build()
    refusals: tuple[tuple[Direction, str, str], ...] = (
        ("forward", "no forward map", "Use it as a likelihood or a prior"),
        ("inverse", "no inverse", "Use it as a posterior"),
    )
    for direction, what, place in refusals:
        if direction not in subject.directions:
            value = torch.zeros(2, *subject.shape_in(direction), dtype=torch.float64, device=subject.device)
            _refused(
                lambda d=direction, v=value: run(bijection, d, v, subject.context(2)),
                MissingDirectionError,
                f"the {direction} direction, which it does not have",
                (f"`{subject.name}` has {what}, so ", place, "or choose a bijection with both directions"),
            )


def wrong_event_shape(subject: Subject) -> None:
    """A value of the wrong shape is refused, naming the expected and the given shape."""
    bijection = subject.build()
    for direction in subject.directions:
        shape = subject.shape_in(direction)
        wrong = torch.zeros(2, *shape[:-1], shape[-1] + 1, dtype=torch.float64, device=subject.device)
        _refused(
            lambda d=direction, v=wrong: run(bijection, d, v, subject.context(2)),
            ShapeError,
            f"{direction} of shape {tuple(wrong.shape)}",
            (f"must end in {shape}; got shape {tuple(wrong.shape)}",),
        )


def wrong_context(subject: Subject) -> None:
    """A context that is missing, not wanted, or of the wrong shape is refused, naming what was expected and given."""
    bijection, direction = subject.build(), subject.cheap[0]
    good = subject.context(2)
    value = subject.values(bijection, direction, 2, context=good)
    shape = subject.context_shape
    trials: list[tuple[Tensor | None, str]]
    if shape is None:
        trials = [(_zeros(value, 2, 3), f"`{subject.name}` takes no context; got one of shape (2, 3)")]
    else:
        wide = (2, *shape[:-1], shape[-1] + 1)
        trials = [
            (None, f"`{subject.name}` needs a context ending in {shape}; got none"),
            (_zeros(value, *wide), f"`context` must end in {shape}; got shape {wide}"),
            (_zeros(value, 5, *shape), "must broadcast from the right; got (2,) and (5,)"),
        ]
    for context, message in trials:
        what = "a missing context" if context is None else f"a context of shape {tuple(context.shape)}"
        _refused(lambda c=context: run(bijection, direction, value, c), ShapeError, what, (message,))


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return like.new_zeros(shape)


def non_finite(subject: Subject) -> None:
    """NaN and infinity, in a value or a context, are refused in evaluation, naming how many rows hold them."""
    bijection = subject.build().eval()
    for direction in subject.directions:
        context = subject.context(3)
        for bad in (torch.nan, torch.inf):
            for what in ("values",) if context is None else ("values", "contexts"):
                value = subject.values(bijection, direction, 3, context=context).contiguous()
                given = {"values": value, "contexts": None if context is None else context.clone()}
                given[what][1].view(-1)[0] = bad
                _refused(
                    lambda d=direction, g=given: run(bijection, d, *g.values()),
                    NonFiniteError,
                    f"{direction} of a batch with {bad} in one of 3 {what}",
                    (f"`{subject.name}` expects finite {what}", "1 of 3 rows"),
                )


def _refused(
    call: Callable[[], object], kind: type[LatentFlowsError], what: str, parts: tuple[str, ...]
) -> None:
    """Raise unless `call` raises `kind` with a message that holds every part."""
    try:
        call()
    except kind as error:
        lost = [part for part in parts if part not in str(error)]
        if lost:
            raise AssertionError(f"{what}: expected a message with {lost[0]!r}, got {error}") from error
    except Exception as error:
        name = type(error).__name__
        raise AssertionError(f"{what}: expected {kind.__name__}, got {name}: {error}") from error
    else:
        raise AssertionError(f"{what}: expected {kind.__name__}, got no error")


def declaration(subject: Subject) -> None:
    """Passes are two whole numbers or None, one at least a number; `repr` names the class."""
    known = [p for p in subject.passes if p is not None]
    expect(
        len(subject.passes) == 2 and bool(known) and all(isinstance(p, int) and p >= 0 for p in known),
        f"expected `passes` of (forward, inverse) network calls, None for a missing direction; got {subject.passes}",
    )
    text = repr(subject.first)
    expect(
        text.startswith(subject.name + "("), f"expected a repr that starts with the class, got {text[:60]!r}"
    )
