from functools import partial

import pytest
import torch
from torch import nn

from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.evaluation.features import ModuleFeatures, Pixels, weights_hash


class Seen(nn.Module):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.x, self.was_training = x, self.training
        return self.drop(x).mean((2, 3))


def test_pixels_are_clipped_and_flat():
    images = torch.tensor([[[[-1.0, 0.25], [0.5, 2.0]]]])
    assert Pixels()(images).tolist() == [[0, 0.25, 0.5, 1]]
    assert Pixels(None)(images).tolist() == [[-1, 0.25, 0.5, 2]]
    with pytest.raises(ConfigurationError, match="low < high"):
        Pixels((1.0, 0.0))


def test_images_are_prepared_in_order_clip_resize_color_normalize():
    module = Seen().train()
    features = ModuleFeatures(module, "net", size=3, channels=3, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    images = torch.full((2, 1, 6, 6), 5.0)
    out = features(images)
    assert out.shape == (2, 3)
    assert module.x.shape == (2, 3, 3, 3)
    torch.testing.assert_close(out, torch.tensor([[0.9, 0.4, 0.175]]).expand(2, 3))
    assert not module.was_training
    assert module.training
    assert not out.requires_grad
    assert features.resize == "3 x 3, bilinear, antialiased"


def test_resizing_averages_what_it_leaves_out():
    module = Seen()
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2  # a checkerboard: without antialiasing 0 or 1
    ModuleFeatures(module, "net", size=2)(board.expand(1, 1, 8, 8).float())
    torch.testing.assert_close(module.x, torch.full((1, 1, 2, 2), 0.5), atol=0.02, rtol=0)


def test_pooled_maps_and_functions_are_taken():
    pooled = ModuleFeatures(nn.AdaptiveAvgPool2d(1), "pool")
    assert pooled(torch.rand(4, 3, 5, 5)).shape == (4, 3)
    assert ModuleFeatures(lambda x: x.flatten(1), "flat")(torch.rand(4, 3, 5, 5)).shape == (4, 75)


@pytest.mark.parametrize("module", [nn.Identity(), lambda x: x[:2].flatten(1), lambda x: x.sum((1, 2, 3))])
def test_what_is_no_feature_vector_is_refused(module):
    with pytest.raises(ShapeError, match=r"`net` must return features \(N, D\) for 3 images"):
        ModuleFeatures(module, "net")(torch.rand(3, 1, 4, 4))


def test_what_is_no_image_is_refused():
    with pytest.raises(ShapeError, match=r"got \(3, 4\)"):
        ModuleFeatures(nn.Identity(), "net")(torch.rand(3, 4))


def test_the_hash_knows_weights_and_preparation():
    torch.manual_seed(0)
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    same = nn.Linear(3, 2)
    same.load_state_dict(a.state_dict())
    assert weights_hash(a) == weights_hash(same) != weights_hash(b)
    hashes = [
        ModuleFeatures(a, "net", **s).weights for s in ({}, {"channels": 3}, {"mean": (0.0,), "std": (2.0,)})
    ]
    assert len({*hashes, weights_hash(a)}) == 4
    swapped = nn.ParameterDict({"x": torch.zeros(2), "y": torch.zeros(3)})
    assert weights_hash(swapped) != weights_hash(nn.ParameterDict({"x": torch.zeros(3), "y": torch.zeros(2)}))


class Power(nn.Module):
    """Features that an attribute decides, or a tensor that is in no state."""

    def __init__(self, power=2, shift=0.0, kinds=("a", "b")):
        super().__init__()
        self.power, self.shift = power, [torch.tensor(shift)]
        self.kinds, self.table = set(kinds), {"inner": torch.tensor(shift)}
        self.register_buffer("offset", torch.tensor(shift), persistent=False)

    def forward(self, x):
        return (x + self.offset).pow(self.power).flatten(1)


class OtherPower(Power):
    """Another class with the same attributes."""


def total(x):
    return x.sum((2, 3))


def mean(x):
    return x.mean((2, 3))


DIFFERENT = {
    "another layer without weights": lambda: nn.Sequential(nn.Flatten(), nn.ReLU()),
    "a threshold": lambda: nn.Sequential(nn.Flatten(), nn.Threshold(0.9, 0)),
    "another threshold": lambda: nn.Sequential(nn.Flatten(), nn.Threshold(0.8, 0)),
    "another order": lambda: nn.Sequential(nn.ReLU(), nn.Flatten()),
    "an attribute": Power,
    "another value of it": lambda: Power(3),
    "another class": OtherPower,
    "a buffer that is not saved": lambda: Power(shift=0.5),
    "a function": lambda: total,
    "another function": lambda: mean,
    "a function with an argument": lambda: partial(torch.flatten, start_dim=1),
    "another argument": lambda: partial(torch.flatten, start_dim=2),
}


def test_the_hash_knows_all_that_decides_the_features_without_running_them():
    hashes = {name: ModuleFeatures(make(), "mine").weights for name, make in DIFFERENT.items()}
    assert len(set(hashes.values())) == len(DIFFERENT)
    again = {name: ModuleFeatures(make(), "mine").weights for name, make in DIFFERENT.items()}
    assert again == hashes
    once = nn.ReLU()
    twice = [ModuleFeatures(nn.Sequential(*layers), "mine").weights for layers in ([once], [once, once])]
    assert twice[0] != twice[1]


def test_neither_addresses_nor_the_order_of_a_set_are_in_the_hash():
    """Both are others in the next process."""

    def made():
        return Power(kinds=[lambda: None])

    orders = [(0, 8), (8, 0)]  # as sets they are gone through in this order
    assert [list(set(kinds)) for kinds in orders] == [[0, 8], [8, 0]]
    for pair in ([made(), made()], [Power(kinds=kinds) for kinds in orders]):
        one, other = (ModuleFeatures(module, "mine").weights for module in pair)
        assert one == other


def test_the_hash_is_that_of_a_module_in_either_mode():
    module = Seen()
    assert ModuleFeatures(module.train(), "net").weights == ModuleFeatures(module.eval(), "net").weights


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"channels": -1}, {"mean": (1.0,)}, {"mean": (0.0,), "std": (0.0,)}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="must"):
        ModuleFeatures(nn.Identity(), "net", **wrong)
    with pytest.raises(ConfigurationError, match="`name` must not be empty"):
        ModuleFeatures(nn.Identity(), "")
