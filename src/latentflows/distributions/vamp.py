"""Priors that are mixtures of the model's own posteriors: VampPrior and exemplar prior."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.core.precision import at_least_float32, check_positive, soft_bound
from latentflows.core.shapes import Shape, batch_shape
from latentflows.core.tracing import is_traced
from latentflows.distributions.base import Conditional, Distribution
from latentflows.distributions.data_dependent import DataDependentPrior, check_count
from latentflows.distributions.gaussian import DiagonalNormal, FullNormal
from latentflows.distributions.low_rank import LowRankNormal
from latentflows.distributions.mixture import Mixture

_ROWS = 4096  # inputs encoded together, without gradients
_MARGIN = 0.01  # of data from the ends of the range of pseudo-inputs: at the very end the gradient is zero


class SharesPosterior(DataDependentPrior):
    """A prior that reads the model's posterior without owning it: its parameters belong to the posterior alone.

    A deep copy of the model shares them as the model does. `VAE` refuses such a prior beside another posterior.

    Without gradients, in eval mode, what the posterior gives is kept until one of its parameters has changed: memory
    of one copy of the posterior and of the components.
    """

    reads = "data"

    def __init__(self, posterior: Conditional, *, waits: bool, initialization_points: int) -> None:
        if posterior.context_shape is None:
            raise CombinationError(
                f"`{type(posterior).__name__}` reads no data. Give the posterior of the model."
            )
        super().__init__(posterior.event_shape, waits=waits, initialization_points=initialization_points)
        self._shared = (posterior,)  # in a tuple, which registers nothing
        self._kept: tuple[bool, list[Tensor], Distribution] | None = None

    @property
    def posterior(self) -> Conditional:
        """The posterior whose components this prior mixes."""
        return self._shared[0]

    @property
    def data_shape(self) -> Shape:
        """Shape of one data point."""
        assert self.posterior.context_shape is not None
        return self.posterior.context_shape

    def _components(self, inputs: Tensor) -> Distribution:
        """Return q(z|u) for inputs u (M, *data)."""
        if torch.is_grad_enabled() or self.training or self.posterior.training or is_traced():
            self._kept = None
            return self._encode(inputs)
        state = [inputs, *self.posterior.parameters(), *self.posterior.buffers()]
        low = torch.is_autocast_enabled(inputs.device.type)
        if self._kept is None or self._kept[0] != low or not _all_equal(self._kept[1], state):
            self._kept = low, [value.clone() for value in state], self._encode(inputs)
        return self._kept[2]

    def _encode(self, inputs: Tensor) -> Distribution:
        return self.posterior(inputs)


def _all_equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return all(
        one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(ones, others, strict=True)
    )


class VampPrior(SharesPosterior):
    r"""The model's own posterior, averaged over M pseudo-inputs: a mixture of variational posteriors.

    .. math:: p(z) = \sum_m w_m \, q(z|u_m)

    The best prior for the bound is the average of the posterior over the data; this is that average with M learned
    points in the data's place. They learn together with the posterior, so that the prior needs no data of its own.

    `start="random"` draws the u_m around `mean`; `start="data"` takes data points, which `fit` gives it before the
    first stage that trains the prior, moved 0.01 away from the ends of [0, 1]. `value_range` keeps them where data
    lie: "hard" clips at 0 and 1, as published (a number pushed past an end stays there: its gradient is zero);
    "soft" passes them through a sigmoid; "free" leaves them to real data.

    Cost: M encoder passes in every training step, and each density the sum over M components, see `Mixture`. Memory:
    the encoder's activations for M inputs more.

    Args:
        posterior: The posterior of the same model, with a density at points that it did not draw.
        num_components: M; 500 in the paper.
        start: "random" or "data".
        value_range: "hard", "soft" or "free".
        mean: Around which random pseudo-inputs start; in the authors' code 0.05 on MNIST, 0.5 on Caltech.
        deviation: Their standard deviation at the start; there 0.01 and 0.02.
        learned_weights: Learn the w_m, in place of 1 / M.

    Raises:
        CombinationError: if the posterior has no inverse, and so no density at a given z.
        ConfigurationError: for a setting out of range.

    References:
        Tomczak & Welling, VAE with a VampPrior, 2018, arXiv 1705.07120, section 3.
    """

    distribution_type = Mixture

    def __init__(
        self,
        posterior: Conditional,
        num_components: int,
        *,
        start: Literal["random", "data"] = "random",
        value_range: Literal["hard", "soft", "free"] = "hard",
        mean: float = 0.5,
        deviation: float = 0.02,
        learned_weights: bool = False,
    ) -> None:
        check_count("num_components", num_components)
        if start not in ("random", "data"):
            raise ConfigurationError(f'`start` must be "random" or "data"; got {start!r}.')
        if value_range not in ("hard", "soft", "free"):
            raise ConfigurationError(f'`value_range` must be "hard", "soft" or "free"; got {value_range!r}.')
        if value_range != "free" and not 0 < mean < 1:
            raise ConfigurationError(
                f'`mean` must be in (0, 1) with a {value_range} range; got {mean!r}. For real data take "free".'
            )
        check_positive("deviation", deviation)
        if not posterior.has_density:
            raise CombinationError(
                f"A VampPrior scores every z under every component, but `{type(posterior).__name__}` has no density at "
                "points that it did not draw. Use a Gaussian posterior, or a flow with an inverse such as real_nvp."
            )
        super().__init__(posterior, waits=start == "data", initialization_points=num_components)
        self.value_range = value_range
        draws = noise.standard_normal((num_components, *self.data_shape), like=torch.zeros(()))
        self.raw_inputs = nn.Parameter(self._raw_of(mean + deviation * draws))
        self.raw_weights = nn.Parameter(torch.zeros(num_components)) if learned_weights else None

    def pseudo_inputs(self) -> Tensor:
        """Return the u_m as the posterior reads them, (M, *data)."""
        if self.value_range == "hard":
            return functional.hardtanh(self.raw_inputs, 0.0, 1.0)
        return self.raw_inputs.sigmoid() if self.value_range == "soft" else self.raw_inputs

    def _raw_of(self, inputs: Tensor) -> Tensor:
        if self.value_range == "free":
            return inputs
        inputs = inputs.clamp(_MARGIN, 1 - _MARGIN)
        return inputs.logit() if self.value_range == "soft" else inputs

    def _initialize(self, values: Tensor, context: Tensor | None) -> None:
        values = _given(values, self.data_shape, len(self.raw_inputs))
        if self.value_range != "free" and not ((values >= 0) & (values <= 1)).all():
            raise DataError(
                f'Pseudo-inputs with a {self.value_range} range lie in [0, 1], but the data do not. Take "free".'
            )
        self.raw_inputs.copy_(self._raw_of(values))

    def _condition(self, context: Tensor | None) -> Mixture:
        components = self._components(self.pseudo_inputs())
        count = len(self.raw_inputs)
        weights = self.raw_inputs.new_zeros(count) if self.raw_weights is None else self.raw_weights
        return Mixture(weights, components)


class ExemplarPrior(SharesPosterior):
    r"""A Gaussian around the latent of each of N training points, all with one learned scale.

    .. math:: p(z) = \frac1N \sum_n N(z; \mu(x_n), \sigma^2 I)

    mu is the mean of the model's own Gaussian posterior. The exemplars are training points, which `fit` gives before
    the first stage that trains the prior; they are saved with the model.

    In training each step uses `num_components` of them, drawn anew: an unbiased estimate of p(z), whose logarithm is
    low by about Var / (2 p^2). In eval mode all N are used.

    The paper leaves the exemplar of a data point out of that point's prior in training, or a narrow sigma would let
    each point pay for its own exemplar alone: log p(z) of a point whose exemplar is drawn is at least
    log N(z; mu(x), sigma^2 I) - log num_components, wherever all others are. Here a prior does not see which point a z
    came from, so the own exemplar is **not** left out: it is drawn in a step with probability num_components / N for
    the N training points that are exemplars, and never for the others; over N_train points num_components / N_train,
    1 % for 500 of 50,000. By as much the training figure is optimistic and sigma is drawn to be narrow. Validation and
    test points are no exemplars, so their figures, and the weights that are selected by them, are those of the paper's
    prior. To keep the effect small, let N or `num_components` be a small part of the training data.

    Cost: `num_components` encoder passes in a training step, N once per evaluation; a density O(num_components D),
    or O(N D). Memory: 4 N |x| bytes in the model and in each checkpoint (31 MB for 10,000 MNIST images) and 8 N D for
    their latents.

    Args:
        posterior: The Gaussian posterior of the same model.
        num_exemplars: N; at most the number of training points.
        num_components: Exemplars in a training step, at most N.
        scale_bound: Largest absolute log-scale.

    Raises:
        CombinationError: if the posterior has no mean in closed form.
        ConfigurationError: for a setting out of range.

    References:
        Norouzi et al., Exemplar VAE: Linking Generative Models, Nearest Neighbor Retrieval, and Data Augmentation,
        2020, arXiv 2004.04795, section 3.
    """

    distribution_type = Mixture
    exemplars: Tensor

    def __init__(
        self,
        posterior: Conditional,
        num_exemplars: int,
        *,
        num_components: int = 1000,
        scale_bound: float = 7.0,
    ) -> None:
        check_count("num_exemplars", num_exemplars)
        check_count("num_components", num_components)
        check_positive("scale_bound", scale_bound)
        if posterior.distribution_type not in (DiagonalNormal, FullNormal, LowRankNormal):
            raise CombinationError(
                "An exemplar prior needs the mean of the posterior, which only a Gaussian has in closed form; got "
                f"`{type(posterior).__name__}`. Use an `AmortizedGaussian`, or a `VampPrior`."
            )
        super().__init__(posterior, waits=True, initialization_points=num_exemplars)
        self.num_components, self.scale_bound = min(num_components, num_exemplars), scale_bound
        self.raw_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("exemplars", torch.zeros(num_exemplars, *self.data_shape))

    def _initialize(self, values: Tensor, context: Tensor | None) -> None:
        self.exemplars.copy_(_given(values, self.data_shape, len(self.exemplars)))

    def _encode(self, inputs: Tensor) -> Distribution:
        if torch.is_grad_enabled():
            return self.posterior(inputs)
        means = torch.cat([self.posterior(part).mean for part in inputs.split(_ROWS)])
        return DiagonalNormal(means, means.new_zeros(()), event_ndim=len(self.event_shape))

    def _condition(self, context: Tensor | None) -> Mixture:
        inputs = self.exemplars
        sampled = self.training and self.num_components < len(inputs)
        if sampled:
            inputs = inputs[noise.permutation(len(inputs))[: self.num_components].to(inputs.device)]
        means = self._components(inputs).mean
        log_scale = soft_bound(at_least_float32(self.raw_scale), self.scale_bound)
        components = DiagonalNormal(means, log_scale, event_ndim=len(self.event_shape))
        mixture = Mixture(means.new_zeros(len(means)), components)
        if sampled:
            mixture.density = "estimate"
        return mixture


def _given(values: Tensor, data_shape: Shape, count: int) -> Tensor:
    """Return the first `count` data points.

    Raises:
        DataError: if there are fewer.
    """
    batch_shape(values, data_shape, "values")
    if len(values) < count:
        raise DataError(
            f"The prior needs {count} data points to start from; got {len(values)}. Ask for fewer."
        )
    return values[:count]
