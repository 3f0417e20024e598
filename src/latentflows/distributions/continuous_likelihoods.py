"""Densities of real-valued data other than the Gaussian: Laplace, Student t, and a Gaussian with fitted variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.core.precision import at_least_float32, check_positive, soft_bound
from latentflows.core.running import Running, gathered_over_processes
from latentflows.core.shapes import Shape, batch_shape, size, sum_event
from latentflows.distributions.base import Conditional, Distribution, network_output
from latentflows.distributions.gaussian import DiagonalNormal, check_temperature, gaussian_raw_shape

Scale = float | Literal["amortized", "shared"]

_LOG_2 = math.log(2)
_GRAY = frozenset({"continuous", "unit"})  # a density with a fixed scale is bounded, also on gray levels
_LOG_DEGREES_BOUND = 7.0  # degrees of freedom stay below 1 + e^7 = 1098, where a t is a normal to 1 in 1000


class LaplaceValues(Distribution):
    r"""Independent Laplace entries as a value: log p(x) = -sum_i |x_i - m_i| / b_i + log(2 b_i).

    Draws are reparameterized: m + b e, e from Laplace(0, 1).

    Args:
        mean: m, also the median, (*batch, *event).
        log_scale: log b, broadcasting to the mean. The standard deviation is sqrt(2) b.
        event_ndim: Number of event axes.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, *, event_ndim: int) -> None:
        self._mean = at_least_float32(mean)
        self.log_scale = at_least_float32(log_scale).expand(self._mean.shape)
        cut = mean.ndim - event_ndim
        self.batch_shape, self.event_shape = tuple(mean.shape[:cut]), tuple(mean.shape[cut:])

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        distance = (x - self._mean).abs() * (-self.log_scale).exp()
        ndim = len(self.event_shape)
        return -sum_event(distance, ndim) - sum_event(self.log_scale, ndim) - size(self.event_shape) * _LOG_2

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = (*sample_shape, *self._mean.shape)
        distance = -torch.log1p(-noise.uniform(shape, like=self._mean))  # u < 1: finite
        above = noise.uniform(shape, like=self._mean) < 0.5
        return self._mean + self.log_scale.exp() * torch.where(above, distance, -distance)

    @property
    def mean(self) -> Tensor:
        return self._mean

    def tempered(self, temperature: float) -> LaplaceValues:
        check_temperature(temperature)
        log_scale = self.log_scale + math.log(temperature)
        return LaplaceValues(self._mean, log_scale, event_ndim=len(self.event_shape))


class StudentTValues(Distribution):
    r"""Independent Student t entries as a value, with degrees of freedom v.

    .. math:: \log p(x) = \sum_i \log\Gamma(\tfrac{v+1}2) - \log\Gamma(\tfrac v2) - \tfrac12 \log(v \pi) - \log s_i
        - \tfrac{v+1}2 \log\left(1 + \frac{(x_i - m_i)^2}{v s_i^2}\right)

    Draws are reparameterized, in v too: with U and V uniform, sqrt(v (U^(-2/v) - 1)) cos(2 pi V) has this
    distribution for m = 0 and s = 1. In float32 a draw is infinite where it leaves the range, for v below 0.19: one in
    10 million at v = 0.18, one in 8,000 at 0.1. The mean m exists for v > 1, the variance s^2 v / (v - 2) for v > 2.

    Args:
        location: m, also the median, (*batch, *event).
        log_scale: log s, broadcasting to the location.
        degrees: v, a scalar.
        event_ndim: Number of event axes.

    References:
        Bailey, Polar generation of random variates with the t-distribution, Mathematics of Computation 62, 1994.
    """

    def __init__(self, location: Tensor, log_scale: Tensor, degrees: Tensor, *, event_ndim: int) -> None:
        self.location = at_least_float32(location)
        self.log_scale = at_least_float32(log_scale).expand(self.location.shape)
        self.degrees = at_least_float32(degrees)
        cut = location.ndim - event_ndim
        self.batch_shape, self.event_shape = tuple(location.shape[:cut]), tuple(location.shape[cut:])

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        standardized = (x - self.location) * (-self.log_scale).exp()
        ndim, half = len(self.event_shape), 0.5 * (self.degrees + 1)
        tails = sum_event(_log_one_plus_square(standardized * self.degrees.rsqrt()), ndim)
        constant = size(self.event_shape) * self._log_normalizer().to(half.dtype)
        return constant - sum_event(self.log_scale, ndim) - half * tails

    def _log_normalizer(self) -> Tensor:
        """One number, in float64: for many degrees of freedom it is a small difference of large terms."""
        v = self.degrees.double()
        return torch.lgamma(0.5 * (v + 1)) - torch.lgamma(0.5 * v) - 0.5 * (v * math.pi).log()

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = (*sample_shape, *self.location.shape)
        # U = 1 - u; u is a multiple of 2^-24, and at 0 the root has no derivative: half a step, as good a draw.
        u = noise.uniform(shape, like=self.location).clamp(min=2.0**-25)
        # U^(-1/v) by its logarithm, since its square leaves float32 where it does not.
        log_root = -torch.log1p(-u) / self.degrees
        radius = (-self.degrees * torch.expm1(-2 * log_root)).sqrt() * log_root.exp()
        angle = 2 * math.pi * noise.uniform(shape, like=self.location)
        return self.location + self.log_scale.exp() * radius * angle.cos()

    @property
    def mean(self) -> Tensor:
        if not self.degrees > 1:
            raise CombinationError(
                f"A Student t has a mean for more than 1 degree of freedom; got {float(self.degrees):g}. Use more, or "
                "take the median, `location`."
            )
        return self.location

    def tempered(self, temperature: float) -> StudentTValues:
        check_temperature(temperature)
        log_scale = self.log_scale + math.log(temperature)
        return StudentTValues(self.location, log_scale, self.degrees, event_ndim=len(self.event_shape))


def _log_one_plus_square(x: Tensor) -> Tensor:
    """Return log(1 + x^2), also where the square would overflow, and its gradient."""
    large = x.abs().clamp(min=1)
    return 2 * large.log() + torch.log1p((x / large).square() + (large.reciprocal().square() - 1))


class FittedNormal(Distribution):
    """A normal whose one scale is known after the data: `log_prob` asks for it, a draw takes the one so far.

    Args:
        mean: (*batch, *event).
        log_scale: Scalar: of draws, and of `log_prob` where nothing is fitted.
        event_ndim: Number of event axes.
        fit: From squared distances to the log-scale that `log_prob` takes, or None.
    """

    def __init__(
        self,
        mean: Tensor,
        log_scale: Tensor,
        *,
        event_ndim: int,
        fit: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.normal, self.fit = DiagonalNormal(mean, log_scale, event_ndim=event_ndim), fit
        self.batch_shape, self.event_shape = self.normal.batch_shape, self.normal.event_shape

    def log_prob(self, x: Tensor) -> Tensor:
        if self.fit is None:
            return self.normal.log_prob(x)
        batch_shape(x, self.event_shape, "x")
        log_scale = self.fit((x - self.normal.mean).detach().square())
        return DiagonalNormal(self.normal.mean, log_scale, event_ndim=len(self.event_shape)).log_prob(x)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.normal.sample(sample_shape)

    @property
    def mean(self) -> Tensor:
        return self.normal.mean

    def tempered(self, temperature: float) -> DiagonalNormal:
        return self.normal.tempered(temperature)


def _check_scale(scale: Scale, scale_bound: float) -> None:
    if not (scale in ("amortized", "shared") if isinstance(scale, str) else 0 < scale < math.inf):
        raise ConfigurationError(
            f'`scale` must be "amortized", "shared" or a positive number; got {scale!r}.'
        )
    check_positive("scale_bound", scale_bound)


def _location_and_log_scale(
    raw: Tensor, scale: Scale, raw_scale: Tensor | None, bound: float, ndim: int
) -> tuple[Tensor, Tensor]:
    """Cut the raw output of a network as `AmortizedGaussian` does."""
    if raw_scale is not None:
        return raw, soft_bound(raw_scale, bound)
    if isinstance(scale, str):
        location, log_scale = raw.chunk(2, -ndim)
        return location, soft_bound(log_scale, bound)
    return raw, raw.new_tensor(math.log(scale))


class AmortizedLaplace(Conditional):
    """Independent Laplace entries from a network: an absolute error, whose mean is the conditional median.

    Args:
        event_shape: Shape of one data point.
        context_shape: Shape of one latent.
        network: From (N, *context_shape) to (N, *raw_shape), as for `AmortizedGaussian`.
        scale: "amortized" per entry, "shared" for one learned number, or a number. With a number the density is
            bounded, so that gray levels are accepted too, though no bits per dimension come out of them.
        scale_bound: Largest absolute log-scale.

    Raises:
        ShapeError: at the first use, if the network gives another shape.
        ConfigurationError: for a scale out of range.
    """

    distribution_type = LaplaceValues

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        scale: Scale = "shared",
        scale_bound: float = 7.0,
    ) -> None:
        super().__init__(event_shape, context_shape)
        _check_scale(scale, scale_bound)
        self.network, self.scale_bound = network, scale_bound
        self.scale: Scale = scale
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "shared" else None
        self.raw_shape = gaussian_raw_shape(self.event_shape, scale=scale)
        if not isinstance(scale, str):
            self.values = _GRAY

    def _condition(self, context: Tensor | None) -> LaplaceValues:
        raw = network_output(self, self.network, context, self.raw_shape)
        ndim = len(self.event_shape)
        mean, log_scale = _location_and_log_scale(raw, self.scale, self.raw_scale, self.scale_bound, ndim)
        return LaplaceValues(mean, log_scale, event_ndim=ndim)


class AmortizedStudentT(Conditional):
    """Independent Student t entries from a network: a Gaussian that forgives outliers.

    Learned degrees of freedom are one number, 1 + e^a with a soft-bounded and 5 at the start, so that the mean
    always exists.

    Args:
        event_shape: Shape of one data point.
        context_shape: Shape of one latent.
        network: From (N, *context_shape) to (N, *raw_shape), as for `AmortizedGaussian`.
        degrees: Degrees of freedom, or "shared" for one learned number. At 1 (Cauchy) and below there is no mean.
        scale: "amortized" per entry, "shared" for one learned number, or a number, as for `AmortizedLaplace`.
        scale_bound: Largest absolute log-scale.

    Raises:
        ShapeError: at the first use, if the network gives another shape.
        ConfigurationError: for a scale or degrees of freedom out of range.
    """

    distribution_type = StudentTValues
    fixed_degrees: Tensor

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        degrees: float | Literal["shared"] = "shared",
        scale: Scale = "shared",
        scale_bound: float = 7.0,
    ) -> None:
        super().__init__(event_shape, context_shape)
        _check_scale(scale, scale_bound)
        if not (degrees == "shared" if isinstance(degrees, str) else 0 < degrees < math.inf):
            raise ConfigurationError(f'`degrees` must be "shared" or a positive number; got {degrees!r}.')
        self.network, self.degrees, self.scale_bound = network, degrees, scale_bound
        self.scale: Scale = scale
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "shared" else None
        self.raw_degrees = None
        if isinstance(degrees, str):
            start = math.log(4)  # of log(v - 1), before the soft bound
            self.raw_degrees = nn.Parameter(torch.tensor(start / (1 - start / _LOG_DEGREES_BOUND)))
        else:
            self.register_buffer("fixed_degrees", torch.tensor(float(degrees)), persistent=False)
        self.raw_shape = gaussian_raw_shape(self.event_shape, scale=scale)
        if not isinstance(scale, str):
            self.values = _GRAY

    def _condition(self, context: Tensor | None) -> StudentTValues:
        raw = network_output(self, self.network, context, self.raw_shape)
        ndim = len(self.event_shape)
        location, log_scale = _location_and_log_scale(raw, self.scale, self.raw_scale, self.scale_bound, ndim)
        learned = self.raw_degrees
        degrees = self.fixed_degrees if learned is None else 1 + soft_bound(learned, _LOG_DEGREES_BOUND).exp()
        return StudentTValues(location, log_scale, degrees, event_ndim=ndim)


class BatchOptimalGaussian(Conditional, Running):
    r"""A Gaussian whose one variance is, in every training step, the best for the batch (optimal sigma-VAE).

    .. math:: \sigma^2 = \max\left(\frac1{K B D} \sum_{k, b, i} (x_{bi} - \mu_i(z_{kb}))^2, \sigma_{min}^2\right)

    In train mode with gradients `log_prob` fits sigma to the data that it scores and takes no gradient through it:
    sigma maximizes the likelihood of the batch, so that its derivative is zero and the gradient in the network's
    weights is that of (K B D / 2) log sigma^2, as in the paper. At the bound sigma is a constant. In eval mode, without
    gradients, and for draws, sigma^2 is the moving average over training steps in `mean_square`, a buffer saved with
    the weights; it starts as a plain average and leaves out steps whose error is not finite. Until training it is 1.
    `fit` moves it once the optimizer has moved; in a loop of your own every batch that is scored in train mode with
    gradients moves it (see `Running`). It is that of the weights that learn, also where a moving average of them
    (`ema_decay`) is what is validated.

    With K samples sigma is the best for the mean of log p(x|z_k), the ELBO; for IWAE's bound it is not the best, and
    its derivative is not zero but is left out. Over several processes the squared error is averaged over all (one
    number, one more exchange a step), so that the parallel run trains as one does. A batch run in accumulated pieces
    fits one sigma for each piece, not the same as one batch; `mean_square` takes in their average.

    Args:
        event_shape: Shape of one data point.
        context_shape: Shape of one latent.
        network: From (N, *context_shape) to means (N, *event_shape).
        min_scale: sigma_min. The default, e^-6, is the paper's; noise of dequantized 8-bit data has 0.0011.
        momentum: Weight of the newest step in the moving average.

    Raises:
        ShapeError: at the first use, if the network gives another shape.
        ConfigurationError: if a setting is out of range.

    References:
        Rybkin, Daniilidis & Levine, Simple and Effective VAE Training with Calibrated Decoders, 2021, arXiv
        2006.13202, section 3.2 and eq. 5.
    """

    distribution_type = FittedNormal
    mean_square: Tensor
    num_steps: Tensor

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        min_scale: float = math.exp(-6),
        momentum: float = 0.05,
    ) -> None:
        super().__init__(event_shape, context_shape)
        check_positive("min_scale", min_scale)
        if not 0 < momentum <= 1:
            raise ConfigurationError(f"`momentum` must be above 0 and at most 1; got {momentum!r}.")
        self.network, self.min_scale, self.momentum = network, min_scale, momentum
        self.raw_shape = self.event_shape
        self.register_buffer("mean_square", torch.ones(()))
        self.register_buffer("num_steps", torch.zeros(()))

    def _forget(self) -> None:
        self._gathered: list[Tensor] = []

    @torch.no_grad()
    def _take_in(self) -> None:
        if self._gathered:
            fresh = torch.stack(self._gathered).mean()  # each is that of all processes
            finite = fresh.isfinite()
            weight = (1 / (self.num_steps + 1)).clamp(min=self.momentum)
            step = torch.where(finite, (fresh - self.mean_square) * weight, 0.0)
            self.mean_square += step.to(self.mean_square.dtype)
            self.num_steps += finite

    def _condition(self, context: Tensor | None) -> FittedNormal:
        mean = network_output(self, self.network, context, self.raw_shape)
        fit = self._fit if self.training and torch.is_grad_enabled() else None
        log_scale = self._log_scale(self.mean_square)
        return FittedNormal(mean, log_scale, event_ndim=len(self.event_shape), fit=fit)

    def _log_scale(self, mean_square: Tensor) -> Tensor:
        return 0.5 * mean_square.clamp(min=self.min_scale**2).log()

    @torch.no_grad()
    def _fit(self, squares: Tensor) -> Tensor:
        """Return the log-scale that fits these squared distances best, and gather their mean."""
        mean_square = gathered_over_processes(squares.mean()).mean()
        self._gathered.append(mean_square)
        self.gathered()
        return self._log_scale(mean_square)
