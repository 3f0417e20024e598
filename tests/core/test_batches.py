"""What tells one source of batches from another."""

import torch

from latentflows.core.batches import Batch, data_hash
from latentflows.core.noise import Purpose, stream
from latentflows.data import ArraySplit, EnergySplit, ImageSplit, PlaneEnergy
from latentflows.data.unlabeled import SomeUnlabeled

PIXELS = torch.randint(0, 256, (200, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_the_same_data_have_one_hash_whatever_is_drawn():
    for drawing in ("dynamic_binary", "dequantized", "unit"):
        with stream(1, Purpose.DATA):
            one = data_hash(ImageSplit(PIXELS, drawing))
        with stream(2, Purpose.DATA):
            assert data_hash(ImageSplit(PIXELS, drawing)) == one
    assert len(one) == 12


def test_draws_of_any_generator_are_the_same_and_leave_it_as_it_was():
    class Flipped(ArraySplit):
        """Pictures that torch's own generator turns around, as libraries of transforms do."""

        def batch(self, indices):
            x = super().batch(indices).x
            return Batch(torch.where(torch.rand(len(x), 1) < 0.5, x, x.flip(1)))

    source = Flipped(torch.randn(50, 3), values="continuous")
    before = torch.get_rng_state()
    first = data_hash(source)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert data_hash(source) == first


def test_a_source_that_draws_until_a_draw_is_accepted_has_a_hash():
    class Drawn(EnergySplit):
        def batch(self, indices):
            return Batch(self.energy.sample(len(indices)))

    hashes = set()
    for name in ("ring", "wave", "parting_wave", "forked_wave"):
        energy = PlaneEnergy(name)
        source = Drawn(torch.zeros(100, 2), energy)
        hashes.add(data_hash(source))
        assert data_hash(source) in hashes
    assert len(hashes) == 4


def test_pictures_that_gray_values_alone_tell_apart_have_two_hashes():
    """Also where they are made black and white as they are drawn."""
    thresholded = (PIXELS > 127).to(torch.uint8) * 255
    for drawing in ("dynamic_binary", "dequantized", "unit"):
        assert data_hash(ImageSplit(PIXELS, drawing)) != data_hash(ImageSplit(thresholded, drawing))


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
