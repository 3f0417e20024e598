"""Which values are looked at, and when."""

import pytest
import torch

from latentflows.core.checks import all_finite, values_unchecked


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_entry_that_is_not_finite_is_seen(bad):
    assert all_finite(torch.zeros(3))
    assert not all_finite(torch.tensor([0.0, bad]))


def test_nothing_is_looked_at_inside_a_training_step():
    with values_unchecked():
        assert all_finite(torch.tensor(torch.nan))
    assert not all_finite(torch.tensor(torch.nan))


def test_a_step_that_fails_gives_the_checks_back():
    with pytest.raises(KeyError), values_unchecked():
        raise KeyError
    assert not all_finite(torch.tensor(torch.nan))


def test_under_vmap_nothing_is_looked_at():
    seen = []
    torch.func.vmap(lambda v: (seen.append(all_finite(v)), v)[1])(torch.full((3, 1), torch.nan))
    assert seen == [True]
