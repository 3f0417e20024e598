"""What an elementwise monotone map is: settings alone; its raw parameters come from a network, a head, or a layer.

Couplings, autoregressive layers and `Elementwise` all move single variables, and differ only in where the parameters
come from. So the map itself stands here, once, and knows no module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from latentflows.core.errors import ConfigurationError


class Transform(ABC):
    """A strictly increasing map of one variable, u <-> x, given raw parameters. All raw zeros is the identity.

    Attributes:
        size: Raw parameters of one variable, P.
        volume_preserving: The log-determinant is 0 for every parameter; it is then returned as zeros of shape ().
        periodic: The variable is an angle in radians, read modulo 2 pi: f(u + 2 pi) = f(u) + 2 pi. A network that
            decides on the parameters then reads cosines and sines, which know no cut, as in `Coupling`.
    """

    size: int
    volume_preserving: bool = False
    periodic: bool = False

    @abstractmethod
    def forward(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log dx/du, entry by entry.

        Shape:
            u, x, log_derivative: (*axes); raw: (P, *axes) or what broadcasts to it, the parameters first.
        """

    @abstractmethod
    def inverse(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and log du/dx, entry by entry; shapes as in `forward`."""


def check_transform(transform: object) -> Transform:
    """Return a transform; refuse its class, its name, and anything else.

    Raises:
        ConfigurationError: naming what was given.
    """
    if isinstance(transform, Transform):
        return transform
    if isinstance(transform, type):
        raise ConfigurationError(
            f"`transform` must be a `Transform` with its settings; got the class. Write `{transform.__name__}()`."
        )
    raise ConfigurationError(
        f"`transform` must be a `Transform`, such as `Affine()` or `RationalQuadraticSpline()`; got {transform!r}."
    )


def check_line_transform(transform: object, layer: str) -> Transform:
    """Return a transform of numbers on the line; refuse what `check_transform` refuses, and transforms of angles.

    Args:
        transform: What was given.
        layer: The class that takes it, whose network reads the values as they are.

    Raises:
        ConfigurationError: naming what was given.
    """
    checked = check_transform(transform)
    if checked.periodic:
        raise ConfigurationError(
            f"`transform` of `{layer}` must be one of the real line; got {checked!r}, which is of angles. The network "
            f"of `{layer}` reads values as they are, and would give an angle and the same one a turn on different "
            "densities. Use a `Coupling`, whose network reads cosines and sines of angles."
        )
    return checked
