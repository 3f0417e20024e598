"""A tiny data set and a tiny configuration, so that a whole run takes a fraction of a second."""

import numpy as np
import pytest

from tests.folders import fake

__all__ = ["fake", "tiny"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Overrides of a run on 60 images of 4 x 4 pixels."""
    path = tmp_path_factory.mktemp("data") / "images.npy"
    random = np.random.RandomState(0)
    np.save(path, (255 * (random.rand(60, 4, 4) < random.rand(60, 1, 1))).astype(np.uint8))
    return [
        "name=tiny",
        "data=arrays",
        f"data.root={path}",
        "data.preparation=dynamic_binary",
        "latent_dim=2",
        "network.width=8",
        "network.depth=1",
        "training.epochs=3",
        "training.batch_size=16",
        "evaluation.num_importance_samples=8",
        "evaluation.information=0",
        "evaluation.holes=0",
        "training.trackers=[]",
    ]
