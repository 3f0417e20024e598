"""The importance-weighted bound, with three estimators of its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import (
    Objective,
    Value,
    check_choice,
    check_samples,
    elbo_parts,
    value_of,
    without_score,
)
from latentflows.objectives.requirements import Need, require


@dataclass(frozen=True)
class IWAE(Objective):
    r"""Negative importance-weighted bound, tighter than the ELBO for K > 1 and equal to it for K = 1.

    .. math:: L = -E\left[\log \tfrac1K \sum_k w_k\right], \quad w_k = \frac{p(x, z_k)}{q(z_k|x)}

    The gradient weighs each sample by its share :math:`\tilde w_k = w_k / \sum_l w_l`. For prior and likelihood that is
    all. For the posterior's parameters :math:`\phi`, with :math:`z_k` a function of them, it is the sum over k of

    | `gradient` | | |
    |---|---|---|
    | "standard" | :math:`\tilde w_k \nabla_\phi \log w_k` | unbiased; signal-to-noise falls as 1 / sqrt(K) |
    | "doubly_reparameterized" | :math:`\tilde w_k^2 \, \nabla_z \log w_k \nabla_\phi z_k` | unbiased; it does not |
    | "stick_the_landing" | :math:`\tilde w_k \, \nabla_z \log w_k \nabla_\phi z_k` | biased for K > 1 |

    The last two need a Gaussian posterior, or a flow with an inverse, and cost one density pass of it more; the second
    also one pass back from log p(x, z) to z, which `torch.compile` would get wrong: `fit` refuses both together. At
    K = 1 they are the same.

    Args:
        num_samples: K.
        gradient: As in the table.

    References:
        Burda et al., Importance Weighted Autoencoders, 2016, arXiv 1509.00519, eq. 8, 14; Tucker et al., Doubly
        Reparameterized Gradient Estimators, 2019, arXiv 1810.04152; Roeder et al., Sticking the Landing, 2017,
        arXiv 1703.09194; Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018, arXiv
        1802.04537, theorem 1.
    """

    num_samples: int = 5
    gradient: Literal["standard", "doubly_reparameterized", "stick_the_landing"] = "standard"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "elbo", "reconstruction", "kl", "iwae")
    needs: ClassVar[tuple[Need, ...]] = ("posterior_density", "prior_density", "weighable_prior")

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        choices = ("standard", "doubly_reparameterized", "stick_the_landing")
        check_choice("gradient", self.gradient, choices)

    @property
    def compiles(self) -> bool:
        return self.gradient != "doubly_reparameterized"

    def check(self, model: VAE) -> None:
        super().check(model)
        if self.gradient != "standard":
            require(type(self).__name__, model, ("fixed_posterior",))

    def score(self, figures: dict[str, float]) -> float:
        return figures["iwae"]

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        if self.gradient != "standard":
            trace = without_score(trace)
        log_weight = trace.log_weight
        bound = log_weight.logsumexp(0) - math.log(len(log_weight))
        loss = -bound
        if self.gradient == "doubly_reparameterized" and log_weight.requires_grad and trace.z.requires_grad:
            loss = loss + _weighed_again(log_weight, trace.z)
        return value_of(loss, {**elbo_parts(trace), "iwae": bound})


def _weighed_again(log_weight: Tensor, z: Tensor) -> Tensor:
    """Return zeros (B,) whose gradient replaces the weight w of each path through z by w^2."""
    share = log_weight.detach().softmax(0)
    (slope,) = torch.autograd.grad(log_weight.sum(), z, retain_graph=True)
    along = (slope * (z - z.detach())).flatten(2).sum(-1)
    return ((share - share**2) * along).sum(0)
