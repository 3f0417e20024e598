"""What every group of settings is: frozen, typed, closed to unknown keys."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _of_64_bits(value: int) -> int:
    if abs(value) >= 2**63:
        raise ValueError("must be below 2**63")
    return value


# pydantic alone reads true as 1
Integer = Annotated[int, BeforeValidator(_no_boolean), AfterValidator(_of_64_bits)]
Number = Annotated[float, BeforeValidator(_no_boolean)]


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are refused. `tag` is the key that tells the kinds apart, if any."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
    tag: ClassVar[str] = "kind"


class PriorSettings(Settings):
    """What every kind that can be a prior says of the prior that is built from it.

    Attributes:
        takes_label: It can be given a label.
        takes_embedding: It can be given a learned vector of the label in its place.
        draws_differentiable: Its draws carry gradients to all that learns in it, see `learns_from_draws`.
        stage_of_its_own: It learns by comparing latents of a fixed encoder with its own draws.
    """

    takes_label: ClassVar[bool] = True
    takes_embedding: ClassVar[bool] = False
    draws_differentiable: ClassVar[bool] = True
    stage_of_its_own: ClassVar[bool] = False

    def learns_from_draws(self, *, labels: bool) -> bool:
        """Whether draws carry gradients to all that learns in it, given a label or not."""
        return self.draws_differentiable

    @property
    def normalized_by_draws(self) -> bool:
        """Whether its normalizer is a mean of weights without bound over draws of another distribution."""
        return False
