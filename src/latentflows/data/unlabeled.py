"""Training data that leave out some labels, so that a model learns what there is without one."""

from __future__ import annotations

from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch, DataSource, Values
from latentflows.core.errors import ConfigurationError, DataError
from latentflows.core.shapes import Shape


class SomeUnlabeled:
    """A split whose batches have zeros in place of some one-hot labels, drawn anew for each batch.

    Classifier-free guidance needs it: draws are pushed away from those that the model gives without a label.

    Args:
        source: A split whose batches carry labels.
        share: Probability that a label is left out, above 0 and below 1.

    Attributes:
        labels: Those of the source, if it has them: all of them.

    Raises:
        ConfigurationError: for a share out of range.
        DataError: from `batch`, if the source gives no labels.

    References:
        Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv 2207.12598, algorithm 1.
    """

    def __init__(self, source: DataSource, share: float) -> None:
        if not 0 < share < 1:
            raise ConfigurationError(f"`share` must be above 0 and below 1; got {share!r}.")
        self.source, self.share = source, share
        self.event_shape: Shape = source.event_shape
        self.values: Values = source.values
        self.bits_offset = source.bits_offset
        self.labels: Tensor | None = getattr(source, "labels", None)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Tensor) -> Batch:
        """Return the data points at `indices` (B,), with zeros for the labels that are left out."""
        x, labels = self.source.batch(indices)
        if labels is None:
            raise DataError("The data have no labels to leave out. Load them with `with_labels=True`.")
        kept = noise.uniform((len(labels), 1), like=labels) >= self.share
        return Batch(x, labels * kept)
