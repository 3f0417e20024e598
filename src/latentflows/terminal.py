"""What the command line shows: the progress of a comparison, its table, figures and lists."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latentflows.core.errors import DataError, LatentFlowsError

if TYPE_CHECKING:
    from rich.table import Table

    from latentflows.reporting.parts import Part
    from latentflows.reporting.table import StudyTable
    from latentflows.studies.execution.compare import Progress
    from latentflows.studies.planning.plan import Plan, PlannedArm
    from latentflows.studies.planning.study import Budget, Study


_INTERACTION = (
    " Interaction: with both, minus with each alone, plus with neither; negative: together they lower it by more, or "
    "raise it by less, than the sum of what each does alone."
)
_SHOWN_RUNS = 3  # names of runs beside the bar of a study


class ComparisonBar:
    """A whole comparison as one bar, with an estimate of the time left and the runs under way."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )

    def show(self, progress: Progress) -> None:
        """Bring the bar up to date; it appears with the first call."""
        if not self.bar.tasks:
            self.bar.start()
            self.bar.add_task("", total=1.0, note="")
        seconds = progress.seconds_left
        notes = [] if seconds is None else [f"about {int(seconds) // 60}:{int(seconds) % 60:02d} left"]
        active = [f"{name} {100 * fraction:.0f}%" for name, fraction in progress.active.items()]
        more = [f"{len(active) - _SHOWN_RUNS} more"] if len(active) > _SHOWN_RUNS else []
        notes += active[:_SHOWN_RUNS] + more
        self.bar.update(
            self.bar.tasks[0].id,
            completed=progress.fraction,
            description=f"runs {progress.done}/{progress.total}",
            note=", ".join(notes),
        )

    def stop(self) -> None:
        """Leave the bar as it is; nothing is printed where it never appeared."""
        if self.bar.tasks:
            self.bar.stop()


def show_figures(figures: dict[str, Any], protocol: dict[str, Any]) -> None:
    """Print the figures of an evaluation with their errors, one per line, and how they were measured."""
    from latentflows.studies.results.records import Protocol

    shown = {name: figure for name, figure in figures.items() if figure and figure["mean"] is not None}
    for name, figure in shown.items():
        typer.echo(_figure_line(name.replace("_", " "), figure))
    measured = Protocol.model_validate(protocol)
    typer.echo(f"Measured on: {measured.conditions}.")
    finite = any(figure.get("monte_carlo_error") is not None for figure in shown.values())
    noise = " Monte Carlo error: from finite K, at the same data points." if finite else ""
    typer.echo(f"±: standard error over data points.{noise}")
    if measured.caution:
        typer.echo(measured.caution)


def show_training_note(folder: Path) -> None:
    """Say what a run was trained for, where that is no bound on log p(x)."""
    from latentflows.reporting.run_page import training_note

    note = training_note((folder / "config.yaml").read_text(encoding="utf-8"))
    if note:
        typer.echo(note)


def show_groups(evaluation: dict[str, Any]) -> None:
    """Print the groups of figures of an evaluation, each with its protocol, or why it was not measured."""
    from latentflows.reporting.groups import group_tables
    from latentflows.studies.results.records import Evaluation

    for table in group_tables(Evaluation.model_validate(evaluation)):
        typer.echo(f"\n{table.title}")
        if table.reason is not None:
            typer.echo(f"Not measured: {table.reason}")
            continue
        width = max((len(words.name) for words, _ in table.rows), default=0)
        for words, quantity in table.rows:
            figure = quantity.model_dump()
            typer.echo(_figure_line(words.name, figure, max(words.decimals, 3), width))
        typer.echo(f"By: {table.protocol}.")


def _figure_line(name: str, figure: dict[str, Any], decimals: int = 3, width: int = 22) -> str:
    error, noise, p = (figure.get(key) for key in ("standard_error", "monte_carlo_error", "p_value"))
    spread = "" if error is None else f" ± {error:.{decimals}f}"
    finite = "" if noise is None else f" (Monte Carlo error {noise:.2g})"
    tested = "" if p is None else f" (p-value {p:.3f})"
    return f"{name:>{width}}  {figure['mean']:.{decimals}f}{spread} {figure['unit']}{finite}{tested}"


def show_table(folder: Path) -> None:
    """Print a study: one row per arm, one per comparison, and in words what the figures support."""
    from rich.console import Console

    from latentflows.reporting.limits import limits
    from latentflows.reporting.parts import MARK_WORDS
    from latentflows.reporting.table import table_of
    from latentflows.studies.results.results import read_results

    results = read_results(folder)
    found = table_of(results)
    console = Console(markup=False, highlight=False)
    for part in found.parts:
        if len(found.parts) > 1 and part.protocols:
            console.print(f"Measured on: {'; or: '.join(part.protocols)}.")
        console.print(_arm_table(found, part))
    marked = f" {MARK_WORDS.replace('above', 'below')}" if any(part.marked for part in found.parts) else ""
    console.print(
        f"\n{found.quantity[0].upper()}{found.quantity[1:]} in nats: mean over seeds with its 95% t interval. Epochs: "
        f"over all stages.{marked}\n"
    )
    if found.tested:
        num = len(found.tested)
        corrected = f", corrected for {num} comparisons by Holm's procedure" if num > 1 else ""
        console.print(_comparison_table(found))
        crossed = "" if found.interaction is None else _INTERACTION
        console.print(f"\nDifferences at the same seed. p: paired t-test{corrected}.{crossed}\n")
    for compared in found.tested:
        console.print(f"{compared.verdict}\n")
    for difference in found.protocol_differences:
        console.print(f"The figures do not compare: {difference}\n")
    console.print(f"What does not follow. {' '.join(limits(results, found))}\n")


def _arm_table(found: StudyTable, part: Part) -> Table:
    from latentflows.studies.statistics.means import format_interval, format_mean

    table = _plain_table("arm", ("parameters", "epochs", found.quantity, "95% interval"))
    for row in part.rows:
        table.add_row(
            row.name,
            "" if row.parameters is None else f"{row.parameters.total:,}",
            "" if row.epochs is None else f"{row.epochs.mean:.0f}",
            "none" if row.nll is None else f"{row.mark}{format_mean(row.nll, found.decimals)}",
            "" if row.nll is None else format_interval(row.nll, found.decimals),
        )
    return table


def _comparison_table(found: StudyTable) -> Table:
    from latentflows.studies.statistics.means import format_interval, format_mean, format_p_value

    heading = f"difference to {found.baseline}" if found.baseline else "difference"
    table = _plain_table(heading, ("mean", "95% interval", "p"))
    for compared in found.tested:
        difference, decimals = compared.comparison.difference, found.difference_decimals
        table.add_row(
            compared.label
            if found.baseline or not compared.other_label
            else f"{compared.label} − {compared.other_label}",
            "none" if difference is None else format_mean(difference, decimals),
            "" if difference is None else format_interval(difference, decimals),
            format_p_value(compared.comparison.corrected_p_value),
        )
    return table


def _plain_table(first: str, headings: tuple[str, ...]) -> Table:
    """A table whose first column alone wraps in a narrow terminal, so that no figure is cut."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), collapse_padding=True, pad_edge=False)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def show_plan(plan: Plan) -> None:
    """Print what a study would run: sizes, parameters and FLOPs of each arm."""
    budget, study = plan.study.budget, plan.study
    width = max(len("arm"), *(len(arm.name) for arm in plan.arms))
    typer.echo(f"{study.name}\n")
    typer.echo(f"{'arm':<{width}}  {'parameters':>12}  {'training':>9}  {'a draw':>9}  held")
    for arm in plan.arms:
        draw = "none" if arm.cost.sampling_flops is None else f"{arm.cost.sampling_flops:.2e}"
        sizes = f"{arm.cost.parameters['total']:>12,}  {arm.cost.training_flops:>9.2e}  {draw:>9}"
        typer.echo(f"{arm.name:<{width}}  {sizes}  {_held(arm, study)}")
        parts = [f"{part} {count:,}" for part, count in arm.cost.parameters.items() if part != "total"]
        solved = [f"solved: {key}={value}" for key, value in arm.solved.items()]
        typer.echo(f"{'':<{width}}    {'; '.join([' + '.join(parts), *solved])}")
    typer.echo(
        "\ntraining: FLOPs of all stages at their full length. a draw: FLOPs of drawing one data point.\n"
        "Matrix products and convolutions alone; an addition and a multiplication are two."
    )
    if budget is not None:
        _show_budget(plan, budget)
    shown = "; ".join(f"{arm} with {other}" for arm, other in study.pairs())
    if crossed := study.interaction():
        both, *alone, neither = (crossed[arm] for arm in ("both", "first", "second", "neither"))
        shown += f"; the interaction {both} − {' − '.join(alone)} + {neither}"
    typer.echo(f"Compared: {shown or 'nothing'}.")
    arms, seeds, runs = _number(plan.arms, "arm"), _number(study.seeds, "seed"), _number(plan.runs, "run")
    typer.echo(f"{arms} x {seeds}: {runs}.")


def _show_budget(plan: Plan, budget: Budget) -> None:
    """Print what is held equal, and what it leaves out."""
    from latentflows.studies.planning.budget import shown_amount
    from latentflows.studies.results.verdicts import not_counted

    targets = dict.fromkeys(
        shown_amount(arm.target, budget.hold) for arm in plan.arms if arm.target is not None
    )
    what = budget.hold.replace("_", " ").replace("flops", "FLOPs")
    alone = " Seeds train one by one, as they were timed." if budget.hold == "seconds" else ""
    typer.echo(f"Held equal: {what}, at {' or '.join(targets)}, within {100 * budget.within:.3g}%.{alone}")
    if left_out := not_counted(budget.hold, {arm.name: arm.cost.borrowed for arm in plan.arms}):
        typer.echo(left_out)


def _number(what: Sequence[object], name: str) -> str:
    return f"{len(what)} {name}" if len(what) == 1 else f"{len(what)} {name}s"


def show_untaken(study: Study, overrides: Sequence[str]) -> None:
    """Say on stderr which changes do not reach every arm, and which keys of `base` no arm has from there."""
    from latentflows.studies.planning.study_file import untaken, unused

    if keys := unused(study):
        shown = ", ".join(f"`{key}`" for key in keys)
        typer.echo(
            f"Note: no arm has {shown} from `base`: all set or solve for it, or choose parts without such a key.",
            err=True,
        )
    for text, arms in untaken(study, overrides).items():
        typer.echo(
            f"Note: `{text}` does not reach {', '.join(arms)}: what an arm sets or solves for comes after it.",
            err=True,
        )


def _held(arm: PlannedArm, study: Study) -> str:
    """Say how an arm stands to the budget."""
    from latentflows.studies.planning.budget import shown_amount

    if study.budget is None:
        return "nothing"
    spent = "" if arm.amount is None else shown_amount(arm.amount, study.budget.hold)
    if arm.target is None or arm.amount is None:
        return f"{spent}, which others meet" if arm.name in _references(study) else f"not held: {spent}"
    return f"{spent} ({arm.amount / arm.target - 1:+.1%})" if arm.target else f"{spent} (none, as asked for)"


def _references(study: Study) -> set[str]:
    """Return the arms whose amounts the others meet."""
    like = None if study.budget is None else study.budget.like
    return set() if like is None else set(study.counterparts(like).values())


def list_components() -> None:
    """Print the kinds of every part."""
    from latentflows.studies.settings.options import kinds

    width = max(len(f"{kind.key}={kind.allowed}") for kind in kinds())
    for kind in kinds():
        typer.echo(f"{kind.key + '=' + kind.allowed:<{width}}  {kind.description}")


def list_options() -> None:
    """Print every key of a configuration with its default, what it means and what it takes."""
    from latentflows.studies.settings.options import options

    for option in options():
        where = f" [{', '.join(option.kinds)}]" if option.kinds else ""
        typer.echo(f"{option.key}={option.default}{where}\n    {option.description} Takes {option.allowed}.")
    typer.echo("Kinds, as in posterior=iaf, are shown by: latentflows list components")


def list_runs(folder: Path) -> None:
    """Print the runs below a folder with status, NLL and size, and before those of a study how many have finished.

    Raises:
        DataError: if there is no such folder.
    """
    if not folder.is_dir() and folder != Path("runs"):
        close = difflib.get_close_matches(str(folder).lower(), ("components", "options"), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        found = "it is a file" if folder.is_file() else "there is no such folder"
        raise DataError(f"`{folder}` must be a folder of runs, `components` or `options`; {found}.{hint}")
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"`{folder}` cannot be looked into. Get the right to it, or name another folder.")
    found = [path for name in ("run.json", "study.json") for path in folder.glob(f"**/{name}")]
    if not found:
        typer.echo(f"No runs in {folder}. Make one with: latentflows train")
    for path in sorted(found, key=lambda path: path.parent):
        try:
            line = _run_line(path.parent) if path.name == "run.json" else _study_line(path.parent)
        except (LatentFlowsError, OSError) as error:
            line = f"unreadable: {error}"
        typer.echo(f"{path.parent}  {line}")


def _study_line(folder: Path) -> str:
    from latentflows.reporting.standing import is_study_under_way
    from latentflows.studies.results.results import read_results

    results = read_results(folder)
    study = results.study
    under_way = ", under way" if is_study_under_way(results) else ""
    asked = [(arm, seed) for arm in study.labels for seed in study.seeds]
    ended = [results.runs[key] for key in asked if key in results.runs]
    num_finished = sum(run.status == "finished" for run in ended)
    return f"study: {num_finished} of {len(asked)} run{'s' if len(asked) > 1 else ''} finished{under_way}"


def _run_line(folder: Path) -> str:
    from latentflows.studies.results.reading import read_evaluation, read_record
    from latentflows.studies.results.records import RunRecord

    record, evaluation = read_record(folder / "run.json", RunRecord), read_evaluation(folder)
    if record is None:
        return "unreadable: run.json is gone"
    shown = "not evaluated"
    if evaluation is not None:
        content = evaluation.model_dump()
        shown = _likelihood_line(content["figures"], content["protocol"])
    return f"{record.status:<12} {shown:<76} {record.parameters.total:>10,} parameters"


def _likelihood_line(figures: dict[str, Any], protocol: dict[str, Any]) -> str:
    """The NLL, or the bound that codes give, with what it rests on."""
    found = figures.get("nll") or figures.get("nll_bound")
    if found is None:
        return "no NLL"
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.2f}"
    name, k = "NLL" if figures.get("nll") else "NLL bound", protocol["num_importance_samples"]
    weights = "" if k is None else f" (K = {k:,})"
    kind = "" if protocol["likelihood"] is None else f", {protocol['likelihood']}"
    return f"{protocol['split']} {name} {found['mean']:.2f}{error} nats{weights}{kind}"
