"""What the latents carry: I(x; z), KL(q(z) || p(z)), active units, posterior scale, KL per unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError, ConfigurationError, LatentFlowsError
from latentflows.core.noise import Purpose, stream
from latentflows.core.precision import check_positive
from latentflows.core.shapes import size
from latentflows.distributions.base import Distribution
from latentflows.distributions.gaussian import DiagonalNormal, StandardNormal
from latentflows.distributions.kl import kl_divergence
from latentflows.evaluation.base import (
    Figures,
    Protocol,
    Use,
    blocks,
    check_divergence,
    check_event,
    check_positive_integers,
    checked_count,
    draw_once,
    figure,
    finite,
)
from latentflows.models.inference import evaluation_mode, posterior_moments
from latentflows.models.vae import VAE

_BLOCK = 256  # images encoded together
_PAIR_NUMBERS = 1 << 22  # numbers of latents scored together, over pairs of a draw and an encoding


@dataclass(frozen=True)
class Information:
    """How the KL to the prior divides, contributions of every image in nats, float64 on the CPU, each of shape (n,).

    Attributes:
        mutual_information: log q(z|x) - log q(z), q(z) with the image's own encoding: below I(x; z) on average.
        mutual_information_upper: The same with its own encoding left out: above I(x; z) on average.
        kl: log q(z|x) - log p(z); None for an unnormalized prior.
        marginal_kl: `kl` - `mutual_information`: above KL(q(z) || p(z)) on average.
        marginal_kl_lower: `kl` - `mutual_information_upper`: below it on average; None where log p(z) is an estimate,
            which lies below on average, so that this difference would be neither below nor above.
        protocol: How it was measured.
    """

    mutual_information: Tensor
    mutual_information_upper: Tensor
    kl: Tensor | None
    marginal_kl: Tensor | None
    marginal_kl_lower: Tensor | None
    protocol: Protocol

    def figures(self) -> Figures:
        """Return the means over images with their errors, in the form of `Bounds.figures`."""
        names = ("mutual_information", "mutual_information_upper", "marginal_kl", "marginal_kl_lower", "kl")
        values: dict[str, Tensor | None] = {name: getattr(self, name) for name in names}
        return {name: None if value is None else figure(value, "nats") for name, value in values.items()}


@dataclass(frozen=True)
class Units:
    """What each latent variable does, float64 on the CPU, each of the latent's shape unless it says otherwise.

    Attributes:
        activity: Variance over images of the posterior mean.
        activity_error: Its standard error over images.
        scale: Standard deviation of q(z|x), mean over images.
        kl: KL of the unit's posterior to its prior, mean over images, nats; None unless both are diagonal Gaussians.
        scale_per_image: Standard deviation of q(z|x), mean over units, (n,).
        threshold: Activity above which a unit is called active.
        protocol: How it was measured.
    """

    activity: Tensor
    activity_error: Tensor
    scale: Tensor
    kl: Tensor | None
    scale_per_image: Tensor
    threshold: float
    protocol: Protocol

    @property
    def active(self) -> Tensor:
        """Whether each unit is active."""
        return self.activity > self.threshold

    def figures(self) -> Figures:
        """Return the number of active units and the posterior scale, in the form of `Bounds.figures`.

        `undecided` counts units within two standard errors of the threshold.
        """
        near = (self.activity - self.threshold).abs() < 2 * self.activity_error
        return {
            "active_units": {
                "mean": float(self.active.sum()),
                "standard_error": None,
                "unit": f"of {self.activity.numel()} units",
                "undecided": float(near.sum()),
            },
            "posterior_scale": figure(self.scale_per_image, "standard deviation"),
            "largest_unit_kl": None
            if self.kl is None
            else {"mean": finite(float(self.kl.max())), "standard_error": None, "unit": "nats"},
        }


def evaluate_information(
    model: VAE,
    source: DataSource,
    *,
    num_images: int | None = None,
    num_samples: int = 1,
    seed: int = 0,
) -> Information:
    r"""Divide the mean KL into what z knows about x and what the prior misses of the aggregate posterior.

    .. math:: E_x KL(q(z|x) \| p(z)) = I(x; z) + KL(q(z) \| p(z)), \quad q(z) = E_x q(z|x)

    q(z) is a mixture of all n encodings (an exact log-sum-exp, not over minibatches). For z drawn from q(z|x_i) two
    estimates enclose I(x; z), in expectation over x:

    - with the own encoding, q(z) = 1/n sum_j q(z|x_j): the lower bound, which can never exceed log n. It is exactly the
      mutual information of z and the index, if the n images are all the data there are (Hoffman & Johnson's choice);
    - without it, 1/(n-1) sum_{j != i} q(z|x_j): the upper bound, large where encodings do not overlap.

    Where log n is small against the KL, the two are far apart, and neither is an estimate of I(x; z): the truth lies
    between them. The decomposition holds exactly for every draw: kl = mutual_information + marginal_kl.

    Where log p(z) is an estimate (`Distribution.density`), as of a second-stage VAE from a few inner samples, it lies
    below on average: `kl` and `marginal_kl` are upper bounds, looser by what it lacks, and there is no lower one. Where
    it is approximate, all three are off by its error.

    Standard errors are s / sqrt(n) over images; that images share one q(z) is not counted, and matters little for n in
    the hundreds.

    Cost: n encoder passes, n^2 S posterior densities. Memory: n S latents, and at most 2^22 numbers of pairs with what
    the posterior's density makes of them.

    Args:
        model: In any mode; its posterior must score points that it did not draw.
        source: Data points; their noise is drawn once.
        num_images: n, the first n of the source; None for all.
        num_samples: S, draws of z per image.
        seed: Seed of draws and of the source's noise.

    Raises:
        ConfigurationError: for settings out of range.
        CombinationError: if the posterior has no density at other points, or the prior has a context.
        ShapeError: for data of another shape than the model's.
        LatentFlowsError: if a log-density is NaN.

    References:
        Hoffman & Johnson, ELBO surgery: yet another way to carve up the variational evidence lower bound, 2016, NIPS
        workshop on Advances in Approximate Bayesian Inference; Poole et al., On Variational Bounds of Mutual
        Information, 2019, arXiv 1905.06922 (the two bounds from a minibatch).
    """
    check_positive_integers(num_samples=num_samples)
    count = checked_count(num_images, len(source))
    check_event(model, source)
    _check_information(model, count)
    data = draw_once(source, count, seed=seed)
    with evaluation_mode(model), torch.no_grad():
        p = model.prior_at(None)
        drawn = [
            _draw(model.encode(block.x, block.context), num_samples, seed, block.start)
            for block in blocks(model, data, _BLOCK)
        ]
        z = torch.cat(drawn, 1)  # (S, n, *latent)
        own, others = _log_mixture(model, data, z)
        kl = None
        if p.density != "unnormalized":
            kl = (own - _log_prior(p, z, seed)).mean(0)
            check_divergence(kl, p)
    lower = (own - torch.logaddexp(own, others) + math.log(count)).mean(0)
    upper = (own - others + math.log(count - 1)).mean(0)
    for value in (lower, upper, kl):
        if value is not None and bool(value.isnan().any()):
            raise LatentFlowsError("A log-density of a latent is NaN. Take an earlier checkpoint.")
    protocol: Protocol = {
        "estimator": "aggregate posterior: mixture of all n encodings, with and without the image's own",
        "num_images": count,
        "num_samples": num_samples,
        "largest_possible": f"log n = {math.log(count):.2f} nats, of mutual_information",
        "prior_density": p.density,
        "seed": seed,
    }
    if p.density == "estimate":
        protocol["without_lower_bound"] = "log p(z) is too low on average, and KL figures too high"
    return Information(
        lower.cpu(),
        upper.cpu(),
        None if kl is None else kl.cpu(),
        None if kl is None else (kl - lower).cpu(),
        None if kl is None or p.density == "estimate" else (kl - upper).cpu(),
        protocol,
    )


def _draw(q: Distribution, num_samples: int, seed: int, start: int) -> Tensor:
    with stream(seed, Purpose.EVALUATION, Use.LATENTS, start, 0):
        return q.sample((num_samples,))


def _log_prior(p: Distribution, z: Tensor, seed: int) -> Tensor:
    """Return log p(z), (S, n) in float64; a density that is an estimate draws under the seed."""
    parts = []
    for i, part in enumerate(z.split(_BLOCK, 1)):
        with stream(seed, Purpose.EVALUATION, Use.PRIOR, i * _BLOCK, 0):
            parts.append(p.log_prob(part).double())
    return torch.cat(parts, 1)


def _log_mixture(model: VAE, data: DataSource, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return log q(z_i|x_i), and the log of the sum of q(z_i|x_j) over all other j, each (S, n) in float64."""
    num_samples, count = z.shape[:2]
    flat = z.transpose(0, 1).flatten(0, 1)  # (n S, *latent): the draws of one image lie together
    owner = torch.arange(count, device=z.device).repeat_interleave(num_samples)
    own = torch.full((len(flat),), torch.nan, dtype=torch.float64, device=z.device)
    others = torch.full_like(own, -torch.inf)
    for block in blocks(model, data, _BLOCK):
        q = model.encode(block.x, block.context)
        width = len(block.x)
        encodings = torch.arange(block.start, block.start + width, device=z.device)
        step = max(1, _PAIR_NUMBERS // (width * size(model.latent_shape)))
        for first in range(0, len(flat), step):
            part = slice(first, first + step)
            draws = flat[part].unsqueeze(1)
            log_q = q.log_prob(draws.expand(len(draws), width, *model.latent_shape)).double()
            is_own = owner[part, None] == encodings
            mine = is_own.any(1)
            own[part] = torch.where(mine, log_q.masked_fill(~is_own, 0).sum(1), own[part])
            rest = log_q.masked_fill(is_own, -torch.inf).logsumexp(1)
            others[part] = torch.logaddexp(others[part], rest)
    shape = (count, num_samples)
    return own.view(shape).T, others.view(shape).T


def evaluate_units(
    model: VAE,
    source: DataSource,
    *,
    num_images: int | None = None,
    num_samples: int = 64,
    threshold: float = 0.01,
    seed: int = 0,
) -> Units:
    r"""Measure which latent variables follow the data, and how sharp their posterior is.

    Unit i is active if Var_x(E[z_i|x]) > threshold. The mean has a closed form for Gaussians. For other posteriors,
    flows among them, it is the mean of S draws, whose own error adds Var(z_i|x) / S to the variance over images: that
    part is estimated from the same draws and subtracted, so `activity` is unbiased, and may be slightly negative.

    Its error comes from the fourth moment, sqrt((m_4 - s^4) / n). The KL of single units exists where the posterior is
    a diagonal Gaussian and the prior standard or diagonal; then it adds up to the KL of the ELBO.

    Cost: n encoder passes, n S draws for posteriors without closed-form moments. Memory: 3 n D numbers in float64, D
    the latent's size, and 256 S latents.

    Args:
        model: In any mode.
        source: Data points; their noise is drawn once.
        num_images: n, the first n of the source; None for all.
        num_samples: S, draws per image where there is no closed form.
        threshold: Activity above which a unit is active.
        seed: Seed of draws and of the source's noise.

    Raises:
        ConfigurationError: for settings out of range, fewer than two images among them.
        ShapeError: for data of another shape than the model's.

    References:
        Burda et al., Importance Weighted Autoencoders, 2016, arXiv 1509.00519, section 5.2 and appendix C.
    """
    check_positive_integers(num_samples=num_samples)
    check_positive("threshold", threshold)
    count = checked_count(num_images, len(source))
    if count < 2 or num_samples < 2:
        raise ConfigurationError(
            f"A variance needs two images and two samples; got {count} and {num_samples}. Raise both to at least 2."
        )
    check_event(model, source)
    data = draw_once(source, count, seed=seed)
    columns: list[tuple[Tensor, ...]] = []
    kls: list[Tensor] = []
    draws = None
    with evaluation_mode(model), torch.no_grad():
        for block in blocks(model, data, _BLOCK):
            q, p = model.encode(block.x, block.context), model.prior_at(block.context)
            with stream(seed, Purpose.EVALUATION, Use.MOMENTS, block.start, 0):
                *moments, draws = posterior_moments(q, num_samples)
            columns.append(tuple(moments))
            kls += _kl_per_unit(q, p)
    mean, variance, error = (torch.cat(column).cpu() for column in zip(*columns, strict=True))
    centered = mean - mean.mean(0)
    spread = centered.square().sum(0) / (count - 1)
    excess = (centered.pow(4).mean(0) - spread.square()).clamp(min=0)
    scale = variance.clamp(min=0).sqrt()
    return Units(
        activity=spread - error.mean(0),
        activity_error=(excess / count).sqrt(),
        scale=scale.mean(0),
        kl=torch.cat(kls).mean(0).cpu() if kls else None,
        scale_per_image=scale.flatten(1).mean(1),
        threshold=threshold,
        protocol={
            "estimator": "variance over images of the posterior mean",
            "posterior_mean": "closed form"
            if draws is None
            else f"mean of {draws} draws, their error subtracted",
            "threshold": threshold,
            "num_images": count,
            "seed": seed,
        },
    )


def _kl_per_unit(q: Distribution, p: Distribution) -> list[Tensor]:
    """Return [KL of every unit (B, *latent)], or nothing where the pair is not diagonal Gaussian."""
    if not isinstance(q, DiagonalNormal):
        return []
    units = DiagonalNormal(q.mean.double(), q.log_scale.double(), event_ndim=0)
    if isinstance(p, StandardNormal):
        return [kl_divergence(units, StandardNormal((), like=q.mean, scale=p.scale))]
    if isinstance(p, DiagonalNormal):
        return [kl_divergence(units, DiagonalNormal(p.mean.double(), p.log_scale.double(), event_ndim=0))]
    return []


def _check_information(model: VAE, count: int) -> None:
    if count < 2:
        raise ConfigurationError(f"`num_images` must be at least 2; got {count}.")
    if not model.posterior.has_density or model.prior_type.discrete:
        raise CombinationError(
            "I(x; z) needs q(z|x) at latents of other images, but this posterior cannot score points that it did not "
            "draw. Use a posterior with an inverse; active units and prior holes need none."
        )
    if model.prior.context_shape is not None:
        raise CombinationError(
            "With a prior p(z|c) the KL divides within each c, not over all data. Evaluate the data of one c at a "
            "time, with a model whose prior has no context."
        )
