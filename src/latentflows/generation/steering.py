"""How a prior is drawn from: pushed away from what it gives without a label, or in another number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from latentflows.bijections import TransformerAutoregressive
from latentflows.core.errors import CombinationError, ShapeError
from latentflows.distributions import (
    Conditional,
    ContinuousPushforward,
    EnergyPrior,
    Flow,
    FlowMatchingPrior,
    Langevin,
)
from latentflows.distributions.flow import Pushforward
from latentflows.models.density import DensityModel, Model
from latentflows.models.inference import evaluation_mode, to_model
from latentflows.models.tarflow import sample_guided
from latentflows.models.vae import VAE
from latentflows.transforms.guidance import check_guidance


@torch.no_grad()
def guided_draws(
    model: Model, num: int, context: Tensor | None, *, weight: float, temperature: float = 1.0
) -> Tensor:
    r"""Draw latents, or data points of a density, pushed away from those without a label: (num, *event).

    The label that stands for none is all zeros, which training must have met (`condition.unlabeled`). In a TarFlow all
    layers that hear the label are guided by the rule "linear", see `models.tarflow.sample_guided`; in a flow of flow
    matching the velocity is

    .. math:: v(x, t, y) + w (v(x, t, y) - v(x, t, 0))

    **The draws follow another distribution than the model's.** Cost: twice that of plain draws.

    Args:
        model: Whose prior is a TarFlow or a `FlowMatchingPrior`, or whose density a TarFlow, that is given a label; in
            any mode, given back as it was.
        num: How many.
        context: Labels (num, C).
        weight: 0 or more; 0 is plain drawing.
        temperature: Scale of the base noise.

    Raises:
        CombinationError: if the prior is no such flow.
        ConfigurationError: for a negative weight.
        ShapeError: if there are no labels, or not as many.

    References:
        Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv 2207.12598, eq. 6; Zhai et al., Normalizing Flows
        are Capable Generative Models, 2024, arXiv 2412.06329.
    """
    part = model.density if isinstance(model, DensityModel) else model.prior
    continuous = isinstance(part, FlowMatchingPrior) and part.context_shape is not None
    if not continuous and not (isinstance(part, Flow) and any(map(_hears, part.bijection.modules()))):
        raise CombinationError(
            "Guidance needs prior=tarflow or flow_matching that is given the label; this model has none. Train one "
            "with prior among condition.parts, or leave the guidance out."
        )
    if context is None or len(context) != num:
        given = "none" if context is None else str(len(context))
        raise ShapeError(f"Guidance needs a label for each of {num} draws; got {given}.")
    check_guidance(weight, "linear")
    given = to_model(model, context)
    with evaluation_mode(model):
        p, without = part(given), part(torch.zeros_like(given))
        if isinstance(p, ContinuousPushforward):
            return _guided(p.tempered(temperature), weight).sample()
        assert isinstance(p, Pushforward)
        assert isinstance(without, Pushforward)
        assert p.context is not None
        assert without.context is not None
        base = p.base if temperature == 1 else p.base.tempered(temperature)
        u = base.sample(() if base.batch_shape else (num,))
        return sample_guided(p.bijection, u, p.context, without.context, weight=weight)


def _guided(p: ContinuousPushforward, weight: float) -> ContinuousPushforward:
    """Return the distribution that the guided velocity carries noise to."""

    def velocity(x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        given, without = p.velocity(x, time, context), p.velocity(x, time, torch.zeros_like(context))
        return given + weight * (given - without)

    return ContinuousPushforward(
        velocity, p.shift, p.scale, p.context, p.context_shape, p.solver, p.num_probes, p.base
    )


def _hears(layer: nn.Module) -> bool:
    return isinstance(layer, TransformerAutoregressive) and layer.context_shape is not None


@contextmanager
def steps_of_draws(model: Model, num_steps: int) -> Iterator[str]:
    """Let the prior take so many steps for a draw, for a while; gives what that costs, in words.

    Fewer steps of a solver are another distribution than that of the density, which keeps the solver that it had.

    Args:
        model: Whose prior is a `FlowMatchingPrior` with fixed steps, or an `EnergyPrior` with `Langevin`.
        num_steps: Steps of the solver, or of the chain.

    Raises:
        CombinationError: if its draws take no steps, or as many as a tolerance asks for.
        ConfigurationError: if the number is not positive.
    """
    prior: Conditional | None = model.prior if isinstance(model, VAE) else None
    if isinstance(prior, FlowMatchingPrior) and prior.solver.method != "dopri5":
        solver = prior.solver
        prior.solver = replace(solver, num_steps=num_steps)
        try:
            yield f"{prior.solver.num_evaluations} evaluations of the velocity for each draw"
        finally:
            prior.solver = solver
    elif isinstance(prior, EnergyPrior) and isinstance(prior.sampler, Langevin):
        sampler = prior.sampler
        prior.sampler = replace(sampler, num_steps=num_steps)
        try:
            yield f"{num_steps} steps of Langevin dynamics for each draw"
        finally:
            prior.sampler = sampler
    else:
        raise CombinationError(
            "The prior of this model does not draw in a number of steps that could be chosen; prior=flow_matching "
            "(with euler, midpoint or rk4) and prior=noise_contrastive (with langevin) do. Leave the steps out."
        )
