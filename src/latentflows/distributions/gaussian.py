"""Gaussians: standard, diagonal and full covariance, as values and as conditionals."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.core.precision import at_least_float32, check_positive, full_precision, soft_bound
from latentflows.core.shapes import Shape, batch_shape, size, sum_event
from latentflows.distributions.base import Conditional, Distribution, over_batch

_LOG_2PI = math.log(2 * math.pi)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite.

    Raises:
        ConfigurationError: naming the value.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigurationError(f"`temperature` must be positive and finite; got {temperature}.")


class StandardNormal(Distribution):
    r"""N(0, I) as a value: log p(x) = -|x|^2 / 2 - D log(2 pi) / 2. `like` gives dtype and device."""

    def __init__(self, event_shape: Shape, *, like: Tensor, scale: float = 1.0) -> None:
        self.batch_shape, self.event_shape = (), event_shape
        self.like, self.scale = like, scale

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        constant = size(self.event_shape) * (0.5 * _LOG_2PI + math.log(self.scale))
        squares = sum_event(x * x, len(self.event_shape))
        return -0.5 / self.scale**2 * squares - constant

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.scale * noise.standard_normal((*sample_shape, *self.event_shape), like=self.like)

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.event_shape, dtype=self.like.dtype, device=self.like.device)

    def detached(self) -> StandardNormal:
        return self

    def tempered(self, temperature: float) -> StandardNormal:
        check_temperature(temperature)
        return StandardNormal(self.event_shape, like=self.like, scale=self.scale * temperature)


class DiagonalNormal(Distribution):
    r"""Independent normals as a value.

    .. math:: \log p(x) = -\tfrac12 \sum_i \left( (x_i - \mu_i)^2 / \sigma_i^2 + 2 \log\sigma_i + \log 2\pi \right)

    Args:
        mean: (*batch, *event).
        log_scale: log sigma, broadcasting to the mean.
        event_ndim: Number of event axes.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, *, event_ndim: int = 1) -> None:
        self._mean = at_least_float32(mean)
        log_scale = at_least_float32(log_scale)
        whole = log_scale.shape == self._mean.shape  # then there is nothing that autograd need note
        self.log_scale = log_scale if whole else log_scale.expand(self._mean.shape)
        cut = mean.ndim - event_ndim
        self.batch_shape, self.event_shape = tuple(mean.shape[:cut]), tuple(mean.shape[cut:])

    def _log_prob_of(self, standardized: Tensor) -> Tensor:
        ndim = len(self.event_shape)
        constant = 0.5 * size(self.event_shape) * _LOG_2PI
        squares = sum_event(standardized * standardized, ndim)
        return -0.5 * squares - sum_event(self.log_scale, ndim) - constant

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        return self._log_prob_of((x - self._mean) * (-self.log_scale).exp())

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self._draw(sample_shape)[0]

    def sample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        x, standardized = self._draw(sample_shape)
        return x, self._log_prob_of(standardized)

    def _draw(self, sample_shape: Shape) -> tuple[Tensor, Tensor]:
        standardized = noise.standard_normal((*sample_shape, *self._mean.shape), like=self._mean)
        return torch.addcmul(self._mean, self.log_scale.exp(), standardized), standardized

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return (2 * self.log_scale).exp()

    def detached(self) -> DiagonalNormal:
        return DiagonalNormal(self._mean.detach(), self.log_scale.detach(), event_ndim=len(self.event_shape))

    def tempered(self, temperature: float) -> DiagonalNormal:
        check_temperature(temperature)
        ndim = len(self.event_shape)
        return DiagonalNormal(self._mean, self.log_scale + math.log(temperature), event_ndim=ndim)


class FullNormal(Distribution):
    """A normal over vectors with covariance L L^T as a value.

    Cost: O(D^2) per draw or density.

    Args:
        mean: (*batch, D).
        scale_tril: L, lower triangular with a positive diagonal, (*batch, D, D).
    """

    def __init__(self, mean: Tensor, scale_tril: Tensor) -> None:
        self._mean, self.scale_tril = at_least_float32(mean), at_least_float32(scale_tril)
        self.batch_shape, self.event_shape = tuple(mean.shape[:-1]), tuple(mean.shape[-1:])

    def _log_prob_of(self, standardized: Tensor) -> Tensor:
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * self.event_shape[0] * _LOG_2PI
        return -0.5 * (standardized * standardized).sum(-1) - log_det - constant

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        difference = (x - self._mean).unsqueeze(-1)
        with full_precision(difference):
            tril = self.scale_tril.expand(*difference.shape[:-2], *self.scale_tril.shape[-2:])
            standardized = torch.linalg.solve_triangular(tril, difference, upper=False).squeeze(-1)
        return self._log_prob_of(standardized)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self._draw(sample_shape)[0]

    def sample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        x, standardized = self._draw(sample_shape)
        return x, self._log_prob_of(standardized)

    def _draw(self, sample_shape: Shape) -> tuple[Tensor, Tensor]:
        standardized = noise.standard_normal((*sample_shape, *self._mean.shape), like=self._mean)
        with full_precision(standardized):
            x = self._mean + (self.scale_tril @ standardized.unsqueeze(-1)).squeeze(-1)
        return x, standardized

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return self.scale_tril.square().sum(-1)

    def detached(self) -> FullNormal:
        return FullNormal(self._mean.detach(), self.scale_tril.detach())

    def tempered(self, temperature: float) -> FullNormal:
        check_temperature(temperature)
        return FullNormal(self._mean, self.scale_tril * temperature)


def to_tril(raw: Tensor, dim: int, scale_bound: float) -> Tensor:
    """Fill a lower triangle from (*batch, D (D + 1) / 2) numbers; the diagonal is e^(soft-bounded)."""
    rows, columns = torch.tril_indices(dim, dim, device=raw.device)
    tril = raw.new_zeros(*raw.shape[:-1], dim, dim)
    tril[..., rows, columns] = raw
    diagonal = tril.diagonal(dim1=-2, dim2=-1)
    return tril - torch.diag_embed(diagonal) + torch.diag_embed(soft_bound(diagonal, scale_bound).exp())


class StandardGaussian(Conditional):
    """N(0, I), without parameters: the usual prior, and the usual base of a flow."""

    distribution_type = StandardNormal
    like: Tensor

    def __init__(self, event_shape: int | Shape) -> None:
        super().__init__(event_shape)
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def _condition(self, context: Tensor | None) -> StandardNormal:
        return StandardNormal(self.event_shape, like=self.like)


class LearnedGaussian(Conditional):
    """A Gaussian with learned mean and covariance, without a context; it starts as N(0, I).

    Args:
        event_shape: Shape of one draw; (D,) for a full covariance.
        covariance: "diagonal", or "full" with D (D + 1) / 2 numbers.
        scale_bound: Largest absolute log-scale.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        covariance: Literal["diagonal", "full"] = "diagonal",
        scale_bound: float = 7.0,
    ) -> None:
        super().__init__(event_shape)
        _check_covariance(covariance, self.event_shape)
        check_positive("scale_bound", scale_bound)
        self.covariance, self.scale_bound = covariance, scale_bound
        self.distribution_type = FullNormal if covariance == "full" else DiagonalNormal
        self.mean = nn.Parameter(torch.zeros(self.event_shape))
        dim = self.event_shape[0]
        self.raw_scale = nn.Parameter(
            torch.zeros(dim * (dim + 1) // 2 if covariance == "full" else self.event_shape)
        )

    def _condition(self, context: Tensor | None) -> Distribution:
        if self.covariance == "full":
            return FullNormal(self.mean, to_tril(self.raw_scale, self.event_shape[0], self.scale_bound))
        log_scale = soft_bound(self.raw_scale, self.scale_bound)
        return DiagonalNormal(self.mean, log_scale, event_ndim=len(self.event_shape))


class AmortizedGaussian(Conditional):
    r"""A Gaussian whose parameters a network computes from the context: an encoder's posterior, or a decoder.

    The network's raw output is cut along the first event axis in the mean and what the scale needs:

    | `scale` | network output | standard deviation |
    |---|---|---|
    | "amortized", diagonal | (2 E_0, E_1, ...) | e^s per entry, s = a / (1 + abs(a) / b) |
    | "amortized", full | (D + D (D + 1) / 2,) | L with e^s on its diagonal |
    | "shared" | (E_0, E_1, ...) | one learned number for all entries (sigma-VAE, arXiv 2006.13202) |
    | a number | (E_0, E_1, ...) | that number |

    Args:
        event_shape: E, shape of one draw.
        context_shape: Shape of one context.
        network: From (N, *context_shape) to (N, *raw_shape); see `raw_shape`.
        covariance: "diagonal" or "full".
        scale: As in the table.
        scale_bound: b, the largest absolute log-scale.

    Raises:
        ShapeError: at the first use, if the network gives another shape.
        CombinationError: for a full covariance over anything but a vector, or with a scale that is not amortized.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        covariance: Literal["diagonal", "full"] = "diagonal",
        scale: float | Literal["amortized", "shared"] = "amortized",
        scale_bound: float = 7.0,
    ) -> None:
        super().__init__(event_shape, context_shape)
        _check_covariance(covariance, self.event_shape)
        if covariance == "full" and scale != "amortized":
            raise CombinationError(f'A full covariance needs scale="amortized"; got {scale!r}.')
        if not (scale in ("amortized", "shared") if isinstance(scale, str) else scale > 0):
            raise ConfigurationError(
                f'`scale` must be "amortized", "shared" or a positive number; got {scale!r}.'
            )
        check_positive("scale_bound", scale_bound)
        self.covariance, self.scale, self.scale_bound = covariance, scale, scale_bound
        self.distribution_type = FullNormal if covariance == "full" else DiagonalNormal
        self.network = network
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "shared" else None
        self.raw_shape = gaussian_raw_shape(self.event_shape, covariance=covariance, scale=scale)
        if not isinstance(scale, str):  # on gray levels a learned scale would shrink without limit
            self.values = frozenset({"continuous", "unit"})

    def _condition(self, context: Tensor | None) -> Distribution:
        assert context is not None
        assert self.context_shape is not None
        raw = at_least_float32(over_batch(self.network, context, self.context_shape))
        ndim = len(self.event_shape)
        if raw.shape[raw.ndim - ndim :] != self.raw_shape:
            raise ShapeError(
                f"The network of `AmortizedGaussian` must give {self.raw_shape}; "
                f"got {tuple(raw.shape[context.ndim - len(self.context_shape) :])}."
            )
        if self.covariance == "full":
            dim = self.event_shape[0]
            return FullNormal(raw[..., :dim], to_tril(raw[..., dim:], dim, self.scale_bound))
        if self.scale == "amortized":
            mean, scale = raw.chunk(2, -ndim)
            return DiagonalNormal(mean, soft_bound(scale, self.scale_bound), event_ndim=ndim)
        if self.raw_scale is not None:
            return DiagonalNormal(raw, soft_bound(self.raw_scale, self.scale_bound), event_ndim=ndim)
        assert not isinstance(self.scale, str)
        return DiagonalNormal(raw, raw.new_tensor(math.log(self.scale)), event_ndim=ndim)


def gaussian_raw_shape(
    event_shape: Shape,
    *,
    covariance: Literal["diagonal", "full"] = "diagonal",
    scale: float | Literal["amortized", "shared"] = "amortized",
) -> Shape:
    """Return the output shape that the network of an `AmortizedGaussian` must have."""
    first, *rest = event_shape
    if covariance == "full":
        return (first + first * (first + 1) // 2,)
    return (2 * first, *rest) if scale == "amortized" else event_shape


def _check_covariance(covariance: str, event_shape: Shape) -> None:
    if covariance not in ("diagonal", "full"):
        raise ConfigurationError(f'`covariance` must be "diagonal" or "full"; got {covariance!r}.')
    if covariance == "full" and len(event_shape) != 1:
        raise CombinationError(f"A full covariance needs a vector event (D,); got {event_shape}.")
