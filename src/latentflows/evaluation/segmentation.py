"""How well masks drawn for a picture have the distribution that they should have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.core.noise import Purpose
from latentflows.core.optional import import_optional
from latentflows.evaluation.intervals import Estimate, mean_of_blocks
from latentflows.models.inference import evaluation_mode, to_model
from latentflows.models.vae import VAE

_PIECE = 256  # masks decoded together


class MaskSource(Protocol):
    """Pictures (N, C, H, W), their K plausible masks (N, K, 1, H, W) and the masks' probabilities (N, K)."""

    @property
    def pictures(self) -> Tensor: ...

    @property
    def masks(self) -> Tensor: ...

    @property
    def probabilities(self) -> Tensor: ...


@dataclass(frozen=True)
class Segmentation:
    """How masks drawn from a model compare with the known masks; each figure is a mean over pictures.

    Attributes:
        energy_distance: Squared generalized energy distance; 0 is best.
        matched_iou: Mean IoU of drawn masks and copies of the known ones, matched one to one; 1 is best.
        nearest_iou: IoU of a drawn mask with the known mask that is most like it: are the masks possible?
        frequency_error: Sum over the known masks of (frequency - probability)^2, without bias; 0 is best.
        frequencies: How often each known mask was the most like a drawn one.
        probabilities: How often it should have been.
        num_samples: Masks drawn for each picture.
        num_pictures: Pictures.
    """

    energy_distance: Estimate
    matched_iou: Estimate
    nearest_iou: Estimate
    frequency_error: Estimate
    frequencies: tuple[Estimate, ...]
    probabilities: tuple[float, ...]
    num_samples: int
    num_pictures: int

    def figures(self) -> dict[str, dict[str, object]]:
        """Return the figures with standard errors and 95 % intervals, as JSON holds them."""
        units = {
            "energy_distance": "IoU",  # of the distance 1 - IoU, which the protocol names
            "matched_iou": "IoU",
            "nearest_iou": "IoU",
            "frequency_error": "squared share",
        }
        return {name: getattr(self, name).figure(unit) for name, unit in units.items()}


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of every mask of one set with every mask of another; two empty masks have 1.

    Shape:
        first: (*batch, n, *mask), 0 and 1; second: (*batch, m, *mask), `mask` three axes; output: (*batch, n, m).
    """
    if first.shape[-3:] != second.shape[-3:]:
        raise ShapeError(
            f"Masks must share one shape; got {tuple(first.shape[-3:])} and {tuple(second.shape[-3:])}."
        )
    a, b = first.flatten(-3).double(), second.flatten(-3).double()
    both = a @ b.mT
    either = a.sum(-1).unsqueeze(-1) + b.sum(-1).unsqueeze(-2) - both
    return torch.where(either == 0, torch.ones_like(both), both / either.clamp(min=1))


def energy_distances(drawn: Tensor, masks: Tensor, probabilities: Tensor) -> Tensor:
    r"""Return the squared generalized energy distance of each picture, (N,), float64.

    .. math:: D^2 = 2 E[d(S, Y)] - E[d(S, S')] - E[d(Y, Y')], \quad d = 1 - \mathrm{IoU}

    S, S' are masks of the model, Y, Y' of the truth. The expectation over Y is exact; that over S, S' is a mean over
    pairs of two draws, so that the estimate is right on average for any number of draws, and may be below 0. With each
    draw paired with itself too, as is common, E[d(S, S')] / n would be added: the truth itself would not get 0.

    Cost: O(N (n + K)^2 H W).

    Args:
        drawn: S, (N, n, 1, H, W), n at least 2.
        masks: (N, K, 1, H, W).
        probabilities: Of the masks, (N, K).

    Raises:
        ConfigurationError: for a single draw.

    References:
        Kohl et al. 2018, arXiv 1806.05034, section 4; Szekely & Rizzo, Energy statistics, 2013.
    """
    count = drawn.shape[1]
    if count < 2:
        raise ConfigurationError(f"The energy distance needs two masks of each picture or more; got {count}.")
    p = probabilities.double()
    between = (1 - intersection_over_union(drawn, masks)).mean(1).mul(p).sum(-1)
    own = (1 - intersection_over_union(drawn, drawn)).sum((1, 2)) / (count * (count - 1))
    true = 1 - intersection_over_union(masks, masks)
    return 2 * between - own - (p.unsqueeze(1) * true * p.unsqueeze(2)).sum((1, 2))


def copies(probabilities: Tensor, count: int) -> Tensor:
    """Return how many of `count` draws each mask should have, (N, K): rounded so that each row sums to `count`.

    The largest remainders are rounded up.
    """
    exact = probabilities.double() * count
    whole = (exact + 1e-9).floor()
    missing = (count - whole.sum(-1)).long()
    order = (whole - exact).argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    return (whole + (order < missing.unsqueeze(-1))).long()


def matched_iou(drawn: Tensor, masks: Tensor, probabilities: Tensor) -> Tensor:
    """Return the mean IoU of drawn masks and as many copies of the known ones, matched one to one, (N,), float64.

    The matching is the best one (the Hungarian algorithm), each known mask standing as often as its probability says.
    1 minus it is the Wasserstein distance between the two under d = 1 - IoU.

    Cost: O(N n^3); needs scipy.

    Args:
        drawn: (N, n, 1, H, W).
        masks: (N, K, 1, H, W).
        probabilities: (N, K).

    Raises:
        ConfigurationError: if scipy is not installed.

    References:
        Kohl et al., A Hierarchical Probabilistic U-Net, 2019, arXiv 1905.13077, section 4 (Hungarian-matched IoU).
    """
    assign = import_optional("scipy.optimize", install="scipy").linear_sum_assignment
    iou = intersection_over_union(drawn, masks).cpu()
    numbers = copies(probabilities, drawn.shape[1]).cpu()
    found = []
    for row, number in zip(iou, numbers, strict=True):
        table = row.repeat_interleave(number, 1).numpy()
        found.append(float(table[assign(table, maximize=True)].mean()))
    return torch.tensor(found, dtype=torch.float64)


def frequency_errors(frequencies: Tensor, probabilities: Tensor, count: int) -> Tensor:
    r"""Return an unbiased estimate of :math:`\sum_k (f_k - p_k)^2` from frequencies of `count` draws, (N,).

    .. math:: \sum_k (\hat f_k - p_k)^2 - \hat f_k (1 - \hat f_k) / (n - 1)
    """
    noise_part = frequencies * (1 - frequencies) / (count - 1)
    return ((frequencies - probabilities).square() - noise_part).sum(-1)


@torch.no_grad()
def draw_masks(
    model: VAE, pictures: Tensor, num_samples: int, *, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """Draw z ~ p(z|c) and take the likelier value of each pixel: (N, n, 1, H, W), 0 and 1, on the CPU.

    These are modes of p(y|z, c), as such models are used: pixel noise, which p(y|z, c) has where its probabilities are
    neither 0 nor 1, is left out.

    Args:
        model: Of masks given a picture; in any mode, and given back as it was.
        pictures: (N, C, H, W).
        num_samples: n.
        temperature: Scale of the prior's noise.
        seed: Of all noise.
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigurationError(f"`num_samples` must be a positive integer; got {num_samples!r}.")
    rows = pictures.repeat_interleave(num_samples, 0)
    pieces = []
    with evaluation_mode(model):
        for start in range(0, len(rows), _PIECE):
            context = to_model(model, rows[start : start + _PIECE])
            with noise.stream(seed, Purpose.SAMPLE, start):
                z = model.sample_latents(len(context), temperature=temperature, context=context)
            pieces.append((model.decode_mean(z, context) > 0.5).to(torch.uint8).cpu())
    return torch.cat(pieces).unflatten(0, (len(pictures), num_samples))


def compare_masks(
    drawn: Tensor, masks: Tensor, probabilities: Tensor, *, matched: bool = True
) -> Segmentation:
    """Compare drawn masks (N, n, 1, H, W) with the known ones: for masks that come from elsewhere.

    Args:
        drawn: (N, n, 1, H, W), n at least 2.
        masks: (N, K, 1, H, W).
        probabilities: (N, K).
        matched: Whether to match them, for which scipy is needed; else `matched_iou` is NaN.

    Raises:
        ShapeError: if the numbers of pictures differ.
        ConfigurationError: for a single draw, or without scipy.
    """
    if len({len(drawn), len(masks), len(probabilities)}) != 1 or drawn.ndim != 5:
        raise ShapeError(
            "Expected drawn masks (N, n, 1, H, W), known ones (N, K, 1, H, W) and their probabilities (N, K); got "
            f"{tuple(drawn.shape)}, {tuple(masks.shape)} and {tuple(probabilities.shape)}."
        )
    count, p = drawn.shape[1], probabilities.double()
    distances = energy_distances(drawn, masks, p)
    nearest, which = intersection_over_union(drawn, masks).max(-1)
    shares = torch.nn.functional.one_hot(which, masks.shape[1]).double().mean(1)
    matches = mean_of_blocks(matched_iou(drawn, masks, p).tolist()) if matched else Estimate(math.nan)
    return Segmentation(
        energy_distance=mean_of_blocks(distances.tolist()),
        matched_iou=matches,
        nearest_iou=mean_of_blocks(nearest.mean(1).tolist()),
        frequency_error=mean_of_blocks(frequency_errors(shares, p, count).tolist()),
        frequencies=tuple(mean_of_blocks(column) for column in shares.T.tolist()),
        probabilities=tuple(p.mean(0).tolist()),
        num_samples=count,
        num_pictures=len(drawn),
    )


def evaluate_segmentation(
    model: VAE,
    source: MaskSource,
    *,
    num_samples: int = 50,
    num_pictures: int | None = None,
    temperature: float = 1.0,
    matched: bool = True,
    seed: int = 0,
) -> Segmentation:
    """Draw masks from a model for the first pictures of a source, and compare them with the known masks.

    Standard errors are over pictures. For `evaluate_bounds` the same source gives one mask of each picture; the mean of
    `source.entropy()` is the least NLL there is.

    Cost: n passes of prior and decoder per picture, O(n^2 H W) for the distances and O(n^3) for the matching.

    Args:
        model: Of masks given a picture, such as `segmentation_vae` makes.
        source: Pictures, masks and probabilities, such as a `MaskSplit`.
        num_samples: n, masks drawn for each picture, at least 2.
        num_pictures: The first so many; None for all.
        temperature: Scale of the prior's noise.
        matched: Whether to match masks, for which scipy is needed.
        seed: Seed of the draws.

    Raises:
        ConfigurationError: if a number is out of range, or without scipy.
    """
    count = len(source.pictures) if num_pictures is None else num_pictures
    if not isinstance(count, int) or not 2 <= count <= len(source.pictures):
        raise ConfigurationError(
            f"`num_pictures` must be from 2 to {len(source.pictures)}; got {num_pictures!r}."
        )
    if not isinstance(num_samples, int) or num_samples < 2:
        raise ConfigurationError(f"`num_samples` must be an integer of at least 2; got {num_samples!r}.")
    drawn = draw_masks(model, source.pictures[:count], num_samples, temperature=temperature, seed=seed)
    known, p = source.masks[:count].cpu(), source.probabilities[:count].cpu()
    return compare_masks(drawn, known, p, matched=matched)
