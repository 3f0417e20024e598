import json
from dataclasses import fields, replace

import pytest

from latentflows.core.errors import CombinationError
from latentflows.evaluation.protocol import SampleProtocol, check_same_protocol, comparable

PROTOCOL = SampleProtocol(
    data="digits, dynamic binarization",
    split="test",
    features="pixels",
    weights="none",
    dimension=64,
    num_real=400,
    num_generated=400,
    resize="none",
    pixel_range=(0.0, 1.0),
    temperature=1.0,
    shown="sample",
    num_neighbors=5,
    num_blocks=10,
    seed=0,
)
OTHER = {
    "data": "mnist",
    "split": "train",
    "features": "classifier-64[digits]",
    "weights": "0a1b",
    "dimension": 32,
    "num_real": 399,
    "num_generated": 1000,
    "resize": "299 x 299, bilinear, antialiased",
    "pixel_range": None,
    "temperature": 0.8,
    "shown": "mean",
    "num_neighbors": 3,
    "num_blocks": 5,
}


def test_every_field_but_the_seed_keeps_figures_apart():
    assert set(OTHER) | {"seed"} == {field.name for field in fields(SampleProtocol)}
    for name, value in OTHER.items():
        other = replace(PROTOCOL, **{name: value})
        assert not comparable(PROTOCOL, other)
        with pytest.raises(
            CombinationError, match=rf"'a' and 'c' .* cannot share a column \({name}: "
        ) as error:
            check_same_protocol({"a": PROTOCOL, "b": PROTOCOL, "c": other})
        assert f"{getattr(PROTOCOL, name)!r} and {value!r}" in str(error.value)


def test_the_seed_does_not_and_one_row_is_enough():
    assert comparable(PROTOCOL, replace(PROTOCOL, seed=7))
    check_same_protocol({"a": PROTOCOL, "b": replace(PROTOCOL, seed=7)})
    check_same_protocol({"a": PROTOCOL})
    check_same_protocol({})


def test_all_fields_that_differ_are_named():
    with pytest.raises(CombinationError, match=r"split: 'test' and 'train'; temperature: 1.0 and 0.5"):
        check_same_protocol({"a": PROTOCOL, "b": replace(PROTOCOL, temperature=0.5, split="train")})


@pytest.mark.parametrize("span", [(0.0, 1.0), None])
def test_a_protocol_survives_json(span):
    protocol = replace(PROTOCOL, pixel_range=span)
    assert SampleProtocol.from_dict(json.loads(json.dumps(protocol.as_dict()))) == protocol


def test_a_protocol_of_another_version_is_refused():
    values = PROTOCOL.as_dict()
    del values["resize"]
    with pytest.raises(CombinationError, match=r"missing: \['resize'\], unknown: \['size'\]"):
        SampleProtocol.from_dict(values | {"size": 3})
