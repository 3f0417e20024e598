"""The results of a study, read from its folder: rows, curves and comparisons, as plain values or as pandas frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflows.core.errors import DataError
from latentflows.studies.results.cautions import of_comparison
from latentflows.studies.results.figures import BETTER_LOWER, OF_LIKELIHOOD, ON_DENSITY, WEIGHTED
from latentflows.studies.results.images import error_over_images
from latentflows.studies.results.protocols import level, model_differences, protocol_differences
from latentflows.studies.results.reading import RunFiles, read_record, read_records
from latentflows.studies.results.records import Plan, PlannedArm, Protocol, Quantity, Study, StudyRun
from latentflows.studies.results.rows import CURVE_COLUMNS, curve_rows, run_row
from latentflows.studies.statistics.differences import Interaction, PairedComparison, compare_pairs

if TYPE_CHECKING:
    from pandas import DataFrame

# Columns of frames that count something, and those that hold text; all others hold numbers.
_COUNTS = (
    "steps",
    "skipped_steps",
    "rollbacks",
    "epochs",
    "samples",
    "seeds",
    "comparisons",
    "seeds_for_observed",
    "seeds_for_smallest",
)
_TEXTS = ("reason", "folder", "likelihood", "prior_density", "bootstrap_method", "caution")


def read_results(folder: Path | str) -> Results:
    """Read a study folder: `study.json`, `study.jsonl` and, where there is one, `plan.json`.

    The files of single runs are read when something asks for them.

    Args:
        folder: A study folder, complete or not.

    Returns:
        The results; without `study.jsonl` there are no runs. A torn last line of it is counted.

    Raises:
        DataError: `study.json` is missing, or one of the files cannot be read or contradicts itself.
    """
    folder = Path(folder)
    path, lines_path = folder / "study.json", folder / "study.jsonl"
    study = read_record(path, Study)
    if study is None:
        raise DataError(f"{folder} must be a study folder, which holds study.json; found none.")
    _check_study(study, path)
    lines, torn_lines = read_records(lines_path, StudyRun)
    names = list(study.labels)
    for line in lines:
        if line.arm not in names:
            raise DataError(f"{lines_path}: `arm` must be one of {names}; got {line.arm!r}.")
        if Path(line.run).is_absolute() or ".." in Path(line.run).parts:
            raise DataError(f"{lines_path}: `run` must be a path inside {folder}; got {line.run!r}.")
    runs = {(line.arm, line.seed): line for line in lines}
    return Results(folder, study, runs, torn_lines, read_record(folder / "plan.json", Plan))


def _check_study(study: Study, path: Path) -> None:
    names = [arm.name for arm in study.arms]
    if len({arm.label for arm in study.arms}) < len(names) or len(set(names)) < len(names):
        raise DataError(f"{path}: names and labels of the arms must differ; got {names}. Rename one of them.")
    if study.baseline not in names:
        raise DataError(f"{path}: `baseline` must be one of the arms {names}; got {study.baseline!r}.")
    for pair in study.pairs:
        if not set(pair) <= set(names) or pair[0] == pair[1]:
            raise DataError(
                f"{path}: `comparisons` must hold pairs of two of the arms {names}; got {list(pair)}."
            )
    found = study.interaction
    arms = [] if found is None else [found.both, found.first, found.second, found.neither]
    if not set(arms) <= set(names) or len(set(arms)) < len(arms):
        raise DataError(f"{path}: `interaction` must hold four of the arms {names}; got {arms}.")


@dataclass(frozen=True, repr=False)
class Results:
    """The results of a study.

    Attributes:
        folder: The study folder.
        study: `study.json`.
        runs: The last line of `study.jsonl` for every arm and seed that has one.
        torn_lines: Torn last lines of `study.jsonl` that were left out, 0 or 1.
        plan: `plan.json`; None where there is none.

    Example:
        >>> results = read_results(Path("runs/study"))  # doctest: +SKIP
        >>> results.frame().groupby("label")["nll"].agg(["mean", "std"])  # doctest: +SKIP
        >>> results.comparisons("elbo")  # doctest: +SKIP
    """

    folder: Path
    study: Study
    runs: dict[tuple[str, int], StudyRun]
    torn_lines: int = 0
    plan: Plan | None = None

    def __repr__(self) -> str:
        """What a notebook shows: the study, how many runs have finished, and the mean NLL of every arm."""
        labels, seeds = self.study.labels, self.study.seeds
        finished = {arm: self.finished(arm) for arm in labels}
        counts = f"{sum(map(len, finished.values()))} of {len(labels) * len(seeds)} runs finished"
        lines = [f"Results of “{self.study.name}” in {self.folder}: {counts}."]
        width = max(map(len, labels.values()))
        for arm, label in labels.items():
            figures = [(run.figures or {}).get("nll") for run in finished[arm].values()]
            values = [figure.mean for figure in figures if figure is not None and math.isfinite(figure.mean)]
            mean = f"{math.fsum(values) / len(values):.2f}" if values else "none"
            kinds = dict.fromkeys(kind for run in finished[arm].values() if (kind := run.likelihood))
            of = "".join(f", {kind}" for kind in kinds)
            lines.append(f"  {label:<{width}}  mean NLL {mean} ({len(values)} of {len(seeds)} seeds){of}")
        return "\n".join([*lines, "Frames: frame(), curves(), comparisons()."])

    def frame(self) -> DataFrame:
        """One row for every run that the study asks for, as a frame: the columns of `rows`.

        Raises:
            ConfigurationError: if pandas is not installed.
        """
        return _frame(self.rows())

    def curves(self) -> DataFrame:
        """Every measured value of every epoch, as a long frame: the columns of `curve_rows`.

        Raises:
            ConfigurationError: if pandas is not installed.
        """
        return _frame(list(self.curve_rows()), CURVE_COLUMNS)

    def comparisons(
        self,
        metric: str = "nll",
        *,
        lower_is_better: bool | None = None,
        smallest_difference: float | None = None,
        level: float = 0.95,
    ) -> DataFrame:
        """The comparisons of `compare` as a frame, one row each.

        Raises:
            ConfigurationError: if pandas is not installed.
            DataError: as `compare`.
        """
        found = self.compare(
            metric, lower_is_better=lower_is_better, smallest_difference=smallest_difference, level=level
        )
        return _frame([self.comparison_row(comparison) for comparison in found])

    def compare(
        self,
        metric: str = "nll",
        *,
        lower_is_better: bool | None = None,
        smallest_difference: float | None = None,
        level: float = 0.95,
    ) -> list[PairedComparison]:
        """Compare the pairs of arms that the study names, by any figure, corrected for their number.

        The correction is for the comparisons of one figure. Who asks for several figures makes more comparisons.

        Args:
            metric: A figure as `rows` names it, such as "nll" or "holes.mmd_rbf".
            lower_is_better: For the words; None for what is known of the figure.
            smallest_difference: Smallest difference of interest, above 0 and in the unit of the figure; None for the
                study's, which is one of the NLL.
            level: Probability of the intervals; the tests have one minus it as their level.

        Returns:
            One comparison for each pair, in the study's order, then the interaction, where the study crosses two
            factors of two levels; without figures where no seed is shared.

        Raises:
            DataError: if no run has the figure, or runs differ in how they measured it, or those of an arm in size; if
                `smallest_difference` is no finite number above 0.
        """
        values = {arm: self.values(metric, arm) for arm in self.study.labels}
        known = {
            name: None for run in self.runs.values() for name in [*(run.figures or {}), *self.quantities(run)]
        }
        if known and metric not in known:
            raise DataError(f"No run has the figure {metric!r}. There are: {', '.join(known)}.")
        differences = self.protocol_differences(metric)
        if differences:
            raise DataError(
                f"The runs differ in what must be equal, so their figures of {metric!r} do not compare: "
                f"{'; '.join(differences)}."
            )
        if smallest_difference is None and metric == "nll":
            smallest_difference = self.study.smallest_difference
        better = BETTER_LOWER.get(metric.rpartition(".")[2]) if lower_is_better is None else lower_is_better
        found = compare_pairs(
            values,
            self.study.pairs,
            metric=metric,
            lower_is_better=better,
            smallest_difference=smallest_difference,
            level=level,
            interaction=self._interaction(),
        )
        return found if metric != "nll" else [self._with_error_over_images(one) for one in found]

    def _interaction(self) -> Interaction | None:
        asked = self.study.interaction
        return None if asked is None else Interaction(**asked.model_dump(exclude={"labels"}))

    def _with_error_over_images(self, found: PairedComparison) -> PairedComparison:
        error = error_over_images(self, found.weights, found.by_seed)
        return replace(found, error_over_images=error)

    def comparison_row(self, found: PairedComparison) -> dict[str, Any]:
        """The plain values of a comparison, with the names to show of both arms, or of an interaction."""
        labels, crossed = self.study.labels, self.study.interaction
        caution = {"caution": " ".join(self.density_cautions(found.metric, found.weights)) or None}
        if found.interaction is not None and crossed is not None:
            return {
                "arm": found.arm,
                "label": crossed.name,
                "other": None,
                "other_label": None,
                **found.row(),
                **caution,
            }
        names = {
            "arm": found.arm,
            "label": labels[found.arm],
            "other": found.other,
            "other_label": labels[found.other],
        }
        return {**names, **found.row(), **caution}

    def values(self, metric: str, arm: str) -> dict[int, float]:
        """A figure at every seed of an arm that the study asks for, where the run finished and the figure is finite."""
        found = {}
        for seed, run in self.finished(arm).items():
            quantity = self.quantities(run).get(metric)
            if quantity is not None and math.isfinite(quantity.mean):
                found[seed] = quantity.mean
        return found

    def finished(self, arm: str) -> dict[int, StudyRun]:
        """Finished runs of an arm by seed, of the seeds that the study asks for."""
        runs = {seed: self.runs.get((arm, seed)) for seed in self.study.seeds}
        return {seed: run for seed, run in runs.items() if run is not None and run.status == "finished"}

    def quantities(self, run: StudyRun) -> dict[str, Quantity]:
        """Every figure of a run: those of the bounds by their names, those of groups as `group.figure`, and seconds.

        Bounds are those of `study.jsonl`, measured when the run ended; groups are read from `evaluation.json`.
        """
        found = {name: figure for name, figure in (run.figures or {}).items() if figure is not None}
        for group, content in self.files(run).groups.items():
            found |= {f"{group}.{name}": item for name, item in content.figures.items() if item is not None}
        if run.seconds is not None:
            found["seconds"] = Quantity(mean=run.seconds, unit="s")
        return found

    def unit(self, metric: str) -> str:
        """Unit of a figure; empty where no run has it."""
        found = (self.quantities(run).get(metric) for run in self.runs.values())
        return next((quantity.unit for quantity in found if quantity is not None), "")

    def protocol_differences(self, metric: str) -> list[str]:
        """In which fields of its protocol, other than the seed, the runs that count measured a figure differently.

        And which arms hold models of several sizes: they were built before and after a change of the code.
        """
        labels = self.study.labels
        found = {
            f"{labels[arm]}, seed {seed}": protocol
            for (arm, seed), protocol in self.compared_protocols(metric).items()
        }
        sizes = {
            label: {seed: self.runs[arm, seed].parameters for seed in self.values(metric, arm)}
            for arm, label in labels.items()
        }
        return protocol_differences(found) + model_differences(sizes)

    def compared_protocols(self, metric: str) -> dict[tuple[str, int], dict[str, Any]]:
        """How each run that counts, by arm and seed, measured a figure, without what makes no difference."""
        found = {
            (arm, seed): protocol
            for arm in self.study.labels
            for seed in self.values(metric, arm)
            # none of a run whose folder is gone, and with it the timing
            if (protocol := self._protocol(self.runs[arm, seed], metric))
        }
        by_arm: dict[str, list[dict[str, Any]]] = {}
        for (arm, _), protocol in found.items():
            by_arm.setdefault(arm, []).append(protocol)
        level(by_arm)
        return found

    def _protocol(self, run: StudyRun, metric: str) -> dict[str, Any]:
        group, dot, figure = metric.rpartition(".")
        if dot:
            kind = {"likelihood": run.likelihood} if figure in OF_LIKELIHOOD.get(group, ()) else {}
            return self.files(run).groups[group].protocol | kind
        if metric == "seconds":
            return self.files(run).timing
        return {"protocol": "not recorded"} if run.protocol is None else run.protocol.compared

    def protocols(self, metric: str, arm: str) -> list[Protocol]:
        """How the runs of an arm that count were measured, as far as that is known."""
        runs = (self.runs[arm, seed] for seed in self.values(metric, arm))
        return [run.protocol for run in runs if run.protocol is not None]

    def density_cautions(self, metric: str, arms: Iterable[str], quantity: str | None = None) -> list[str]:
        """What densities that are not exact mean for a comparison of arms by a figure; nothing where all are exact.

        Args:
            metric: The figure.
            arms: What is compared.
            quantity: What the figure is called; None for its key.
        """
        group, _, figure = metric.rpartition(".")
        if figure not in ON_DENSITY.get(group, ()):
            return []
        found = {self.study.labels[arm]: self.protocols(metric, arm) for arm in arms}
        samples = {one.num_importance_samples for protocols in found.values() for one in protocols}
        weighted = figure in WEIGHTED and samples != {1}
        return of_comparison(found, quantity=quantity or figure.replace("_", " "), weighted=weighted)

    def planned(self, arm: str) -> PlannedArm | None:
        """What `plan.json` says of an arm; None where it says nothing."""
        arms = [] if self.plan is None else self.plan.arms
        return next((planned for planned in arms if planned.name == arm), None)

    def place(self, arm: str, seed: int) -> str:
        """Folder of a run within that of the study, also of one that has not been run yet."""
        run = self.runs.get((arm, seed))
        return f"runs/{arm}-seed{seed}" if run is None else run.run

    def status(self, arm: str, seed: int) -> str:
        """Status of a run by `study.jsonl`; without a line there "started" if it has a `run.json`, else "not run"."""
        run = self.runs.get((arm, seed))
        if run is not None:
            return run.status
        return "not run" if self.files_of(arm, seed).record is None else "started"

    def files(self, run: StudyRun) -> RunFiles:
        """The files of a run that has a line; each is read once."""
        return self._read(run.run)

    def files_of(self, arm: str, seed: int) -> RunFiles:
        """The files of a run, as far as it got; each is read once."""
        return self._read(self.place(arm, seed))

    def _read(self, place: str) -> RunFiles:
        if place not in self._files:
            self._files[place] = RunFiles(self.folder / place)
        return self._files[place]

    @cached_property
    def _files(self) -> dict[str, RunFiles]:
        return {}

    def rows(self) -> list[dict[str, Any]]:
        """One row for every run that the study asks for, as plain values: what `frame` holds.

        Columns: arm, label, seed, status, reason, folder, seconds, steps, skipped_steps and rollbacks (of steps
        that were not finite), epochs, likelihood (what log p(x) is: two kinds do not compare), prior_density,
        `parameters.PART`, `solved.KEY`, every figure by its name with `FIGURE.standard_error` and, where there
        are, `FIGURE.monte_carlo_error` and `FIGURE.p_value`. Statuses are those of `status`.
        """
        return [run_row(self, arm, seed) for arm in self.study.labels for seed in self.study.seeds]

    def curve_rows(self) -> Iterator[dict[str, Any]]:
        """Every measured value of every epoch, as plain values: what `curves` holds.

        Columns: arm, label, seed, stage, epoch (within the stage), step, samples, seconds, flops (all four over the
        whole run), split ("train", "validation" or "diagnostics"), metric, value. FLOPs are those of training steps
        by `plan.json`, without validation; None where it does not say them.
        """
        for arm in self.study.arms:
            for seed in self.study.seeds:
                if run := self.runs.get((arm.name, seed)):
                    yield from curve_rows(self, arm.name, run)


def _frame(rows: list[dict[str, Any]], columns: Sequence[str] | None = None) -> DataFrame:
    """Rows as a frame: counts are whole numbers that may be missing, and a number that no row has is NaN."""
    from latentflows.core.optional import import_optional

    frame = import_optional("pandas", install="latentflows[pandas]").DataFrame(rows, columns=columns)
    for name in frame.columns:
        if name in _COUNTS or name.startswith(("parameters.", "solved.")):
            frame[name] = frame[name].astype("Int64")
        elif name == "better":
            frame[name] = frame[name].astype("boolean")
        elif name not in _TEXTS and frame[name].isna().all():
            frame[name] = frame[name].astype("float64")
    return frame
