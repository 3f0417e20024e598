"""From a configuration to data, model, stages and options; parts of a model are built in `parts.py`.

Posterior, prior and likelihood each draw their first weights from a stream of their own.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.core.errors import CheckpointError, CombinationError, ConfigurationError
from latentflows.core.files import check_format
from latentflows.core.shapes import Shape
from latentflows.data import ImageData, SomeUnlabeled, ambiguous_shapes, energy_points, load
from latentflows.models import VAE, VQVAE, DensityModel
from latentflows.models.density import Model
from latentflows.objectives import ELBO, Capacity, Objective
from latentflows.studies.building.codes import build_codes_model, codes_objectives
from latentflows.studies.building.likelihoods import build_likelihood
from latentflows.studies.building.models import (
    build_density,
    build_segmentation,
    density_objective,
    plane_energy,
)
from latentflows.studies.building.parts import (
    build_auxiliary,
    build_decoder,
    build_flow,
    build_objective,
    build_posterior,
)
from latentflows.studies.building.priors import build_prior, build_prior_objective
from latentflows.studies.settings import configuration as settings
from latentflows.studies.settings.base import PriorSettings
from latentflows.studies.settings.combinations import LIKELIHOODS_OF, likelihood_faults
from latentflows.studies.settings.configuration import DataSettings, RunConfiguration
from latentflows.studies.settings.models import CodesModel, FlowModel, SegmentationModel, VAEModel
from latentflows.studies.settings.options import tag_of
from latentflows.studies.settings.overrides import read_whole_configuration
from latentflows.training import MLflowLog, Options, Stage, TensorBoardLog, Tracker, WandbLog
from latentflows.training.base import PARTS
from latentflows.training.checkpoint import load_weights

RECORD_FORMAT = 1  # of run.json
_PROJECT = "latentflows"  # of MLflow's experiment and of the Weights & Biases project
_NUM_PICTURES, _NUM_POINTS = 200, 2000  # validation and test points of drawn data, where nothing is said
_POSTERIOR, _PRIOR, _LIKELIHOOD, _AUXILIARY = range(4)  # streams of the first weights


def build_data(configuration: RunConfiguration) -> ImageData:
    """Load the data, and refuse a likelihood that gives them no probability.

    Raises:
        DataError: if files are missing or damaged, with the way to get them.
        ConfigurationError: if a setting does not apply to this data set.
        CombinationError: if the likelihood does not fit the values.
    """
    data = configuration.data
    if data.name == "ambiguous_shapes":
        return ambiguous_shapes(
            size=16 if data.size is None else data.size, seed=data.seed, **_drawn_numbers(data, _NUM_PICTURES)
        )
    if data.name == "energy":
        points = energy_points(
            plane_energy(configuration).name, seed=data.seed, **_drawn_numbers(data, _NUM_POINTS)
        )
        _check_values(configuration, points.train)
        return points
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
        with_labels=configuration.condition.on == "labels",
    )
    _check_values(configuration, loaded.train)
    share = configuration.condition.unlabeled
    return replace(loaded, train=SomeUnlabeled(loaded.train, share)) if share else loaded


def _amount(value: float | None) -> int | float | None:
    return int(value) if value is not None and value >= 1 else value


def _drawn_numbers(data: DataSettings, usual: int) -> dict[str, int]:
    """Return how many validation and test points of drawn data there are."""
    amounts = {"validation": data.validation, "test": data.test}
    for name, amount in amounts.items():
        if amount is not None and amount < 1:
            raise ConfigurationError(
                f"`data.{name}` of {data.name} is a number of points to draw; got the fraction {amount:g}. Use a whole "
                "number."
            )
    return {f"num_{name}": int(amount or usual) for name, amount in amounts.items()}


def _check_values(configuration: RunConfiguration, source: DataSource) -> None:
    """Refuse values that the likelihood is no likelihood of, also where no preparation was named."""
    if isinstance(configuration.model, FlowModel):
        if source.values != "continuous":
            raise CombinationError(
                f"`model.kind`=flow is a density of real values, but the data have {source.values} values. Use "
                "data.preparation=dequantized or continuous."
            )
        return
    dequantized = source.bits_offset is not None  # real values that gray levels were made of, in [0, 1)
    prepared = {
        "binary": "dynamic_binary",
        "unit": "unit",
        "continuous": "dequantized" if dequantized else "continuous",
    }[source.values]
    kind = configuration.likelihood.kind
    if likelihood_faults(configuration.likelihood, prepared):
        fitting = ", ".join(name for name, values in LIKELIHOODS_OF.items() if prepared in values)
        raise CombinationError(
            f"`likelihood.kind`={kind} does not fit data with {source.values} values. Use likelihood={fitting}, or "
            "another data.preparation."
        )


def context_shape_of(data: ImageData) -> Shape | None:
    """Return the shape of what a batch carries besides its data points, or None."""
    with noise.stream(0):
        context = data.train.batch(torch.arange(1)).context
    return None if context is None else tuple(context.shape[1:])


def build_model(
    configuration: RunConfiguration, event_shape: Shape, context_shape: Shape | None = None
) -> Model:
    """Build the model with the first weights of its seed; the caller's generators stay as they are.

    Args:
        configuration: What to build.
        event_shape: Shape of one data point.
        context_shape: Shape of what the model is given besides, if anything.

    Raises:
        ConfigurationError: if the networks do not fit the shape of the data.
        CombinationError: if the parts do not fit.
    """
    c = configuration
    given = {part: context_shape if part in c.condition.parts else None for part in PARTS}
    if not isinstance(c.model, VAEModel):
        with noise.stream(c.seed):
            return _whole_model(c, event_shape, given["prior"])
    with noise.stream(c.seed, _POSTERIOR):
        posterior = build_posterior(c, event_shape, given["posterior"])
    with noise.stream(c.seed, _PRIOR):
        prior = build_prior(c, posterior, given["prior"], build_flow)
    with noise.stream(c.seed, _LIKELIHOOD):
        decoder = partial(build_decoder, c.network)
        likelihood = build_likelihood(c, event_shape, given["likelihood"], decoder)
    model = VAE(posterior, prior, likelihood, context_shape=context_shape)
    with noise.stream(c.seed, _AUXILIARY):
        model.auxiliary = build_auxiliary(c.objective, model)
    return model


def _whole_model(c: RunConfiguration, event_shape: Shape, given: Shape | None) -> Model:
    """Build a model that brings parts of its own."""
    if isinstance(c.model, CodesModel):
        return build_codes_model(c, c.model, event_shape, given)
    if isinstance(c.model, FlowModel):
        return build_density(c, event_shape, given)
    assert isinstance(c.model, SegmentationModel)
    if given is None:
        raise CombinationError(
            "`model.kind`=segmentation_vae is given the picture of each mask, and these data have none. Use "
            "data=ambiguous_shapes."
        )
    model = build_segmentation(c, c.model, given)
    model.auxiliary = build_auxiliary(c.objective, model)
    return model


def build_stages(configuration: RunConfiguration, model: Model, num_points: int | None = None) -> list[Stage]:
    """Return the stages of the plan; some objectives need the number of training points.

    Two stages are: "vae" trains posterior and likelihood with N(0, I) in the prior's place; "prior" trains the prior
    alone on z drawn anew from the frozen posterior (Dai & Wipf 2019, arXiv 1903.05789).
    The third, "joint", trains all parts from there, without another warm-up.

    Those of a model with codes for latents are "codes", which trains encoder, codebook and likelihood, and "prior".
    That of a flow on data is "flow".
    """
    training = configuration.training
    if isinstance(configuration.model, CodesModel):
        assert isinstance(training, settings.TwoStage)
        codes, prior = codes_objectives(configuration.model)
        trained = tuple(part for part in VQVAE.parts if part != "prior")
        return [
            _stage("codes", codes, training, training.epochs, train=trained),
            _stage("prior", prior, training, training.prior_epochs, train=("prior",)),
        ]
    if isinstance(model, DensityModel):
        objective = density_objective(configuration)
        return [_stage("flow", objective, training, training.epochs, train=DensityModel.parts)]
    assert isinstance(model, VAE)
    if isinstance(training, settings.OneStage):
        objective = build_objective(configuration.objective, model, num_points)
        return [_stage("joint", objective, training, training.epochs)]
    with model.standard_prior():
        first = build_objective(configuration.objective, model, num_points)
    vae = _stage("vae", first, training, training.epochs, train=("posterior", "likelihood"))
    prior = build_prior_objective(configuration.prior)
    stages = [
        replace(vae, standard_prior=True),
        _stage("prior", prior, training, training.prior_epochs, train=("prior",)),
    ]
    if isinstance(training, settings.TwoStageJoint):
        _check_joint(configuration.prior)
        joint = _warmed_up(build_objective(configuration.objective, model, num_points))
        stages.append(_stage("joint", joint, training, training.joint_epochs))
    return stages


def _check_joint(prior: PriorSettings) -> None:
    """Refuse to train an encoder against a density whose normalizer does not see where it goes."""
    if prior.normalized_by_draws:
        raise CombinationError(
            f"The normalizer of prior.kind={tag_of(type(prior))} is known from draws of its base alone. An "
            "encoder that trains against it leaves for latents that those never reach, where the bound has no limit. "
            "Use training.plan=two_stage, or a flow prior."
        )


def _warmed_up(objective: Objective) -> Objective:
    """Return the objective at the end of its schedule."""
    if isinstance(objective, ELBO):
        return replace(objective, warmup_epochs=0.0, cycle_epochs=None)
    return replace(objective, warmup_epochs=0.0) if isinstance(objective, Capacity) else objective


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


def load_run(folder: Path | str) -> tuple[RunConfiguration, Model]:
    """Rebuild the model of a run folder with its selected weights, in eval mode; nothing in the folder is executed.

    Raises:
        CheckpointError: if the folder is no run, or its training has not ended: weights between two stages are not
            the run's, and figures or pictures of them would pass for those of the run.
        ConfigurationError: if its configuration was damaged.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no run folder: it has no config.yaml. Name a folder that `train` made."
        )
    configuration = read_whole_configuration(folder / "config.yaml")
    event_shape, context_shape = _shapes_of_ended(folder)
    model = build_model(configuration, event_shape, context_shape)
    load_weights(model, folder / "checkpoint" / "model.safetensors")
    return configuration, model.eval()


def _shapes_of_ended(folder: Path) -> tuple[Shape, Shape | None]:
    """Read the shapes of a data point and of its context from the record of a run; refuse one that has not ended."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        status, given = record["status"], record.get("context_shape")
        event_shape = tuple(int(n) for n in record["event_shape"])
        context_shape = None if given is None else tuple(int(n) for n in given)
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'run.json'} does not hold the shape of the data ({error!r}). Continue the run with --resume, "
            "or restore the file."
        ) from None
    for name, shape in (("event_shape", event_shape), ("context_shape", context_shape)):
        if shape is not None and (not shape or min(shape) < 1 or math.prod(shape) > 2**31):
            raise CheckpointError(
                f"{folder / 'run.json'}: `{name}` must hold positive integers; got {list(shape)}."
            )
    check_format(folder / "run.json", record.get("format"), RECORD_FORMAT)
    if status not in ("finished", "diverged") and not record.get("trained"):
        config = shlex.quote(str(folder / "config.yaml"))
        raise CheckpointError(
            f"{folder} holds a run that is {status}, so its weights are not those it will end with. Wait for "
            "the process that trains it, or, where none does, resume it first: "
            f"latentflows train {config} --out {shlex.quote(str(folder))} --resume"
        )
    return event_shape, context_shape
