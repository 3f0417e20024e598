"""latentflows: the same models as the peers', trained by `fit` with its checks, log and checkpoints on."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers.problem import Contender, Outcome, Problem, decoder, encoder, timed
from latentflows import (
    ELBO,
    VAE,
    AmortizedBernoulli,
    AmortizedGaussian,
    Bijection,
    Flow,
    Options,
    Stage,
    StandardGaussian,
    fit,
)
from latentflows.data.base import ArraySplit
from latentflows.models import presets


def gaussian_vae(problem: Problem) -> VAE:
    """Diagonal Gaussian posterior, N(0, I) prior: against pythae's `VAE` and the bare loop."""
    return VAE(_posterior(problem), StandardGaussian(problem.latent), _likelihood(problem))


def iaf_vae(problem: Problem) -> VAE:
    """Posterior through an IAF that does not see x: against pythae's `VAE_IAF`."""
    size = problem.iaf
    flow = presets.iaf(
        problem.latent,
        num_layers=size.num,
        width=size.widths[0],
        depth=len(size.widths),
        activation="relu",
    )
    return _flow_posterior(problem, flow)


def maf_vae(problem: Problem) -> VAE:
    """Masked autoregressive prior: against Pyro's tutorial."""
    size = problem.maf
    flow = presets.maf(
        problem.latent,
        num_layers=size.num,
        width=size.widths[0],
        depth=len(size.widths),
        activation="relu",
    )
    return VAE(_posterior(problem), Flow(StandardGaussian(problem.latent), flow), _likelihood(problem))


def planar_vae(problem: Problem) -> VAE:
    """Posterior through planar layers that do not see x: against normflows' `Planar`."""
    return _flow_posterior(problem, presets.planar(problem.latent, num_layers=problem.num_planar))


def coupling_vae(problem: Problem) -> VAE:
    """Posterior through affine couplings that do not see x: against normflows' `MaskedAffineFlow`."""
    size = problem.coupling
    flow = presets.real_nvp(problem.latent, num_layers=size.num, width=size.widths[0], depth=len(size.widths))
    return _flow_posterior(problem, flow)


def _posterior(problem: Problem) -> AmortizedGaussian:
    return AmortizedGaussian(problem.latent, problem.data_dim, encoder(problem))


def _likelihood(problem: Problem) -> AmortizedBernoulli:
    return AmortizedBernoulli(problem.data_dim, problem.latent, decoder(problem))


def _flow_posterior(problem: Problem, flow: Bijection) -> VAE:
    posterior = Flow(_posterior(problem), flow)
    return VAE(posterior, StandardGaussian(problem.latent), _likelihood(problem))


def _contender(build: Callable[[Problem], VAE], options: Options, objective: ELBO) -> Contender:
    """A training run of the model that `build` makes, into a run folder that is thrown away."""

    def train(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
        torch.manual_seed(seed)
        model = build(problem)
        stage = Stage(
            "joint",
            objective,
            max_epochs=epochs,
            batch_size=problem.batch_size,
            learning_rate=problem.learning_rate,
        )

        def run() -> float:
            source = ArraySplit(data, values="binary")
            with tempfile.TemporaryDirectory() as folder:
                history = fit(model, [stage], source, out=Path(folder), seed=seed, options=options)
            return history.epochs[-1]["train"]["loss"]

        return timed(run, model)

    return train


_float32 = Options(accelerator="cpu")
_bfloat16 = Options(accelerator="cpu", precision="bf16-mixed")
_closed_form = ELBO(kl="closed_form")
_monte_carlo = ELBO()

train_vae = _contender(gaussian_vae, _float32, _closed_form)
train_vae_bfloat16 = _contender(gaussian_vae, _bfloat16, _closed_form)
train_iaf = _contender(iaf_vae, _float32, _monte_carlo)
train_iaf_bfloat16 = _contender(iaf_vae, _bfloat16, _monte_carlo)
train_maf = _contender(maf_vae, _float32, _monte_carlo)
train_maf_bfloat16 = _contender(maf_vae, _bfloat16, _monte_carlo)
train_planar = _contender(planar_vae, _float32, _monte_carlo)
train_planar_bfloat16 = _contender(planar_vae, _bfloat16, _monte_carlo)
train_coupling = _contender(coupling_vae, _float32, _monte_carlo)
train_coupling_bfloat16 = _contender(coupling_vae, _bfloat16, _monte_carlo)
