"""Figures of a study's report: paired differences, every run, and learning curves against what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentflows.reporting.drawing import (
    FEW_EPOCHS,
    INK,
    MARKERS,
    MUTED,
    SERIES_LIGHT,
    Drawing,
    dots,
    figure_of,
    finish,
    legend_below,
    limit,
    series_style,
    styled_axes,
    wrap,
)
from latentflows.studies.statistics.differences import PairedComparison
from latentflows.studies.statistics.means import format_interval, format_mean, format_number, format_p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

Band = tuple[float, float, float, float]  # position, mean, lowest, highest
MOST_BANDS = 6  # arms; the bands of more hide each other
Points = Mapping[tuple[str, int], tuple[float, float]]  # position and value of a run by stage and epoch


@dataclass(frozen=True)
class Contrast:
    """One row of the forest plot.

    Attributes:
        label: Name to show.
        comparison: What is drawn.
        links: Addresses of the runs of its arm, by seed.
    """

    label: str
    comparison: PairedComparison
    links: Mapping[int, str]


@dataclass(frozen=True)
class Axis:
    """What curves are drawn against.

    Attributes:
        name: Ending of the figure's name.
        label: What it is, in words.
        shortened: Whether to shorten large numbers.
        counted: Whether it takes whole numbers alone.
    """

    name: str
    label: str
    shortened: bool = False
    counted: bool = False


AXES = (
    Axis("step", "optimizer steps", counted=True),
    Axis("samples", "data points seen in training", shortened=True, counted=True),
    Axis("flops", "FLOPs of training steps, forward and backward", shortened=True),
    Axis("seconds", "seconds of training"),
)


def forest_plot(
    rows: Sequence[Contrast], others: str, quantity: str = "NLL", unit: str = "nats"
) -> Drawing | None:
    """Paired differences: every seed as a dot, the mean with its t interval and, beside it, the bootstrap interval.

    A filled diamond marks a difference that the corrected t-test finds.

    Args:
        rows: The comparisons that have a difference.
        others: What is subtracted, in words.
        quantity: What was measured.
        unit: Its unit.
    """
    if not rows:
        return None
    with styled_axes(5.6, 2.3 + 0.62 * len(rows)) as axes:
        axes.axvline(0, color=INK, linewidth=1.2)
        for place, row in enumerate(rows):
            _draw_contrast(axes, place, row)
        _label_rows(axes, [row.label for row in rows])
        lower = rows[0].comparison.lower_is_better
        side = {True: "\n(left of 0 is better)", False: "\n(right of 0 is better)", None: ""}[lower]
        text = f"{quantity} minus that of {others}, {unit}"
        if len(text) > 42:  # what is wider than the axes is cut off
            text = f"{quantity} minus that of\n{wrap(f'{others}, {unit}', 42)}"
        axes.set_xlabel(f"{text}{side}")
        _legend_of_forest(axes, rows[0].comparison)
        alt = f"Paired differences in {quantity} to {others}, in {unit}. {'; '.join(map(_in_words, rows))}."
        return finish(axes, "paired_differences", "Paired differences", alt)


def _draw_contrast(axes: Axes, place: int, row: Contrast) -> None:
    comparison = row.comparison
    mean = comparison.difference
    assert mean is not None  # rows without a difference are not drawn
    color = SERIES_LIGHT[0] if comparison.significant else MUTED
    if mean.low is not None and mean.high is not None:
        axes.plot([mean.low, mean.high], [place, place], "|-", color=color, linewidth=1.6, markersize=9)
    if mean.bootstrap is not None:
        ends = [mean.bootstrap.low, mean.bootstrap.high]
        axes.plot(ends, [place, place], color=color, linewidth=5, solid_capstyle="butt", alpha=0.55)
    axes.plot(
        mean.mean,
        place,
        marker="D",
        markersize=8,
        markeredgewidth=1.6,
        markeredgecolor=color,
        markerfacecolor=color if comparison.significant else "#ffffff",
    )
    seeds = comparison.by_seed
    shown = axes.scatter(
        list(seeds.values()), [place + 0.26] * len(seeds), s=18, color=SERIES_LIGHT[1], zorder=3
    )
    shown.set_urls([row.links.get(seed) for seed in seeds])


def _in_words(row: Contrast) -> str:
    mean, comparison = row.comparison.difference, row.comparison
    assert mean is not None  # rows without a difference are not drawn
    found = (
        ""
        if comparison.corrected_p_value is None
        else f", corrected p {format_p_value(comparison.corrected_p_value)}"
    )
    return (
        f"{row.label}: {format_mean(mean)}, {100 * mean.level:g}% t interval {format_interval(mean)}{found}"
    )


def _legend_of_forest(axes: Axes, comparison: PairedComparison) -> None:
    from matplotlib.lines import Line2D

    percent = f"{100 * (1 - comparison.level):g}%"
    corrected = "corrected " if comparison.num_comparisons > 1 else ""
    filled: dict[str, Any] = {"color": SERIES_LIGHT[0], "marker": "D", "linestyle": ""}
    hollow: dict[str, Any] = {"color": MUTED, "marker": "D", "markerfacecolor": "#ffffff", "linestyle": ""}
    entries = [
        Line2D([], [], **filled, label=f"mean, {corrected}p at most {comparison.level:g}"),
        Line2D([], [], **hollow, label="mean, no difference shown"),
        Line2D([], [], color=MUTED, marker="|", markersize=9, linewidth=1.6, label=f"{percent} t interval"),
        Line2D([], [], color=MUTED, linewidth=5, alpha=0.55, label=f"{percent} bootstrap interval"),
        Line2D([], [], color=SERIES_LIGHT[1], marker="o", markersize=4, linestyle="", label="one seed"),
    ]
    figure_of(axes).legend(handles=entries, loc="outside lower left", ncols=2, fontsize=9)


def run_dots(
    values: Mapping[str, Mapping[int, float]],
    links: Mapping[str, Mapping[int, str]],
    quantity: str = "NLL",
    side: str = "left is better",
    unit: str = "nats",
) -> Drawing | None:
    """Every single run as a dot, the mean of each arm as a tick.

    Args:
        values: For every label, the value of each finished run by seed; an arm may have none.
        links: Addresses of the runs, likewise.
        quantity: What was measured.
        side: Which side is better, in words.
        unit: Unit of the figure.
    """
    if not any(values.values()):
        return None
    with styled_axes(5.6, 1.2 + 0.5 * len(values)) as axes:
        for place, (label, runs) in enumerate(values.items()):
            color, marker = SERIES_LIGHT[place % len(SERIES_LIGHT)], MARKERS[place % len(MARKERS)]
            shown = axes.scatter(
                list(runs.values()), [place] * len(runs), s=40, marker=marker, color=color, alpha=0.85
            )
            shown.set_urls([links.get(label, {}).get(seed) for seed in runs])
            if runs:
                mean = math.fsum(runs.values()) / len(runs)
                axes.plot(mean, place, "|", color=INK, markersize=20, markeredgewidth=2)
        _label_rows(axes, list(values))
        axes.set_xlabel(f"{quantity}, {unit} ({side})\nvertical tick: mean of the arm")
        parts = (
            f"{label}: {', '.join(map(format_number, runs.values())) or 'no run'}"
            for label, runs in values.items()
        )
        return finish(
            axes, "every_run", "Every run", f"{quantity} of every run in {unit}. {'; '.join(parts)}."
        )


def validation_curves(
    arms: Mapping[str, Sequence[Points]], axis: Axis, quantity: str = "ELBO", better: str = "higher is better"
) -> Drawing | None:
    """A validation figure of every arm against steps, samples, FLOPs or seconds: mean, and band over seeds.

    Both position and value are means over seeds at the same epoch of the same stage, where every seed reached it; a
    line is broken between stages, which seeds that stop early end at different epochs. With more than `MOST_BANDS`
    arms there are no bands.

    Args:
        arms: For every label, positions and values of every seed; NaN where either is not known.
        axis: What it is drawn against.
        quantity: What was measured, in nats.
        better: Which way is better, in words.
    """
    stages = {label: _bands(runs) for label, runs in arms.items()}
    bands = {label: [point for points in found for point in points] for label, found in stages.items()}
    if not any(bands.values()):
        return None
    with styled_axes(5.0, 3.3 + 0.17 * len(bands)) as axes:
        axes.set_xlabel(axis.label)
        for index, (label, found) in enumerate(stages.items()):
            style = series_style(index)
            axes.plot([], [], label=wrap(label, 40), **style)
            for points in found:
                positions, means, lows, highs = zip(*points, strict=True)
                axes.plot(positions, means, marker=dots(means), markersize=3, **style)
                if len(bands) <= MOST_BANDS:
                    axes.fill_between(positions, lows, highs, color=style["color"], alpha=0.18, linewidth=0)
        if axis.counted:
            axes.xaxis.set_major_locator(_whole_numbers())
        if axis.shortened:
            _shorten(axes)
        if max(map(len, bands.values())) >= FEW_EPOCHS:
            _limit_to_second_half(axes, bands.values())
        axes.set_ylabel(f"validation {quantity}, nats\n({better})")
        legend_below(axes)
        ends = "; ".join(
            f"{label} ends at {format_number(points[-1][1])} after {points[-1][0]:.4g}"
            for label, points in bands.items()
            if points
        )
        alt = f"Mean validation {quantity} in nats against {axis.label}, with the range over seeds: {ends}."
        return finish(axes, f"curves_{axis.name}", f"Against {axis.label}", alt)


def _shorten(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NARROW NO-BREAK SPACE}"))


def _whole_numbers() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)


def _limit_to_second_half(axes: Axes, bands: Iterable[Sequence[Band]]) -> None:
    """Fit the axis to the second half of every line: there the differences between arms are to be seen."""
    late = [value for points in bands for point in points[len(points) // 2 :] for value in point[2:]]
    limit(axes, min(late), max(late), [point[1] for points in bands for point in points])


def _bands(runs: Sequence[Points]) -> list[list[Band]]:
    """Mean position, mean, lowest and highest value of every epoch where every seed has finite ones, by stage."""
    stages: dict[str, list[Band]] = {}
    for key in runs[0] if runs else ():
        found = [run[key] for run in runs if key in run and all(map(math.isfinite, run[key]))]
        if len(found) == len(runs):  # a mean over other seeds would make a step in the line
            positions, values = zip(*found, strict=True)
            mean = math.fsum(values) / len(values)
            point = (math.fsum(positions) / len(positions), mean, min(values), max(values))
            stages.setdefault(key[0], []).append(point)
    return list(stages.values())


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [wrap(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
