"""Loss curves stay as they are; see `regenerate_golden`."""

from __future__ import annotations

import json

import pytest

from tests.training.regenerate_golden import CASES, FOLDER, curve


@pytest.mark.parametrize("case", CASES)
def test_the_loss_curve_is_the_recorded_one(case: str) -> None:
    recorded = json.loads((FOLDER / f"{case}.json").read_text())
    for line, expected in zip(curve(case), recorded, strict=True):
        assert line["stage"] == expected["stage"]
        for part in ("train", "validation"):  # other BLAS libraries round otherwise
            assert line[part] == pytest.approx(expected[part], rel=1e-4, abs=1e-5)
