"""Eval mode that gives back what was there, and data brought to a model."""

import pytest
import torch
from torch import nn

from latentflows.models.inference import evaluation_mode, to_model


def test_every_module_gets_its_own_mode_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    model[2].eval()
    modes = [module.training for module in model.modules()]

    def use() -> None:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert [module.training for module in model.modules()] == modes == [True, True, True, False]


def test_numbers_get_at_least_the_precision_of_the_model_and_labels_stay():
    model = nn.Linear(2, 2).double()
    assert to_model(model, torch.zeros(3)).dtype == torch.float64
    assert to_model(model.float(), torch.zeros(3).double()).dtype == torch.float64
    assert to_model(model, torch.zeros(3, dtype=torch.int64)).dtype == torch.int64
    assert to_model(nn.Identity(), torch.zeros(3)).dtype == torch.float32
