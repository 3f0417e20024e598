import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from latentflows.core.errors import DataError
from latentflows.data.readers.base import Request
from latentflows.data.readers.digits import read


def test_digits_are_all_there_once_with_their_labels():
    raw = read(Request("digits"))
    bunch = load_digits()
    got = sorted((*s.values[i].ravel().tolist(), s.labels[i]) for s in raw.splits for i in range(len(s)))
    assert got == sorted((*row, label) for row, label in zip(bunch.data.tolist(), bunch.target, strict=True))
    assert [len(split) for split in raw.splits] == [1197, 200, 400]
    assert raw.levels == 17


def test_split_depends_on_the_seed_alone():
    first, again, other = (read(Request("digits", seed=seed)).train.values for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_missing_scikit_learn_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'latentflows\[digits\]'"):
        read(Request("digits"))
