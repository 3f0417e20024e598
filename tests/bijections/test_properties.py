"""Every property of `latentflows.testing` on every case; a new bijection adds a line to `cases.CASES`."""

import pytest

from latentflows.testing import PROPERTIES
from tests.bijections.cases import INSTANCES, subject

ITEMS = [
    pytest.param(name, context, key, id=f"{key}-{name}{'+context' * context}")
    for name, context in INSTANCES
    for key, item in PROPERTIES.items()
    if not item.left_out(subject(name, context))
]


@pytest.mark.parametrize(("name", "context", "key"), ITEMS)
def test_property(name, context, key):
    PROPERTIES[key].run(subject(name, context))


@pytest.mark.parametrize("key", PROPERTIES)
def test_no_property_is_left_out_everywhere(key):
    assert any(item.values[2] == key for item in ITEMS)
