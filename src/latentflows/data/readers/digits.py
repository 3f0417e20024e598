"""The 1,797 handwritten digits that ship inside scikit-learn: real data without a download."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentflows.core.errors import DataError
from latentflows.data.readers.base import RawData, Request, amount, shuffled_rows, sizes, take

LEVELS = 17  # each value counts the inked pixels of a 4 x 4 block: 0 to 16


def read(request: Request) -> RawData:
    """Read 8 x 8 digits, 17 levels, in a seeded shuffle; 1,197 / 200 / 400 unless asked otherwise.

    Raises:
        DataError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "`digits` is part of scikit-learn, which is not installed. Run: pip install 'latentflows[digits]'"
        ) from None
    bunch: Any = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    total = len(images)
    num_validation = amount(request.validation, total, 200, "validation", request.name)
    num_test = amount(request.test, total, 400, "test", request.name)
    rows = shuffled_rows(total, num_validation, num_test, request.seed, request.name)
    train, validation, test = (take(images, labels, part) for part in rows)
    splits = (train, validation, test)
    return RawData(
        request.name,
        splits,
        f"scikit-learn digits, {sizes(splits)}, split by a shuffle with seed {request.seed}",
        levels=LEVELS,
        labels=tuple("0123456789"),
    )
