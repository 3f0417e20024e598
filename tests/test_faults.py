"""The planted faults fit the code as it is: a text that no longer stands there would make its mutant vanish."""

import pytest

from tests.faults import FAULTS
from tests.mutants import PACKAGE

CASES = [
    pytest.param(file, old, new, id=f"{file}: {name}")
    for file, faults in FAULTS.items()
    for name, old, new in faults
]


@pytest.mark.parametrize(("file", "old", "new"), CASES)
def test_the_text_of_a_fault_stands_in_the_code_exactly_once(file, old, new):
    count = (PACKAGE / file).read_text(encoding="utf-8").count(old)
    assert count == 1, f"it stands there {count} times: bring tests/faults/ up to date"
    assert new != old
