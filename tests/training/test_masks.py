"""Masks of a small model are applied to all numbers at once: the same training, bit for bit."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentflows.networks.masked import MaskedLinear
from latentflows.training import Options, fit
from latentflows.training.learner import Learner
from latentflows.training.masks import Masks
from latentflows.training.parallel import World
from tests.training.tiny import Images, one_stage, two_stages, vae


def trained(posterior: str, prior: str, stages: Any, **settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model = vae(posterior, prior)
    fit(model, stages, Images(), seed=1, **settings)
    return model.state_dict()


@pytest.mark.parametrize(
    ("posterior", "prior", "stages"),
    [
        ("iaf", "real_nvp", one_stage()),
        ("iaf", "real_nvp", two_stages()),
        ("iaf", "standard", one_stage(optimizer="adamw", weight_decay=0.1, gradient_clip_val=0.5)),
        ("iaf", "standard", one_stage(ema_decay=0.9, accumulate_grad_batches=2)),
    ],
)
def test_training_is_that_of_masks_layer_by_layer(
    posterior: str, prior: str, stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    of_all = Masks.apply
    monkeypatch.setattr(Masks, "apply", lambda self, g: (counted.append(self.vector), of_all(self, g)))
    quick = trained(posterior, prior, stages)
    assert any(vector is not None for vector in counted)
    monkeypatch.setattr(Masks, "on", lambda self, numbers: nullcontext())
    monkeypatch.setattr(Masks, "apply", lambda self, gradient: None)
    slow = trained(posterior, prior, stages)
    assert quick.keys() == slow.keys()
    assert all(torch.equal(quick[name], slow[name]) for name in quick)


def pair() -> tuple[nn.Sequential, list[nn.Parameter], Tensor]:
    """Two layers, one of them masked, whose parameters are views of one vector."""
    torch.manual_seed(0)
    layers = nn.Sequential(MaskedLinear(torch.tensor([[1.0, 0.0], [1.0, 1.0]])), nn.Linear(2, 1))
    parameters = list(layers.parameters())
    vector = torch.cat([p.detach().flatten() for p in parameters])
    for parameter, piece in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.data = piece.view_as(parameter)
    return layers, parameters, vector


def test_what_was_written_under_a_mask_does_not_get_through() -> None:
    layers, parameters, vector = pair()
    masks = Masks(layers, parameters)
    with torch.no_grad():
        layers[0].weight.fill_(7.0)
    x = torch.randn(5, 2)
    expected = layers(x)
    with masks.on(vector):
        assert torch.equal(layers(x), expected)
        assert vars(layers[0])["is_clean"]
    assert layers[0].weight[0, 1] == 0
    assert not layers[0].is_clean


def test_layers_mask_their_weights_again_after_an_error() -> None:
    layers, parameters, vector = pair()
    with pytest.raises(RuntimeError, match="inside"), Masks(layers, parameters).on(vector):
        raise RuntimeError("inside")
    assert not layers[0].is_clean


@pytest.mark.parametrize("other", [MaskedLinear(torch.tensor([[1.0, 1.0], [0.0, 1.0]])), nn.Linear(2, 2)])
def test_weights_that_two_layers_share_are_left_to_the_layers(other: nn.Linear) -> None:
    layers, _, _ = pair()
    other.weight = layers[0].weight
    both = nn.ModuleList([layers, other])
    assert Masks(both, list(both.parameters())).vector is None


def test_a_gradient_is_masked_where_the_weight_is() -> None:
    layers, parameters, _ = pair()
    gradient = torch.ones(sum(p.numel() for p in parameters))
    Masks(layers, parameters).apply(gradient)
    assert gradient.tolist() == [1, 0, 1, 1, *[1] * 5]


def test_masks_are_those_of_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wrap` sends its buffers to all: a flow of a random order is drawn differently in each."""
    model = vae("iaf", "standard")
    layer = next(each for each in model.modules() if isinstance(each, MaskedLinear))

    def send(step: nn.Module, *_: object, **__: object) -> nn.Module:
        layer.mask.copy_(1 - layer.mask)
        return step

    monkeypatch.setattr("latentflows.training.learner.wrap", send)
    (stage,) = one_stage()
    world = World(0, 1, torch.device("cpu"))
    learner = Learner(model, stage, Options(), world, frozenset(model.parameters()))
    assert learner.masks.vector is not None
    sizes = [p.numel() for p in learner.parameters]
    pieces = dict(zip(learner.parameters, learner.masks.vector.split(sizes), strict=True))
    assert torch.equal(pieces[layer.weight].view_as(layer.mask), layer.mask)
