"""What tells one source of batches from another."""

import torch

from latentflows.core.batches import data_hash
from latentflows.core.noise import Purpose, stream
from latentflows.data import ArraySplit, ImageSplit
from latentflows.data.unlabeled import SomeUnlabeled

PIXELS = torch.randint(0, 256, (200, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_the_same_data_have_one_hash_whatever_is_drawn():
    for drawing in ("dynamic_binary", "dequantized", "unit"):
        with stream(1, Purpose.DATA):
            one = data_hash(ImageSplit(PIXELS, drawing))
        with stream(2, Purpose.DATA):
            assert data_hash(ImageSplit(PIXELS, drawing)) == one
    assert len(one) == 12


def test_labels_make_no_difference():
    labels = torch.arange(200) % 3
    labeled = ImageSplit(PIXELS, "dequantized", labels=labels, with_labels=True)
    expected = data_hash(ImageSplit(PIXELS, "dequantized"))
    assert data_hash(labeled) == data_hash(SomeUnlabeled(labeled, 0.3)) == expected


def test_other_data_have_another_hash():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[-1, -1] += 1e-6
    others = [x, changed, x.flip(0), x[:-1], x.double().add(1).float(), x[:, None], torch.zeros(200, 3)]
    assert len({data_hash(ArraySplit(other, values="continuous")) for other in others}) == len(others)


def test_one_data_point_and_large_ones_have_a_hash():
    """Of points that hold many values fewer are read."""
    single = ArraySplit(torch.ones(1, 2), values="unit")
    assert data_hash(single) == data_hash(ArraySplit(torch.ones(1, 2), values="unit"))
    read = []

    class Large(ArraySplit):
        def batch(self, indices):
            read.append(indices.tolist())
            return super().batch(indices)

    large = Large(torch.ones(100, 1), values="unit")
    large.event_shape = (1 << 23,)
    data_hash(large)
    assert read == [[0, 99]]
