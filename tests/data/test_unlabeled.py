"""Labels that are left out: as many as said, drawn anew, and nothing else changes."""

import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data import ArraySplit, SomeUnlabeled


def labeled(count: int = 2000, *, with_labels: bool = True) -> ArraySplit:
    labels = torch.arange(count) % 4
    return ArraySplit(torch.randn(count, 3), values="continuous", labels=labels, with_labels=with_labels)


def test_a_share_of_the_labels_is_left_out_anew_in_each_batch():
    source = labeled()
    some, rows = SomeUnlabeled(source, 0.25), torch.arange(2000)
    with noise.stream(1):
        first, second = some.batch(rows).context, some.batch(rows).context
    assert first is not None
    assert second is not None
    for labels in (first, second):
        without = (labels == 0).all(1)
        assert abs(without.float().mean() - 0.25) < 0.05
        assert torch.equal(labels[~without], source.batch(rows).context[~without])
    assert not torch.equal(first, second)


def test_the_rest_is_that_of_the_source():
    source = labeled()
    some = SomeUnlabeled(source, 0.5)
    rows = torch.tensor([3, 1])
    assert torch.equal(some.batch(rows).x, source.batch(rows).x)
    assert (len(some), some.event_shape, some.values, some.bits_offset) == (2000, (3,), "continuous", None)
    assert some.labels is source.labels


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigurationError, match="`share` must be above 0 and below 1"):
        SomeUnlabeled(labeled(), share)


def test_data_without_labels_are_refused():
    with pytest.raises(DataError, match="have no labels to leave out"):
        SomeUnlabeled(labeled(with_labels=False), 0.1).batch(torch.arange(2))
