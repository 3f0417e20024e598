"""Coupling layers: one part of the event stays and decides how the other part moves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latentflows.bijections.base import Bijection
from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import at_least_float32, check_positive, soft_bound
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.networks.base import NetworkMaker


class Partition(nn.Module):
    """Cut a flattened event into the entries that stay and those that move, by index, and put it together again.

    Args:
        mask: Boolean tensor of the event's shape; True stays.

    Raises:
        ConfigurationError: if nothing stays or nothing moves.
    """

    stay: Tensor
    move: Tensor
    restore: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        flat = mask.reshape(-1).bool()
        stay, move = flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]
        if not len(stay) or not len(move):
            raise ConfigurationError(
                f"`mask` must let at least one entry stay (True) and one move (False); got {flat.tolist()}. "
                "A coupling needs two or more variables."
            )
        self.register_buffer("stay", stay)
        self.register_buffer("move", move)
        self.register_buffer("restore", torch.argsort(torch.cat([stay, move])))
        first, second = len(stay), len(move)
        # A cut in two contiguous pieces is a view; anything else needs an index.
        self.cut = first if flat[:first].all() else -second if (~flat[:second]).all() else None

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return (stay, move) of a value (N, D)."""
        if self.cut is None:
            return value[:, self.stay], value[:, self.move]
        if self.cut > 0:
            return value[:, : self.cut], value[:, self.cut :]
        return value[:, -self.cut :], value[:, : -self.cut]

    def merge(self, stay: Tensor, move: Tensor) -> Tensor:
        """Undo `split`."""
        if self.cut is None:
            return torch.cat([stay, move], 1)[:, self.restore]
        return torch.cat([stay, move] if self.cut > 0 else [move, stay], 1)


class Coupling(Bijection):
    """What all couplings share; a subclass says how the moving part moves, given the network's raw output.

    Args:
        event_shape: Shape of one event; it is flattened.
        mask: Boolean tensor of that shape; True stays, False moves.
        network: Makes the network from (in_shape, out_shape, context features).
        outputs: Numbers that the network gives for every moving entry, shape (N, outputs * moving).
        context_shape: None or (C,).

    Raises:
        ConfigurationError: if the mask has the wrong shape or is all one value.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        mask: Tensor,
        network: NetworkMaker,
        outputs: int,
        context_shape: int | Shape | None,
    ) -> None:
        super().__init__(event_shape, passes=(1, 1), context_shape=context_shape)
        if tuple(mask.shape) != self.event_shape:
            raise ConfigurationError(
                f"`mask` must have the event's shape {self.event_shape}; got {tuple(mask.shape)}."
            )
        self.partition = Partition(mask)
        stay, move = len(self.partition.stay), len(self.partition.move)
        features = size(self.context_shape) if self.context_shape else 0
        self.network = network((stay,), (outputs * move,), features)

    @abstractmethod
    def _move(self, move: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Map the moving part (N, M) forward; return it and the log-determinant (N,) or ()."""

    @abstractmethod
    def _move_back(self, move: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `_move`; return the log-determinant of this inverse map."""

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._run(self._move, u, context)

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._run(self._move_back, x, context)

    def _run(
        self, hook: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], value: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        samples, rows = value.shape[:2]
        stay, move = self.partition.split(value.view(samples * rows, size(self.event_shape)))
        raw = at_least_float32(self.network(stay, None if context is None else context.flatten(1)))
        move, log_det = hook(move, raw)
        return self.partition.merge(stay, move).view(value.shape), log_det.view(samples, rows)


class AdditiveCoupling(Coupling):
    r"""Shift one part of the event by a function of the other part and of the context.

    .. math:: x_a = u_a, \quad x_b = u_b + t(u_a, c), \quad \log|\det| = 0

    Cost: one network pass in either direction. The identity at the start if the network's last layer is zero.

    Args:
        event_shape: Shape of one event; it is flattened.
        mask: Boolean tensor of that shape; True stays, False moves.
        network: Makes the network from (in_shape, out_shape, context features).
        context_shape: None or (C,).

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, C); log_det: (*batch).

    References:
        Dinh et al., NICE: Non-linear Independent Components Estimation, 2015, arXiv 1410.8516, section 3.2.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        mask: Tensor,
        network: NetworkMaker,
        context_shape: int | Shape | None = None,
    ) -> None:
        super().__init__(event_shape, mask=mask, network=network, outputs=1, context_shape=context_shape)

    def _move(self, move: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return move + raw, move.new_zeros(len(move))

    def _move_back(self, move: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return move - raw, move.new_zeros(len(move))


class AffineCoupling(Coupling):
    r"""Scale and shift one part of the event by functions of the other part and of the context.

    .. math:: x_a = u_a, \quad x_b = u_b \odot e^{s(u_a, c)} + t(u_a, c), \quad \log|\det| = \sum s

    The log-scale is bounded softly, s = a / (1 + |a| / b), so that no scale exceeds e^b either way.

    Cost: one network pass in either direction. The identity at the start if the network's last layer is zero.

    Args:
        event_shape: Shape of one event; it is flattened.
        mask: Boolean tensor of that shape; True stays, False moves.
        network: Makes the network from (in_shape, out_shape, context features).
        context_shape: None or (C,).
        scale_bound: b, the largest absolute log-scale.

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, C); log_det: (*batch).

    References:
        Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, eq. 4-8.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        mask: Tensor,
        network: NetworkMaker,
        context_shape: int | Shape | None = None,
        scale_bound: float = 3.0,
    ) -> None:
        super().__init__(event_shape, mask=mask, network=network, outputs=2, context_shape=context_shape)
        check_positive("scale_bound", scale_bound)
        self.scale_bound = scale_bound

    def _move(self, move: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = raw.chunk(2, -1)
        log_scale = soft_bound(scale, self.scale_bound)
        return torch.addcmul(shift, move, log_scale.exp()), log_scale.sum(-1)

    def _move_back(self, move: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = raw.chunk(2, -1)
        log_scale = soft_bound(scale, self.scale_bound)
        return (move - shift) * (-log_scale).exp(), -log_scale.sum(-1)


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
