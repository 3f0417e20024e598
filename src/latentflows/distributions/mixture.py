"""Mixtures: the value of any of them, and the mixture of Gaussians as a prior."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.checks import all_finite
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.core.precision import at_least_float32, check_positive, full_precision, soft_bound
from latentflows.core.shapes import Shape, as_shape, batch_shape, broadcast_shape, size
from latentflows.distributions.base import Distribution
from latentflows.distributions.data_dependent import DataDependentPrior, check_count
from latentflows.distributions.em import fit_mixture
from latentflows.distributions.flow import Pushforward
from latentflows.distributions.gaussian import DiagonalNormal, FullNormal, to_tril
from latentflows.distributions.hierarchical import Ancestral
from latentflows.distributions.low_rank import LowRankNormal

_BLOCK = 1 << 20  # log-densities of single components held at once without gradients: 8 MiB


class Mixture(Distribution):
    r"""A weighted sum of M components as a value.

    .. math:: \log p(x) = \log \sum_m w_m p_m(x), \quad \log p_m \text{ summed over the event first}

    A draw picks one component by its weight and draws from it. It carries no gradient: that of the choice does not
    exist, and without it the others would be biased. `log_prob` has all of them.

    Cost of a density at N points: for diagonal components two matrix products of N x D by D x M, O(N M D), in float64,
    since the square is taken apart into terms that nearly cancel; for full components O(N M D^2); for others N M
    densities. Memory: 8 N M bytes (8 N M D for full components) with gradients; without, at most 2^20 numbers at a
    time. A draw costs O(log M) and one component's draw.

    Args:
        log_weights: (*batch, M), of any constant sum: they are normalized here. -inf leaves a component out.
        components: Batch shape (*batch, M), or (M,) for components that all points share.
    """

    reparameterized = False

    def __init__(self, log_weights: Tensor, components: Distribution) -> None:
        self.components = components
        self.log_weights = at_least_float32(log_weights).log_softmax(-1)
        self.batch_shape, self.event_shape = tuple(log_weights.shape[:-1]), components.event_shape
        self._shared = components.batch_shape == log_weights.shape[-1:]
        if not self._shared and components.batch_shape != log_weights.shape:
            raise CombinationError(
                f"The components of a mixture need the batch shape of its weights, {tuple(log_weights.shape)}, or one "
                f"axis {tuple(log_weights.shape[-1:])}; got {components.batch_shape}."
            )
        self.density, self.normalized = components.density, components.normalized
        self.weighable = components.weighable

    def log_prob(self, x: Tensor) -> Tensor:
        rows = broadcast_shape(batch_shape(x, self.event_shape, "x"), self.batch_shape, "x and the mixture")
        cut = len(rows) - len(self.batch_shape)
        points = x.expand(*rows, *self.event_shape).reshape(-1, *rows[cut:], *self.event_shape)
        width = size(self.log_weights.shape)
        if not isinstance(self.components, DiagonalNormal):
            width *= size(self.event_shape)
        count = len(points) if torch.is_grad_enabled() else _BLOCK // width
        parts = [self._log_prob_of(part) for part in points.split(max(count, 1))]
        return torch.cat(parts).view(rows)

    def _log_prob_of(self, x: Tensor) -> Tensor:
        """Score points (N, *batch, *event): (N, *batch)."""
        ndim = len(self.event_shape)
        if self._shared:
            log_p = pairwise_log_prob(self.components, x.flatten(0, x.ndim - ndim - 1))
            log_p = log_p.view(*x.shape[: x.ndim - ndim], -1)
        else:
            log_p = pairwise_log_prob(self.components, x.movedim(0, x.ndim - ndim - 1))
            log_p = log_p.movedim(-2, 0)
        dtype = torch.promote_types(x.dtype, self.log_weights.dtype)
        return (log_p + self.log_weights).logsumexp(-1).to(dtype)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            x = selected(self.components, self.sample_components(sample_shape)).sample()
            broken = self.log_weights.isnan().any(-1)
            return x.masked_fill(broken.view(*broken.shape, *[1] * len(self.event_shape)), torch.nan)

    def sample_components(self, sample_shape: Shape = ()) -> Tensor:
        """Draw the component of each draw: int64 places in the components' flattened batch, (*sample, *batch)."""
        weights = self.log_weights.detach().double().exp()
        steps = weights.cumsum(-1)
        steps = steps / steps[..., -1:]
        draws = noise.uniform((*sample_shape, *self.batch_shape), like=steps)
        batch, cut = self.batch_shape, len(sample_shape)
        by_row = draws.reshape(-1, *batch).movedim(0, -1).contiguous()  # (*batch, N)
        index = torch.searchsorted(steps, by_row, right=True).movedim(-1, 0).reshape(draws.shape)
        index = index.clamp(max=weights.shape[-1] - 1)  # of weights that are NaN; the draw is NaN then
        if self._shared:
            return index
        first = torch.arange(size(batch), device=index.device).view(batch) * weights.shape[-1]
        return index + first.expand(index.shape[cut:])

    @property
    def mean(self) -> Tensor:
        weights = self.log_weights.exp()
        means = self.components.mean.flatten(len(self.components.batch_shape))
        with full_precision(means):
            mean = (weights.unsqueeze(-2) @ means.to(weights)).squeeze(-2)
        return mean.unflatten(-1, self.event_shape)

    def detached(self) -> Mixture:
        return Mixture(self.log_weights.detach(), self.components.detached())

    def tempered(self, temperature: float) -> Mixture:
        """Return the mixture whose components have their noise scaled; the weights stay."""
        return Mixture(self.log_weights, self.components.tempered(temperature))


def selected(components: Distribution, index: Tensor) -> Distribution:
    """Return the components at these places of the flattened batch: a distribution of batch shape `index.shape`."""
    cut, ndim = len(components.batch_shape), len(components.event_shape)

    def at(value: Tensor) -> Tensor:
        return value.reshape(-1, *value.shape[cut:])[index]

    if isinstance(components, DiagonalNormal):
        return DiagonalNormal(at(components.mean), at(components.log_scale), event_ndim=ndim)
    if isinstance(components, FullNormal):
        batch = components.batch_shape
        tril = components.scale_tril.expand(*batch, *components.scale_tril.shape[-2:])
        return FullNormal(at(components.mean), at(tril))
    if isinstance(components, LowRankNormal):
        return LowRankNormal(at(components.mean), at(components.log_scale), at(components.factor))
    if isinstance(components, Pushforward):
        base, context = components.base, components.context
        context = None if context is None else at(context)
        return Pushforward(selected(base, index) if base.batch_shape else base, components.bijection, context)
    if isinstance(components, Ancestral):
        top, own = components.top, components.own
        return Ancestral(
            selected(top, index) if top.batch_shape else top,
            components.levels,
            None if own is None else at(own),
            components.own_shape,
            temperature=components.temperature,
        )
    raise CombinationError(
        f"A mixture of `{type(components).__name__}` cannot be drawn. Use Gaussian components, or flows."
    )


def pairwise_log_prob(components: Distribution, x: Tensor) -> Tensor:
    """Score points (*batch, N, *event) under components of batch shape (*batch, M): (*batch, N, M)."""
    cut, ndim = len(components.batch_shape), len(components.event_shape)
    with full_precision(x):
        if isinstance(components, DiagonalNormal):
            flat = x.flatten(x.ndim - ndim)
            return _pairwise_diagonal(flat, components.mean.flatten(cut), components.log_scale.flatten(cut))
        if isinstance(components, FullNormal):
            return _pairwise_full(x, components.mean, components.scale_tril)
    points = x.movedim(cut - 1, 0).unsqueeze(cut)  # (N, *batch, 1, *event)
    points = points.expand(*points.shape[:cut], components.batch_shape[-1], *points.shape[cut + 1 :])
    return components.log_prob(points).movedim(0, -2)


def _pairwise_diagonal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """-1/2 (x^2 . p - 2 x . (m p) + m^2 . p) - log sigma - constant, p = 1 / sigma^2, as two products."""
    x, mean, log_scale = x.double(), mean.double(), log_scale.double()
    precision = (-2 * log_scale).exp()
    constant = 0.5 * (mean.square() * precision).sum(-1) + log_scale.sum(-1)
    constant = constant + 0.5 * x.shape[-1] * math.log(2 * math.pi)
    products = x @ (mean * precision).mT - 0.5 * (x.square() @ precision.mT)
    return products - constant.unsqueeze(-2)


def _pairwise_full(x: Tensor, mean: Tensor, tril: Tensor) -> Tensor:
    """Whiten the points by each component: O(N M D^2)."""
    difference = (x.unsqueeze(-3) - mean.unsqueeze(-2)).mT  # (*batch, M, D, N)
    tril = tril.expand(*difference.shape[:-2], *tril.shape[-2:])
    white = torch.linalg.solve_triangular(tril, difference, upper=False)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = log_det + 0.5 * x.shape[-1] * math.log(2 * math.pi)
    return (-0.5 * white.square().sum(-2) - constant.unsqueeze(-1)).mT


class GaussianMixture(DataDependentPrior):
    r"""A mixture of M Gaussians with learned weights, means and covariances; with labels, one mixture for each class.

    .. math::
        p(z) = \sum_m w_m N(z; \mu_m, \Sigma_m), \quad
        p(z|y) = \sum_c y_c \sum_m w_{cm} N(z; \mu_{cm}, \Sigma_{cm})

    With `num_classes` the context is a label y as a one-hot vector (C,): `num_components=1` is one Gaussian for each
    class. A soft label mixes the classes in its proportions; where the label is all zeros, unknown, all mix equally.

    It starts from means drawn with standard deviation `spread` and equal covariances (1 - spread^2) I, so that the
    mixture as a whole has variance 1 in expectation; or, with `start="em"`, by expectation and maximization on latents
    z ~ q(z|x), which `fit` draws from the frozen encoder before the first stage that trains the prior. Both are then
    trained by gradient. EM alone is that stage with few steps.

    Cost: O(C M D) per density, O(C M D^2) with a full covariance. EM on N latents: as many for each iteration and
    latent, float64; memory 8 * (2 N D + 2^20 + C M D (D + 1)) bytes, the last without D for diagonal covariances.

    Args:
        event_shape: Shape of one latent; (D,) for full covariances.
        num_components: M, of each class.
        covariance: "diagonal", or "full" with D (D + 1) / 2 numbers each.
        num_classes: C, if the prior takes a label.
        spread: Standard deviation of the first means, below 1.
        start: "spread", or "em".
        initialization_points: Latents that EM is given.
        scale_bound: Largest absolute log-scale.

    Raises:
        ConfigurationError: for a setting out of range.
        CombinationError: for a full covariance over anything but a vector.

    References:
        Dempster et al., Maximum likelihood from incomplete data via the EM algorithm, 1977; Arthur & Vassilvitskii,
        k-means++, 2007; as prior of a VAE: Dilokthanakul et al., Deep Unsupervised Clustering with Gaussian Mixture
        Variational Autoencoders, 2016, arXiv 1611.02648; fitted afterwards: Ghosh et al. 2020, arXiv 1903.12436.
    """

    distribution_type = Mixture
    raw_weights: Tensor

    def __init__(
        self,
        event_shape: int | Shape,
        num_components: int,
        *,
        covariance: Literal["diagonal", "full"] = "diagonal",
        num_classes: int | None = None,
        spread: float = 0.7,
        start: Literal["spread", "em"] = "spread",
        initialization_points: int = 20_000,
        scale_bound: float = 7.0,
    ) -> None:
        event_shape = as_shape(event_shape, "event_shape")
        _check_mixture(num_components, covariance, num_classes, spread, start, event_shape)
        check_positive("scale_bound", scale_bound)
        super().__init__(
            event_shape, num_classes, waits=start == "em", initialization_points=initialization_points
        )
        self.covariance, self.num_classes, self.scale_bound = covariance, num_classes, scale_bound
        count = num_components * (num_classes or 1)
        rows = (num_components,) if num_classes is None else (num_classes, num_components)
        if num_components > 1:
            self.raw_weights = nn.Parameter(torch.zeros(rows))
        else:  # one component has nothing to weigh
            self.register_buffer("raw_weights", torch.zeros(rows), persistent=False)
        self.means = nn.Parameter(spread * noise.standard_normal((count, *event_shape), like=torch.zeros(())))
        log_scale = _unbounded(torch.tensor(0.5 * math.log(1 - spread**2)), scale_bound)
        if covariance == "full":
            dim = event_shape[0]
            scales = torch.zeros(count, dim * (dim + 1) // 2)
            scales[:, _diagonal_places(dim)] = log_scale
        else:
            scales = log_scale.expand(count, *event_shape).clone()
        self.raw_scales = nn.Parameter(scales)

    def components(self) -> DiagonalNormal | FullNormal:
        """Return all Gaussians, class after class: batch shape (C M,)."""
        if self.covariance == "full":
            return FullNormal(self.means, to_tril(self.raw_scales, self.event_shape[0], self.scale_bound))
        log_scale = soft_bound(self.raw_scales, self.scale_bound)
        return DiagonalNormal(self.means, log_scale, event_ndim=len(self.event_shape))

    def _condition(self, context: Tensor | None) -> Mixture:
        log_weights = at_least_float32(self.raw_weights).log_softmax(-1)
        if context is not None:
            unknown = (context == 0).all(-1, keepdim=True)
            labels = torch.where(unknown, torch.ones_like(context), context)
            labels = at_least_float32(labels).log()
            if not all_finite(labels.logsumexp(-1)):
                raise DataError("A label must hold numbers of at least 0. Use one-hot vectors.")
            log_weights = (labels.unsqueeze(-1) + log_weights).flatten(-2)
        return Mixture(log_weights, self.components())

    def _initialize(self, values: Tensor, context: Tensor | None) -> None:
        before = [parameter.clone() for parameter in self.parameters()]
        score = float(self(context).log_prob(values).double().mean())
        fitted = fit_mixture(
            values.flatten(1),
            self.raw_weights.shape[-1],
            full=self.covariance == "full",
            labels=context,
        )
        self.raw_weights.copy_(fitted.log_weights.view_as(self.raw_weights))
        self.means.copy_(fitted.means.view_as(self.means))
        self.raw_scales.copy_(self._raw_of(fitted.scales))
        if not float(self(context).log_prob(values).double().mean()) >= score:
            for parameter, value in zip(self.parameters(), before, strict=True):
                parameter.copy_(value)

    def _raw_of(self, scales: Tensor) -> Tensor:
        """Return the parameters of standard deviations (C M, D), or of Cholesky factors (C M, D, D)."""
        if self.covariance == "diagonal":
            return _unbounded(scales.log(), self.scale_bound).view_as(self.raw_scales)
        dim = scales.shape[-1]
        rows, columns = torch.tril_indices(dim, dim, device=scales.device)
        raw = scales[:, rows, columns]
        places = _diagonal_places(dim)
        raw[:, places] = _unbounded(raw[:, places].log(), self.scale_bound)
        return raw


def _diagonal_places(dim: int) -> list[int]:
    """Return where the diagonal stands among the rows of a lower triangle."""
    return [i * (i + 3) // 2 for i in range(dim)]


def _unbounded(value: Tensor, bound: float) -> Tensor:
    """Invert `soft_bound`, for values up to 0.98 of the bound."""
    value = value.clamp(-0.98 * bound, 0.98 * bound)
    return value / (1 - value.abs() / bound)


def _check_mixture(
    num_components: int,
    covariance: str,
    num_classes: int | None,
    spread: float,
    start: str,
    event_shape: Shape,
) -> None:
    check_count("num_components", num_components)
    if num_classes is not None:
        check_count("num_classes", num_classes)
    if covariance not in ("diagonal", "full"):
        raise ConfigurationError(f'`covariance` must be "diagonal" or "full"; got {covariance!r}.')
    if covariance == "full" and len(event_shape) != 1:
        raise CombinationError(f"A full covariance needs a vector event (D,); got {event_shape}.")
    if not 0 <= spread < 1:
        raise ConfigurationError(f"`spread` must be at least 0 and below 1; got {spread!r}.")
    if start not in ("spread", "em"):
        raise ConfigurationError(f'`start` must be "spread" or "em"; got {start!r}.')
