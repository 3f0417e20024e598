"""Files: nothing in them is executed, and all that a model holds is in them and moves with it."""

from __future__ import annotations

import ast
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latentflows
from latentflows.core.errors import LatentFlowsError
from latentflows.data import load
from latentflows.evaluation import load_classifier
from latentflows.studies.building.build import build_model, load_run
from latentflows.studies.running.run import run
from latentflows.studies.settings.overrides import configuration_from, read_configuration, to_yaml
from latentflows.training.checkpoint import load_tensors, load_weights
from tests.known_defects.parts import configuration
from tests.studies.matrix import KINDS, SHAPE, data_of, overrides

pytestmark = pytest.mark.filterwarnings("ignore")
SOURCE = Path(latentflows.__file__).parent


class Bomb:
    """A pickle that leaves a folder behind when it is opened."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.proof),)


def bombs(folder: Path, proof: Path) -> dict[str, Path]:
    """The same bomb in every form in which Python keeps objects in files."""
    paths = {name: folder / name for name in ("plain", "torch", "npy", "npz", "yaml")}
    paths["plain"].write_bytes(pickle.dumps(Bomb(proof)))
    torch.save({"model": Bomb(proof)}, paths["torch"])
    objects = np.array([Bomb(proof)], dtype=object)
    for name in ("npy", "npz"):
        with paths[name].open("wb") as file:
            np.save(file, objects) if name == "npy" else np.savez(file, train=objects)
    paths["yaml"].write_text(f"name: !!python/object/apply:os.mkdir ['{proof}']\n")
    return paths


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run folder."""
    root = tmp_path_factory.mktemp("finished")
    np.save(root / "images.npy", (255 * data_of("dynamic_binary").train.x[:, 0].numpy()).astype(np.uint8))
    lines = [
        *overrides(),
        "data=arrays",
        f"data.root={root / 'images.npy'}",
        "evaluation.num_importance_samples=2",
    ]
    run(
        configuration_from({}, [*lines, "data.preparation=dynamic_binary", "training.trackers=[]"]),
        root / "run",
    )
    load_run(root / "run")
    return root / "run"


READERS = {
    "weights": lambda path, _: load_weights(nn.Linear(2, 2), path),
    "tensors": lambda path, _: load_tensors(path),
    "classifier": lambda path, _: load_classifier(path),
    "configuration": lambda path, _: read_configuration(path),
    "array": lambda path, _: load("arrays", root=str(path)),
}


@pytest.mark.parametrize("form", ["plain", "torch", "npy", "npz", "yaml"])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_would_run_code_is_refused_by_every_reader(reader, form, tmp_path):
    proof = tmp_path / "executed"
    path = bombs(tmp_path, proof)[form]
    for name in ("file.safetensors", "file.npy", "file.npz", "file.yaml"):
        other = tmp_path / name
        other.write_bytes(path.read_bytes())
        with pytest.raises(LatentFlowsError):
            READERS[reader](other, tmp_path)
    assert not proof.exists()
    if form in ("plain", "torch"):
        torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
        assert proof.exists()  # the bomb is live


@pytest.mark.parametrize("form", ["plain", "torch", "npy", "npz", "yaml"])
@pytest.mark.parametrize("name", ["config.yaml", "run.json", "checkpoint/model.safetensors"])
def test_a_run_folder_with_a_planted_file_is_refused(name, form, finished, tmp_path):
    proof = tmp_path / "executed"
    victim = finished / name
    before = victim.read_bytes()
    try:
        victim.write_bytes(bombs(tmp_path, proof)[form].read_bytes())
        with pytest.raises(LatentFlowsError):
            load_run(finished)
    finally:
        victim.write_bytes(before)
    assert not proof.exists()


def called(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """Name what is called and the keywords that are true."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            true = {
                k.arg or ""
                for k in node.keywords
                if isinstance(k.value, ast.Constant) and k.value.value is True
            }
            yield ast.unparse(node.func), true


def test_no_line_of_the_library_opens_pickles_or_names_a_device():
    """A new reader of files is seen here before anyone plants a file for it."""
    openers = ("pickle.load", "pickle.loads", "torch.load", "torch.hub.load", "eval", "exec", "os.system")
    for path in SOURCE.rglob("*.py"):
        if path.parent.name == "testing":  # its properties copy bijections through a pickle of their own
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, true in called(tree):
            assert name not in (*openers, "yaml.unsafe_load", "yaml.full_load"), path
            assert "allow_pickle" not in true, path
            assert not name.endswith(".cuda") or name == "torch.cuda", (path, name)
        words = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not words & {f"cuda:{number}" for number in range(8)}, path


# -- what belongs to a model ----------------------------------------------------------------------------------------


def held(value: object, depth: int = 2) -> Iterator[Tensor]:
    """Tensors in an attribute, also within lists, dicts and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in held(item, depth))
    elif isinstance(value, list | tuple | set):
        yield from (tensor for item in value for tensor in held(item, depth))
    elif depth and not isinstance(value, nn.Module | type) and hasattr(value, "__dict__"):
        yield from held(vars(value), depth - 1)


KEPT = ("_kept",)  # what a module computed from its own numbers, and computes again once they move
EVERY = [(part, kind) for part in ("posterior", "prior", "likelihood") for kind in KINDS[part]]


@pytest.mark.parametrize(("part", "kind"), EVERY)
def test_every_number_of_a_part_is_saved_with_it_and_moves_with_it(part, kind):
    """Wrong: a prior outside of the module, a flag or a mask that is a plain attribute."""
    model = build_model(configuration(**{part: kind}), SHAPE)
    model.eval().sample(2)
    for place, module in model.named_modules():
        own = {
            key: value
            for key, value in vars(module).items()
            if key not in ("_parameters", "_buffers", "_modules")
        }
        assert not [key for key, value in own.items() if key not in KEPT and any(held(value))], place
    names = set(model.state_dict())
    assert {name for name, _ in model.named_parameters()} <= names
    moved = model.to("meta")
    assert all(tensor.is_meta for tensor in [*moved.parameters(), *moved.buffers()])


@pytest.mark.parametrize(("part", "kind"), EVERY)
def test_a_part_that_was_moved_computes_where_it_is(part, kind):
    model = build_model(configuration(**{part: kind}), SHAPE).double().eval()
    with torch.no_grad():
        z = model.sample_latents(3)
        x = model.decode(z).sample()
        assert z.dtype == x.dtype == torch.float64
        q = model.encode(torch.rand(3, *SHAPE).double().round())
        assert q.sample().dtype == torch.float64


def test_a_configuration_comes_back_from_its_own_text(tmp_path):
    for part in ("posterior", "prior", "likelihood"):
        for kind in KINDS[part]:
            c = configuration(**{part: kind})
            (tmp_path / "config.yaml").write_text(to_yaml(c))
            assert read_configuration(tmp_path / "config.yaml") == c
