import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentflows.core.errors import CheckpointError, ConfigurationError, DataError, ShapeError
from latentflows.data import ArraySplit, ImageSplit
from latentflows.evaluation.classifier import Classifier, load_classifier, save_classifier, train_classifier


def bars(count, seed=0, labels=True):
    """8 x 8 images with a bright row (class 0), column (1) or nothing (2), under noise."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (count,), generator=generator)
    place = torch.randint(8, (count,), generator=generator)
    pixels = torch.randint(60, (count, 1, 8, 8), generator=generator)
    for i in range(count):
        if kind[i] == 0:
            pixels[i, 0, place[i]] += 150
        elif kind[i] == 1:
            pixels[i, 0, :, place[i]] += 150
    return ImageSplit(pixels.to(torch.uint8), "unit", labels=kind if labels else None)


@pytest.fixture(scope="module")
def trained():
    settings = {"epochs": 12, "batch_size": 32, "learning_rate": 5e-3, "width": 8, "num_features": 12}
    return train_classifier(bars(600), bars(200, seed=1), data="bars", **settings)


def test_it_learns_the_classes_and_says_how_well(trained):
    assert trained.accuracy > 0.95
    data = bars(200, seed=1)
    images = data.batch(torch.arange(200)).x
    assert (trained.logits(images).argmax(1) == data.labels).float().mean() == pytest.approx(trained.accuracy)
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_features_are_the_last_hidden_layer(trained):
    images = torch.rand(5, 1, 8, 8) * 3 - 1
    features = trained(images)
    assert features.shape == (5, 12)
    assert (features >= 0).all()
    torch.testing.assert_close(trained.head(features * trained.scale), trained.logits(images))
    held_out = trained(bars(200, seed=1).batch(torch.arange(200)).x)
    assert float(held_out.square().mean()) == pytest.approx(1, rel=1e-5)
    assert trained.scale != 1
    torch.testing.assert_close(features, trained(images.clamp(0, 1)))
    assert trained.name == "classifier-12[bars]"
    with pytest.raises(ShapeError, match=r"reads images of shape \(1, 8, 8\); got \(1, 4, 4\)"):
        trained(torch.rand(2, 1, 4, 4))


def test_the_seed_decides_all(trained):
    settings = {"data": "bars", "epochs": 1, "width": 4, "num_features": 6}
    before = torch.get_rng_state()
    found = [train_classifier(bars(100), bars(50), seed=s, **settings).weights for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_and_loaded_it_is_the_same(trained, tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_classifier(trained, path)
    loaded = load_classifier(path)
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(loaded(images), trained(images))
    assert (loaded.weights, loaded.accuracy, loaded.name) == (trained.weights, trained.accuracy, trained.name)
    fresh = Classifier((1, 8, 8), 3, data="bars")
    save_classifier(fresh, path)
    assert math.isnan(load_classifier(path).accuracy)


def test_a_file_that_is_not_its_own_is_refused(trained, tmp_path):
    path = tmp_path / "classifier.safetensors"
    with pytest.raises(CheckpointError, match="no readable classifier"):
        load_classifier(path)
    save_classifier(trained, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="no readable classifier"):
        load_classifier(path)
    path.write_bytes(whole[:-4] + b"\1\2\3\4")
    with pytest.raises(CheckpointError, match="not those of the hash"):
        load_classifier(path)
    path.write_bytes(whole)
    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match="no readable classifier"):
        load_classifier(path)


def test_large_images_are_made_small_by_strides():
    classifier = Classifier((3, 64, 50), 4, data="colors", width=4, num_features=6)
    shapes = []
    classifier.body[-3].register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    assert classifier(torch.rand(2, 3, 64, 50)).shape == (2, 6)
    assert shapes[0][2:] == (4, 4)


def test_wrong_data_and_settings_are_refused():
    good, settings = bars(50), {"data": "bars", "epochs": 1}
    with pytest.raises(DataError, match="`train` has no labels"):
        train_classifier(bars(50, labels=False), good, **settings)
    with pytest.raises(DataError, match="`held_out` has no labels"):
        train_classifier(good, bars(50, labels=False), **settings)
    with pytest.raises(DataError, match="at least 0 below 2; got 0 to 2"):
        train_classifier(good, good, num_classes=2, **settings)
    with pytest.raises(ConfigurationError, match="`epochs` must be a positive integer; got 0"):
        train_classifier(good, good, data="bars", epochs=0)
    with pytest.raises(ConfigurationError, match="`num_classes` must be at least 2"):
        Classifier((1, 8, 8), 1, data="bars")
    vectors = ArraySplit(torch.rand(9, 4), values="unit", labels=torch.arange(9) % 2)
    with pytest.raises(ShapeError, match="reads images"):
        train_classifier(vectors, vectors, **settings)
