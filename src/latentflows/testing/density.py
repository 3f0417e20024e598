"""The change of variables: Jacobians, inverses, dependencies, densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentflows.bijections import Bijection
from latentflows.testing.base import Direction, Subject, expect, expect_close, run

_NUDGE = 1e-9
_DRAWS = range(8)  # of the parameters, where one may hide what another shows


def log_det(subject: Subject) -> None:
    """The log-determinant is that of the autograd Jacobian, at every scale of the parameters."""
    for direction in subject.directions:
        for scale in subject.settings.scales:
            _log_det_is_the_jacobians(subject, direction, scale)


def tails(subject: Subject) -> None:
    """At 4 and 30 times N(0, 1) too the log-determinant is the Jacobian's, and each direction undoes the other."""
    scale = sorted(subject.settings.scales)[len(subject.settings.scales) // 2]
    for direction in subject.directions:
        _log_det_is_the_jacobians(subject, direction, scale, far=True)
    if len(subject.directions) == 2:
        _each_undoes_the_other(subject, scale, far=True)


def _log_det_is_the_jacobians(
    subject: Subject, direction: Direction, scale: float, *, far: bool = False
) -> None:
    matrix, found = subject.jacobian(direction, scale, far=far)
    rounding = torch.finfo(matrix.dtype).eps * torch.linalg.cond(matrix).nan_to_num(nan=math.inf)
    expect_close(
        found,
        torch.linalg.slogdet(matrix).logabsdet,
        subject.settings.tolerance + rounding.clamp(max=1e-3),
        f"{direction} at parameter scale {scale}{' in the tails' if far else ''}: log-determinant, against the "
        "Jacobian's",
    )


def orientation(subject: Subject) -> None:
    """The Jacobian's determinant keeps one sign for each context: a map that folds space is no bijection.

    A fold in a map with both directions fails the round trip as well. One without an inverse is tried at more
    parameters, since it may fold at some of them only.
    """
    draws = range(12 if len(subject.directions) == 1 else 1)
    for direction in subject.directions:
        for scale in subject.settings.scales:
            for draw in draws:
                sign = torch.linalg.slogdet(subject.jacobian(direction, scale, draw).matrix).sign
                expect(
                    bool((sign == sign[:1]).all()) and bool((sign != 0).all()),
                    f"{direction} at parameter scale {scale}: expected a determinant of one sign at all points, got "
                    f"signs {sorted({int(s) for s in sign.flatten()})}",
                )


def round_trip(subject: Subject) -> None:
    """Each direction undoes the other, and their log-determinants are opposite, at every scale of the parameters."""
    for scale in subject.settings.scales:
        _each_undoes_the_other(subject, scale)


def _each_undoes_the_other(subject: Subject, scale: float, *, far: bool = False) -> None:
    bijection, nudged, context = subject.build(scale), _nudged(subject.build(scale)), subject.context(6)
    u = subject.values(bijection, "forward", 6, context=context, far=far)
    x = bijection(u, context)[0].detach()
    if math.isinf(max(map(abs, subject.settings.event_support))):
        x = x + 0.1  # a point that no draw of noise made
    ways: tuple[tuple[Direction, Direction, Tensor], ...] = (
        ("forward", "inverse", u),
        ("inverse", "forward", x),
    )
    for there, back, value in ways:
        image, log_det = run(bijection, there, value, context)
        again, opposite = run(bijection, back, image, context)
        where = f"{back} of {there} at parameter scale {scale}{' in the tails' if far else ''}"
        tolerance = subject.settings.tolerance
        of_value, of_log_det = _rounding(nudged, back, image, context, (again, opposite))
        what = f"{where}: value, against the one that went in"
        expect_close(again, value, 10 * tolerance + of_value, what)
        what = f"{where}: log-determinant, against minus {there}'s"
        expect_close(opposite, -log_det, tolerance + of_log_det, what)


def _rounding(
    nudged: Bijection,
    direction: Direction,
    value: Tensor,
    context: Tensor | None,
    results: tuple[Tensor, Tensor],
) -> list[Tensor]:
    """Return what rounding may do to each row of the results: some units of what a small change of everything does.

    `nudged` has every parameter changed by one part in 10^9; the value that goes in is changed likewise.
    """
    with torch.no_grad():
        moved = run(nudged, direction, value * (1 + _NUDGE * torch.randn_like(value).sign()), context)
    allowed = []
    for one, other in zip(moved, results, strict=True):
        change = (one - other).abs().reshape(len(value), -1).amax(1) * (
            100 * torch.finfo(value.dtype).eps / _NUDGE
        )
        allowed.append(
            change.nan_to_num(nan=math.inf).clamp(max=1e-4).view(-1, *(1 for _ in other.shape[1:]))
        )
    return allowed


def _nudged(bijection: Bijection) -> Bijection:
    """Change every parameter, in place, by one part in 10^9 up or down."""
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.mul_(1 + _NUDGE * torch.randn_like(parameter).sign())
    return bijection


def identity(subject: Subject) -> None:
    """As it is built, it maps every point to itself with log-determinant 0."""
    bijection = subject.start()
    for direction in subject.directions:
        context = subject.context(6)
        value = subject.values(bijection, direction, 6, context=context)
        out, log_det = run(bijection, direction, value, context)
        expect_close(out, value.view(out.shape), 1e-13, f"{direction} as it is built, against the identity")
        expect_close(log_det, torch.zeros_like(log_det), 1e-13, f"{direction} log-determinant as it is built")


def dependencies(subject: Subject) -> None:
    """Entries of different blocks depend on one another in exactly one order; each one hears the context.

    An autoregressive network that is too narrow drops some of them and stays a bijection with the right
    log-determinant. A dependency counts if it shows at any of many points and parameters, so that dead units of a
    rectified network do not mislead.
    """
    block, direction = subject.settings.autoregressive_block, subject.cheap[0]
    assert block is not None
    sizes = torch.stack([subject.jacobian(direction, 1.0, draw).matrix.abs() for draw in _DRAWS])
    size = sizes.flatten(0, 2).amax(0)
    reads = size > 1e-12 * size.max()
    both = (reads & reads.T).fill_diagonal_(False)
    expect(
        not both.any(),
        f"entries {_pairs(both)} depend on each other in both orders: this is not autoregressive",
    )
    apart = ~(reads | reads.T)
    lost = apart.sum(0) - (block - 1)
    expect(
        bool((lost == 0).all()),
        f"every entry must depend on, or be read by, all entries outside its block of {block}; lost pairs: "
        f"{_pairs(apart.triu(1))}. Is a masked network too narrow?",
    )
    if subject.context_shape:
        _every_entry_hears_the_context(subject)


def _every_entry_hears_the_context(subject: Subject) -> None:
    direction, changes = subject.cheap[0], []
    for draw in _DRAWS:
        bijection, context = subject.build(draw=draw), subject.context(32)
        assert context is not None
        value = subject.values(bijection, direction, 32, context=context)
        out, _ = run(bijection, direction, value, context)
        changes.append((out - run(bijection, direction, value, context.roll(1, 0))[0]).detach().flatten(1))
    deaf = (torch.cat(changes).abs().amax(0) == 0).nonzero().flatten().tolist()
    expect(not deaf, f"entries {deaf} do not depend on the context. Is a masked network too narrow?")


def _pairs(matrix: Tensor) -> str:
    """Name the first few (output, input) pairs that are True."""
    found = [tuple(pair) for pair in matrix.nonzero().tolist()]
    return ", ".join(map(str, found[:6])) + (f" and {len(found) - 6} more" if len(found) > 6 else "")


def normalized(subject: Subject) -> None:
    """In two dimensions the density of x integrates to 1, by quadrature over the plane."""
    bijection, context = subject.build(0.5), subject.context()
    x, area = _grid(subject, bijection, context)
    with torch.no_grad():
        u, log_det = bijection.inverse(x, context)
    log_base = -0.5 * (u * u).sum(-1) - math.log(2 * math.pi)
    total = ((log_base + log_det).exp() * area).sum().item()
    expect(
        abs(total - 1) < 0.01, f"integral of the density at parameter scale 0.5: expected 1, got {total:.4f}"
    )


def _grid(subject: Subject, bijection: Bijection, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return points (N, 2) over the plane and the area of each one's cell, dense where the density lies.

    Each axis is x = m + s t / (1 - t^2) over a uniform grid of t in (-1, 1), with m and s from draws.
    """
    sample = subject.values(bijection, "inverse", 512, context=context)
    center, spread = sample.median(0).values, sample.std(0) + 0.5
    count = 400
    t = (torch.arange(count, dtype=torch.float64, device=subject.device) + 0.5) * 2 / count - 1
    axis, slope = t / (1 - t**2), (1 + t**2) / (1 - t**2) ** 2 * 2 / count
    first, second = (center[i] + spread[i] * axis for i in range(2))
    points = torch.cartesian_prod(first, second)
    areas = torch.cartesian_prod(slope * spread[0], slope * spread[1]).prod(-1)
    near = (points - center).abs().amax(-1) < 1e4  # the density there is far below any rounding
    return points[near], areas[near]
