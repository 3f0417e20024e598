"""Number formats, devices and compilation."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentflows.bijections import Bijection
from latentflows.testing.base import RESULTS, Direction, Subject, expect, expect_close, jacobian_of, run

SINGLE = 1e-3  # error in float32, relative to 1 + |expected|, at parameter scale 0.5


def dtypes(subject: Subject) -> None:
    """float32 stays float32, float64 stays float64, and both give the same numbers."""
    for direction in subject.directions:
        exact, single = subject.build(0.5), subject.build(0.5, dtype=torch.float32)
        _copy_parameters(exact, single)
        context = subject.context(16, dtype=torch.float32)
        value = subject.values(single, direction, 16, context=context, dtype=torch.float32)
        out, log_det = run(single, direction, value, context)
        wide = run(exact, direction, value.double(), None if context is None else context.double())
        for name, got, expected in zip(RESULTS, (out, log_det), wide, strict=True):
            where = f"{direction} {name}"
            expect(got.dtype == torch.float32, f"{where} of float32: expected torch.float32, got {got.dtype}")
            expect(
                expected.dtype == torch.float64,
                f"{where} of float64: expected torch.float64, got {expected.dtype}",
            )
            expect_close(got.double(), expected, SINGLE, f"{where} in float32, against float64")


def _copy_parameters(into: Bijection, source: Bijection) -> None:
    with torch.no_grad():
        for mine, other in zip(into.parameters(), source.parameters(), strict=True):
            mine.copy_(other)


def autocast(subject: Subject) -> None:
    """Under bfloat16 autocast value and log-determinant are float32, and as exact as the float32 round trip.

    The context is in bfloat16, as a network that makes it under autocast leaves it.
    """
    bijection = subject.build(0.5, dtype=torch.float32)
    results: dict[Direction, tuple[Tensor, Tensor]] = {}
    context = subject.context(64, dtype=torch.float32)
    context = None if context is None else context.bfloat16()
    for direction in subject.directions:
        value = subject.values(bijection, direction, 1, 64, context=context, dtype=torch.float32)
        value.requires_grad_()
        with torch.autocast(subject.device.type, dtype=torch.bfloat16):
            out, log_det = results[direction] = run(bijection, direction, value, context)
        for name, got in (("value", out), ("log-determinant", log_det)):
            expect(
                got.dtype == torch.float32,
                f"{direction}: expected a {name} in torch.float32, got {got.dtype}",
            )
        _expect_more_digits(direction, value, out, log_det)
    if len(subject.directions) == 2:
        _round_trip(subject, bijection, context)


def _expect_more_digits(direction: Direction, value: Tensor, out: Tensor, log_det: Tensor) -> None:
    """Refuse a log-determinant that was rounded to bfloat16 on its way, unless it is exact all the same."""
    rounded = (log_det == log_det.bfloat16()) & (log_det != 0)
    if rounded.all():
        expected = torch.linalg.slogdet(jacobian_of(out, value).double()).logabsdet
        what = f"{direction} log-determinant, which has no more digits than bfloat16, against the Jacobian's"
        expect_close(log_det.detach().double(), expected, SINGLE, what)


def _round_trip(subject: Subject, bijection: Bijection, context: Tensor | None) -> None:
    u = subject.values(bijection, "forward", 64, context=context, dtype=torch.float32)
    with torch.autocast(subject.device.type, dtype=torch.bfloat16):
        x, log_det = bijection(u, context)
        back, opposite = bijection.inverse(x, context)
    expect_close(back, u, SINGLE, "inverse of forward")
    expect_close(opposite, -log_det, SINGLE, "log-determinant of the inverse, against minus forward's")


def device(subject: Subject) -> None:
    """Results lie where the input lies; in the cheap directions nothing is made elsewhere, and no number is read back.

    The second part runs on torch's meta device, which computes shapes alone: what would be a copy from a GPU, or an
    operation on tensors of two devices, is an error there.
    """
    for direction in subject.cheap:
        bijection, context = subject.build(dtype=torch.float32), subject.context(3, dtype=torch.float32)
        value = subject.values(bijection, direction, 3, context=context, dtype=torch.float32)
        for name, got in zip(RESULTS, run(bijection, direction, value, context), strict=True):
            expect(
                got.device == value.device,
                f"{direction}: expected a {name} on {value.device}, got {got.device}",
            )
        elsewhere = None if context is None else context.to("meta")
        try:
            with _OneDevice():
                results = run(bijection.to("meta"), direction, value.to("meta"), elsewhere)
        except RuntimeError as error:
            if _unknown_to_meta(error):
                continue
            raise AssertionError(f"{direction} with everything on another device: {error}") from error
        for name, got in zip(RESULTS, results, strict=True):
            expect(
                got.device.type == "meta",
                f"{direction} with everything on another device: {name} is made here",
            )


class _OneDevice(TorchDispatchMode):
    """Refuse operations on tensors of two devices, which the meta device lets some pass; single numbers may mix."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        devices = sorted({str(leaf.device) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim})
        if len(devices) > 1:
            devices = [device.replace("meta", "the other") for device in devices]
            raise RuntimeError(f"{func} meets tensors on {' and '.join(devices)}")
        return func(*args, **(kwargs or {}))


def _unknown_to_meta(error: RuntimeError) -> bool:
    """Whether the meta device lacks what was asked for: an operation, or autocast. Nothing is learned then."""
    text = str(error)
    if isinstance(error, NotImplementedError):
        return "copy out of meta" not in text and "nonzero" not in text
    return "autocast" in text or "unsupported scalarType" in text


def compilation(subject: Subject) -> None:
    """The cheap directions compile into one graph, which gives the same numbers.

    Earlier compilations of the process are forgotten, and made again when they are used.
    """
    bijection, context = subject.build(), subject.context(5)
    values = [subject.values(bijection, direction, 2, 5, context=context) for direction in subject.cheap]

    def apply(values: list[Tensor], context: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        return [run(bijection, d, v, context) for d, v in zip(subject.cheap, values, strict=True)]

    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        results = torch.compile(apply, fullgraph=True, backend="eager")(values, context)
    for direction, got, expected in zip(subject.cheap, results, apply(values, context), strict=True):
        for name, one, other in zip(RESULTS, got, expected, strict=True):
            expect_close(one, other, 1e-12, f"{direction} compiled: {name}")
