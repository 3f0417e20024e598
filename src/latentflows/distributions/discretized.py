"""Probability masses of gray levels: 256-way categorical, discretized logistic, and mixtures of logistics.

Data are "unit" values v / (L - 1) for levels v = 0 ... L - 1. `log_prob` reads v back by rounding, so that float32
data give the exact level, and is the log of a probability: bits per dimension are nll / (D ln 2), with nothing added.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.core.precision import at_least_float32, check_positive, soft_bound
from latentflows.core.shapes import Shape, as_shape, batch_shape, sum_event
from latentflows.distributions.base import Conditional, Distribution, draw_index, network_output

Scale = Literal["amortized", "shared"]

_UNIT = frozenset({"unit"})
_TOLERANCE = 1e-3  # of a level: float32 is 2e-5 off at level 255


def check_levels(levels: int) -> None:
    """Refuse a number of gray levels that is not an integer from 2 to 256.

    Raises:
        ConfigurationError: naming it.
    """
    if not isinstance(levels, int) or not 2 <= levels <= 256:
        raise ConfigurationError(f"`levels` must be an integer from 2 to 256; got {levels!r}.")


def _level_of(x: Tensor, levels: int) -> Tensor:
    """Return v for x = v / (levels - 1), still as a float."""
    return (x * (levels - 1)).round()


def _check_gray(x: Tensor, levels: int, owner: str) -> None:
    """Refuse values that are no levels.

    Raises:
        DataError: naming the levels and the range of the values.
    """
    scaled, level = x * (levels - 1), _level_of(x, levels)
    inside = (level >= 0) & (level <= levels - 1) & ((scaled - level).abs() <= _TOLERANCE)
    if not inside.all():
        low, high = float(x.min()), float(x.max())
        raise DataError(
            f"{owner} needs gray levels v / {levels - 1}, v from 0 to {levels - 1}; got values from {low:g} to "
            f"{high:g} that are none. State the `levels` of the data, prepare them as unit, or use a density "
            "(Gaussian, continuous Bernoulli)."
        )


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Take values (*batch, *event, M) at (*sample, *batch, *event) indices of the last axis."""
    shape = torch.broadcast_shapes(values.shape[:-1], index.shape)
    picked = values.expand(*shape, values.shape[-1]).gather(-1, index.expand(shape).unsqueeze(-1))
    return picked.squeeze(-1)


class CategoricalValues(Distribution):
    """Independent entries among L gray levels as a value, each level with a probability of its own.

    Memory: L numbers for every entry of every batch point.

    Args:
        logits: (*batch, *event, L).
        event_ndim: Number of event axes, without that of the levels.
    """

    reparameterized = False
    discrete = True
    values = _UNIT

    def __init__(self, logits: Tensor, *, event_ndim: int) -> None:
        self.logits, self.levels = at_least_float32(logits), logits.shape[-1]
        cut = logits.ndim - 1 - event_ndim
        self.batch_shape, self.event_shape = tuple(logits.shape[:cut]), tuple(logits.shape[cut:-1])

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        entries = _pick(self.logits, _level_of(x, self.levels).long()) - self.logits.logsumexp(-1)
        return sum_event(entries, len(self.event_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        drawn = draw_index(self.logits, sample_shape).to(self.logits.dtype) / (self.levels - 1)
        return drawn.masked_fill(self.logits.isnan().any(-1), torch.nan)

    @property
    def mean(self) -> Tensor:
        grays = torch.linspace(0, 1, self.levels, dtype=self.logits.dtype, device=self.logits.device)
        return self.logits.softmax(-1) @ grays

    def check_support(self, x: Tensor) -> None:
        _check_gray(x, self.levels, "A categorical likelihood")


def _log_mass(level: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    r"""Log-probability of a level under a discretized logistic; the lowest and the highest bin are open.

    With the borders a < b of a bin, standardized, log(sigmoid(b) - sigmoid(a)) is written without a difference,
    log sigmoid(b) + log sigmoid(-a) + log(1 - e^(a - b)), so that no probability is lost to rounding.
    """
    width = 1 / (levels - 1)
    inverse = (-log_scale).exp()
    upper = ((level + 0.5) * width - mean) * inverse
    lower = ((level - 0.5) * width - mean) * inverse
    below_upper, above_lower = functional.logsigmoid(upper), functional.logsigmoid(-lower)
    inside = below_upper + above_lower + (-torch.expm1(-width * inverse)).log()
    return torch.where(level <= 0, below_upper, torch.where(level >= levels - 1, above_lower, inside))


def _draw_level(mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Draw a logistic and round it to the nearest level, as gray."""
    u = noise.uniform(tuple(mean.shape), like=mean)
    x = mean + log_scale.exp() * torch.logit(u)  # -inf at u = 0, which is the lowest level
    return _level_of(x, levels).clamp(0, levels - 1) / (levels - 1)


class LogisticMixtureValues(Distribution):
    r"""Independent entries among L gray levels as a value, each from a mixture of M discretized logistics.

    .. math:: P(v) = \sum_m \pi_m \left[\sigma\left(\frac{(v + \frac12) w - \mu_m}{s_m}\right)
        - \sigma\left(\frac{(v - \frac12) w - \mu_m}{s_m}\right)\right], \quad w = \frac1{L - 1}

    The lowest bin reaches to minus infinity, the highest to infinity: the L masses add up to 1. With M = 1 it is a
    discretized logistic. Channels are independent given z.

    Cost: `log_prob` O(M) per entry, the mean O(L M), its memory O(M).

    Args:
        logits: Of the weights, (*batch, *event, M).
        means: In units of the data, (*batch, *event, M).
        log_scales: log s, broadcasting to the means.
        levels: L.
        event_ndim: Number of event axes, without that of the components.

    References:
        Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934,
        section 5.2 (M = 1); Salimans et al., PixelCNN++, 2017, arXiv 1701.05517, eq. 2.
    """

    reparameterized = False
    discrete = True
    values = _UNIT

    def __init__(
        self, logits: Tensor, means: Tensor, log_scales: Tensor, *, levels: int, event_ndim: int
    ) -> None:
        self.logits, self.means, self.levels = at_least_float32(logits), at_least_float32(means), levels
        self.log_scales = at_least_float32(log_scales).expand(self.means.shape)
        cut = means.ndim - 1 - event_ndim
        self.batch_shape, self.event_shape = tuple(means.shape[:cut]), tuple(means.shape[cut:-1])

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        level = _level_of(x, self.levels).unsqueeze(-1)
        masses = _log_mass(level, self.means, self.log_scales, self.levels)
        entries = (self.logits.log_softmax(-1) + masses).logsumexp(-1)
        return sum_event(entries, len(self.event_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        index = draw_index(self.logits, sample_shape)
        return _draw_level(_pick(self.means, index), _pick(self.log_scales, index), self.levels)

    @property
    def mean(self) -> Tensor:
        """E[x], as the sum over v = 1 ... L - 1 of P(level >= v) / (L - 1)."""
        weights, inverse, width = self.logits.softmax(-1), (-self.log_scales).exp(), 1 / (self.levels - 1)
        total = torch.zeros_like(self.means)
        for level in range(1, self.levels):
            total = total + ((self.means - (level - 0.5) * width) * inverse).sigmoid()
        return (weights * total).sum(-1) * width

    def check_support(self, x: Tensor) -> None:
        _check_gray(x, self.levels, "A discretized logistic likelihood")


class CoupledLogisticValues(Distribution):
    r"""Color images among L gray levels as a value: one mixture of logistics for the three channels of a pixel.

    All three channels come from one component m, and its mean moves with the channels before, r then g then b:

    .. math:: \mu_g = m_g + \alpha (r - \tfrac12), \quad \mu_b = m_b + \beta (r - \tfrac12) + \gamma (g - \tfrac12)

    The mean E[x] has no closed form: it would be a sum over all pairs of levels. Draw samples and average them.

    Args:
        logits: Of the weights, (*batch, H, W, M).
        means: (*batch, 3, H, W, M).
        log_scales: log s, broadcasting to the means.
        coefficients: alpha, beta and gamma, (*batch, 3, H, W, M).
        levels: L.

    References:
        Salimans et al., PixelCNN++, 2017, arXiv 1701.05517, eq. 2 and 3.
    """

    reparameterized = False
    discrete = True
    values = _UNIT

    def __init__(
        self, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor, *, levels: int
    ) -> None:
        self.logits, self.means, self.levels = at_least_float32(logits), at_least_float32(means), levels
        self.log_scales = at_least_float32(log_scales).expand(self.means.shape)
        self.coefficients = at_least_float32(coefficients)
        self.batch_shape, self.event_shape = tuple(means.shape[:-4]), tuple(means.shape[-4:-1])

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        level = _level_of(x, self.levels).unsqueeze(-1)
        red, green, _ = (level / (self.levels - 1) - 0.5).unbind(-4)
        alpha, beta, gamma = self.coefficients.unbind(-4)
        shift = torch.stack([torch.zeros_like(alpha * red), alpha * red, beta * red + gamma * green], -4)
        masses = _log_mass(level, self.means + shift, self.log_scales, self.levels).sum(-4)
        entries = (self.logits.log_softmax(-1) + masses).logsumexp(-1)
        return sum_event(entries, 2)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        index = draw_index(self.logits, sample_shape).unsqueeze(-3)
        means, log_scales = _pick(self.means, index), _pick(self.log_scales, index)
        alpha, beta, gamma = _pick(self.coefficients, index).unbind(-3)
        mean_r, mean_g, mean_b = means.unbind(-3)
        scale_r, scale_g, scale_b = log_scales.unbind(-3)
        red = _draw_level(mean_r, scale_r, self.levels)
        green = _draw_level(mean_g + alpha * (red - 0.5), scale_g, self.levels)
        blue = _draw_level(mean_b + beta * (red - 0.5) + gamma * (green - 0.5), scale_b, self.levels)
        return torch.stack([red, green, blue], -3)

    def check_support(self, x: Tensor) -> None:
        _check_gray(x, self.levels, "A discretized logistic likelihood")


def categorical_raw_shape(event_shape: Shape, levels: int = 256) -> Shape:
    """Return the output shape that the network of an `AmortizedCategorical` must have."""
    return (event_shape[0] * levels, *event_shape[1:])


def logistic_raw_shape(
    event_shape: Shape, *, num_components: int = 1, coupled: bool = False, scale: Scale = "amortized"
) -> Shape:
    """Return the output shape that the network of an `AmortizedLogisticMixture` must have."""
    channels, *rest = event_shape
    own = channels * num_components * (1 + (scale == "amortized") + coupled)
    weights = 0 if num_components == 1 else num_components * (1 if coupled else channels)
    return (own + weights, *rest)


class AmortizedCategorical(Conditional):
    """Independent categoricals over L gray levels from a network: the most flexible, and blind to their order.

    Args:
        event_shape: Shape of one data point, E.
        context_shape: Shape of one latent.
        network: From (N, *context_shape) to (N, E_0 L, E_1, ...), the levels of an entry side by side.
        levels: L.

    Raises:
        ShapeError: at the first use, if the network gives another shape.
        ConfigurationError: if `levels` is out of range.
    """

    distribution_type = CategoricalValues
    values = _UNIT

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        levels: int = 256,
    ) -> None:
        super().__init__(event_shape, context_shape)
        check_levels(levels)
        self.network, self.levels = network, levels
        self.raw_shape = categorical_raw_shape(self.event_shape, levels)

    def _condition(self, context: Tensor | None) -> CategoricalValues:
        raw = network_output(self, self.network, context, self.raw_shape)
        ndim = len(self.event_shape)
        return CategoricalValues(_with_last_axis(raw, self.levels, ndim), event_ndim=ndim)


def _with_last_axis(raw: Tensor, count: int, ndim: int) -> Tensor:
    """Turn (*batch, E_0 count, E_1, ...) into (*batch, E_0, E_1, ..., count)."""
    return raw.unflatten(-ndim, (-1, count)).movedim(-ndim, -1)


class AmortizedLogisticMixture(Conditional):
    """Mixtures of M discretized logistics from a network; one discretized logistic with M = 1.

    Means are (1 + a) / 2 and log-scales b - log 2 of raw outputs a and b, the latter soft-bounded: the coordinates of
    PixelCNN++, where data span [-1, 1], so that raw zeros are a wide logistic in the middle. Raw outputs lie along
    the first axis: weights (none if M = 1), means, scales if amortized, coefficients if coupled, each M per channel.

    Args:
        event_shape: Shape of one data point, E.
        context_shape: Shape of one latent.
        network: From (N, *context_shape) to (N, *raw_shape); see `logistic_raw_shape`.
        num_components: M.
        coupled: For (3, H, W): one component for the three channels, green and blue depending on those before, as in
            PixelCNN++ (10 M raw channels). Otherwise channels are independent given z, each with its own weights.
        levels: L.
        scale: "amortized" per component and entry, or "shared" for one learned number, as with IAF (Kingma et al.).
        scale_bound: Largest absolute b.

    Raises:
        ShapeError: at the first use, if the network gives another shape.
        ConfigurationError: if a setting is out of range.
        CombinationError: if `coupled` is set for anything but images of three channels.
    """

    values = _UNIT

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        num_components: int = 1,
        coupled: bool = False,
        levels: int = 256,
        scale: Scale = "amortized",
        scale_bound: float = 7.0,
    ) -> None:
        super().__init__(event_shape, context_shape)
        check_levels(levels)
        check_positive("scale_bound", scale_bound)
        if not isinstance(num_components, int) or num_components < 1:
            raise ConfigurationError(f"`num_components` must be a positive integer; got {num_components!r}.")
        if scale not in ("amortized", "shared"):
            raise ConfigurationError(f'`scale` must be "amortized" or "shared"; got {scale!r}.')
        if coupled and (len(self.event_shape) != 3 or self.event_shape[0] != 3):
            raise CombinationError(
                f"Coupled channels are red, green and blue: events (3, H, W); got {as_shape(event_shape)}. Leave "
                "`coupled` out."
            )
        self.network, self.num_components, self.coupled = network, num_components, coupled
        self.levels, self.scale, self.scale_bound = levels, scale, scale_bound
        self.distribution_type = CoupledLogisticValues if coupled else LogisticMixtureValues
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "shared" else None
        self.raw_shape = logistic_raw_shape(
            self.event_shape, num_components=num_components, coupled=coupled, scale=scale
        )

    def _condition(self, context: Tensor | None) -> Distribution:
        raw = network_output(self, self.network, context, self.raw_shape)
        ndim, count = len(self.event_shape), self.num_components
        own = self.event_shape[0] * count
        sizes = (
            0 if count == 1 else count if self.coupled else own,
            own,
            own if self.scale == "amortized" else 0,
            own if self.coupled else 0,
        )
        weights, means, scales, coefficients = raw.split(sizes, -ndim)
        means = _with_last_axis(0.5 + 0.5 * means, count, ndim)
        scales = _with_last_axis(scales, count, ndim) if self.raw_scale is None else self.raw_scale
        log_scales = soft_bound(scales, self.scale_bound) - math.log(2)
        if self.coupled:
            logits = means.new_zeros(()).expand(*means.shape[:-4], *means.shape[-3:])
            if count > 1:
                logits = weights.movedim(-3, -1)
            couplings = _with_last_axis(coefficients.tanh(), count, ndim)
            return CoupledLogisticValues(logits, means, log_scales, couplings, levels=self.levels)
        logits = torch.zeros_like(means) if count == 1 else _with_last_axis(weights, count, ndim)
        return LogisticMixtureValues(logits, means, log_scales, levels=self.levels, event_ndim=ndim)
