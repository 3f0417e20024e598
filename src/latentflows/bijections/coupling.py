"""Coupling layers: one part of the event stays and decides how the other part moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from latentflows.bijections.base import Bijection
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.networks.base import FrameMasked, NetworkMaker, made_network
from latentflows.transforms import Additive, Affine, RationalQuadraticSpline, Transform
from latentflows.transforms.base import check_transform

Layout = Literal["split", "channels", "masked"]


class Cut(nn.Module):
    """Cut axis 1 into the entries that stay and those that move, by index, and put it together again.

    Args:
        mask: Boolean vector (D,); True stays.
        space: Axes after axis 1.
    """

    stay: Tensor
    move: Tensor
    restore: Tensor
    fixed = None  # no entry of the moving part is held

    def __init__(self, mask: Tensor, space: Shape = ()) -> None:
        super().__init__()
        stay, move = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        self.register_buffer("stay", stay)
        self.register_buffer("move", move)
        self.register_buffer("restore", torch.argsort(torch.cat([stay, move])))
        self.cut = self._contiguous()
        self.shape = (len(mask), *space)
        self.stay_shape, self.move_shape = (len(stay), *space), (len(move), *space)
        self.register_load_state_dict_post_hook(_read_cut)

    def _contiguous(self) -> int | None:
        """Return where two contiguous pieces meet, negative if the first moves: views. None needs the indices."""
        first, second = len(self.stay), len(self.move)
        stay, move = self.stay.tolist(), self.move.tolist()
        return first if stay == [*range(first)] else -second if move == [*range(second)] else None

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return (stay, move) of a value (N, D, *space)."""
        if self.cut is None:
            return value.index_select(1, self.stay), value.index_select(1, self.move)
        first, second = value.tensor_split((abs(self.cut),), 1)
        return (first, second) if self.cut > 0 else (second, first)

    def merge(self, stay: Tensor, move: Tensor) -> Tensor:
        """Undo `split`."""
        if self.cut is None:
            return torch.cat([stay, move], 1).index_select(1, self.restore)
        return torch.cat([stay, move] if self.cut > 0 else [move, stay], 1)


def _read_cut(cut: nn.Module, _keys: object) -> None:
    assert isinstance(cut, Cut)
    if not cut.stay.is_meta:
        cut.cut = cut._contiguous()


class Blank(nn.Module):
    """Show the whole event with the moving entries set to zero, and hold the staying ones where they are.

    Args:
        mask: Boolean tensor of the event's shape; True stays.
    """

    fixed: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", mask.clone())
        self.shape = self.stay_shape = self.move_shape = tuple(mask.shape)

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network reads, and the value itself: (N, *shape) both."""
        return value.masked_fill(~self.fixed, 0.0), value

    def merge(self, stay: Tensor, move: Tensor) -> Tensor:
        """Return the value: its staying entries were held."""
        return move


def _partition(mask: Tensor, event_shape: Shape, layout: Layout) -> Cut | Blank:
    """Check mask and layout, and make what cuts the event.

    Raises:
        ConfigurationError: if the mask is no tensor, has the wrong shape, is all one value, or does not fit the layout.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigurationError(
            f"`mask` must be a boolean tensor of the event's shape {event_shape}; got {got}. "
            "Write `torch.tensor(mask, dtype=torch.bool)`, or use `half_mask` or another mask of this module."
        )
    if tuple(mask.shape) != event_shape:
        raise ConfigurationError(
            f"`mask` must have the event's shape {event_shape}; got {tuple(mask.shape)}."
        )
    if mask.all() or not mask.any():
        raise ConfigurationError(
            f"`mask` must let at least one entry stay (True) and one move (False); got shape {event_shape} with "
            f"{int(mask.sum())} of {mask.numel()} that stay. A coupling needs two or more variables."
        )
    if layout == "split":
        return Cut(mask.flatten())
    if layout == "masked":
        return Blank(mask)
    if layout != "channels":
        raise ConfigurationError(f"`layout` must be 'split', 'channels' or 'masked'; got {layout!r}.")
    by_channel = mask.view(event_shape[0], -1)
    if (by_channel != by_channel[:, :1]).any():
        raise ConfigurationError(
            "Layout 'channels' needs a `mask` that is the same at every pixel or frame of a channel, such as "
            f"`channel_mask`; got one that varies over {event_shape[1:]}. Use layout 'masked' for it."
        )
    return Cut(by_channel[:, 0], event_shape[1:])


class Coupling(Bijection):
    r"""Move one part of the event by an elementwise map whose parameters are functions of the other part.

    .. math:: x_a = u_a, \quad x_b = T(u_b;\, \theta(u_a, c)), \quad \log|\det| = \sum_b \log T'(u_b)

    Any fixed binary mask says what stays. The layout says how the network \theta sees it, P being the raw parameters
    of one entry (`transform.size`):

    - `split`: the event is flattened; the network maps the S staying entries (S,) to (P M,) for the M moving ones,
      found by index. For vectors, and for any mask with a dense network.
    - `channels`: the mask is the same everywhere in space; the network maps (S, *space) to (P M, *space), S channels
      that stay to M that move. For convolutions over images (C, H, W) and sequences (C, T).
    - `masked`: the network maps the whole event (C, *space), moving entries set to zero, to (P C, *space); what it
      gives for staying entries is thrown away. For convolutions where the mask varies in space (checkerboard).

    The output is parameter-major: channel p M + m holds parameter p of moving channel m. A raw parameter that overflows
    at a staying entry (or in padding) reaches neither value nor gradient.

    Of angles (a `periodic` transform: `CircularSpline`) the network reads all cosines, then all sines, and so is made
    for (2 S,), (2 S, *space) or (2 C, *space): at the cut an angle jumps, and the density would with it.

    `lengths` of padded sequences are taken in the layouts `channels` and `masked` with a network that keeps padding out
    (`FrameMasked`: `WaveNet`, `CouplingConvolution`, `ResidualConvolution`). Raw parameters are then zero in padding,
    so it stays as it is, and the log-determinant counts the frames that are no padding.

    Cost: one network pass in either direction; `masked` computes (and discards) parameters of staying entries too.
    The identity at the start if the network's last layer is zero.

    Args:
        event_shape: Shape of one event.
        mask: Boolean tensor of that shape; True stays, False moves.
        network: Makes the network from (in_shape, out_shape, context): 0 for none, an int for a vector context, the
            shape of a map (C, T) or (C, H, W).
        transform: The map of one variable: `Additive()`, `Affine()`, `RationalQuadraticSpline()`, `CircularSpline()`.
        layout: How the network sees the event.
        context_shape: None, (C,) or a map (C, T) or (C, H, W).

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, *context_shape); log_det: (*batch).

    Raises:
        ConfigurationError: if the mask is no tensor, has the wrong shape, is all one value, or does not fit the layout;
            if the transform is none, such as a class instead of an instance.
        ShapeError: on the first call, if the network gives another shape than it was asked for.

    References:
        Dinh et al., NICE, 2015, arXiv 1410.8516, section 3.2 (general coupling law); Dinh et al., Density estimation
        using Real NVP, 2017, arXiv 1605.08803, section 3.4 (masked convolution); Durkan et al., Neural Spline Flows,
        2019, arXiv 1906.04032, section 2.1; Rezende et al., 2020, arXiv 2002.02428, section 2 (cosines and sines).
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        mask: Tensor,
        network: NetworkMaker,
        transform: Transform,
        layout: Layout = "split",
        context_shape: int | Shape | None = None,
    ) -> None:
        super().__init__(event_shape, passes=(1, 1), context_shape=context_shape)
        self.transform = check_transform(transform)
        self.partition = _partition(mask, self.event_shape, layout)
        (stay, *space), (move, *_) = self.partition.stay_shape, self.partition.move_shape
        self.in_shape = (2 * stay if transform.periodic else stay, *space)
        self.out_shape = (transform.size * move, *space)
        features = self.context_shape if len(self.context_shape or ()) > 1 else sum(self.context_shape or ())
        self.network = made_network(network, self.in_shape, self.out_shape, features)
        masks = len(self.event_shape) == 2 and isinstance(self.network, FrameMasked)
        self.variable_lengths = masks and layout != "split"

    def _forward(self, u: Tensor, context: Tensor | None, *valid: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(self.transform.forward, u, context, *valid)

    def _inverse(self, x: Tensor, context: Tensor | None, *valid: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(self.transform.inverse, x, context, *valid)

    def _run(
        self,
        apply: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        value: Tensor,
        context: Tensor | None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        samples, rows = value.shape[:2]
        padding = None if valid is None else ~valid.flatten(0, 1).unsqueeze(1)
        entries = value.reshape(samples * rows, *self.partition.shape)
        stay, move = self.partition.split(entries)
        read = stay
        if self.transform.periodic:  # cut after, so that what the network may not see is zero, not cos 0
            read = torch.cat([self.partition.split(part)[0] for part in (entries.cos(), entries.sin())], 1)
        raw, fixed = self._raw(read, context, padding), _either(self.partition.fixed, padding)
        if fixed is None:
            moved, log_derivative = apply(move, raw)
        else:  # zero raw parameters are the identity, and `where` keeps what overflows out of the gradient too
            moved, log_derivative = apply(move, raw.masked_fill(fixed, 0.0))
            moved, log_derivative = torch.where(fixed, move, moved), log_derivative.masked_fill(fixed, 0.0)
        out = self.partition.merge(stay, moved).view(value.shape)
        if self.transform.volume_preserving:
            return out, log_derivative.new_zeros(())
        return out, log_derivative.flatten(1).sum(1).view(samples, rows)

    def _raw(self, read: Tensor, context: Tensor | None, padding: Tensor | None) -> Tensor:
        """Run the network; return the raw parameters (P, N, *moving)."""
        if padding is not None:
            out = self.network(read.masked_fill(padding, 0.0), context, (~padding).to(read.dtype))
        else:
            out = self.network(read) if context is None else self.network(read, context)
        if out.shape[1:] != self.out_shape:
            raise ShapeError(
                f"The network of `{type(self).__name__}` must give (N, *{self.out_shape}) for an input "
                f"(N, *{self.in_shape}); got {tuple(out.shape)}. Give it the shapes it is made from."
            )
        out = at_least_float32(out).view(len(out), self.transform.size, *self.partition.move_shape)
        return out.movedim(1, 0)


def _either(fixed: Tensor | None, padding: Tensor | None) -> Tensor | None:
    if fixed is None or padding is None:
        return padding if fixed is None else fixed
    return fixed | padding


class AdditiveCoupling(Coupling):
    r"""Shift one part of the event by a function of the other part and of the context.

    .. math:: x_a = u_a, \quad x_b = u_b + t(u_a, c), \quad \log|\det| = 0

    The mean-only coupling of VITS (arXiv 2106.06103, section 2.5.2) is this with a `WaveNet`: volume-preserving,
    so that the variance of the prior alone says how far latents spread.

    Cost: one network pass in either direction. The identity at the start if the network's last layer is zero.

    Args: see `Coupling`, with `transform=Additive()`.

    References:
        Dinh et al., NICE: Non-linear Independent Components Estimation, 2015, arXiv 1410.8516, section 3.2.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        mask: Tensor,
        network: NetworkMaker,
        layout: Layout = "split",
        context_shape: int | Shape | None = None,
    ) -> None:
        super().__init__(
            event_shape,
            mask=mask,
            network=network,
            transform=Additive(),
            layout=layout,
            context_shape=context_shape,
        )


class AffineCoupling(Coupling):
    r"""Scale and shift one part of the event by functions of the other part and of the context.

    .. math:: x_a = u_a, \quad x_b = u_b \odot e^{s(u_a, c)} + t(u_a, c), \quad \log|\det| = \sum s

    The log-scale is bounded softly, s = a / (1 + |a| / b), so that no scale exceeds e^b either way.

    Cost: one network pass in either direction. The identity at the start if the network's last layer is zero.

    Args: see `Coupling`, with `transform=Affine(scale_bound)`; `scale_bound` is b.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, eq. 4-8.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        mask: Tensor,
        network: NetworkMaker,
        layout: Layout = "split",
        context_shape: int | Shape | None = None,
        scale_bound: float = 3.0,
    ) -> None:
        super().__init__(
            event_shape,
            mask=mask,
            network=network,
            transform=Affine(scale_bound),
            layout=layout,
            context_shape=context_shape,
        )


class SplineCoupling(Coupling):
    r"""Move one part of the event by monotone rational-quadratic splines given by the other part.

    .. math:: x_a = u_a, \quad x_b = g(u_b;\, \theta(u_a, c)), \quad \log|\det| = \sum_b \log g'(u_b)

    Each spline has `num_bins` bins on [-bound, bound] and is the identity outside. The network gives 3 num_bins - 1
    numbers for every moving entry.

    Cost: one network pass in either direction. The identity (to rounding) at the start if the network's last layer
    is zero.

    Args: see `Coupling`, with `transform=RationalQuadraticSpline(num_bins, bound)`.

    References:
        Durkan et al., Neural Spline Flows, 2019, arXiv 1906.04032, section 3.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        mask: Tensor,
        network: NetworkMaker,
        layout: Layout = "split",
        context_shape: int | Shape | None = None,
        num_bins: int = 8,
        bound: float = 3.0,
    ) -> None:
        super().__init__(
            event_shape,
            mask=mask,
            network=network,
            transform=RationalQuadraticSpline(num_bins, bound),
            layout=layout,
            context_shape=context_shape,
        )


def half_mask(event_shape: int | Shape, *, first: bool) -> Tensor:
    """Return the mask under which the first (or the second) half of the flattened event stays."""
    shape = as_shape(event_shape)
    positions = torch.arange(size(shape)).view(shape)
    lower = positions < (size(shape) + 1) // 2
    return lower if first else ~lower


def alternating_mask(event_shape: int | Shape, *, even: bool) -> Tensor:
    """Return the mask under which the even (or the odd) entries of the flattened event stay."""
    shape = as_shape(event_shape)
    positions = torch.arange(size(shape)).view(shape)
    return positions % 2 == (0 if even else 1)


def channel_mask(event_shape: int | Shape, *, first: bool) -> Tensor:
    """Return the mask under which the first (or the second) half of the channels stays, everywhere in space.

    An odd number of channels has the middle one in the first half. Source: Real NVP, arXiv 1605.08803, figure 3.
    """
    shape = as_shape(event_shape)
    lower = torch.arange(shape[0]) < (shape[0] + 1) // 2
    return (lower if first else ~lower).view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def checkerboard_mask(event_shape: Shape, *, even: bool) -> Tensor:
    """Return the mask under which the even (or the odd) pixels of a checkerboard stay, in all channels.

    A pixel (i, j) of an image (C, H, W) is even if i + j is; a frame t of a sequence (C, T) is even if t is.
    Source: Real NVP, arXiv 1605.08803, figure 3.

    Raises:
        ConfigurationError: for a vector, whose entries `alternating_mask` alternates.
    """
    shape = as_shape(event_shape)
    if len(shape) < 2:
        raise ConfigurationError(
            f"A checkerboard needs an image (C, H, W) or a sequence (C, T); got {shape}. Use `alternating_mask`."
        )
    parity = torch.zeros(shape[1:], dtype=torch.int64)
    for axis, length in enumerate(shape[1:]):
        parity += torch.arange(length).view(-1, *[1] * (len(shape) - 2 - axis))
    return (parity % 2 == (0 if even else 1)).expand(shape).clone()
