"""Gradients: they exist, they are right, and nothing overflows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentflows.bijections import Bijection
from latentflows.testing.base import Direction, Subject, expect, run


def gradients(subject: Subject) -> None:
    """Every parameter, the input and the context get a gradient that is finite and not zero, at every scale."""
    for direction in subject.directions:
        for scale in subject.settings.scales:
            silent: set[str] = set()
            for draw in range(4):  # a rectified unit may be dead at one draw of the parameters
                found = _silent(subject, direction, scale, draw)
                silent = found & silent if draw else found
                if not silent:
                    break
            where = f"{direction} at parameter scale {scale}: gradient of {', '.join(sorted(silent))}"
            expect(not silent, f"{where}: expected numbers other than 0, got zeros")


def _silent(subject: Subject, direction: Direction, scale: float, draw: int) -> set[str]:
    """Return what gets a gradient of zeros; refuse one that is missing or not finite."""
    bijection = subject.build(scale, draw=draw)
    leaves = _leaves(subject, bijection, direction)
    out, log_det = run(bijection, direction, leaves["the input"], leaves.get("the context"))
    ((out * torch.randn_like(out)).sum() + log_det.sum()).backward()
    for name, tensor in leaves.items():
        where = f"{direction} at parameter scale {scale}: gradient of {name}"
        if tensor.grad is None:
            raise AssertionError(f"{where}: expected one, got none")
        expect(
            bool(tensor.grad.isfinite().all()),
            f"{where}: expected finite numbers, got {_spoiled(tensor.grad)}",
        )
    return {name for name, tensor in leaves.items() if tensor.grad is not None and not tensor.grad.any()}


def _leaves(subject: Subject, bijection: Bijection, direction: Direction) -> dict[str, Tensor]:
    """Return the input, the context if any, and the trained parameters, by name."""
    context = subject.context(6)
    value = subject.values(bijection, direction, 6, context=context)
    leaves = {"the input": value.requires_grad_()}
    if context is not None:
        leaves["the context"] = context.requires_grad_()
    return leaves | {f"`{name}`": p for name, p in bijection.named_parameters() if p.requires_grad}


def gradient_values(subject: Subject) -> None:
    """Gradients by the input, the context and every parameter are those of finite differences."""
    for direction in subject.directions:
        bijection = subject.build()
        leaves = _leaves(subject, bijection, direction)
        with torch.no_grad():
            out, log_det = run(bijection, direction, leaves["the input"], leaves.get("the context"))
        weights = torch.randn_like(out), torch.randn_like(log_det)

        def loss(
            bijection: Bijection = bijection,
            direction: Direction = direction,
            leaves: dict[str, Tensor] = leaves,
            weights: tuple[Tensor, Tensor] = weights,
        ) -> Tensor:
            out, log_det = run(bijection, direction, leaves["the input"], leaves.get("the context"))
            return (out * weights[0]).sum() + (log_det * weights[1]).sum()

        total = loss()
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            _expect_slope(loss, leaf, gradient, total.item(), f"{direction}: derivative by {name}")


def _expect_slope(
    loss: Callable[[], Tensor], leaf: Tensor, gradient: Tensor | None, total: float, what: str
) -> None:
    """Compare the slope along one random line with central differences of three steps, one of which must agree.

    A long step crosses kinks and feels curvature, a short one rounding.
    """
    along = torch.randn_like(leaf)
    along /= along.norm()
    got = 0.0 if gradient is None else (gradient * along).sum().item()
    expected = got
    for step in (1e-6, 1e-7, 1e-5):
        expected = _central_difference(loss, leaf, step * along) / (2 * step)
        if abs(got - expected) <= 1e-5 * (1 + abs(expected)) + 1e-14 / step * abs(total):
            return
    raise AssertionError(f"{what} along a random line: expected {expected:.6g}, got {got:.6g}")


def _central_difference(loss: Callable[[], Tensor], leaf: Tensor, change: Tensor) -> float:
    start = leaf.detach().clone()
    with torch.no_grad():
        leaf.copy_(start + change)
        ahead = loss().item()
        leaf.copy_(start - change)
        behind = loss().item()
        leaf.copy_(start)
    return ahead - behind


def extremes(subject: Subject) -> None:
    """Inputs of 10000, 1 and 0 and huge raw parameters leave values and gradients finite in float32."""
    dtype = torch.float32
    for direction in subject.directions:
        bijection = subject.build(subject.settings.extreme_scale, dtype=dtype)
        low, high = subject.support_in(direction)
        margin = 1e-6 * (high - low) if math.isfinite(high - low) else 0.0
        shape = subject.shape_in(direction)
        grid = torch.tensor([1e4, 1.0, 1e-4, 0.0], dtype=dtype, device=subject.device)
        even = grid.repeat_interleave(4).view(16, *(1 for _ in shape)).expand(16, *shape)
        mixed = grid[torch.randint(4, (16, *shape), device=subject.device)]
        value = torch.cat([even, mixed])
        value = (value * torch.randn_like(value).sign()).clamp(low + margin, high - margin).requires_grad_()
        context = subject.context(32, dtype=dtype)
        out, log_det = run(bijection, direction, value, context)
        where = f"{direction} of inputs up to 10000 at parameter scale {subject.settings.extreme_scale:g}"
        for name, tensor in (("value", out), ("log-determinant", log_det)):
            expect(
                bool(tensor.isfinite().all()), f"{where}: expected a finite {name}, got {_spoiled(tensor)}"
            )
        (out.mean() + log_det.mean()).backward()
        for name, tensor in {"`the input`": value, **dict(bijection.named_parameters())}.items():
            if tensor.grad is not None:
                expect(
                    bool(tensor.grad.isfinite().all()),
                    f"{where}: expected a finite gradient of {name}, got {_spoiled(tensor.grad)}",
                )


def _spoiled(tensor: Tensor) -> str:
    return f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} numbers that are NaN or infinite"
