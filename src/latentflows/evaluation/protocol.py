"""What a figure of sample quality depends on, kept with it, so that only like is compared with like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from latentflows.core.errors import CombinationError

Shown = Literal["mean", "sample"]


@dataclass(frozen=True)
class SampleProtocol:
    """How figures of sample quality were made: all that their values depend on, besides the model.

    Attributes:
        data: Name of the data set, and its preparation.
        split: Which of its splits is the real side.
        features: Name of the feature extractor.
        weights: SHA-256 of the extractor's structure, its weights and what it does to images before. The code of a
            module of your own is known by name alone, see `ModuleFeatures`.
        dimension: Number of features, D.
        num_real: Real images, n.
        num_generated: Generated images, m.
        resize: "none", or the size and the filter.
        pixel_range: Range that both sides were clipped to before the extractor; None where they were not.
        temperature: Scale of the prior's base noise.
        shown: Whether the images are draws of p(x|z) ("sample") or its means ("mean").
        num_neighbors: k of precision, recall, density and coverage.
        num_blocks: Blocks that the kernel distance is a mean over.
        seed: Seed of the draws; the one field that two comparable figures may differ in.
    """

    data: str
    split: str
    features: str
    weights: str
    dimension: int
    num_real: int
    num_generated: int
    resize: str
    pixel_range: tuple[float, float] | None
    temperature: float
    shown: Shown
    num_neighbors: int
    num_blocks: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them; `from_dict` reads them again."""
        values = asdict(self)
        return values | {"pixel_range": None if self.pixel_range is None else list(self.pixel_range)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SampleProtocol:
        """Read what `as_dict` gave.

        Raises:
            CombinationError: if fields are missing or unknown, as in a file of another version.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise CombinationError(
                f"A protocol has the fields {sorted(names)}; missing: {sorted(names - set(values))}, unknown: "
                f"{sorted(set(values) - names)}. Evaluate again with this version."
            )
        span = values["pixel_range"]
        return cls(**{**values, "pixel_range": None if span is None else (float(span[0]), float(span[1]))})


def differences(a: SampleProtocol, b: SampleProtocol) -> tuple[str, ...]:
    """Return the names of the fields, other than the seed, in which two protocols differ."""
    names = (field.name for field in fields(SampleProtocol))
    return tuple(name for name in names if name != "seed" and getattr(a, name) != getattr(b, name))


def comparable(a: SampleProtocol, b: SampleProtocol) -> bool:
    """Return whether figures of these two protocols may stand in one column: all agrees but the seed."""
    return not differences(a, b)


def check_same_protocol(protocols: Mapping[str, SampleProtocol]) -> None:
    """Refuse to join figures of different protocols in one column.

    Args:
        protocols: By the name of the row, such as the model's.

    Raises:
        CombinationError: naming two rows, and the fields in which they differ with both values.
    """
    rows = list(protocols.items())
    for name, protocol in rows[1:]:
        first_name, first = rows[0]
        if names := differences(first, protocol):
            parts = [
                f"{field}: {getattr(first, field)!r} and {getattr(protocol, field)!r}" for field in names
            ]
            raise CombinationError(
                f"Figures of {first_name!r} and {name!r} were made by different protocols and cannot share a column "
                f"({'; '.join(parts)}). Evaluate both with the same settings, or give each a column of its own."
            )
