"""The settings of what is trained as a whole: a VAE, made of its parts, or a model that brings parts of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentflows.studies.settings.base import Integer, Number, Settings

_CODES = 8  # height and width of a map of codes, at most, where nothing is said


class VAEModel(Settings):
    """A VAE: posterior, prior, likelihood, network and objective are those of their own settings."""

    kind: Literal["vae"] = "vae"


def _halvings(what: str, size: str) -> Any:
    return Field(
        default=None,
        ge=0,
        description=f"How often height and width are halved to {what}; null for as often as it takes to {size}, at "
        "least once.",
    )


class CodesModel(Settings):
    """What models with codes for latents share."""

    num_codes: Integer = Field(default=128, ge=2, description="Codes of each codebook.")
    dim: Integer = Field(default=16, gt=0, description="Numbers of each code.")
    codebook: Literal["moving_average", "gradient"] = Field(
        default="moving_average", description="How the codebook follows the latents that chose it."
    )
    decay: Number = Field(
        default=0.99, ge=0, lt=1, description="Decay of the moving averages and of the codes' counts."
    )
    restart_below: Number = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of the mean count below which a code restarts at a latent; 0 for never.",
    )
    commitment: Number = Field(
        default=0.25, ge=0, description="Weight of the squared distance of latents from their codes."
    )
    width: Integer = Field(
        default=32,
        gt=0,
        description="Channels of the first stage of an encoder and the last of the decoder.",
    )
    num_blocks: Integer = Field(
        default=2, gt=0, description="Residual blocks of each stage of encoder and decoder."
    )
    prior_width: Integer = Field(default=64, gt=0, description="Width of the prior's Transformer.")
    prior_depth: Integer = Field(default=2, gt=0, description="Layers of the prior's Transformer.")
    prior_heads: Integer = Field(default=4, gt=0, description="Attention heads of the prior's Transformer.")


class VQVAEModel(CodesModel):
    """Codes for latents, and an autoregressive prior over them (arXiv 1711.00937)."""

    kind: Literal["vq_vae"] = "vq_vae"
    halvings: Integer | None = _halvings("the map of codes", f"bring it to {_CODES} x {_CODES} or below")

    def beyond(self, picture: tuple[int, int]) -> str | None:
        """Say which setting halves a picture of this height and width when it is one pixel; None where none does."""
        return _beyond("model.halvings", self.halvings or 0, most_halvings(picture), picture)

    def spaces(self, picture: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Return height and width of the map of codes, for a picture of this height and width."""
        steps = max(1, _steps(picture)) if self.halvings is None else self.halvings
        return (_halved(picture, steps),)


class VQVAE2Model(CodesModel):
    """A coarse and a fine map of codes, the fine one given the coarse one (arXiv 1906.00446)."""

    kind: Literal["vq_vae_2"] = "vq_vae_2"
    halvings: Integer | None = _halvings(
        "the fine map of codes", f"bring the coarse one to {_CODES} x {_CODES} or below"
    )
    top_halvings: Integer = Field(
        default=1, gt=0, description="How often the fine map is halved to the coarse one."
    )

    def beyond(self, picture: tuple[int, int]) -> str | None:
        """Say which setting halves a picture of this height and width when it is one pixel; None where none does."""
        most = most_halvings(picture)
        steps = 1 if self.halvings is None else self.halvings
        return _beyond("model.halvings", steps, most - 1, picture) or _beyond(
            "model.top_halvings", self.top_halvings, most - steps, picture
        )

    def spaces(self, picture: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Return height and width of the coarse and of the fine map of codes."""
        steps = self.halvings
        if steps is None:
            steps = max(1, _steps(picture) - self.top_halvings)
        return _halved(picture, steps + self.top_halvings), _halved(picture, steps)


def most_halvings(picture: tuple[int, int]) -> int:
    """Return how often height and width can be halved, rounding up, until both are 1."""
    return (max(picture) - 1).bit_length()


def _beyond(key: str, asked: int, most: int, picture: tuple[int, int]) -> str | None:
    if asked <= most:
        return None
    name = (
        f"`{key}`={asked} halves pictures of {picture[0]} x {picture[1]} more often than they can be halved."
    )
    return f"{name} Use {key}={most} at most."


def _halved(picture: tuple[int, int], steps: int) -> tuple[int, int]:
    """Halve height and width, rounding up."""
    height, width = picture
    for _ in range(steps):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def _steps(picture: tuple[int, int]) -> int:
    """Return how often a picture is halved until it is small enough."""
    steps = 0
    while max(_halved(picture, steps)) > _CODES:
        steps += 1
    return steps


class FlowModel(Settings):
    """A flow on the data themselves: the flow of `prior`, from `prior_base`."""

    kind: Literal["flow"] = "flow"
    objective: Literal["maximum_likelihood", "forward_kl", "reverse_kl"] = Field(
        default="maximum_likelihood",
        description="What it is fitted by: the data; or, with data=energy, KL(target || flow) at draws of the target, "
        "or KL(flow || target) at draws of the flow (arXiv 1912.02762).",
    )
    num_samples: Integer = Field(
        default=1, gt=0, description="Draws of the flow for each data point of a step, with reverse_kl."
    )
    warmup_epochs: Number = Field(
        default=0.0,
        ge=0,
        description="Epochs over which the weight of the energy rises from 0.01, with reverse_kl (arXiv 1505.05770).",
    )

    @model_validator(mode="after")
    def _with_reverse(self) -> FlowModel:
        if self.objective != "reverse_kl" and (self.num_samples, self.warmup_epochs) != (1, 0.0):
            raise ValueError("`num_samples` and `warmup_epochs` go with objective=reverse_kl")
        return self


class SegmentationModel(Settings):
    """Masks given a picture: a conditional VAE whose prior is a mixture, and the flow of `prior` (arXiv 1806.05034)."""

    kind: Literal["segmentation_vae"] = "segmentation_vae"
    num_components: Integer = Field(
        default=4, gt=0, description="Gaussians of the mixture that the picture gives; 1 for a single one."
    )
    width: Integer = Field(
        default=8,
        gt=0,
        description="Channels of the encoders' first block; they give 8 times as many features.",
    )
    decoder_width: Integer = Field(default=16, gt=0, description="Channels of the decoder.")
    num_blocks: Integer = Field(default=2, gt=0, description="Residual blocks of the decoder.")
    mean_bound: Number = Field(
        default=5.0, gt=0, description="Largest absolute mean of posterior and mixture."
    )
    scale_bound: Number = Field(default=2.0, gt=0, description="Largest absolute log-scale of both.")


Model = Annotated[
    VAEModel | VQVAEModel | VQVAE2Model | FlowModel | SegmentationModel, Field(discriminator="kind")
]
