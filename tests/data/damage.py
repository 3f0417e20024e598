"""Every small way to damage a file, and the one acceptable outcome."""

from collections.abc import Callable, Iterator
from pathlib import Path

from latentflows.core.errors import DataError


def variants(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut at every place, flip the bits of every byte, and append what does not belong there."""
    for i in range(len(content)):
        yield f"cut at {i}", content[:i]
        for mask in (0x01, 0x80, 0xFF):
            yield f"byte {i} ^ {mask:#x}", content[:i] + bytes([content[i] ^ mask]) + content[i + 1 :]
    yield "surplus", content + b"\x01"
    yield "twice", content + content


def outcome(read: Callable[[], object]) -> tuple[object, str | None]:
    """The result and None, or None and the message of the DataError."""
    try:
        return read(), None
    except DataError as error:
        return None, str(error)


def never_misread(path: Path, sizes: Callable[[], object]) -> set[str]:
    """Damage `path` in every way; each time `sizes()` raises a DataError naming a file, or is as before.

    Returns the damages that were refused.
    """
    content = path.read_bytes()
    expected = sizes()
    refused = set()
    for damage, damaged in variants(content):
        path.write_bytes(damaged)
        got, message = outcome(sizes)
        if message is None:
            assert got == expected, damage
        else:
            assert str(path.parent) in message or path.name in message, (damage, message)
            refused.add(damage)
    path.write_bytes(content)
    assert sizes() == expected
    return refused


def sizes_of(data) -> tuple:
    """What must not change silently: the counts and the shape."""
    return len(data.train), len(data.validation), len(data.test), data.train.event_shape
