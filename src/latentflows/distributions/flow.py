"""A flow: a base distribution pushed through a bijection, with the density that follows from it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from latentflows.bijections.base import Bijection, Inverse, missing_in
from latentflows.core.errors import CombinationError
from latentflows.core.shapes import Shape, as_shape
from latentflows.distributions.base import Conditional, Distribution, over_batch


class Pushforward(Distribution):
    r"""The distribution of x = f(u, h), u from a base, as a value.

    .. math:: \log p(x) = \log p_{base}(u) + \log|\det du/dx|, \quad u = f^{-1}(x, h)

    A draw and its log-probability come from one forward pass: log p(x) = log p_base(u) - log|det dx/du|.

    Args:
        base: Distribution of u.
        bijection: f.
        context: h, (*batch, *context_shape), or None.
    """

    def __init__(self, base: Distribution, bijection: Bijection, context: Tensor | None) -> None:
        self.base, self.bijection, self.context = base, bijection, context
        self.event_shape = bijection.event_shape
        # With a base that ignores the context, the context's batch axes are the distribution's.
        rows = (
            ()
            if context is None
            else tuple(context.shape[: context.ndim - len(bijection.context_shape or ())])
        )
        self.batch_shape = base.batch_shape or rows
        self.reparameterized, self.normalized = base.reparameterized, base.normalized
        self.density, self.weighable = base.density, base.weighable
        self.log_normalizer_error = base.log_normalizer_error

    def _base_shape(self, sample_shape: Shape) -> Shape:
        return sample_shape if self.base.batch_shape else (*sample_shape, *self.batch_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        u, log_det = self.bijection.inverse(x, self.context)
        return self.base.log_prob(u) + log_det

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.bijection(self.base.sample(self._base_shape(sample_shape)), self.context)[0]

    def sample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        u, log_p = self.base.sample_and_log_prob(self._base_shape(sample_shape))
        x, log_det = self.bijection(u, self.context)
        return x, log_p - log_det

    @torch.no_grad()
    def initialize(self, x: Tensor | None = None, *, sample_shape: Shape = ()) -> Tensor:
        """Set the data-dependent layers that no batch has set yet, each from what reaches it.

        Args:
            x: A batch of events, as a prior or a likelihood meets them: it passes towards the base. None for draws of
                the base, which pass the other way: a posterior's flow need not have an inverse.
            sample_shape: Of the draws.

        Returns:
            What the batch, or the draws, were mapped to.
        """
        inner = self.base if isinstance(self.base, Pushforward) else None
        if x is not None:
            u = self.bijection.initialize(x, self.context)
            return u if inner is None else inner.initialize(u)
        shape = self._base_shape(sample_shape)
        u = self.base.sample(shape) if inner is None else inner.initialize(sample_shape=shape)
        return self.bijection.initialize(u, self.context, direction="forward")

    def tempered(self, temperature: float) -> Pushforward:
        return self._as_exact(Pushforward(self.base.tempered(temperature), self.bijection, self.context))

    def detached(self) -> Pushforward:
        """Return the same flow with fixed parameters; its `log_prob` differentiates through the inverse.

        Raises:
            CombinationError: if the bijection has no inverse, or the base cannot be fixed.
        """
        if self.bijection.passes[1] is None:
            raise CombinationError(
                f"`{type(self.bijection).__name__}` has no inverse, so log q(z) has no gradient in z alone. Use a "
                "flow with an inverse (real_nvp, iaf, nsf_coupling) or a Gaussian."
            )
        tensors = {id(p): p.detach() for p in self.bijection.parameters()}
        tensors |= {id(b): b for b in self.bijection.buffers()}
        context = None if self.context is None else self.context.detach()
        return self._as_exact(
            Pushforward(self.base.detached(), copy.deepcopy(self.bijection, tensors), context)
        )

    def _as_exact(self, flow: Pushforward) -> Pushforward:
        """Say of a flow's density what holds of this one's."""
        flow.density, flow.weighable = self.density, self.weighable
        return flow


class Flow(Conditional):
    """A base conditional pushed through a bijection: a posterior, a prior, a likelihood, or a model of data.

    The context, after `embed`, reaches whichever of base and bijection declares a context shape. Where a layer is
    solved numerically, as an ODE, the density is "approximate", with the error of that solver.

    Args:
        base: Distribution of the noise u.
        bijection: The map from u to the event.
        embed: Network from the context to features (N, *features), e.g. an encoder; needs `context_shape`.
        context_shape: Shape of one context before `embed`.

    Raises:
        CombinationError: if shapes of base, bijection and context do not fit, the base is discrete, or the
            bijection cannot sample.
    """

    distribution_type = Pushforward

    def __init__(
        self,
        base: Conditional,
        bijection: Bijection,
        *,
        embed: nn.Module | None = None,
        context_shape: int | Shape | None = None,
    ) -> None:
        if base.event_shape != bijection.base_shape:
            raise CombinationError(
                f"The base draws events of shape {base.event_shape}, but the bijection starts from "
                f"{bijection.base_shape}. Give both one shape."
            )
        if base.distribution_type.discrete:
            raise CombinationError(
                f"A flow needs a continuous base, but `{type(base).__name__}` draws discrete values. Use a Gaussian."
            )
        if bijection.passes[0] is None:
            turn = "Leave `Inverse` out" if isinstance(bijection, Inverse) else "Turn it around by `Inverse`"
            raise CombinationError(
                f"A flow is sampled by its forward map, but {missing_in(bijection, 0)}. {turn}, or choose a bijection "
                "with both directions (real_nvp, iaf, nsf_coupling)."
            )
        wanted = {part.context_shape for part in (base, bijection)} - {None}
        if len(wanted) > 1:
            raise CombinationError(
                f"Base and bijection must share one context shape; got {sorted(map(str, wanted))}."
            )
        features = wanted.pop() if wanted else None
        if (embed is None) != (context_shape is None):
            raise CombinationError(
                "`embed` and `context_shape` (the shape before it) go together; give both or none."
            )
        if embed is not None and features is None:
            raise CombinationError("`embed` is given, but neither base nor bijection takes a context.")
        outer = features if context_shape is None else as_shape(context_shape, "context_shape")
        density = base.has_density and bijection.passes[1] is not None
        super().__init__(bijection.event_shape, outer, has_density=density)
        self.base, self.bijection, self.embed = base, bijection, embed
        layers = [layer for layer in bijection.modules() if isinstance(layer, Bijection)]
        self.solved = any(layer.solved for layer in layers)
        self.weighable = base.weighable and all(layer.weighable for layer in layers)

    def _condition(self, context: Tensor | None) -> Pushforward:
        features = context
        if self.embed is not None:
            assert context is not None
            assert self.context_shape is not None
            features = over_batch(self.embed, context, self.context_shape)
        base = self.base(features if self.base.context_shape else None)
        flow = Pushforward(base, self.bijection, features if self.bijection.context_shape else None)
        flow.weighable = base.weighable and self.weighable
        if self.solved and base.density == "exact":
            flow.density = "approximate"
        return flow
