import math
from fractions import Fraction

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.core.noise import stream
from latentflows.data import ArraySplit, ImageSplit, from_tensors
from latentflows.data.base import rows_of

EVERYTHING = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
FIRST = torch.tensor([0])


def many_batches(split, count):
    with stream(3):
        return torch.stack([split.batch(FIRST).x[0] for _ in range(count)])


def test_dynamic_binarization_has_the_mean_of_the_pixel():
    count = 4000
    x = many_batches(ImageSplit(EVERYTHING, "dynamic_binary"), count)
    p = EVERYTHING[0].double() / 255
    assert set(x.unique().tolist()) == {0.0, 1.0}
    error = (p * (1 - p) / count).sqrt()
    assert ((x.double().mean(0) - p).abs() <= 5 * error).all()


def test_dynamic_binarization_is_exact_at_both_ends():
    pixels = torch.tensor([0, 16], dtype=torch.uint8).repeat(1 << 20).reshape(1, 1, 2, -1)
    x = ImageSplit(pixels, "dynamic_binary", levels=17).batch(FIRST).x
    assert torch.equal(x, (pixels == 16).float())


@pytest.mark.parametrize("levels", range(2, 257))
def test_thresholds_are_rounded_exactly(levels, monkeypatch):
    pixels = torch.arange(levels, dtype=torch.uint8).reshape(1, 1, 1, -1)
    expected = [round(Fraction(65536 * v, levels - 1)) for v in range(levels)]
    split = ImageSplit(pixels, "dynamic_binary", levels=levels)

    def ones_below(shift):
        noise = torch.tensor(expected, dtype=torch.int32).reshape(pixels.shape) + shift
        monkeypatch.setattr("latentflows.data.base.random_uint16", lambda shape, device: noise)
        return split.batch(FIRST).x

    assert ones_below(-1).all()
    assert not ones_below(0).any()


@pytest.mark.parametrize("drawing", ["dynamic_binary", "dequantized"])
def test_the_stream_alone_decides_the_noise(drawing):
    split = ImageSplit(EVERYTHING, drawing)

    def drawn(key):
        with stream(key):
            return split.batch(FIRST).x

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_two_batches_of_one_stream_differ():
    first, second = many_batches(ImageSplit(EVERYTHING, "dynamic_binary"), 2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantized_values_stay_in_their_level(levels):
    split = ImageSplit(EVERYTHING.clamp(max=levels - 1), "dequantized", levels=levels)
    x = many_batches(split, 500)
    assert x.min() >= 0
    assert x.max() < 1
    assert torch.equal((x.double() * levels + 1e-6).floor().max(0).values, split.pixels[0].double())
    u = x.double() * levels - split.pixels[0]
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / u.numel())
    assert abs(u.var() - 1 / 12) < 0.001


def test_dequantized_stays_below_one_under_the_largest_noise(monkeypatch):
    monkeypatch.setattr(
        "latentflows.data.base.random_uint16",
        lambda shape, device: torch.full(shape, 65535, dtype=torch.int32),
    )
    x = ImageSplit(EVERYTHING, "dequantized").batch(FIRST).x
    assert x.max() == 1 - 2**-24


def test_unit_values_span_zero_to_one():
    x = ImageSplit(EVERYTHING, "unit").batch(FIRST).x
    assert torch.equal(x, EVERYTHING.float() / 255)


@pytest.mark.parametrize(
    ("drawing", "values", "offset"),
    [("dynamic_binary", "binary", 0.0), ("dequantized", "continuous", math.log2(17)), ("unit", "unit", None)],
)
def test_split_says_what_its_values_are(drawing, values, offset):
    split = ImageSplit(torch.zeros(5, 3, 4, 2, dtype=torch.uint8), drawing, levels=17)
    batch = split.batch(torch.tensor([4, 0, 0]))
    assert (split.values, split.bits_offset, split.event_shape, len(split)) == (values, offset, (3, 4, 2), 5)
    assert (batch.x.shape, batch.x.dtype, batch.context) == ((3, 3, 4, 2), torch.float32, None)


def test_batch_is_contiguous_where_pixels_are_channels_last():
    pixels = torch.zeros(5, 4, 2, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for drawing in ("dynamic_binary", "dequantized", "unit"):
        assert ImageSplit(pixels, drawing).batch(torch.tensor([0, 2])).x.is_contiguous()


def test_rows_select_from_shared_pixels_also_after_a_move():
    pixels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)
    rows, labels = torch.tensor([4, 1, 5]), torch.tensor([40, 10, 50])
    split = ImageSplit(pixels, "unit", labels=labels, with_labels=True, rows=rows)
    for each in (split, split.to("cpu")):
        x, context = each.batch(torch.tensor([2, 0]))
        assert len(each) == 3
        assert (x.flatten() * 255).round().tolist() == [5, 4]
        assert context is not None
        assert context.shape == (2, 51)
        assert context.argmax(1).tolist() == [50, 40]


def test_labels_come_only_when_asked():
    labels = torch.tensor([7, 8], dtype=torch.int32)
    for with_labels in (False, True):
        for split in (
            ImageSplit(EVERYTHING.expand(2, -1, -1, -1), "unit", labels=labels, with_labels=with_labels),
            ArraySplit(torch.zeros(2, 3), values="continuous", labels=labels, with_labels=with_labels),
        ):
            context = split.batch(torch.tensor([1])).context
            assert (context is not None) == with_labels
            assert context is None or (context.tolist(), context.dtype) == (
                [[0.0] * 8 + [1.0]],
                torch.float32,
            )


def test_labels_are_one_hot_over_all_classes():
    labels = torch.tensor([2, 0])
    split = ArraySplit(torch.zeros(2, 3), values="continuous", labels=labels, with_labels=True, num_classes=4)
    for each in (split, split.to("cpu")):
        context = each.batch(torch.tensor([0, 1])).context
        assert context is not None
        assert context.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    for bad, message in (
        (torch.tensor([4, 0]), "below `num_classes` = 4; got 0 to 4"),
        (torch.tensor([-1, 0]), "-1 to 0"),
    ):
        with pytest.raises(DataError, match=message):
            ArraySplit(torch.zeros(2, 3), values="continuous", labels=bad, num_classes=4, with_labels=True)


@pytest.mark.parametrize(
    ("pixels", "settings", "error", "message"),
    [
        (torch.zeros(2, 1, 2, 2), {}, ShapeError, "must be uint8"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), {}, ShapeError, r"\(N, C, H, W\)"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), {}, ShapeError, "none of them 0"),
        (EVERYTHING, {"levels": 17}, DataError, "below `levels` = 17; got 255"),
        (EVERYTHING, {"levels": 1}, ConfigurationError, "from 2 to 256"),
        (EVERYTHING, {"with_labels": True}, DataError, "have none"),
        (EVERYTHING, {"labels": torch.tensor([1, 2])}, ShapeError, r"shape \(1,\)"),
        (EVERYTHING, {"labels": torch.tensor([1.0])}, ShapeError, "integers"),
    ],
)
def test_bad_images_are_refused(pixels, settings, error, message):
    with pytest.raises(error, match=message):
        ImageSplit(pixels, "unit", **settings)


def test_unknown_drawing_is_refused():
    with pytest.raises(ConfigurationError, match="dynamic_binary, dequantized, unit"):
        ImageSplit(EVERYTHING, "binary")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "indices", [torch.tensor(0), torch.tensor([True]), torch.tensor([0], dtype=torch.int32)]
)
def test_bad_indices_are_refused(indices):
    for split in (ImageSplit(EVERYTHING, "unit"), ArraySplit(torch.zeros(1, 2), values="continuous")):
        with pytest.raises(ShapeError, match="int64"):
            split.batch(indices)


@pytest.mark.parametrize("event", [(2,), (1, 4, 4), (2, 9)])
@pytest.mark.parametrize(("values", "offset"), [("continuous", None), ("binary", 0.0), ("unit", None)])
def test_from_tensors_gives_back_what_it_got(event, values, offset):
    parts = [(torch.rand(n, *event) > 0.5).double() for n in (5, 3, 2)]
    data = from_tensors(*parts, values=values)
    for split, part in zip((data.train, data.validation, data.test), parts, strict=True):
        assert (split.event_shape, split.values, split.bits_offset, len(split)) == (
            event,
            values,
            offset,
            len(part),
        )
        assert torch.equal(split.batch(torch.arange(len(part))).x, part.float())
    assert "5 / 3 / 2" in data.description


def test_from_tensors_keeps_the_offset_of_dequantized_values():
    data = from_tensors(*torch.rand(3, 4, 2), values="continuous", bits_offset=8.0).to("cpu")
    assert data.test.bits_offset == 8.0


@pytest.mark.parametrize(
    ("value", "values", "message"),
    [
        (math.nan, "continuous", "finite"),
        (math.inf, "continuous", "finite"),
        (math.nan, "unit", "finite"),
        (0.5, "binary", "must be 0 or 1"),
        (1.01, "unit", r"\[0, 1\]; got \[0, 1.01\]"),
        (-0.01, "unit", r"\[0, 1\]"),
    ],
)
def test_values_out_of_range_are_refused(value, values, message):
    bad = torch.zeros(100, 3)
    bad[57, 1] = value
    with pytest.raises(DataError, match=message):
        from_tensors(torch.zeros(2, 3), torch.zeros(2, 3), bad, values=values)


def test_values_are_checked_beyond_the_first_chunk(monkeypatch):
    monkeypatch.setattr("latentflows.data.base.CHUNK", 6)
    bad = torch.zeros(100, 3)
    bad[99, 2] = 2
    with pytest.raises(DataError, match="0 or 1"):
        ArraySplit(bad, values="binary")


@pytest.mark.parametrize("x", [torch.zeros(4), torch.zeros(0, 2), torch.zeros(2, 0)])
def test_bad_shapes_are_refused(x):
    with pytest.raises(ShapeError, match=r"\(N, \*event\)"):
        ArraySplit(x, values="continuous")


def test_different_events_are_refused():
    with pytest.raises(ShapeError, match="must be equal"):
        from_tensors(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4), values="continuous")


def test_unknown_values_are_refused():
    with pytest.raises(ConfigurationError, match='"continuous"'):
        ArraySplit(torch.zeros(2, 3), values="real")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "bad", [0.5, 1 + 2**-20, -1.0, 2.0, 1e-40, float("nan"), float("inf"), -float("inf")]
)
def test_one_value_that_is_neither_0_nor_1_is_no_binary_data(bad):
    x = (torch.arange(12.0) % 2).view(3, 4)
    ArraySplit(x, values="binary")
    x[1, 2] = bad
    with pytest.raises(DataError):
        ArraySplit(x, values="binary")


def test_rows_are_read_where_the_values_lie():
    """Without a GPU: on fake tensors, which know their device."""
    with FakeTensorMode():
        rows = rows_of(torch.empty(4, 2, device="cuda"), torch.tensor([3, 0]))
    assert rows.device.type == "cuda"
    assert rows.shape == (2, 2)
