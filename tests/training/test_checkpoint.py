"""Files: written whole or not at all, read without executing anything, refused by name when damaged."""

from __future__ import annotations

import errno
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentflows.core.errors import CheckpointError
from latentflows.training import checkpoint, load_weights, save_weights
from latentflows.training.checkpoint import load_tensors, save_tensors
from tests.training.tiny import same, state, vae

TENSORS = {
    "w": torch.arange(6.0).view(2, 3),
    "flag": torch.tensor(True),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "index": torch.arange(4),
    "none": torch.zeros(0, 2),
}


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.safetensors"
    save_tensors(path, TENSORS, {"kind": "test", "number": 0.1, "text": "ü\u2028"})
    tensors, content = load_tensors(path)
    assert same(tensors, TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert content["number"] == 0.1
    assert content["text"] == "ü\u2028"


def test_weights_come_back_and_other_models_refuse_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = vae("iaf", "real_nvp")
    for parameter in model.parameters():
        parameter.data += 1.0
    save_weights(model, path)
    fresh = vae("iaf", "real_nvp")
    load_weights(fresh, path)
    assert same(state(fresh), state(model))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors belongs to another model: missing posterior"
    ):
        load_weights(vae(), path)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\xff" * 100, b"hello", b"\x08\0\0\0\0\0\0\0{}      "]
)
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors is not a readable checkpoint"):
        load_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint at .*a\.safetensors"):
        load_tensors(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="No checkpoint at"):
        load_tensors(tmp_path)


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_loading_executes_nothing(tmp_path: Path, zipped: bool) -> None:
    path, proof = tmp_path / "model.safetensors", tmp_path / "executed"
    if zipped:
        torch.save(Bomb(proof), path)
    else:
        path.write_bytes(pickle.dumps(Bomb(proof)))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_weights(vae(), path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Bomb(proof)))
    assert proof.exists()  # the bomb is live


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save_tensors(path, TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"a\.safetensors has format 2; this version reads 1"):
        load_tensors(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_one_wrong_byte_anywhere_is_noticed(tmp_path: Path, position: float, flip: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"kind": "test"})
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= flip
    path.write_bytes(content)
    try:
        tensors, read = load_tensors(path)
    except CheckpointError as error:
        message = str(error)
    else:  # a byte that carries no information, such as white space in the header
        message = "a.safetensors"
        assert same(tensors, TENSORS)
        assert read["kind"] == "test"
    assert "a.safetensors" in message


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_tensors(path)


# -- writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "input/output error"), OSError),
        (OSError(errno.ENOSPC, "no space left"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["broken disk", "full disk", "interrupt"],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error: BaseException,
    expected: type[BaseException],
) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"kind": "old"})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(expected) as raised:
        save_tensors(path, {"w": torch.ones(1000)}, {"kind": "new"})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert load_tensors(path)[1]["kind"] == "old"
    if expected is CheckpointError:
        assert "The disk is full" in str(raised.value)
        assert re.search(
            r"a\.safetensors needs 4,\d{3} bytes", str(raised.value)
        )  # 1000 numbers and a header
