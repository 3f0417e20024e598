"""From a configuration to data, model, stages and options, through tables keyed by `kind`; no name is ever imported.

Posterior, prior and likelihood each draw their first weights from a stream of their own, and within a part the
encoder or decoder comes first: two configurations with one seed and one network start with equal networks, whatever
their flows are.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from latentflows.bijections import Bijection, Inverse
from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.core.errors import CheckpointError, CombinationError, ConfigurationError
from latentflows.core.shapes import Shape
from latentflows.data import ImageData, load
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    Conditional,
    Flow,
    LearnedGaussian,
    StandardGaussian,
    gaussian_raw_shape,
    has_closed_form_kl,
)
from latentflows.models import VAE, presets
from latentflows.networks import MLP, GatedConvolutionDecoder, GatedConvolutionEncoder, GatedMLP, LastLayer
from latentflows.objectives import ELBO, IWAE, Objective, PriorLikelihood
from latentflows.studies import configuration as settings
from latentflows.studies.configuration import RunConfiguration
from latentflows.studies.flow_settings import FlowSettings
from latentflows.studies.options import tag_of
from latentflows.studies.overrides import read_configuration
from latentflows.training import MLflowLog, Options, Stage, TensorBoardLog, Tracker, WandbLog
from latentflows.training.checkpoint import load_weights

_FLOWS = {  # the fields of a kind's settings are the arguments of its preset
    "bpf": presets.bpf,
    "cnf": presets.cnf,
    "iaf": presets.iaf,
    "maf": presets.maf,
    "naf": presets.naf,
    "nice": presets.nice,
    "nsf_autoregressive": presets.nsf_autoregressive,
    "nsf_coupling": presets.nsf_coupling,
    "planar": presets.planar,
    "radial": presets.radial,
    "real_nvp": presets.real_nvp,
    "sospf": presets.sospf,
    "sylvester_householder": presets.sylvester_householder,
    "sylvester_orthogonal": presets.sylvester_orthogonal,
    "sylvester_triangular": presets.sylvester_triangular,
    "tarflow": presets.tarflow,
    "unaf": presets.unaf,
}
_PROJECT = "latentflows"  # of MLflow's experiment and of the Weights & Biases project
_POSTERIOR, _PRIOR, _LIKELIHOOD = range(3)  # streams of the first weights


def build_data(configuration: RunConfiguration) -> ImageData:
    """Load the data, and refuse a likelihood that gives them no probability.

    Raises:
        DataError: if files are missing or damaged, with the way to get them.
        ConfigurationError: if a setting does not apply to this data set.
        CombinationError: if the likelihood does not fit the values.
    """
    data = configuration.data
    loaded = load(
        data.name,
        root=data.root,
        preparation=data.preparation,
        validation=_amount(data.validation),
        test=_amount(data.test),
        seed=data.seed,
        size=data.size,
        mode=data.mode,
        memory_map=data.memory_map,
    )
    _check_values(configuration, loaded.train)
    return loaded


def _amount(value: float | None) -> int | float | None:
    return int(value) if value is not None and value >= 1 else value


def _check_values(configuration: RunConfiguration, source: DataSource) -> None:
    bernoulli = configuration.likelihood.kind == "bernoulli"
    if bernoulli != (source.values == "binary"):
        fix = (
            "Use data.preparation=dynamic_binary, or likelihood=gaussian."
            if bernoulli
            else "Use likelihood=bernoulli."
        )
        raise CombinationError(
            f"`likelihood.kind`={configuration.likelihood.kind} does not fit data with {source.values} values. {fix}"
        )


def build_model(configuration: RunConfiguration, event_shape: Shape) -> VAE:
    """Build the model with the first weights of its seed; the caller's generators stay as they are.

    Raises:
        ConfigurationError: if the networks do not fit the shape of the data.
        CombinationError: if the parts do not fit.
    """
    c = configuration
    with noise.stream(c.seed, _POSTERIOR):
        posterior = _posterior(c, event_shape)
    with noise.stream(c.seed, _PRIOR):
        prior = _prior(c)
    with noise.stream(c.seed, _LIKELIHOOD):
        likelihood = _likelihood(c, event_shape)
    model = VAE(posterior, prior, likelihood)
    if c.training.plan != "one_stage":
        _check_start(prior)
    return model


def _posterior(c: RunConfiguration, event_shape: Shape) -> Conditional:
    part, latent = c.posterior, (c.latent_dim,)
    encoder, features = _encoder(c.network, event_shape)
    covariance: Literal["diagonal", "full"] = "full" if part.kind == "full_gaussian" else "diagonal"
    last = LastLayer(features, gaussian_raw_shape(latent, covariance=covariance))
    if isinstance(part, settings.Gaussian | settings.FullGaussian):
        return AmortizedGaussian(latent, event_shape, nn.Sequential(encoder, last), covariance=covariance)
    bijection = _flow(part, c.latent_dim, context=features)
    if _turned(bijection):  # a posterior is drawn from in every step, and scored where it was drawn
        bijection = Inverse(bijection)
    base = AmortizedGaussian(latent, features, last)
    return Flow(base, bijection, embed=encoder, context_shape=event_shape)


def _prior(c: RunConfiguration) -> Conditional:
    part = c.prior
    if isinstance(part, settings.Standard):
        return StandardGaussian(c.latent_dim)
    if isinstance(part, settings.Gaussian | settings.FullGaussian):
        return LearnedGaussian(
            c.latent_dim, covariance="full" if part.kind == "full_gaussian" else "diagonal"
        )
    return Flow(StandardGaussian(c.latent_dim), _flow(part, c.latent_dim))


def _flow(part: FlowSettings, dim: int, context: int | None = None) -> Bijection:
    arguments = part.model_dump(exclude={part.tag})
    return _FLOWS[tag_of(type(part))](dim, context=context, **arguments)


def _turned(bijection: Bijection) -> bool:
    """Whether drawing takes more passes than scoring."""
    forward, inverse = bijection.passes
    return inverse is not None and (forward is None or forward > inverse)


def _likelihood(c: RunConfiguration, event_shape: Shape) -> Conditional:
    part, latent = c.likelihood, (c.latent_dim,)
    if isinstance(part, settings.BernoulliLikelihood):
        return AmortizedBernoulli(event_shape, latent, _decoder(c.network, latent, event_shape))
    scale: float | Literal["amortized", "shared"] = part.scale or "shared"
    if part.variance == "amortized":
        scale = "amortized"
    network = _decoder(c.network, latent, gaussian_raw_shape(event_shape, scale=scale))
    return AmortizedGaussian(event_shape, latent, network, scale=scale)


def _encoder(network: settings.Network, event_shape: Shape) -> tuple[nn.Module, int]:
    """Return the network from a data point to features, and how many they are."""
    if isinstance(network, settings.GatedConvolutionNetwork):
        encoder = GatedConvolutionEncoder(event_shape, None, width=network.width)
    elif isinstance(network, settings.GatedMLPNetwork):
        encoder = GatedMLP(event_shape, None, width=network.width, depth=network.depth)
    else:
        encoder = MLP(
            event_shape, None, width=network.width, depth=network.depth, activation_name=network.activation
        )
    return encoder, encoder.out_shape[0]


def _decoder(network: settings.Network, latent: Shape, out_shape: Shape) -> nn.Module:
    if isinstance(network, settings.GatedConvolutionNetwork):
        return GatedConvolutionDecoder(latent, out_shape, width=network.width)
    if isinstance(network, settings.GatedMLPNetwork):
        return GatedMLP(latent, out_shape, width=network.width, depth=network.depth)
    return MLP(
        latent, out_shape, width=network.width, depth=network.depth, activation_name=network.activation
    )


def _check_start(prior: Conditional) -> None:
    """Refuse an untrained prior that is not N(0, I), which the first of two stages relies on."""
    with noise.stream(0):
        z: Tensor = StandardGaussian(prior.event_shape)().sample((8,))
    expected = StandardGaussian(prior.event_shape)().log_prob(z)
    if not prior().log_prob(z).allclose(expected, rtol=1e-4, atol=1e-4):
        raise CombinationError(
            "`training.plan` with two stages trains the first one with the prior as it starts, which must be N(0, I); "
            "this prior starts as another distribution. Use another prior, or training.plan=one_stage."
        )


def build_stages(configuration: RunConfiguration, model: VAE) -> list[Stage]:
    """Return the stages of the plan.

    Two stages are: "vae" trains posterior and likelihood while the prior stays at its start, which is N(0, I);
    "prior" trains the prior alone on z drawn anew from the frozen posterior (Dai & Wipf 2019, arXiv 1903.05789).
    The third, "joint", trains all parts from there, without another warm-up.
    """
    training = configuration.training
    objective = _objective(configuration.objective, model)
    if isinstance(training, settings.OneStage):
        return [_stage("joint", objective, training, training.epochs)]
    stages = [
        _stage("vae", objective, training, training.epochs, train=("posterior", "likelihood")),
        _stage("prior", PriorLikelihood(), training, training.prior_epochs, train=("prior",)),
    ]
    if isinstance(training, settings.TwoStageJoint):
        joint = replace(objective, warmup_epochs=0.0) if isinstance(objective, ELBO) else objective
        stages.append(_stage("joint", joint, training, training.joint_epochs))
    return stages


def _objective(objective: settings.Objective, model: VAE) -> Objective:
    if isinstance(objective, settings.IWAEObjective):
        return IWAE(objective.num_samples)
    kl = objective.kl
    if kl == "auto":
        closed = has_closed_form_kl(model.posterior.distribution_type, model.prior.distribution_type)
        kl = "closed_form" if closed else "monte_carlo"
    return ELBO(objective.num_samples, beta=objective.beta, warmup_epochs=objective.warmup_epochs, kl=kl)


def _stage(
    name: str,
    objective: Objective,
    training: settings.Training,
    epochs: int,
    *,
    train: tuple[str, ...] = ("posterior", "prior", "likelihood"),
) -> Stage:
    return Stage(
        name,
        objective,
        train=train,
        max_epochs=epochs,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        schedule=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        gradient_clip_val=training.gradient_clip,
        accumulate_grad_batches=training.accumulate,
        ema_decay=training.ema_decay,
        patience=training.patience,
    )


def build_options(configuration: RunConfiguration) -> Options:
    """Return how training is carried out."""
    training = configuration.training
    return Options(
        accelerator=training.accelerator,
        precision=training.precision,
        compile=training.compile,
        checkpoint_every=training.checkpoint_every,
        max_bad_steps=training.max_bad_steps,
    )


def build_trackers(configuration: RunConfiguration, out: Path) -> list[Tracker]:
    """Return the trackers of a run; TensorBoard where nothing is said and it is installed.

    Raises:
        ConfigurationError: if one that is named is not installed.
    """
    names = configuration.training.trackers
    if names is None:
        with suppress(ConfigurationError):
            return [TensorBoardLog(out / "tensorboard")]
        return []
    name = out.resolve().name
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardLog(out / "tensorboard"),
        "mlflow": lambda: MLflowLog(_PROJECT, name),
        "wandb": lambda: WandbLog(_PROJECT, name, out),
    }
    return [makers[name]() for name in dict.fromkeys(names)]


def load_run(folder: Path) -> tuple[RunConfiguration, VAE]:
    """Rebuild the model of a run folder with its selected weights, in eval mode; nothing in the folder is executed.

    Raises:
        CheckpointError: if the folder is no run, or its training has not ended: weights between two stages are not
            the run's, and figures or pictures of them would pass for those of the run.
        ConfigurationError: if its configuration was damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no run folder: it has no config.yaml. Name a folder that `train` made."
        )
    configuration = read_configuration(folder / "config.yaml")
    event_shape = _event_shape_of_ended(folder)
    model = build_model(configuration, event_shape)
    load_weights(model, folder / "checkpoint" / "model.safetensors")
    return configuration, model.eval()


def _event_shape_of_ended(folder: Path) -> Shape:
    """Read the shape of one data point from the record of a run, and refuse a run that has not ended."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        status, shape = record["status"], record["event_shape"]
        event_shape = tuple(int(n) for n in shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'run.json'} does not hold the shape of the data ({error!r}). Continue the run with --resume, "
            "or restore the file."
        ) from None
    if not event_shape or min(event_shape) < 1 or math.prod(event_shape) > 2**31:
        raise CheckpointError(
            f"{folder / 'run.json'}: `event_shape` must hold positive integers; got {shape}."
        )
    if status not in ("finished", "diverged"):
        config = shlex.quote(str(folder / "config.yaml"))
        raise CheckpointError(
            f"{folder} holds a run that is {status}, so its weights are not those it will end with. Resume it first: "
            f"latentflows train {config} --out {shlex.quote(str(folder))} --resume"
        )
    return event_shape
