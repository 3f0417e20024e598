"""A mixture of Gaussians whose weights, means and scales a network computes from the context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.precision import check_positive, soft_bound
from latentflows.core.shapes import Shape, size
from latentflows.distributions.base import Conditional, network_output
from latentflows.distributions.data_dependent import check_count
from latentflows.distributions.gaussian import DiagonalNormal
from latentflows.distributions.mixture import Mixture


class AmortizedMixture(Conditional):
    r"""A mixture of M diagonal Gaussians given a context, each number of it computed by a network.

    .. math:: p(z|c) = \sum_m w_m(c) \, N(z; \mu_m(c), \sigma_m(c)^2), \quad
              \mu_m = B(a_m + m_m(c); b_\mu), \quad \log \sigma_m = B(s_m(c); b_\sigma), \quad
              B(v; b) = \frac{v}{1 + |v| / b}

    The bounds keep a component from running away from the posterior or shrinking onto a point, by which a VAE loses
    its latents; their gradient is never 0. The anchors a_m are learned, without a context, and start as draws of
    N(0, spread^2): a network that starts near 0 would start all components alike.

    The network gives M logits of the weights, then M means, then M log-scales, each of the size of the event.

    Cost: one pass of the network per context, and O(M D) per density. Draws carry no gradient, as those of any mixture.

    Args:
        event_shape: Shape of one draw, of D numbers.
        context_shape: Shape of one context.
        network: From (N, *context_shape) to (N, *mixture_raw_shape(event_shape, M)).
        num_components: M; 1 is a Gaussian.
        mean_bound: b_mu, the largest absolute mean.
        scale_bound: b_sigma, the largest absolute log-scale.
        spread: Standard deviation of the anchors at the start.

    Raises:
        ConfigurationError: for a setting out of range.
        ShapeError: at the first use, if the network gives another shape.

    References:
        Bishop, Mixture Density Networks, 1994; as the prior of stochastic segmentation, with bounded means and
        variances: GMM-based VAE model with Normalising Flow for effective stochastic segmentation, 2025.
    """

    distribution_type = Mixture

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        num_components: int,
        mean_bound: float = 10.0,
        scale_bound: float = 7.0,
        spread: float = 0.7,
    ) -> None:
        super().__init__(event_shape, context_shape)
        check_count("num_components", num_components)
        for name, value in (("mean_bound", mean_bound), ("scale_bound", scale_bound), ("spread", spread)):
            check_positive(name, value)
        self.network, self.num_components = network, num_components
        self.mean_bound, self.scale_bound = mean_bound, scale_bound
        self.raw_shape = mixture_raw_shape(self.event_shape, num_components)
        start = noise.standard_normal((num_components, *self.event_shape), like=torch.zeros(()))
        self.anchors = nn.Parameter(spread * start)

    def _condition(self, context: Tensor | None) -> Mixture:
        raw = network_output(self, self.network, context, self.raw_shape)
        count = self.num_components * size(self.event_shape)
        logits, means, scales = raw.split([self.num_components, count, count], -1)
        shape = (self.num_components, *self.event_shape)
        mean = soft_bound(self.anchors + means.unflatten(-1, shape), self.mean_bound)
        log_scale = soft_bound(scales.unflatten(-1, shape), self.scale_bound)
        return Mixture(logits, DiagonalNormal(mean, log_scale, event_ndim=len(self.event_shape)))


def mixture_raw_shape(event_shape: Shape, num_components: int) -> Shape:
    """Return the output shape that the network of an `AmortizedMixture` must have: M (1 + 2 D) numbers."""
    return (num_components * (1 + 2 * size(event_shape)),)
