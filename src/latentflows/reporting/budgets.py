"""The budgets of a study: what was held equal, at which sizes, and what each arm took."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from latentflows.core.errors import ConfigurationError
from latentflows.reporting.parts import Row
from latentflows.reporting.table import StudyTable, counted_runs, spent_amount
from latentflows.studies.execution.study_folder import read_back
from latentflows.studies.results.records import HeldEqual, PlannedArm
from latentflows.studies.results.results import Results
from latentflows.studies.results.verdicts import HELD, not_counted

Role = Literal["measure", "held", "free"]
_SOLVED = " Sizes were solved for before anything was trained."


@dataclass(frozen=True)
class ArmBudget:
    """What one arm took; None where it is not known.

    Attributes:
        arm: Its name.
        label: Name to show.
        solved: Sizes that the budget decided, such as "latent_dim=12"; empty for none.
        parameters: By part, and in total.
        amount: Of what is held equal; FLOPs and seconds of training as the runs took them.
        off: Relative difference from what the budget asks for, of FLOPs and seconds of training from those that the
            measure spent; None for an arm that it does not ask of, and where either is not known.
        within: Whether that is within the tolerance; None likewise.
        role: "measure" for one that others are to take as much as, "held" for those, "free" for the rest.
        stage_flops: FLOPs of one data point in a training step, by stage.
        training_flops: FLOPs of all training steps at full length.
        sampling_flops: FLOPs of drawing one data point.
        epochs: Over all stages, mean over seeds.
        steps: Optimizer steps, mean over seeds.
        seconds: Of training, mean over seeds.
    """

    arm: str
    label: str
    solved: str
    parameters: dict[str, int]
    amount: float | None
    off: float | None
    within: bool | None
    role: Role
    stage_flops: dict[str, float | None]
    training_flops: float | None
    sampling_flops: float | None
    epochs: float | None
    steps: float | None
    seconds: float | None


@dataclass(frozen=True)
class BudgetTable:
    """The budgets of all arms.

    Attributes:
        summary: What the study holds equal, in words.
        caption: The same in a sentence, and which arms do not hold it.
        held: Name of what is held equal; None for nothing.
        parts: Parts of the models that have parameters, then "total".
        arms: One per arm.
        has_flops: Whether `plan.json` says FLOPs of any arm.
    """

    summary: str
    caption: str
    held: str | None
    parts: list[str]
    arms: list[ArmBudget]
    has_flops: bool


def budget_table(results: Results, table: StudyTable) -> BudgetTable:
    """The budgets of a study.

    Args:
        results: The results.
        table: Their tables.
    """
    budget = None if results.plan is None else results.plan.budget
    asked = _asked(results, budget)
    arms = [_arm(results, row, asked.get(row.arm), budget) for row in table.rows]
    exceptions = "" if budget is None else _exceptions(arms) + _borrowed(results, budget)
    caption = _held_equal(results, budget) + exceptions
    parts = dict.fromkeys(part for arm in arms for part in arm.parameters if part != "total")
    return BudgetTable(
        summary=f"{caption}{'' if budget is None else _SOLVED}",
        caption=caption,
        held=None if budget is None else HELD.get(budget.hold, budget.hold),
        parts=[*parts, "total"],
        arms=arms,
        has_flops=any(arm.training_flops is not None or arm.stage_flops for arm in arms),
    )


def _asked(results: Results, budget: HeldEqual | None) -> dict[str, float | None]:
    """What the budget asks of every arm: FLOPs and seconds of training as its measure spent them, else as planned."""
    plan = [] if results.plan is None else results.plan.arms
    asked = {arm.name: arm.target for arm in plan}
    if budget is None or budget.like is None:
        return asked
    for arm, measure in _measures(results, budget).items():
        if asked.get(arm) is not None:
            asked[arm] = spent_amount(results, measure)
    return asked


def _measures(results: Results, budget: HeldEqual) -> dict[str, str]:
    """By arm, the one whose amount it is to meet; nothing where `study.json` does not tell."""
    if isinstance(budget.like, str):
        return dict.fromkeys(results.study.labels, budget.like)
    with suppress(ConfigurationError, ValueError):
        return read_back(results.folder / "study.json").counterparts(budget.like)
    return {}


def _arm(results: Results, row: Row, asked: float | None, budget: HeldEqual | None) -> ArmBudget:
    planned = results.planned(row.arm) or PlannedArm(name=row.arm)
    amount, off = spent_amount(results, row.arm), None
    if amount is not None and asked:
        off = amount / asked - 1
    records = [results.files(run).record for run in counted_runs(results, row.arm).values()]
    steps = [record.steps for record in records if record is not None]
    shown = planned.parameters if row.parameters is None else row.parameters.shown
    return ArmBudget(
        arm=row.arm,
        label=row.label,
        solved=", ".join(f"{key}={value}" for key, value in planned.solved.items()),
        parameters=shown,
        amount=amount,
        off=off,
        within=_within(off, budget),
        role=_role(row.arm, planned, budget),
        stage_flops=planned.stage_flops,
        training_flops=planned.training_flops,
        sampling_flops=planned.sampling_flops,
        epochs=None if row.epochs is None else row.epochs.mean,
        steps=sum(steps) / len(steps) if steps else None,
        seconds=None if row.seconds is None else row.seconds.mean,
    )


def _within(off: float | None, budget: HeldEqual | None) -> bool | None:
    if off is None or budget is None or budget.tolerance is None:
        return None
    return abs(off) <= budget.tolerance + 1e-12


def _role(arm: str, planned: PlannedArm, budget: HeldEqual | None) -> Role:
    if budget is not None and planned.target is not None:
        return "held"
    if budget is None or budget.target is not None:
        return "free"
    known = planned.measure
    measures = arm == budget.like or not isinstance(budget.like, str) if known is None else known
    return "measure" if measures else "free"


def _exceptions(arms: Sequence[ArmBudget]) -> str:
    """Name the arms that do not hold the budget, not asked or by another amount, and those of which it is not known."""
    found = [f"“{arm.label}” (not asked of it)" for arm in arms if arm.role == "free"]
    found += [
        f"“{arm.label}” ({100 * arm.off:+.0f}%)"
        for arm in arms
        if arm.off is not None and arm.within is False
    ]
    unknown = [f"“{arm.label}”" for arm in arms if arm.role != "free" and arm.amount is None]
    said = f" Not held by {', '.join(found)}." if found else ""
    return said + (f" What was spent is not known of {', '.join(unknown)}." if unknown else "")


def _held_equal(results: Results, budget: HeldEqual | None) -> str:
    if results.plan is None:
        return (
            "The study has no plan.json, so nothing is known to be held equal but the configuration that all arms "
            "share."
        )
    if budget is None:
        return "The study holds nothing equal but the configuration that all arms share."
    name = HELD.get(budget.hold, budget.hold)
    if budget.target is not None:
        at = f"at {budget.target:,.4g}" if budget.hold == "seconds" else f"at {budget.target:,.0f}"
    elif isinstance(budget.like, str):
        at = f"at that of “{results.study.labels.get(budget.like, budget.like)}”"
    else:
        at = "at that of the arm that differs in one factor alone"
    within = "" if budget.tolerance is None else f", within {100 * budget.tolerance:g}%"
    return f"Held equal: {name}, {at}{within}."


def _borrowed(results: Results, budget: HeldEqual) -> str:
    arms, labels = [] if results.plan is None else results.plan.arms, results.study.labels
    said = not_counted(budget.hold, {f"“{labels.get(arm.name, arm.name)}”": arm.borrowed for arm in arms})
    return f" {said}" if said else ""
