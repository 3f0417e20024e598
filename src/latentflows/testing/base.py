"""What is checked: a bijection, built anew for every check, with the values and contexts that it reads."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from latentflows.bijections import Bijection, Chain, Elementwise
from latentflows.core.errors import ConfigurationError
from latentflows.core.noise import stream
from latentflows.core.precision import check_positive
from latentflows.core.shapes import Shape
from latentflows.networks.base import check_sizes
from latentflows.transforms import Additive

Direction = Literal["forward", "inverse"]
Support = tuple[float, float]
Source = Bijection | Callable[[], Bijection]
EVERYWHERE: Support = (-math.inf, math.inf)
RESULTS = ("value", "log-determinant")  # what a direction returns


@dataclass(frozen=True)
class Settings:
    """What a bijection promises, and how hard it is tried.

    Attributes:
        identity_at_start: As it is built, it maps every point to itself.
        autoregressive_block: Entries that one step of an autoregressive layer makes, 1 for a MADE: entries of different
            blocks must then depend on one another, in one order. None for other layers.
        frame_group: Frames that a layer over sequences ties together (the factor of a `Squeeze`): lengths that are
            tried are multiples of it.
        base_support: The interval in which every entry of u lies.
        event_support: The interval in which every entry of x lies.
        scales: Standard deviations of the random parameters at which densities and gradients are checked.
        extreme_scale: The same where values must only stay finite, in float32.
        tolerance: Largest error of a log-determinant in float64, relative to 1 + |expected|; values get ten times that.
        seed: Of every random draw.

    Raises:
        ConfigurationError: if a setting is out of range.
    """

    identity_at_start: bool = False
    autoregressive_block: int | None = None
    frame_group: int = 1
    base_support: Support = EVERYWHERE
    event_support: Support = EVERYWHERE
    scales: tuple[float, ...] = (0.01, 1.0, 3.0)
    extreme_scale: float = 20.0
    tolerance: float = 1e-9
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive("extreme_scale", self.extreme_scale)
        check_positive("tolerance", self.tolerance)
        check_sizes(frame_group=self.frame_group, autoregressive_block=self.autoregressive_block or 1)
        for scale in self.scales:
            check_positive("scales", scale)
        if not self.scales:
            raise ConfigurationError("`scales` must name at least one scale of the parameters; got none.")
        for name in ("base_support", "event_support"):
            low, high = getattr(self, name)
            if not low < high:
                raise ConfigurationError(f"`{name}` must be (low, high) with low < high; got {(low, high)}.")


class Jacobian(NamedTuple):
    """Jacobians (K, B, D, D) at K points for each of B contexts, and the log-determinants (K, B) returned there."""

    matrix: Tensor
    log_det: Tensor


def _check_source(source: object) -> None:
    """Refuse what neither is a bijection nor makes one when it is called without arguments."""
    if isinstance(source, Bijection):
        return
    fix = "Give a bijection, such as `ActNorm(3)`, or `lambda: ActNorm(3)`."
    if isinstance(source, nn.Module) or not callable(source):
        raise ConfigurationError(
            f"`check_bijection` expects a Bijection, or a function that makes one; got {type(source).__name__}. {fix}"
        )
    try:
        inspect.signature(source).bind()
    except TypeError as error:
        name = getattr(source, "__name__", type(source).__name__)
        raise ConfigurationError(
            f"`check_bijection` calls a class or a function without arguments, but `{name}` needs some ({error}). {fix}"
        ) from None


class Subject:
    """A bijection under test: builds copies of it and draws what they read; the original is never touched.

    Args:
        source: A bijection, or a function without arguments that makes one. The function is better: what is saved is
            then loaded into one that was built anew, not into a copy.
        settings: What it promises.
    """

    def __init__(self, source: Source, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        _check_source(source)
        self._source = copy.deepcopy(source) if isinstance(source, Bijection) else source
        self.first = self.start()
        tensor = next(iter((*self.first.parameters(), *self.first.buffers())), torch.zeros(()))
        self.device = tensor.device
        self.name = type(self.first).__name__
        self.base_shape, self.event_shape = self.first.base_shape, self.first.event_shape
        self.context_shape, self.passes = self.first.context_shape, self.first.passes
        known: list[tuple[Direction, int | None]] = [("forward", self.passes[0]), ("inverse", self.passes[1])]
        self.directions: list[Direction] = [direction for direction, passes in known if passes is not None]
        fewest = min((passes for _, passes in known if passes is not None), default=0)
        self.cheap: list[Direction] = [direction for direction, passes in known if passes == fewest]
        self._jacobians: dict[tuple[Direction, float, int, bool], Jacobian] = {}

    def start(self, *, dtype: torch.dtype = torch.float64, draw: int = 0) -> Bijection:
        """Return one as it starts; `draw` numbers those that a function makes."""
        with stream(self.settings.seed, 1, draw):
            made = copy.deepcopy(self._source) if isinstance(self._source, Bijection) else self._source()
        if not isinstance(made, Bijection):
            raise ConfigurationError(
                f"`check_bijection` expects a Bijection, or a function that makes one; got {type(made).__name__}. "
                "Subclass `latentflows.Bijection`."
            )
        return made.to(dtype).train()

    def build(self, scale: float = 1.0, *, dtype: torch.dtype = torch.float64, draw: int = 0) -> Bijection:
        """Return one with random parameters of that scale."""
        bijection = self.start(dtype=dtype, draw=draw)
        with stream(self.settings.seed, 2, draw):
            randomize(bijection, scale)
        return bijection

    def context(self, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor | None:
        """Draw contexts, or return None where none is taken."""
        if self.context_shape is None:
            return None
        return torch.randn(*batch, *self.context_shape, dtype=dtype, device=self.device)

    def beside_a_context(self, bijection: Bijection, points: int) -> tuple[Bijection, Tensor]:
        """Put one that takes no context beside an identity that does; return the chain, and contexts for its points.

        Alone it meets every batch as (1, K * B); beside a layer with a context it meets (K, B), as in many a flow.
        """
        like = torch.zeros((), dtype=torch.float64, device=self.device)
        identity = Elementwise(self.event_shape, Additive(), context_shape=1).to(like)
        return Chain([bijection, identity]), like.new_zeros(points, 1)

    def values(
        self,
        bijection: Bijection,
        direction: Direction,
        *batch: int,
        context: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
        far: bool = False,
    ) -> Tensor:
        """Draw what a direction reads; for an inverse that has a forward, points that noise maps to.

        With `far`, points in the tails: along the first axis 4 and 30 times N(0, 1) in turns.
        """
        if direction == "inverse" and self.passes[0] is None:
            x = draw((*batch, *self.event_shape), self.settings.event_support, dtype, self.device)
            return _far(x) if far else x
        u = draw((*batch, *self.base_shape), self.settings.base_support, dtype, self.device)
        u = _far(u) if far else u
        if direction == "forward":
            return u
        with torch.no_grad():
            return bijection(u, context)[0]

    def shape_in(self, direction: Direction) -> Shape:
        """Return the shape of one value that goes in."""
        return self.base_shape if direction == "forward" else self.event_shape

    def shape_out(self, direction: Direction) -> Shape:
        """Return the shape of one value that comes out."""
        return self.event_shape if direction == "forward" else self.base_shape

    def support_in(self, direction: Direction) -> Support:
        """Return the interval in which every entry that goes in lies."""
        return self.settings.base_support if direction == "forward" else self.settings.event_support

    def jacobian(self, direction: Direction, scale: float, draw: int = 0, *, far: bool = False) -> Jacobian:
        """Return the Jacobians at random points and parameters, by autograd; computed once.

        All points share one backward pass per output, which is right where rows do not mix: another check.
        """
        if (direction, scale, draw, far) not in self._jacobians:
            with stream(self.settings.seed, 3, draw):
                bijection, context = self.build(scale, draw=draw), self.context(4)
                value = self.values(bijection, direction, 8, 4, context=context, far=far)
            out, log_det = run(bijection, direction, value.requires_grad_(), context)
            found = Jacobian(jacobian_of(out, value), log_det.detach())
            self._jacobians[direction, scale, draw, far] = found
        return self._jacobians[direction, scale, draw, far]


def jacobian_of(out: Tensor, value: Tensor) -> Tensor:
    """Return the Jacobian (K, B, D, D) of `out` (K, B, ...) by `value` (K, B, ...), rows independent."""
    if not out.requires_grad:
        raise AssertionError("no gradient flows from the value that comes out to the value that goes in")
    rows = []
    for column in out.flatten(2).unbind(-1):
        (row,) = torch.autograd.grad(column.sum(), value, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(value).flatten(2) if row is None else row.flatten(2))
    return torch.stack(rows, 2)


def randomize(module: nn.Module, scale: float) -> None:
    """Draw every parameter anew: matrices with variance scale^2 / inputs, everything else with scale^2."""
    with torch.no_grad():
        for parameter in module.parameters():
            inputs = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_().mul_(scale / math.sqrt(inputs))


def draw(shape: Shape, support: Support, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draw numbers inside an interval: uniform if it is finite, exponentials of N(0, 1) from its one end, N(0, 1)."""
    low, high = support
    if math.isfinite(low) and math.isfinite(high):
        return low + (high - low) * torch.rand(shape, dtype=dtype, device=device).clamp(1e-3, 1 - 1e-3)
    noise = torch.randn(shape, dtype=dtype, device=device)
    return low + noise.exp() if math.isfinite(low) else high - noise.exp() if math.isfinite(high) else noise


def _far(value: Tensor) -> Tensor:
    """Scale points by 4 and 30 in turns along the first axis."""
    factors = value.new_tensor([4.0, 30.0]).repeat(len(value) // 2 + 1)[: len(value)]
    return value * factors.view(-1, *(1 for _ in value.shape[1:]))


def run(
    bijection: Bijection,
    direction: Direction,
    value: Tensor,
    context: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply one direction."""
    return (bijection if direction == "forward" else bijection.inverse)(value, context, lengths=lengths)


def expect(condition: bool | Tensor, message: str) -> None:
    """Raise unless `condition` holds."""
    if not condition:
        raise AssertionError(message)


def expect_close(actual: Tensor, expected: Tensor, tolerance: float | Tensor, what: str) -> None:
    """Raise unless every error is at most tolerance * (1 + |expected|); the message shows the worst entry."""
    expect(
        actual.shape == expected.shape,
        f"{what}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}",
    )
    error = (actual - expected).abs() / (1 + expected.abs())
    excess = torch.where(actual == expected, -1.0, error - tolerance).nan_to_num(nan=math.inf).flatten()
    if excess.numel() and excess.max() > 0:
        worst = int(excess.argmax())
        wanted, got = expected.flatten()[worst].item(), actual.flatten()[worst].item()
        raise AssertionError(
            f"{what}: expected {wanted:.6g}, got {got:.6g}, off by {abs(got - wanted):.1e} (the worst of "
            f"{excess.numel()}, {int((excess > 0).sum())} of which are off by too much)"
        )
