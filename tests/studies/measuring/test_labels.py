"""Classes by name and by number, and pictures of them from a run."""

import json

import numpy as np
import pytest

from latentflows.cli import main
from latentflows.core.errors import CheckpointError, CombinationError, ConfigurationError
from latentflows.generation import sample_classes
from latentflows.studies.building.build import load_run
from latentflows.studies.measuring.labels import class_names, find_labels, shown_labels
from tests.generation.parts import conditional_vae, small_vae


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A run on digits that is given the label."""
    out = tmp_path_factory.mktemp("labels") / "run"
    overrides = ["data=digits", "condition.on=labels", "prior=mixture", "latent_dim=2", "network.width=8"]
    overrides += ["prior.num_components=2", "training.epochs=1", "training.trackers=[]"]
    overrides += ["evaluation.num_importance_samples=2", "evaluation.num_images=4"]
    assert main(["train", *overrides, "--out", str(out), "--quiet"]) == 0
    return out


def test_a_run_records_the_names_of_its_classes_and_shows_each(conditional):
    assert class_names(conditional) == tuple("0123456789")
    entries = {entry["file"]: entry for entry in json.loads((conditional / "samples/index.json").read_text())}
    assert (conditional / "samples/classes.png").is_file()
    assert "a row for each class y = 0, 1, 2, 3" in entries["classes.png"]["caption"]
    assert "in its place of data.png" in entries["samples.png"]["caption"]


def test_rows_of_a_picture_are_the_classes_that_were_asked_for(conditional, capsys, tmp_path):
    path = tmp_path / "x.npy"
    command = ["sample", str(conditional), "--num", "3", "--seed", "4"]
    assert main([*command, "--label", "7", "--label", "2", "--out", str(path)]) == 0
    _, model = load_run(conditional)
    expected = sample_classes(model, [7, 2], 3, seed=4)
    np.testing.assert_array_equal(np.load(path), expected.numpy())
    assert main([*command, "--label", "7", "--mean"]) == 0
    index = json.loads((conditional / "samples/index.json").read_text())
    assert index[-1]["caption"] == (
        "3 means of p(x|z, y), with z from the prior at temperature 1, seed 4. A row for each class, given y: 7."
    )
    assert main(["sample", str(conditional)]) == 0
    index = json.loads((conditional / "samples/index.json").read_text())
    assert index[-1]["caption"].startswith("100 draws from p(x|z, y)")
    assert index[-1]["caption"].endswith("given y: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9.")
    capsys.readouterr()
    assert main(["sample", str(conditional), "--label", "ten"]) == 2
    assert "`--label` must be 0 to 9; got 'ten'" in capsys.readouterr().err


def test_draws_are_guided_where_training_left_labels_out(conditional, tmp_path, capsys):
    out = tmp_path / "run"
    overrides = [
        "data=digits",
        "condition.on=labels",
        "condition.unlabeled=0.2",
        "prior=tarflow",
        "latent_dim=2",
    ]
    overrides += ["prior.width=8", "prior.heads=2", "prior.num_blocks=2", "prior.depth=1", "network.width=8"]
    overrides += ["training.epochs=1", "training.trackers=[]", "evaluation.num_importance_samples=2"]
    overrides += ["evaluation.num_images=4", "evaluation.holes=0", "evaluation.information=0"]
    assert main(["train", *overrides, "--out", str(out), "--quiet"]) == 0
    path = tmp_path / "x.npy"
    command = ["sample", str(out), "--label", "7", "--num", "3"]
    assert main([*command, "--guidance", "1.5", "--out", str(path)]) == 0
    _, model = load_run(out)
    expected = sample_classes(model, [7], 3, guidance=1.5)
    np.testing.assert_array_equal(np.load(path), expected.numpy())
    assert main([*command, "--guidance", "1.5"]) == 0
    index = json.loads((out / "samples/index.json").read_text())
    assert index[-1]["caption"].endswith(
        "Guided with weight 1.5, at twice the cost: not draws of the model's density."
    )
    capsys.readouterr()
    assert main([*command, "--guidance", "-1"]) == 2
    assert "`weight` of guidance must be 0 or more" in capsys.readouterr().err
    assert main(["sample", str(conditional), "--guidance", "1"]) == 2
    assert (
        "this run was trained with all labels. Train one with condition.on=labels" in capsys.readouterr().err
    )
    assert main(["sample", str(out), "--steps", "3"]) == 2
    assert "does not draw in a number of steps" in capsys.readouterr().err


def test_names_come_before_numbers_and_none_are_all():
    model = conditional_vae()
    assert find_labels(model, ["boot", "1", "0"], ["shirt", "0", "boot", "bag"]) == [2, 1, 1]
    assert find_labels(model, [], ()) == [0, 1, 2, 3]
    assert shown_labels([3, 1], ["shirt", "coat"]) == "3, coat"


def test_what_is_no_class_is_refused(tmp_path):
    model = conditional_vae()
    for word in ("4", "-1", "boot", "1.0"):
        with pytest.raises(ConfigurationError, match=r"`--label` must be 0 to 3 or shirt; got"):
            find_labels(model, [word], ["shirt"])
    with pytest.raises(CombinationError, match=r"is given no label\. Train one with condition\.on=labels"):
        find_labels(small_vae(), ["1"], ())
    (tmp_path / "run.json").write_text('{"labels": [1]}')
    with pytest.raises(CheckpointError, match="cannot be read"):
        class_names(tmp_path)
