"""What an arm costs, counted on the model itself.

Parameters are counted in the built model. FLOPs are those of the matrix products and convolutions of one training
step, forward and backward, as PyTorch's own counter sees them: a multiplication and an addition are two, and
elementwise work is not in them. Seconds are those of steps that are timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.core.errors import ConfigurationError, LatentFlowsError
from latentflows.data import ImageData
from latentflows.distributions.vamp import SharesPosterior
from latentflows.models.density import Model
from latentflows.models.vae import count_parameters
from latentflows.objectives import Objective
from latentflows.studies.building.build import build_data, build_options
from latentflows.studies.running.run import Parts, prepare
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.training import Stage, fit
from latentflows.training.parallel import on_gpu
from latentflows.training.stacked_check import clock_of

_TURNS = 840  # steps over which the turns of an objective are averaged; a multiple of every cycle up to 8
_DRAWN = 64  # draws whose FLOPs are counted together; some priors have work that all draws share
_TIMED_STEPS = 30
_TIMED_ROUNDS = 3
_LENGTHS = {"epochs", "prior_epochs", "joint_epochs"}  # settings of training that no step depends on


@dataclass(frozen=True)
class Cost:
    """What an arm costs.

    Attributes:
        parameters: Trainable parameters by part, and in total.
        stages: Names of the stages.
        stage_flops: FLOPs of one data point in a training step of each stage.
        training_flops: FLOPs of all stages at their full length.
        sampling_flops: FLOPs of drawing one data point from the model; None where it cannot be drawn from.
        borrowed: Parameters of the posterior that its prior draws through as well, such as a VampPrior; `parameters`
            has them in the posterior alone.
    """

    parameters: dict[str, int]
    stages: tuple[str, ...]
    stage_flops: tuple[int, ...]
    training_flops: int
    sampling_flops: int | None
    borrowed: int


class Workshop:
    """Builds and measures configurations; the data of a study are loaded once.

    Args:
        threads: Threads of torch that a run has, and so those that seconds are measured with.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._data: dict[str, ImageData] = {}
        self._step_seconds: dict[str, list[float]] = {}  # of every stage, by all but the lengths

    def data(self, configuration: RunConfiguration) -> ImageData:
        """Return the data of a configuration.

        Raises:
            LatentFlowsError: if they cannot be had, or do not fit the likelihood.
        """
        fields = {"data", "likelihood", "condition", "model"}
        key = configuration.model_dump_json(include=fields)
        if key not in self._data:
            self._data[key] = build_data(configuration)
        return self._data[key]

    def built(self, configuration: RunConfiguration) -> Parts:
        """Return data, model and stages of a configuration, checked as a run checks them.

        Raises:
            LatentFlowsError: if something does not fit.
        """
        return prepare(configuration, self.data(configuration))

    def cost(self, configuration: RunConfiguration) -> Cost:
        """Count what a configuration costs; one step per stage and one draw are computed."""
        data, model, stages = self.built(configuration)
        flops = tuple(step_flops(model, stage, data.train) for stage in stages)
        return Cost(
            dict(model.num_parameters()),
            tuple(stage.name for stage in stages),
            flops,
            sum(
                each * stage.max_epochs * _points_per_epoch(stage, len(data.train))
                for each, stage in zip(flops, stages, strict=True)
            ),
            sampling_flops(model),
            borrowed_parameters(model),
        )

    def amount(self, configuration: RunConfiguration, hold: str) -> float:
        """Return what a configuration spends of the quantity that is held.

        Raises:
            LatentFlowsError: if it cannot be built, or has no such quantity.
        """
        if hold == "seconds":
            return self.seconds(configuration)
        if hold in ("training_flops", "sampling_flops"):
            return counted(self.cost(configuration), hold)
        return held_parameters(self.built(configuration).model.num_parameters(), hold)

    def seconds(self, configuration: RunConfiguration) -> float:
        """Measure the seconds of training at its full length, without validation: steps of each stage are timed.

        Once for configurations that differ in lengths alone: their seconds are multiples of the same timing.
        """
        data, model, stages = self.built(configuration)
        key = configuration.model_dump_json(exclude={"training": _LENGTHS})
        if key not in self._step_seconds:
            with _threads(self.threads):
                self._step_seconds[key] = [
                    _seconds_per_step(model, stage, data, configuration) for stage in stages
                ]
        return sum(
            seconds * _steps_per_epoch(stage, len(data.train)) * stage.max_epochs
            for seconds, stage in zip(self._step_seconds[key], stages, strict=True)
        )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Give torch a number of threads, and back what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batch(stage: Stage, num_points: int) -> int:
    """Data points of a step as `fit` makes it: as many in every piece."""
    pieces = stage.accumulate_grad_batches
    return max(1, min(stage.batch_size, num_points) // pieces * pieces)


def _steps_per_epoch(stage: Stage, num_points: int) -> int:
    return num_points // _batch(stage, num_points)


def _points_per_epoch(stage: Stage, num_points: int) -> int:
    """An incomplete last batch is left out."""
    return _steps_per_epoch(stage, num_points) * _batch(stage, num_points)


def counted(cost: Cost, hold: str) -> float:
    """Return what a cost holds of a quantity that is counted: all but seconds.

    Raises:
        ConfigurationError: if the model has no such quantity.
    """
    if hold not in ("training_flops", "sampling_flops"):
        return held_parameters(cost.parameters, hold)
    found = cost.training_flops if hold == "training_flops" else cost.sampling_flops
    if found is None:
        raise ConfigurationError("it cannot be drawn from, so it has no sampling FLOPs to hold")
    return found


def held_parameters(parameters: dict[str, int], hold: str) -> int:
    """Return how many parameters of a model a budget of that kind counts."""
    if hold == "model":
        return parameters["total"]
    parts = ("prior",) if hold == "prior" else ("prior", "likelihood")
    missing = [part for part in parts if part not in parameters]
    if missing:
        raise ConfigurationError(
            f"`budget.hold`={hold} counts {' and '.join(parts)}; this model has {', '.join(parameters)}. Hold "
            "`model`."
        )
    return sum(parameters[part] for part in parts)


def borrowed_parameters(model: Model) -> int:
    """Return how many parameters of the posterior the prior of a model draws through; 0 for most priors."""
    prior = getattr(model, "prior", None)
    if prior is None:
        return 0
    posteriors = [part.posterior for part in prior.modules() if isinstance(part, SharesPosterior)]
    return count_parameters(prior, *posteriors) - count_parameters(prior)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


# PyTorch has formulas for the attention of a GPU, and gives none to that of a CPU.
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


class FLOPCounter(TorchDispatchMode):
    """Adds up the FLOPs of the operations that have a formula; sees the backward pass and every `out=`."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        return found


def step_flops(model: Model, stage: Stage, source: DataSource) -> int:
    """Count the FLOPs of one data point in a training step of a stage, forward and backward.

    The step is one of a whole batch (of a piece, where gradients are accumulated): some priors have work that all its
    data points share. Steps that take turns count by their share. Weights and gradients stay as they are.
    """
    count = max(1, _batch(stage, len(source)) // stage.accumulate_grad_batches)
    modules: list[nn.Module] = [getattr(model, part) for part in stage.parts(model)]
    if stage.objective.has_auxiliary and model.auxiliary is not None:
        modules.append(model.auxiliary)
    learning = {id(p) for module in modules for p in module.parameters()}
    before = [(p, p.requires_grad) for p in model.parameters()]
    turns = _turns(stage.objective)
    flops = 0.0
    try:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable and id(parameter) in learning)
        for objective, share in turns:
            flops += share * _flops_of_step(model, stage, objective, source, count)
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)
    return round(flops / count)


def _turns(objective: Objective) -> list[tuple[Objective, float]]:
    """Return the objectives of single steps, and the share of steps that each has."""
    if not objective.takes_turns:
        return [(objective, 1.0)]
    turns: list[tuple[Objective, int]] = []
    for step in range(_TURNS):
        found = objective.at(step)
        place = next((index for index, (other, _) in enumerate(turns) if other == found), None)
        if place is None:
            turns.append((found, 1))
        else:
            turns[place] = (found, turns[place][1] + 1)
    return [(turn, number / _TURNS) for turn, number in turns]


def _flops_of_step(model: Model, stage: Stage, objective: Objective, source: DataSource, count: int) -> int:
    counter = FLOPCounter()
    with noise.stream(0), counter, stage.prior_in_force(model):
        batch = source.batch(torch.arange(count))
        loss = objective(objective.trace(model, batch.x, batch.context), 0.0).loss
        learned = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, learned, allow_unused=True)
    return counter.flops


@torch.no_grad()
def sampling_flops(model: Model) -> int | None:
    """Count the FLOPs of drawing one data point, from a draw of many; None where the model cannot be drawn from."""
    counter = FLOPCounter()
    context = None
    if model.context_shape is not None:
        context = torch.zeros(_DRAWN, *model.context_shape)
    training = model.training
    model.eval()
    try:
        with noise.stream(0), counter:
            model.sample(_DRAWN, context=context)
    except LatentFlowsError:
        return None
    finally:
        model.train(training)
    return round(counter.flops / _DRAWN)


def _seconds_per_step(model: Model, stage: Stage, data: ImageData, configuration: RunConfiguration) -> float:
    """Time steps of a stage as `fit` makes them; the median of several rounds, after one to warm up."""
    steps = min(_TIMED_STEPS, _steps_per_epoch(stage, len(data.train)))
    timed = replace(stage, max_steps=steps, max_epochs=1, patience=None)
    options = replace(build_options(configuration), diagnose=0)
    clock = clock_of("cuda" if on_gpu(options.accelerator) else "cpu")
    rounds = []
    for _ in range(_TIMED_ROUNDS + 1):
        start = clock()
        fit(model, [timed], data.train, options=options, seed=configuration.seed)
        rounds.append((clock() - start) / steps)
    return statistics.median(rounds[1:])


def shown_amount(amount: float, hold: str) -> str:
    """Return an amount with its unit."""
    if hold == "seconds":
        return f"{amount:.3g} s"
    number = f"{amount:,.0f}" if amount < 1e15 else f"{amount:.3g}"
    return f"{number} " + ("FLOPs" if hold.endswith("flops") else "parameters")
