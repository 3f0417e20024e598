"""The small classifier that is trained on a data set's own labels, and whose last hidden layer gives features."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.core.errors import CheckpointError, ConfigurationError, DataError, ShapeError
from latentflows.core.files import write_atomically
from latentflows.core.noise import Purpose
from latentflows.core.shapes import Shape
from latentflows.evaluation.features import PixelRange, clipped, weights_hash

_PIECE = 256  # images scored together
_SIDE = 7  # convolutions of stride 2 until the map is at most this wide


class LabeledSource(DataSource, Protocol):
    """A data source that knows the class of each of its points."""

    @property
    def labels(self) -> Tensor | None:
        """Integers (N,)."""
        ...


class Classifier(nn.Module):
    """A small convolutional network whose last hidden layer is a feature extractor.

    A 3 x 3 convolution, then ones of stride 2 until the map is at most 7 wide, a hidden layer of `num_features`, and
    the logits. ReLU throughout; the features are those of the hidden layer after it, divided by `scale`, their root
    mean square on the held-out data: the cubic kernel of `kernel_distance` is made for features of about that size.

    Attributes:
        name: "classifier-D[data]", beside every figure.
        pixel_range: (0, 1).
        resize: "none".
        accuracy: On data held out from training, NaN before.
    """

    pixel_range: PixelRange | None = (0.0, 1.0)
    resize = "none"
    scale: Tensor

    def __init__(
        self, event_shape: Shape, num_classes: int, *, data: str, width: int = 32, num_features: int = 64
    ) -> None:
        super().__init__()
        if len(event_shape) != 3 or min(event_shape) < 1:
            raise ShapeError(
                f"The classifier reads images (C, H, W); got {event_shape}. Use your own module."
            )
        if min(num_classes - 1, width, num_features) < 1:
            raise ConfigurationError(
                "`num_classes` must be at least 2, `width` and `num_features` positive; "
                f"got {num_classes}, {width} and {num_features}."
            )
        self.settings: dict[str, Any] = {
            "event_shape": list(event_shape),
            "num_classes": num_classes,
            "data": data,
            "width": width,
            "num_features": num_features,
        }
        self.name = f"classifier-{num_features}[{data}]"
        self.accuracy = math.nan
        channels, height, side = event_shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
        while max(height, side) > _SIDE:
            layers += [nn.Conv2d(channels, 2 * width, 3, stride=2, padding=1), nn.ReLU()]
            channels, height, side = 2 * width, (height + 1) // 2, (side + 1) // 2
        self.body = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(channels * height * side, num_features), nn.ReLU()
        )
        self.head = nn.Linear(num_features, num_classes)
        self.register_buffer("scale", torch.ones(()))

    @property
    def weights(self) -> str:
        """SHA-256 of the weights."""
        return weights_hash(self, json.dumps(self.settings))

    def logits(self, images: Tensor) -> Tensor:
        """Return (N, classes) with gradients."""
        return self.head(self.body(clipped(images, self.pixel_range)))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features (N, D), without gradients.

        Raises:
            ShapeError: for images of another shape than it was trained on.
        """
        if list(images.shape[1:]) != self.settings["event_shape"]:
            raise ShapeError(
                f"`{self.name}` reads images of shape {tuple(self.settings['event_shape'])}; got "
                f"{tuple(images.shape[1:])}. Train one on these data."
            )
        return self.body(clipped(images.to(self.head.weight), self.pixel_range)) / self.scale


def train_classifier(
    train: LabeledSource,
    held_out: LabeledSource,
    *,
    data: str,
    num_classes: int | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    width: int = 32,
    num_features: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Train the classifier on a data set's labels (cross-entropy, Adam, learning rate falling to 0 as a cosine).

    Train it once for a data set, save it, and load it for every model that is to be compared: another seed is another
    extractor, and its figures do not compare. Choose another split than that which judges the models where there is
    one; features that have learned a split by heart make its images look special.

    Cost: about 6 million multiplications for a 28 x 28 image, three times that for a training step.

    Args:
        train: Images with labels.
        held_out: Images with labels, for the accuracy.
        data: Name of the data, for the name of the extractor.
        num_classes: Number of classes; None for the highest label + 1.
        epochs: Passes over the data.
        batch_size: Images of a step.
        learning_rate: At the start.
        width: Channels of the first convolution.
        num_features: Size of the last hidden layer, D.
        seed: Seed of weights, order and the data's noise.
        device: Where to train.

    Raises:
        DataError: if labels are missing or outside the classes.
        ConfigurationError: if a setting is out of range.
        ShapeError: if the data are no images.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"`{name}` must be a positive integer; got {value!r}.")
    labels = _labels(train, "train", num_classes)
    count = num_classes or int(labels.max()) + 1
    with noise.stream(seed, Purpose.CLASSIFIER, 0):
        classifier = Classifier(
            train.event_shape, count, data=data, width=width, num_features=num_features
        ).to(device)
    held_out_labels = _labels(held_out, "held_out", count)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=learning_rate)
    steps = epochs * math.ceil(len(train) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    classifier.train()
    for epoch in range(epochs):
        with noise.stream(seed, Purpose.CLASSIFIER, 1, epoch):
            for rows in noise.permutation(len(train)).split(batch_size):
                logits = classifier.logits(train.batch(rows).x.to(device))
                loss = functional.cross_entropy(logits, labels[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    classifier.eval()
    with noise.stream(seed, Purpose.CLASSIFIER, 2):
        classifier.accuracy, square = _judged(classifier, held_out, held_out_labels)
    classifier.scale.fill_(max(square, 1e-12) ** 0.5)
    return classifier.requires_grad_(False)


@torch.no_grad()
def _judged(classifier: Classifier, source: DataSource, labels: Tensor) -> tuple[float, float]:
    """Return the share of images that get their own label, and the mean square of the features as they are."""
    right, square = 0, 0.0
    for rows in torch.arange(len(source)).split(_PIECE):
        features = classifier(source.batch(rows).x)
        chosen = classifier.head(features).argmax(1).cpu()
        right += int((chosen == labels[rows].cpu()).sum())
        square += float(features.double().square().mean(1).sum())
    return right / len(source), square / len(source)


def _labels(source: LabeledSource, name: str, num_classes: int | None) -> Tensor:
    if source.labels is None:
        raise DataError(f"`{name}` has no labels. Use `Pixels()`, or a module trained on other data.")
    low, high = int(source.labels.min()), int(source.labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        limit = "" if num_classes is None else f" below {num_classes}"
        raise DataError(
            f"Labels of `{name}` must be at least 0{limit}; got {low} to {high}. State `num_classes`."
        )
    return source.labels


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write weights as safetensors, with settings, accuracy and hash as JSON in the header; atomically.

    Raises:
        CheckpointError: if the disk is full.
    """
    from safetensors.torch import save

    state = {
        "settings": classifier.settings,
        "accuracy": None if math.isnan(classifier.accuracy) else classifier.accuracy,
        "weights": classifier.weights,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    write_atomically(path, save(tensors, metadata={"classifier": json.dumps(state)}))


def load_classifier(path: Path, *, device: torch.device | str = "cpu") -> Classifier:
    """Read what `save_classifier` wrote; nothing in the file is executed.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, or its weights do not have their hash.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            state = json.loads((file.metadata() or {})["classifier"])
        settings = state["settings"]
        classifier = Classifier(tuple(settings.pop("event_shape")), settings.pop("num_classes"), **settings)
        classifier.load_state_dict(tensors)
        if classifier.weights != state["weights"]:
            raise ValueError("the weights are not those of the hash")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: no readable classifier ({error}). Train it again and save it with `save_classifier`."
        ) from None
    classifier.accuracy = math.nan if state["accuracy"] is None else state["accuracy"]
    return classifier.to(device).eval().requires_grad_(False)
