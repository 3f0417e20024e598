"""Small posteriors, priors and likelihoods by name: the axes that every combination is taken from."""

from collections.abc import Callable
from typing import Any

from torch import nn

from latentflows.core.shapes import Shape
from latentflows.distributions import AmortizedGaussian, Conditional, Flow, LearnedGaussian, StandardGaussian
from latentflows.models import VAE, presets
from tests.distributions.cases import bernoulli, gaussian, network

DATA: Shape = (1, 2, 3)
LATENT, FEATURES, WIDTH = 3, 5, 6


def flow_posterior(preset, **settings) -> Flow:
    """An amortized Gaussian pushed through a flow; both read the features of one encoder."""
    base = gaussian((LATENT,), (FEATURES,))
    bijection = preset(LATENT, num_layers=2, context=FEATURES, **settings)
    return Flow(base, bijection, embed=network(DATA, FEATURES), context_shape=DATA)


def flow_prior(preset) -> Flow:
    return Flow(StandardGaussian(LATENT), preset(LATENT, num_layers=2, width=WIDTH, activation="tanh"))


POSTERIORS = {
    "gaussian": lambda: gaussian((LATENT,), DATA),
    "full": lambda: gaussian((LATENT,), DATA, covariance="full"),
    "planar": lambda: flow_posterior(presets.planar),
    "iaf": lambda: flow_posterior(presets.iaf, width=WIDTH, activation="tanh"),
    "real_nvp": lambda: flow_posterior(presets.real_nvp, width=WIDTH, activation="tanh"),
    "nice": lambda: flow_posterior(presets.nice, width=WIDTH, activation="tanh"),
}
PRIORS = {
    "standard": lambda: StandardGaussian(LATENT),
    "diagonal": lambda: LearnedGaussian(LATENT),
    "full": lambda: LearnedGaussian(LATENT, covariance="full"),
    "real_nvp": lambda: flow_prior(presets.real_nvp),
    "nice": lambda: flow_prior(presets.nice),
    "maf": lambda: flow_prior(presets.maf),
}
LIKELIHOODS = {
    "bernoulli": lambda: bernoulli(DATA, (LATENT,)),
    "fixed": lambda: gaussian(DATA, (LATENT,), scale=0.5),
    "shared": lambda: gaussian(DATA, (LATENT,), scale="shared"),
    "amortized": lambda: gaussian(DATA, (LATENT,)),
}


def vae(posterior: str = "gaussian", prior: str = "standard", likelihood: str = "bernoulli") -> VAE:
    return VAE(POSTERIORS[posterior](), PRIORS[prior](), LIKELIHOODS[likelihood]())


def conditional_prior(context: int) -> Conditional:
    """p(z|c) for contexts (B, context)."""
    made = gaussian((LATENT,), (context,))
    assert isinstance(made, AmortizedGaussian)
    return made


def check_modes(model: nn.Module, use: Callable[[Any], object]) -> None:
    """Use a model in train mode, one part of which is not, and look at the mode of every pass."""
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    seen: list[bool] = []

    def look(module: nn.Module, inputs: object, output: object) -> None:
        seen.append(module.training)

    for module in model.modules():
        module.register_forward_hook(look)
    use(model)
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == modes
