import math

import numpy as np
import pytest
import torch

from latentflows.core.batches import Batch
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.core.noise import stream
from latentflows.data.prepare import prepare
from latentflows.data.readers.base import RawData, RawSplit

PIXELS = np.random.RandomState(5).randint(0, 256, (12, 1, 4, 5)).astype(np.uint8)
LABELS = np.arange(12)


def raw(values=PIXELS, levels=256, labels=LABELS):
    def part(rows):
        return RawSplit(values[rows], None if labels is None else labels[rows])

    return RawData(
        "toy", (part(slice(0, 6)), part(slice(6, 9)), part(slice(9, 12))), "toy data", levels, ("a",)
    )


def everything(split):
    return split.batch(torch.arange(len(split))).x


def test_fixed_binary_is_one_sequence_over_train_validation_and_test():
    data = prepare(raw(), "fixed_binary")
    r = np.random.RandomState(0)
    expected = r.random_sample(PIXELS.shape) < PIXELS / 255.0
    got = torch.cat([everything(split) for split in (data.train, data.validation, data.test)])
    assert np.array_equal(got.numpy(), expected)


def test_dynamic_binary_draws_evaluation_data_as_published():
    data = prepare(raw(), "dynamic_binary")
    r = np.random.RandomState(777)
    for split, part in ((data.validation, PIXELS[6:9]), (data.test, PIXELS[9:12])):
        expected = r.binomial(1, torch.from_numpy(part).float().numpy() / 255.0)
        assert np.array_equal(everything(split).numpy(), expected)


@pytest.mark.parametrize("preparation", ["dynamic_binary", "fixed_binary", "dequantized"])
def test_draws_do_not_depend_on_the_size_of_chunks(preparation, monkeypatch):
    whole = everything(prepare(raw(), preparation).test)
    monkeypatch.setattr("latentflows.data.prepare.CHUNK", 20)
    assert torch.equal(everything(prepare(raw(), preparation).test), whole)


@pytest.mark.parametrize(
    ("preparation", "redrawn"),
    [("dynamic_binary", True), ("fixed_binary", False), ("dequantized", True), ("unit", False)],
)
def test_only_training_data_are_redrawn(preparation, redrawn):
    data = prepare(raw(), preparation)

    def drawn(split, key):
        with stream(key):
            return everything(split)

    assert torch.equal(drawn(data.train, 1), drawn(data.train, 2)) != redrawn
    for split in (data.validation, data.test):
        assert torch.equal(drawn(split, 1), drawn(split, 2))


def test_dequantized_evaluation_data_stay_in_their_level():
    data = prepare(raw(), "dequantized")
    x = everything(data.test)
    assert torch.equal((x * 256).floor(), torch.from_numpy(PIXELS[9:12]).float())
    assert (x * 256 != (x * 256).floor()).any()
    assert (data.test.values, data.test.bits_offset) == ("continuous", 8.0)


def test_dequantized_evaluation_data_stay_below_one():
    highest = np.full((300, 1, 28, 28), 255, np.uint8)
    data = prepare(raw(highest, labels=None), "dequantized")
    assert everything(data.test).max() < 1


@pytest.mark.parametrize("preparation", ["dynamic_binary", "fixed_binary", "dequantized", "unit"])
def test_all_splits_say_the_same_about_their_values(preparation):
    data = prepare(raw(PIXELS % 17, levels=17), preparation)
    splits = (data.train, data.validation, data.test)
    assert len({(split.values, split.bits_offset, split.event_shape) for split in splits}) == 1
    assert [len(split) for split in splits] == [6, 3, 3]
    assert data.train.bits_offset == {"dequantized": math.log2(17), "unit": None}.get(preparation, 0.0)
    assert data.description.startswith("toy data; ")


def test_two_level_images_are_binary_without_noise():
    two = PIXELS // 128
    for preparation in ("dynamic_binary", "fixed_binary"):
        data = prepare(raw(two, levels=2), preparation)
        assert np.array_equal(everything(data.train).numpy(), two[:6])
        assert np.array_equal(everything(data.test).numpy(), two[9:])


def test_rows_are_followed_in_every_preparation():
    rows = (np.array([7, 2, 9]), np.array([0, 11]), np.array([4]))
    by_rows = RawData("toy", tuple(RawSplit(PIXELS, LABELS[r], r) for r in rows), "")
    copied = RawData("toy", tuple(RawSplit(PIXELS[r], LABELS[r]) for r in rows), "")
    for preparation in ("dynamic_binary", "fixed_binary", "dequantized", "unit"):
        for name in ("train", "validation", "test"):
            results: list[Batch] = []
            for data in (by_rows, copied):
                with stream(0):
                    split = getattr(prepare(data, preparation, with_labels=True), name)
                    results.append(split.batch(torch.arange(len(split))))
            assert torch.equal(results[0].x, results[1].x)
            assert torch.equal(results[0].context, results[1].context)


def test_floats_are_continuous_or_unit():
    floats = np.random.RandomState(0).rand(12, 2).astype(np.float32)
    for preparation in ("continuous", "unit"):
        data = prepare(raw(floats), preparation)
        assert (data.train.values, data.train.bits_offset) == (preparation, None)
        assert np.array_equal(everything(data.test).numpy(), floats[9:])


@pytest.mark.parametrize(
    ("data", "preparation", "error", "message"),
    [
        (raw(), "continuous", CombinationError, 'Use "dequantized"'),
        (raw(PIXELS.astype(np.float32)), "dynamic_binary", CombinationError, "save the images as uint8"),
        (raw(PIXELS.astype(np.float32)), "unit", DataError, r"\[0, 1\]"),
        (raw(), "binary", ConfigurationError, "must be one of dynamic_binary, fixed_binary"),
        (raw(levels=17), "dynamic_binary", DataError, "below 17"),
        (raw(levels=17), "fixed_binary", DataError, "below 17"),
    ],
)
def test_unfit_preparations_are_refused(data, preparation, error, message):
    with pytest.raises(error, match=message):
        prepare(data, preparation)


def test_every_split_knows_the_classes_of_all():
    splits = tuple(RawSplit(PIXELS[:3], np.array(labels)) for labels in ([0, 1, 0], [2, 0, 0], [4, 0, 1]))
    for names, count in (((), 5), (tuple("abcdefg"), 7)):
        for preparation in ("unit", "fixed_binary", "dequantized"):
            data = prepare(RawData("toy", splits, "", labels=names), preparation, with_labels=True)
            for split in (data.train, data.validation, data.test):
                assert split.batch(torch.arange(3)).context.shape == (3, count)
    floats = tuple(RawSplit(np.random.rand(3, 2).astype(np.float32), np.array([0, i, 1])) for i in range(3))
    data = prepare(RawData("toy", floats, ""), "unit", with_labels=True)
    assert data.train.batch(torch.arange(3)).context.shape == (3, 3)


def test_labels_that_are_not_there_are_refused():
    with pytest.raises(DataError, match="have none"):
        prepare(raw(labels=None), "unit", with_labels=True)
