"""Labels in the data that a configuration asks for."""

import torch

from latentflows.core import noise
from latentflows.data import SomeUnlabeled
from latentflows.studies.building.build import build_data
from latentflows.studies.settings.overrides import configuration_from


def test_training_alone_leaves_labels_out():
    data = build_data(configuration_from({}, ["prior=maf", "condition.on=labels", "condition.unlabeled=0.3"]))
    rows = torch.arange(400)
    with noise.stream(0):
        without = [
            (split.batch(rows[: len(split)]).context == 0).all(1).float().mean()
            for split in (data.train, data.validation, data.test)
        ]
    assert 0.2 < without[0] < 0.4
    assert without[1:] == [0, 0]
    assert data.train.labels is not None
    assert not isinstance(
        build_data(configuration_from({}, ["condition.on=labels", "prior=maf"])).train, SomeUnlabeled
    )
