"""Rows of samples of a model that is given a label."""

import json

import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.data import ArraySplit
from latentflows.generation import sample, sample_classes, write_pictures
from tests.generation.parts import conditional_vae, images, small_vae


def test_each_class_is_drawn_given_its_own_label():
    model = conditional_vae()
    with torch.no_grad():
        model.prior.means.copy_(20 * torch.arange(4.0).view(4, 1).expand(4, 3))
    drawn = sample_classes(model, [2, 0], 2, mean=True, seed=1)
    context = torch.eye(4)[[2, 2, 0, 0]]
    assert torch.equal(drawn, sample(model, 4, mean=True, seed=1, context=context))
    assert not torch.equal(drawn[0], drawn[2])


def test_pictures_of_a_conditional_model_have_a_row_for_each_class(tmp_path):
    x, labels = images().x, torch.arange(70) % 4
    source = ArraySplit(x, values="binary", labels=labels, with_labels=True)
    entries = {entry.file: entry for entry in write_pictures(conditional_vae(), source, tmp_path / "given")}
    assert (tmp_path / "given/classes.png").is_file()
    assert "a row for each class y = 0, 1, 2, 3," in entries["classes.png"].caption
    shown = {
        name: entry.caption for name, entry in entries.items() if name not in ("data.png", "latent_plane.png")
    }
    assert all("p(x|z, y)" in text and "p(x|z)" not in text for text in shown.values()), shown
    for name in ("samples.png", "sample_means.png"):
        assert "Each is given the label y of the data point in its place of data.png." in shown[name]
    assert "Each is given the label y of the left one." in shown["interpolations.png"]
    write_pictures(small_vae(), images(), tmp_path / "plain")
    names = [entry["file"] for entry in json.loads((tmp_path / "plain/index.json").read_text())]
    assert "classes.png" not in names


def test_classes_that_do_not_exist_are_refused():
    model = conditional_vae()
    with pytest.raises(CombinationError, match="must be given a label"):
        sample_classes(small_vae(), [1], 2)
    for labels in ([], [4], [-1]):
        with pytest.raises(ConfigurationError, match="`labels` must hold numbers from 0 to 3"):
            sample_classes(model, labels, 2)
    with pytest.raises(ConfigurationError, match="`num_each` must be a positive integer"):
        sample_classes(model, [1], 0)
