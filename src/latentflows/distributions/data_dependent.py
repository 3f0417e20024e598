"""Priors whose parameters start from data, once, before the first step of the first stage that trains them."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape
from latentflows.distributions.base import Conditional


class DataDependentPrior(Conditional):
    """A prior that may wait for data: latents z ~ q(z|x), or data points x.

    Training calls `initialize` before the first stage that trains the prior, and never again: that it was done is a
    buffer, saved with the model. To write one, implement `_initialize`.

    Args:
        event_shape: Shape of one latent.
        context_shape: Shape of one context, or None.
        waits: Whether the parameters shall start from data.
        initialization_points: How many latents, or data points, it is given; fewer where there are fewer data points.

    Attributes:
        reads: "latents" or "data", what `initialize` takes.
        initialized: Whether nothing is waited for.

    Raises:
        ConfigurationError: if `initialization_points` is below 1.
    """

    reads: ClassVar[Literal["latents", "data"]] = "latents"
    initialized: Tensor

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape | None = None,
        *,
        waits: bool,
        initialization_points: int,
        has_density: bool = True,
    ) -> None:
        super().__init__(event_shape, context_shape, has_density=has_density)
        check_count("initialization_points", initialization_points)
        self.initialization_points = initialization_points
        self.register_buffer("initialized", torch.tensor(not waits))

    @property
    def waits_for_data(self) -> bool:
        """Whether `initialize` is still to be called."""
        return not self.initialized

    @torch.no_grad()
    def initialize(self, values: Tensor, context: Tensor | None = None) -> None:
        """Set the parameters from latents (N, *latent), or data points (N, *event), and remember that it was done.

        Args:
            values: What `reads` says.
            context: (N, *context) for a prior that takes one.
        """
        self._initialize(values, context)
        self.initialized.fill_(True)

    @abstractmethod
    def _initialize(self, values: Tensor, context: Tensor | None) -> None: ...


def waiting_priors(module: nn.Module) -> list[DataDependentPrior]:
    """Return the priors of a module, itself included, that wait for data."""
    priors = [part for part in module.modules() if isinstance(part, DataDependentPrior)]
    return [prior for prior in priors if prior.waits_for_data]


def check_count(name: str, value: int) -> None:
    """Refuse a number that is not a positive integer.

    Raises:
        ConfigurationError: naming the setting and its value.
    """
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"`{name}` must be a positive integer; got {value!r}.")
