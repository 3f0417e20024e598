"""Continuous flow priors: noise carried to latents by a learned velocity, with the density that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, DataError
from latentflows.core.precision import at_least_float32, full_precision
from latentflows.core.shapes import Shape, batch_shape, broadcast_shape, size
from latentflows.distributions.base import Distribution
from latentflows.distributions.data_dependent import DataDependentPrior
from latentflows.distributions.gaussian import StandardNormal
from latentflows.distributions.ode import Method, OdeSolver, Rows
from latentflows.networks.base import NetworkMaker, check_sizes, made_network

Divergence = Literal["exact", "hutchinson"]
VelocityField = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From points (N, *event), times (N,) and contexts (N, *context), or None, to velocities (N, *event)."""

_TOGETHER = 1 << 15  # Jacobian-vector products computed together where no gradient is wanted


class Scored(NamedTuple):
    """A log-density with what is known of its error.

    Attributes:
        log_prob: (*batch,), nats.
        standard_error: Over the probes, (*batch,), nats; 0 for an exact divergence, NaN for one probe.
        num_evaluations: Evaluations of the velocity for each point, (*batch,).
    """

    log_prob: Tensor
    standard_error: Tensor
    num_evaluations: Tensor


class Velocity(nn.Module):
    r"""A network of x, of the time and of a context, if there is one.

    The time enters as t, sin(pi k t), cos(pi k t), k = 1, ..., `num_frequencies`, next to the context.

    Args:
        event_shape: Shape of x.
        network: From (event_shape, event_shape, number of features) to a module that is called as net(x, features).
        num_frequencies: Of the time.
        context_shape: Shape of one context, flattened; or None.
        embed: Network from contexts (N, *context) to features (N, F), which the network then hears in their place.
        features: F; None without `embed`.

    Shape:
        x: (N, *event); time: (N,); context: (N, *context); output: (N, *event).
    """

    frequencies: Tensor

    def __init__(
        self,
        event_shape: Shape,
        network: NetworkMaker,
        *,
        num_frequencies: int,
        context_shape: Shape | None,
        embed: nn.Module | None = None,
        features: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_frequencies=num_frequencies)
        if (embed is None) != (features is None) or (embed is not None and context_shape is None):
            raise ConfigurationError(
                "`embed` and `features`, the number that it gives, come together, with a `context_shape`; got "
                f"embed={type(embed).__name__}, features={features!r}, context_shape={context_shape!r}."
            )
        self.register_buffer(
            "frequencies", math.pi * torch.arange(1.0, num_frequencies + 1), persistent=False
        )
        heard = features or (0 if context_shape is None else size(context_shape))
        self.network = made_network(network, event_shape, event_shape, 1 + 2 * num_frequencies + heard)
        self.embed = embed

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        angles = time[:, None] * self.frequencies.to(time.dtype)
        features = [time[:, None], angles.sin(), angles.cos()]
        if context is not None:
            heard = context if self.embed is None else self.embed(context)
            features.append(heard.flatten(1).to(time.dtype))
        return at_least_float32(self.network(x, torch.cat(features, 1)))


class ContinuousPushforward(Distribution):
    """The distribution of x(1), dx/dt = v(x, t), x(0) ~ N(0, I), as a value; `FlowMatchingPrior` states the density.

    Args:
        velocity: v.
        shift: Subtracted from an event, broadcasting to it.
        scale: Divides what is left.
        context: (*batch, *context), or None.
        context_shape: Shape of one context, or None.
        solver: How the equation is solved, in both directions.
        num_probes: Of Hutchinson's estimate of the divergence; None for the exact divergence.
        base: Distribution of x(0).
    """

    density = "approximate"

    def __init__(
        self,
        velocity: VelocityField,
        shift: Tensor,
        scale: Tensor,
        context: Tensor | None,
        context_shape: Shape | None,
        solver: OdeSolver,
        num_probes: int | None,
        base: StandardNormal,
    ) -> None:
        self.velocity, self.shift, self.scale, self.base = velocity, shift, scale, base
        self.context, self.context_shape = context, context_shape
        self.solver, self.num_probes = solver, num_probes
        self.event_shape = base.event_shape
        self.batch_shape = () if context is None else batch_shape(context, context_shape or (), "context")
        self.weighable = num_probes is None

    def log_prob(self, x: Tensor) -> Tensor:
        return self.scored(x).log_prob

    def scored(self, x: Tensor) -> Scored:
        """Return log p(x) with its standard error over probes and the number of evaluations."""
        rows, context, batch = self._rows(x)
        return self._scored(rows, context, batch, self._probes(rows), self.solver)

    @torch.no_grad()
    def solver_error(self, x: Tensor) -> Tensor:
        """Return how much log p(x) moves when the step is halved, or the tolerance divided by ten: (*batch,), nats.

        Cost: that of three, or about two and a half, densities. The probes stay the same.
        """
        rows, context, batch = self._rows(x)
        probes = self._probes(rows)
        coarse = self._scored(rows, context, batch, probes, self.solver)
        fine = self._scored(rows, context, batch, probes, self.solver.refined())
        return (fine.log_prob - coarse.log_prob).abs()

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        u, context, batch = self._noise(sample_shape)
        with full_precision(u):
            x, _ = self.solver.solve(_Moved(self, context), u.flatten(1), 0.0, 1.0)
        return self._unstandardized(x).view(*batch, *self.event_shape)

    def sample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        u, context, batch = self._noise(sample_shape)
        x, integrals, _ = self._carried(u, context, self._probes(u), self.solver, 0.0, 1.0)
        log_p = self.base.log_prob(u) - integrals.mean(1) - self._log_scale()
        return self._unstandardized(x).view(*batch, *self.event_shape), log_p.view(batch)

    def tempered(self, temperature: float) -> ContinuousPushforward:
        return ContinuousPushforward(
            self.velocity,
            self.shift,
            self.scale,
            self.context,
            self.context_shape,
            self.solver,
            self.num_probes,
            self.base.tempered(temperature),
        )

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor | None, Shape]:
        """Return standardized points (N, *event), contexts (N, *context), and the shape of N."""
        given = batch_shape(x, self.event_shape, "x")
        batch = broadcast_shape(given, self.batch_shape, "x and the context")
        x = (at_least_float32(x) - self.shift) / self.scale
        x = x.expand(*batch, *self.event_shape).reshape(size(batch), *self.event_shape)
        return x, self._contexts(batch), batch

    def _contexts(self, batch: Shape) -> Tensor | None:
        if self.context is None or self.context_shape is None:
            return None
        return self.context.expand(*batch, *self.context_shape).reshape(size(batch), *self.context_shape)

    def _noise(self, sample_shape: Shape) -> tuple[Tensor, Tensor | None, Shape]:
        batch = (*sample_shape, *self.batch_shape)
        u = self.base.sample(batch).view(size(batch), *self.event_shape)
        return u, self._contexts(batch), batch

    def _probes(self, x: Tensor) -> Tensor:
        """Return directions (P, N, *event): all axes, or Rademacher vectors, which stay fixed along a path."""
        dim = size(self.event_shape)
        if self.num_probes is None:
            axes = torch.eye(dim, dtype=x.dtype, device=x.device).view(dim, 1, *self.event_shape)
            return axes.expand(dim, *x.shape)
        signs = noise.uniform((self.num_probes, *x.shape), like=x) < 0.5
        return torch.where(signs, 1.0, -1.0).to(x.dtype)

    def _scored(
        self, x: Tensor, context: Tensor | None, batch: Shape, probes: Tensor, solver: OdeSolver
    ) -> Scored:
        step = len(x) if torch.is_grad_enabled() else max(1, _TOGETHER // len(probes))
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for first in range(0, max(len(x), 1), max(step, 1)):
            part = slice(first, first + step)
            u, integrals, evaluations = self._carried(
                x[part], None if context is None else context[part], probes[:, part], solver, 1.0, 0.0
            )
            # Integrated from 1 to 0, so that the sign is the other one.
            log_p = self.base.log_prob(u.view(-1, *self.event_shape)) + integrals.mean(1) - self._log_scale()
            parts.append((log_p, _standard_error(integrals, exact=self.num_probes is None), evaluations))
        return Scored(*(torch.cat(column).view(batch) for column in zip(*parts, strict=True)))

    def _carried(
        self,
        x: Tensor,
        context: Tensor | None,
        probes: Tensor,
        solver: OdeSolver,
        start: float,
        end: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Carry x (N, *event) from one time to another, with the integral of the divergence.

        Returns:
            (N, D); the integrals (N, P), of each probe, or one column for the exact one; evaluations (N,).
        """
        columns = 1 if self.num_probes is None else len(probes)
        state = torch.cat([x.flatten(1), x.new_zeros(len(x), columns)], 1)
        with full_precision(x):
            state, evaluations = solver.solve(_Moved(self, context, probes), state, start, end)
        return state[:, :-columns], state[:, -columns:], evaluations

    def _unstandardized(self, x: Tensor) -> Tensor:
        return x.view(-1, *self.event_shape) * self.scale + self.shift

    def _log_scale(self) -> Tensor:
        return self.scale.expand(self.event_shape).log().sum()


class _Moved:
    """The field that `OdeSolver` follows: the velocity, beside its divergence where probes are given."""

    def __init__(
        self, flow: ContinuousPushforward, context: Tensor | None, probes: Tensor | None = None
    ) -> None:
        self.flow, self.context, self.probes = flow, context, probes

    def __call__(self, time: Tensor, state: Tensor, rows: Rows) -> Tensor:
        shape = self.flow.event_shape
        context = None if self.context is None else self.context[rows]
        if self.probes is None:
            return self.flow.velocity(state.view(-1, *shape), time, context).flatten(1)
        x = state[:, : size(shape)].reshape(-1, *shape)

        def velocity(point: Tensor) -> Tensor:
            return self.flow.velocity(point, time, context)

        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            value, product, *_ = torch.func.jvp(velocity, (x,), (direction,))
            return value, product

        probes = self.probes[:, rows]
        values, products = torch.func.vmap(along)(probes)
        columns = (products * probes).flatten(2).sum(2).T
        if self.flow.num_probes is None:
            columns = columns.sum(1, keepdim=True)
        return torch.cat([values[0].flatten(1), columns], 1)


def _standard_error(integrals: Tensor, *, exact: bool) -> Tensor:
    if exact:
        return integrals.new_zeros(len(integrals))
    if integrals.shape[1] == 1:
        return integrals.new_full((len(integrals),), torch.nan)
    return integrals.detach().std(1) / math.sqrt(integrals.shape[1])


class FlowMatchingPrior(DataDependentPrior):
    r"""A continuous flow: N(0, I) at time 0 is carried to p(z) at time 1 by a velocity v; `FlowMatching` trains it.

    .. math:: \frac{dx}{dt} = v(x, t), \quad \log p(z) = \log N(x(0); 0, I) - \int_0^1 \nabla \cdot v(x(t), t) \, dt
              - \sum_i \log s_i, \quad x(1) = (z - m) / s

    m and s are the mean and standard deviation of the first latents it is shown, per entry of a vector and per channel
    of a map. Training with `FlowMatching` solves no equation. The density does: it is "approximate", with the error of
    the solver, which `solver_error` measures, and `scored` gives the number of evaluations. Draws follow the density of
    the same solver: report both at one. It may also be trained through log p(z), at the cost of one density per step.

    | divergence | evaluations' cost, in passes of the network | error |
    |---|---|---|
    | "exact" | 1 + 1.5 D | that of the solver |
    | "hutchinson" | 1 + 1.5 P | of log p: unbiased, standard error from P probes |

    With "hutchinson" exp(log p) is biased upward (Jensen's inequality), so that no bound may be computed from weights:
    `weighable` is False, and evaluation refuses more than one importance sample.

    Memory: O(P N D) activations per evaluation, P = D for the exact divergence; with gradients, for every evaluation.

    Args:
        event_shape: Shape of one latent.
        network: Maker of the velocity's network, called with (event_shape, event_shape, features); its context is the
            time's embedding and the context. `ResidualMLP` with `zero_last` starts as N(m, s^2).
        solver: "euler", "midpoint", "rk4" or "dopri5".
        num_steps: Of a fixed-step solver.
        tolerance: Of "dopri5".
        divergence: As in the table.
        num_probes: P, for "hutchinson".
        num_frequencies: Of the time's embedding.
        context_shape: Shape of one context, or None.
        embed: Network from contexts (N, *context) to features (N, F), such as a table of vectors for labels; needs
            `context_shape`. None for the context itself.
        features: F; None without `embed`.
        initialization_points: Latents that m and s are measured on.

    Raises:
        ConfigurationError: for settings out of range.

    References:
        Lipman et al., Flow Matching for Generative Modeling, 2023, arXiv 2210.02747 (time 0 is noise); Chen et al.,
        Neural Ordinary Differential Equations, 2018, arXiv 1806.07366, eq. 8; Grathwohl et al., FFJORD, 2019, arXiv
        1810.01367, section 3 (Hutchinson's estimate).
    """

    distribution_type = ContinuousPushforward
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: int | Shape,
        network: NetworkMaker,
        *,
        solver: Method = "rk4",
        num_steps: int = 20,
        tolerance: float = 1e-5,
        divergence: Divergence = "exact",
        num_probes: int = 4,
        num_frequencies: int = 8,
        context_shape: int | Shape | None = None,
        embed: nn.Module | None = None,
        features: int | None = None,
        initialization_points: int = 2048,
    ) -> None:
        super().__init__(event_shape, context_shape, waits=True, initialization_points=initialization_points)
        if divergence not in get_args(Divergence):
            raise ConfigurationError(
                f"`divergence` must be one of {get_args(Divergence)}; got {divergence!r}."
            )
        check_sizes(num_probes=num_probes)
        self.solver = OdeSolver(solver, num_steps, tolerance)
        self.num_probes = num_probes if divergence == "hutchinson" else None
        self.weighable = self.num_probes is None
        self.velocity = Velocity(
            self.event_shape,
            network,
            num_frequencies=num_frequencies,
            context_shape=self.context_shape,
            embed=embed,
            features=features,
        )
        per_channel = (self.event_shape[0], *[1] * (len(self.event_shape) - 1))
        self.register_buffer("shift", torch.zeros(per_channel))
        self.register_buffer("scale", torch.ones(per_channel))

    def _initialize(self, values: Tensor, context: Tensor | None) -> None:
        flat = values.double().transpose(0, 1).flatten(1)
        mean, std = flat.mean(1), flat.std(1)
        if not bool((std.isfinite() & (std > 0)).all()):
            raise DataError(
                f"Latents must vary in every entry to be standardized; got standard deviations from "
                f"{float(std.min()):.3g} to {float(std.max()):.3g} in a batch of {len(values)}. Give more latents, or "
                "leave out latents that are constant."
            )
        self.shift.copy_(mean.view_as(self.shift))
        self.scale.copy_(std.view_as(self.scale))

    def standardized(self, z: Tensor) -> Tensor:
        """Return (z - m) / s, what the velocity is trained on."""
        return (z - self.shift) / self.scale

    def _condition(self, context: Tensor | None) -> ContinuousPushforward:
        return ContinuousPushforward(
            self.velocity,
            self.shift,
            self.scale,
            context,
            self.context_shape,
            self.solver,
            self.num_probes,
            StandardNormal(self.event_shape, like=self.shift),
        )
