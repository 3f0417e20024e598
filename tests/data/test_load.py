import subprocess
import sys

import pytest
import torch

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data import dataset_names, load


def test_digits_load_without_files():
    data = load("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1197, 200, 400)
    assert (data.train.values, data.train.event_shape, len(data.labels)) == ("binary", (1, 8, 8), 10)


def test_labels_become_the_context(mnist_root):
    data = load("mnist", root=mnist_root, validation=2, with_labels=True)
    context = data.test.batch(torch.tensor([2, 1])).context
    assert context.shape == (2, len(data.labels))
    assert context.argmax(1).tolist() == [2, 1]
    assert load("mnist", root=mnist_root, validation=2).test.batch(torch.tensor([2])).context is None


def test_root_comes_from_the_environment(mnist_root, monkeypatch):
    monkeypatch.setenv("LATENTFLOWS_DATA", str(mnist_root))
    assert len(load("mnist", validation=2).train) == 5


def test_files_may_lie_in_the_root_itself(mnist_root):
    assert len(load("mnist", root=mnist_root / "mnist", validation=2).train) == 5


def test_no_root_is_explained(monkeypatch):
    monkeypatch.delenv("LATENTFLOWS_DATA", raising=False)
    with pytest.raises(DataError, match="LATENTFLOWS_DATA"):
        load("mnist")


def test_missing_files_are_named_with_the_places_and_the_way_out(tmp_path):
    with pytest.raises(DataError) as caught:
        load("mnist", root=tmp_path)
    for words in ("train-images-idx3-ubyte.gz", str(tmp_path / "mnist"), f"{tmp_path}.", "download('mnist'"):
        assert words in str(caught.value)
    assert f"`latentflows download mnist --root {tmp_path}`" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mnits", {}, r"Unknown data set 'mnits'; expected one of digits, .*Did you mean 'mnist'\?"),
        ("zzz", {}, r"arrays\.$"),
        (
            "digits",
            {"root": "here"},
            r"`root` \(--data-root\) does not apply to `digits`; got here. It takes test, validation",
        ),
        ("digits", {"size": 28}, "`size` does not apply to `digits`"),
        ("mnist", {"test": 5}, "`test` does not apply to `mnist`; got 5. It takes root, validation"),
        ("digits", {"memory_map": True}, "`memory_map` does not apply"),
        ("digits", {"validation": 0}, "`validation` must be a number from 1"),
        ("digits", {"validation": 1.0}, "`validation` must be a number from 1"),
        ("digits", {"validation": 1500, "test": 297}, "must leave data to train on"),
        ("digits", {"preparation": "binary"}, "`preparation` must be one of"),
        ("digits", {"seed": -1}, "`seed` must be from 0"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        load(name, **settings)


@pytest.mark.parametrize("name", [name for name in dataset_names() if name not in ("digits", "arrays")])
def test_a_root_that_is_a_file_is_said_to_be_one(tmp_path, name):
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(DataError, match=f"{tmp_path / 'x'}: a file, where a folder was expected"):
        load(name, root=tmp_path / "x", **({"size": 4} if name == "folder" else {}))


def test_every_name_answers_a_missing_root_with_a_library_error(tmp_path):
    for name in dataset_names():
        if name != "digits":
            with pytest.raises(DataError):
                load(name, root=tmp_path / "nowhere", **({"size": 4} if name == "folder" else {}))


def test_import_loads_neither_pillow_nor_scikit_learn():
    code = "import sys, latentflows.data; print([m for m in ('PIL', 'sklearn', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
