"""The table in this package's docstring names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import tests.known_defects as package

HERE = Path(__file__).parent
TESTS = HERE.parent


def rows() -> dict[str, list[tuple[Path, str]]]:
    """Files and names of the tests of each defect."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for line in (package.__doc__ or "").splitlines():
        if start := re.match(r"(D\d+) ", line):
            found[start[1]] = []
        elif named := re.fullmatch(r"     ([\w/]+): (test_\w+)", line):
            inside = HERE / f"{named[1]}.py"
            found[list(found)[-1]].append(
                (inside if inside.is_file() else TESTS / f"{named[1]}.py", named[2])
            )
    return found


def test_every_defect_has_tests_and_they_exist():
    found = rows()
    assert list(found) == [f"D{number}" for number in range(1, 28)]
    for defect, listed in found.items():
        assert listed, defect
        for path, name in listed:
            assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE), (
                defect,
                name,
            )


def test_every_test_of_this_package_stands_in_the_table():
    listed = {name for tests in rows().values() for _, name in tests}
    for path in HERE.glob("test_*.py"):
        if path != Path(__file__):
            names = re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert set(names) <= listed, path.name
