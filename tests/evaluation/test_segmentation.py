"""Figures of segmentation have their known values, and are right on average for any number of draws."""

import itertools
import sys

import pytest
import torch
from torch import nn

from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.data import ambiguous_shapes
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, AmortizedMixture
from latentflows.evaluation import compare_masks, evaluate_segmentation
from latentflows.evaluation.segmentation import (
    copies,
    draw_masks,
    energy_distances,
    frequency_errors,
    intersection_over_union,
    matched_iou,
)
from latentflows.models import VAE
from latentflows.networks import MLP

SPLIT = ambiguous_shapes(4, 4, 30, size=16).test


def drawn_from(split, num_samples, seed=0):
    """Masks of the truth itself, (N, n, 1, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(split.probabilities, num_samples, replacement=True, generator=generator)
    return split.masks[torch.arange(len(split)).unsqueeze(1), index]


def test_iou_counts_pixels_and_two_empty_masks_agree():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).view(2, 1, 2, 2)
    b = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).view(3, 1, 2, 2)
    expected = torch.tensor([[1 / 3, 0, 1], [0, 1, 0]]).double()
    torch.testing.assert_close(intersection_over_union(a, b), expected)
    with pytest.raises(ShapeError, match="must share one shape"):
        intersection_over_union(a, b[..., :1])


@pytest.mark.parametrize("num_samples", [2, 3, 40])
def test_the_energy_distance_of_the_truth_to_itself_is_0_on_average(num_samples):
    values = torch.cat(
        [
            energy_distances(drawn_from(SPLIT, num_samples, seed), SPLIT.masks, SPLIT.probabilities)
            for seed in range(200 // num_samples + 2)
        ]
    )
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert (values < 0).any()


@pytest.mark.parametrize("mask", range(4))
def test_the_energy_distance_of_a_constant_is_its_closed_form(mask):
    """2 E d(y, Y) - E d(Y, Y'), computed here pair by pair."""
    drawn = SPLIT.masks[:, mask : mask + 1].expand(-1, 5, -1, -1, -1)
    for row in range(3):
        masks, p = SPLIT.masks[row].bool(), SPLIT.probabilities[row]

        def distance(i, j, masks=masks):
            union = (masks[i] | masks[j]).sum()
            return 1 - float((masks[i] & masks[j]).sum() / union) if union else 0.0

        expected = 2 * sum(p[k] * distance(mask, k) for k in range(4))
        expected -= sum(p[i] * p[j] * distance(i, j) for i, j in itertools.product(range(4), repeat=2))
        found = energy_distances(drawn, SPLIT.masks, SPLIT.probabilities)[row]
        torch.testing.assert_close(found, expected.double())


def test_the_empty_constant_has_the_known_figures():
    """d(empty, Y) is 1 unless Y is empty: 2 (1 - p_0) - E d(Y, Y')."""
    nothing = torch.zeros(len(SPLIT), 10, 1, 16, 16)
    found = compare_masks(nothing, SPLIT.masks, SPLIT.probabilities)
    p = SPLIT.probabilities
    between = (p.unsqueeze(1) * (1 - intersection_over_union(SPLIT.masks, SPLIT.masks)) * p.unsqueeze(2)).sum(
        (1, 2)
    )
    expected = (2 * (1 - p[:, 0]) - between).mean()
    assert found.energy_distance.value == pytest.approx(float(expected))
    assert found.matched_iou.value == pytest.approx(float(p[:, 0].mean()))
    assert found.nearest_iou.value == 1
    assert [share.value for share in found.frequencies] == [1, 0, 0, 0]
    wrong = (1 - p[:, 0]) ** 2 + (p[:, 1:] ** 2).sum(1)
    assert found.frequency_error.value == pytest.approx(float(wrong.mean()))


def test_drawn_in_exact_proportion_the_masks_match():
    numbers = copies(SPLIT.probabilities, 10)
    drawn = torch.stack(
        [row.repeat_interleave(n, 0) for row, n in zip(SPLIT.masks, numbers, strict=True)]
    ).flip(1)
    found = compare_masks(drawn, SPLIT.masks, SPLIT.probabilities)
    assert found.matched_iou.value == 1
    assert found.frequency_error.value < 0  # less spread than independent draws have
    assert [share.value for share in found.frequencies] == pytest.approx(found.probabilities)
    assert (found.num_samples, found.num_pictures) == (10, 30)


def test_the_matching_is_the_best_of_all():
    drawn = torch.randint(0, 2, (6, 5, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    masks = torch.randint(0, 2, (6, 3, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    p = torch.tensor([0.2, 0.4, 0.4]).expand(6, 3)
    found = matched_iou(drawn, masks, p)
    iou = intersection_over_union(drawn, masks)[:, :, [0, 1, 1, 2, 2]]
    for row in range(6):
        every = [iou[row, range(5), list(order)].mean() for order in itertools.permutations(range(5))]
        torch.testing.assert_close(found[row], max(every))


@pytest.mark.parametrize(
    ("p", "count", "expected"),
    [
        ((0.1, 0.2, 0.3, 0.4), 10, (1, 2, 3, 4)),
        ((0.1, 0.2, 0.3, 0.4), 7, (1, 1, 2, 3)),
        ((1 / 3, 1 / 3, 1 / 3), 4, (2, 1, 1)),
        ((0.0, 1.0), 3, (0, 3)),
    ],
)
def test_copies_sum_to_the_number_of_draws(p, count, expected):
    assert copies(torch.tensor([p]).double(), count)[0].tolist() == list(expected)


def test_the_frequency_error_is_unbiased():
    p, f = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    for truth, expected in ((p, 0.0), (f, 0.18)):
        counts = torch.distributions.Multinomial(6, truth).sample((20_000,))
        errors = frequency_errors(counts / 6, p, 6)
        assert abs(errors.mean() - expected) < 5 * errors.std() / 20_000**0.5


class Constant(nn.Module):
    """A decoder whose logits are those of a picture's own pixels above a threshold that z sets."""

    def forward(self, joined):
        return joined[:, 1:] - joined[:, :1].sigmoid()


def model():
    prior = AmortizedMixture(1, (1, 16, 16), MLP((1, 16, 16), 9, width=4, depth=1), num_components=3)
    posterior = AmortizedGaussian(1, (2, 16, 16), MLP((2, 16, 16), 2, width=4, depth=1))
    likelihood = AmortizedBernoulli((1, 16, 16), (2, 16, 16), Constant())
    return VAE(posterior, prior, likelihood, context_shape=(1, 16, 16))


def test_a_model_is_drawn_from_for_each_picture():
    made = model().train()
    drawn = draw_masks(made, SPLIT.pictures[:5], 60, seed=1)
    assert drawn.shape == (5, 60, 1, 16, 16)
    assert made.training
    levels = torch.where(drawn.bool(), SPLIT.pictures[:5].unsqueeze(1), torch.inf).flatten(2).amin(-1)
    rest = torch.where(drawn.bool(), -torch.inf, SPLIT.pictures[:5].unsqueeze(1)).flatten(2).amax(-1)
    assert (levels >= rest).all()  # every mask is a level set of its own picture
    assert torch.equal(drawn, draw_masks(made, SPLIT.pictures[:5], 60, seed=1))
    found = evaluate_segmentation(made, SPLIT, num_samples=10, num_pictures=5, seed=1)
    figures = found.figures()
    assert set(figures) == {"energy_distance", "matched_iou", "nearest_iou", "frequency_error"}
    assert 0 < figures["energy_distance"]["standard_error"] < 1
    assert (found.num_samples, found.num_pictures) == (10, 5)
    assert torch.isnan(
        torch.tensor(evaluate_segmentation(made, SPLIT, num_samples=2, matched=False).matched_iou.value)
    )


class _Without:
    """Scipy is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "scipy":
            raise ModuleNotFoundError("No module named 'scipy'", name="scipy")


def test_numbers_that_do_not_fit_are_refused(monkeypatch):
    made = model()
    with pytest.raises(ConfigurationError, match="`num_pictures` must be from 2 to 30; got 31"):
        evaluate_segmentation(made, SPLIT, num_pictures=31)
    with pytest.raises(ConfigurationError, match="`num_samples` must be an integer of at least 2; got 1"):
        evaluate_segmentation(made, SPLIT, num_samples=1)
    with pytest.raises(ConfigurationError, match="`num_samples` must be a positive integer; got 0"):
        draw_masks(made, SPLIT.pictures, 0)
    with pytest.raises(ConfigurationError, match="two masks of each picture or more; got 1"):
        energy_distances(SPLIT.masks[:, :1], SPLIT.masks, SPLIT.probabilities)
    with pytest.raises(ShapeError, match="Expected drawn masks"):
        compare_masks(SPLIT.masks[:3], SPLIT.masks, SPLIT.probabilities)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without(), *sys.meta_path])
    with pytest.raises(ConfigurationError, match="`scipy` is needed here and is not installed"):
        matched_iou(SPLIT.masks, SPLIT.masks, SPLIT.probabilities)
