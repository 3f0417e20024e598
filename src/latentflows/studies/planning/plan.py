"""What a study will run, settled before anything trains: sizes, counts and costs of every arm, and all its faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from latentflows.core.errors import CheckpointError, ConfigurationError, LatentFlowsError
from latentflows.studies.planning.budget import Cost, Workshop, counted, shown_amount
from latentflows.studies.planning.faults import arm_faults, shared_faults
from latentflows.studies.planning.solving import solve
from latentflows.studies.planning.study import NOT_HELD, Arm, Budget, Study
from latentflows.studies.running.failures import is_out_of_memory, reason_of
from latentflows.studies.settings.configuration import RunConfiguration


@dataclass(frozen=True)
class Settled:
    """What an earlier plan settled for an arm.

    Attributes:
        solved: Values that the budget decided, by key.
        amount: Amount that it spends of what is held; None without a budget.
    """

    solved: Mapping[str, int]
    amount: float | None


@dataclass(frozen=True)
class PlannedArm:
    """One arm as it will run.

    Attributes:
        name: Its name.
        label: Its name to show.
        configuration: Of the first seed.
        cost: Parameters and FLOPs.
        solved: Values that the budget decided, by key.
        target: Amount that the budget asks for; None where the arm is not held to it.
        amount: Amount that it spends of what is held; None without a budget.
    """

    name: str
    label: str
    configuration: RunConfiguration
    cost: Cost
    solved: dict[str, int]
    target: float | None
    amount: float | None


@dataclass(frozen=True)
class PlannedRun:
    """One run: an arm at a seed, and its folder within that of the study."""

    arm: str
    seed: int
    configuration: RunConfiguration
    folder: str


@dataclass(frozen=True)
class Plan:
    """Arms and runs of a study, with sizes settled."""

    study: Study
    arms: tuple[PlannedArm, ...]
    runs: tuple[PlannedRun, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `plan.json`."""
        budget = self.study.budget
        held = None if budget is None else budget.model_dump(mode="json") | {"tolerance": budget.within}
        like = None if budget is None else budget.like
        measures = set() if like is None else {*self.study.counterparts(like).values()}
        arms = [_arm_json(arm) | {"measure": arm.name in measures} for arm in self.arms]
        return {"format": 1, "budget": held, "arms": arms}

    def work(self) -> dict[str, float]:
        """Return how much training a run of each arm is: its measured seconds where those are held, else its FLOPs."""
        budget = self.study.budget
        if budget is not None and budget.hold == "seconds":
            amounts = {arm.name: arm.amount for arm in self.arms if arm.amount is not None}
            if len(amounts) == len(self.arms):
                return amounts
        return {arm.name: float(arm.cost.training_flops) for arm in self.arms}


def _arm_json(arm: PlannedArm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "label": arm.label,
        "parameters": arm.cost.parameters,
        "solved": arm.solved,
        "stage_flops": dict(zip(arm.cost.stages, arm.cost.stage_flops, strict=True)),
        "training_flops": arm.cost.training_flops,
        "sampling_flops": arm.cost.sampling_flops,
        "borrowed": arm.cost.borrowed,
        "target": arm.target,
        "amount": arm.amount,
    }


def plan(study: Study, settled: Mapping[str, Settled] | None = None, *, threads: int = 1) -> Plan:
    """Settle the sizes of a study's arms, and count what they cost; every arm is built once, nothing is trained.

    Cost: a build, a step of a few data points and a draw for each arm, and about 2 log2(n) builds where a size n is
    solved for; a budget of seconds times a hundred steps of each stage for each of those that differ in more than
    lengths.

    Args:
        study: What to plan.
        settled: By arm, what was settled before and is taken as it is, when a study goes on: sizes, and seconds, which
            would be others on a busier machine.
        threads: Threads of torch that each run will have, with which seconds are measured.

    Raises:
        ConfigurationError: with the faults of all arms: overrides that do not apply, parts that do not fit, a budget
            that cannot be met.
    """
    planner = _Planner(study, settled or {}, threads)
    arms = [planner.planned(arm) for arm in study.all_arms()]
    shared = shared_faults(study, study.all_arms())
    if planner.faults or shared:
        found = {name: planner.faults[name] for name in planner.arms if name in planner.faults}
        raise ConfigurationError(_all(found, shared))
    assert all(arm is not None for arm in arms)
    whole = tuple(arm for arm in arms if arm is not None)
    by_name = {arm.name: arm for arm in whole}
    runs = [
        PlannedRun(
            arm.name,
            seed,
            study.configuration(arm, seed, _overrides(by_name[arm.name].solved)),
            f"runs/{arm.name}-seed{seed}",
        )
        for arm in study.all_arms()
        for seed in study.seeds
    ]
    return Plan(study, whole, tuple(runs))


class _Planner:
    """Plans arm by arm, and keeps what went wrong."""

    def __init__(self, study: Study, settled: Mapping[str, Settled], threads: int) -> None:
        self.study, self.before = study, settled
        self.workshop = Workshop(threads)
        self.faults: dict[str, str] = {}  # by arm
        self.arms = {arm.name: arm for arm in study.all_arms()}
        for arm in self.arms.values():
            faults = arm_faults(study, arm)
            if faults:
                listed = "\n".join([f"{len(faults)} faults:", *(f"  - {fault}" for fault in faults)])
                self.faults[arm.name] = faults[0] if len(faults) == 1 else listed
        like = None if study.budget is None else study.budget.like
        self.references = {} if like is None else study.counterparts(like)
        self.amounts: dict[str, float | None] = {}
        if study.budget is not None and study.budget.hold == "seconds":  # of the machine as it was then
            self.amounts = {name: arm.amount for name, arm in settled.items()}

    def planned(self, arm: Arm) -> PlannedArm | None:
        """Return an arm as it will run; None where it has a fault, which is then kept."""
        study, budget = self.study, self.study.budget
        if arm.name in self.faults:
            return None
        try:
            target = None if budget is None else self._target(arm, budget)
            if self.references.get(arm.name) in self.faults:  # then what it must meet is not known
                return None
            before = self.before.get(arm.name)
            solved = {} if before is None else dict(before.solved)
            if budget is not None and target is not None and not solved:
                solved = self._solved(arm, budget, target)
            configuration = study.configuration(arm, study.seeds[0], _overrides(solved))
            cost = self.workshop.cost(configuration)
            amount = None if budget is None else self._amount(arm, budget, configuration, cost)
            timed = before is not None and budget is not None and budget.hold == "seconds"  # on another day
            if budget is not None and target is not None and amount is not None and not timed:
                _check_amount(amount, target, budget)
        except (LatentFlowsError, MemoryError, RuntimeError) as error:
            self._note(arm.name, error)
            return None
        return PlannedArm(arm.name, arm.label, configuration, cost, solved, target, amount)

    def _note(self, name: str, error: Exception) -> None:
        """Keep what went wrong with an arm; anything but a refusal or missing memory is raised again."""
        if not isinstance(error, LatentFlowsError) and not is_out_of_memory(error):
            raise error
        self.faults[name] = reason_of(error).replace(f"Arm {name!r}: ", "")  # it is named beside the fault

    def _target(self, arm: Arm, budget: Budget) -> float | None:
        """Return the amount that the arm must meet; None for one that sets it, or is not held."""
        if arm.solve == NOT_HELD:
            return None
        if budget.target is not None:
            return budget.target
        reference = self.references.get(arm.name)
        if reference is None:
            return None
        if reference not in self.amounts and reference not in self.faults:
            try:
                configuration = self.study.configuration(self.arms[reference], self.study.seeds[0])
                self.amounts[reference] = self.workshop.amount(configuration, budget.hold)
            except (LatentFlowsError, MemoryError, RuntimeError) as error:
                self._note(reference, error)
        return self.amounts.get(reference)

    def _solved(self, arm: Arm, budget: Budget, target: float) -> dict[str, int]:
        key = self.study.solves_for(arm)
        if key is None:
            return {}
        configure: Callable[[int], RunConfiguration] = partial(self._sized, arm, key)
        found = solve(configure, key, budget, target, self.workshop)
        self.amounts[arm.name] = found.amount
        return {key: found.value}

    def _sized(self, arm: Arm, key: str, size: int) -> RunConfiguration:
        return self.study.configuration(arm, self.study.seeds[0], _overrides({key: size}))

    def _amount(self, arm: Arm, budget: Budget, configuration: RunConfiguration, cost: Cost) -> float | None:
        """Return what an arm spends; what was counted or timed is not counted or timed again."""
        if arm.name not in self.amounts:
            try:
                seconds = budget.hold == "seconds"
                amount = self.workshop.seconds(configuration) if seconds else counted(cost, budget.hold)
                self.amounts[arm.name] = amount
            except LatentFlowsError:
                if arm.solve != NOT_HELD:
                    raise
                self.amounts[arm.name] = None
        return self.amounts[arm.name]


def _check_amount(amount: float, target: float, budget: Budget) -> None:
    if abs(amount - target) > budget.within * target:
        raise ConfigurationError(
            f"it has {shown_amount(amount, budget.hold)}, and the budget asks for {shown_amount(target, budget.hold)} "
            f"within {100 * budget.within:.3g}%. Name the key to solve for (`solve`), or `solve: {NOT_HELD}` for "
            "an arm that is not held to it."
        )


def _overrides(solved: Mapping[str, int]) -> list[str]:
    return [f"{key}={value}" for key, value in solved.items()]


def _all(faults: Mapping[str, str], shared: Sequence[str]) -> str:
    """Say what is wrong with which arms, and with all together; a fault that several share is said once."""
    texts = []
    for fault in dict.fromkeys(faults.values()):
        arms = [repr(arm) for arm, text in faults.items() if text == fault]
        texts.append(f"Arm{'s' if len(arms) > 1 else ''} {', '.join(arms)}: {fault}")
    texts += [f"{text[0].upper()}{text[1:]}" for text in shared]
    if len(texts) == 1:
        return texts[0]
    listed = "\n".join(f"  - {text}".replace("\n", "\n  ") for text in texts)
    head = (
        f"{len(faults)} arm{'s have' if len(faults) > 1 else ' has'} faults"
        if faults
        else "its arms do not compare"
    )
    return f"The study cannot run; {head}:\n{listed}"


def read_settled(path: Path) -> dict[str, Settled]:
    """Read by arm what a `plan.json` settled; nothing where there is no such file.

    Raises:
        CheckpointError: if it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {arm["name"]: _settled(arm) for arm in content["arms"]}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}). Remove it to plan anew.") from None


def _settled(arm: dict[str, Any]) -> Settled:
    amount = None if arm["amount"] is None else float(arm["amount"])
    return Settled({key: int(value) for key, value in arm["solved"].items()}, amount)
