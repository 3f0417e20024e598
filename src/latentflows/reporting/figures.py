"""Figures of the report pages, one small function each: a `Drawing`, or None without data."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latentflows.reporting.drawing import (
    INK,
    MARKERS,
    MUTED,
    SERIES_LIGHT,
    Drawing,
    figure_of,
    finish,
    series_style,
    styled_axes,
)
from latentflows.reporting.records import Epoch
from latentflows.studies.statistics import Estimate, format_interval, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

Band = tuple[int, float, float, float]  # epoch, mean, lowest, highest
EPOCH_AXIS = "epoch, counted over all stages"
TRAIN, VALIDATION = SERIES_LIGHT[1], SERIES_LIGHT[0]
_DASHED = ("train", "one posterior")


def elbo_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Train and validation ELBO per epoch, with skipped steps and rollbacks marked."""
    return _two_curves(epochs, "elbo", "ELBO", "ELBO, nats\n(higher is better)", events=True)


def reconstruction_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Reconstruction part of the ELBO, E_q log p(x|z), per epoch."""
    return _two_curves(epochs, "reconstruction", "Reconstruction", "E log p(x|z), nats")


def kl_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """KL part of the ELBO, E_q[log q(z|x) - log p(z)], per epoch."""
    return _two_curves(epochs, "kl", "KL", "KL of q(z|x) to p(z), nats")


def prior_nll_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Negative log-density of the prior in stages that train the prior alone."""
    return _two_curves(epochs, "prior_nll", "Prior NLL", "prior NLL, nats\n(lower is better)")


def learning_rate_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Learning rate per epoch."""
    rates = {"rate": [epoch.learning_rate for epoch in epochs]}
    return _epoch_figure(epochs, "learning_rate", "Learning rate", "learning rate", rates, from_zero=True)


def beta_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Weight of the KL in the training loss per epoch."""
    betas = [epoch.train.get("beta", math.nan) for epoch in epochs]
    return _epoch_figure(epochs, "beta", "Beta", "beta, weight of the KL", {"beta": betas})


def scale_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Width of single posteriors and of the aggregate posterior per epoch."""
    names = {"one posterior": "posterior_scale", "all latents": "latent_scale"}
    lines = {label: _diagnosed(epochs, name) for label, name in names.items()}
    return _epoch_figure(
        epochs, "posterior_scale", "Posterior scale", "standard deviation of z", lines, from_zero=True
    )


def active_units_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Number of latent dimensions that depend on the data, per epoch."""
    lines = {"active": _diagnosed(epochs, "active_units")}
    axis = "latent dimensions that depend on x"
    return _epoch_figure(epochs, "active_units", "Active units", axis, lines, from_zero=True)


def mmd_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Squared MMD between aggregate posterior and prior, per epoch."""
    lines = {"q(z) to p(z)": _diagnosed(epochs, "mmd")}
    return _epoch_figure(epochs, "mmd", "Prior holes", "squared MMD of q(z) to p(z)\n(0 is best)", lines)


def _diagnosed(epochs: Sequence[Epoch], name: str) -> list[float]:
    return [epoch.diagnostics.get(name, math.nan) for epoch in epochs]


def run_figures(epochs: Sequence[Epoch]) -> list[Drawing]:
    """Every learning curve that the epochs have data for."""
    curves = (
        elbo_curve,
        reconstruction_curve,
        kl_curve,
        prior_nll_curve,
        learning_rate_curve,
        beta_curve,
        scale_curve,
        active_units_curve,
        mmd_curve,
    )
    return [drawing for drawing in (curve(epochs) for curve in curves) if drawing is not None]


def validation_curves(arms: Mapping[str, Sequence[Sequence[float]]]) -> Drawing | None:
    """Validation ELBO of every arm: mean over seeds, and a band from the lowest to the highest seed.

    Args:
        arms: For every label, one sequence of values per seed; NaN where an epoch was not validated.
    """
    bands = {label: _bands(runs) for label, runs in arms.items()}
    if not any(points for points in bands.values()):
        return None
    with styled_axes(5.6, 3.6 + 0.2 * len(bands)) as axes:
        axes.set_xlabel(EPOCH_AXIS)
        for index, (label, points) in enumerate(bands.items()):
            positions, means, lows, highs = zip(*points, strict=True) if points else ((), (), (), ())
            style = series_style(index)
            axes.plot(positions, means, label=_wrap(label, 40), marker=_dots(means), markersize=3, **style)
            axes.fill_between(positions, lows, highs, color=style["color"], alpha=0.18, linewidth=0)
        axes.xaxis.set_major_locator(_whole_epochs())
        _limit_to_second_half(axes, bands.values())
        axes.set_ylabel("validation ELBO, nats\n(higher is better)")
        _legend_below(axes)
        ends = "; ".join(
            f"{label} ends at {format_number(points[-1][1])}" for label, points in bands.items() if points
        )
        alt = f"Mean validation ELBO in nats per epoch, with the range over seeds: {ends}."
        return finish(axes, "validation_curves", "Validation curves", alt)


def forest_plot(
    differences: Mapping[str, tuple[Estimate, Sequence[float]]], baseline: str, quantity: str = "NLL"
) -> Drawing | None:
    """Paired differences to the baseline: every seed as a dot, mean and interval as a bar.

    Args:
        differences: For every label, the estimate and the difference at each seed.
        baseline: Label of the baseline.
        quantity: What was measured, in nats; lower is better.
    """
    if not differences:
        return None
    with styled_axes(5.6, 1.8 + 0.62 * len(differences)) as axes:
        axes.axvline(0, color=INK, linewidth=1.2)
        for row, (mean, seeds) in enumerate(differences.values()):
            color = SERIES_LIGHT[0] if mean.excludes_zero else MUTED
            if mean.low is not None and mean.high is not None:
                axes.plot(
                    [mean.low, mean.high], [row, row], color=color, linewidth=2.6, solid_capstyle="butt"
                )
            axes.plot(mean.mean, row, marker="D", color=color, markersize=7)
            axes.plot(seeds, [row + 0.24] * len(seeds), "o", color=SERIES_LIGHT[1], markersize=4, alpha=0.9)
        _label_rows(axes, differences)
        level = next(iter(differences.values()))[0].level
        axes.set_xlabel(f"{quantity} minus that of {_wrap(baseline, 32)}, nats\n(left of 0 is better)")
        _legend_of_forest(axes, level)
        parts = (
            f"{label}: {format_number(mean.mean)}, {100 * level:g}% interval {format_interval(mean)}"
            for label, (mean, _) in differences.items()
        )
        alt = f"Paired differences in {quantity} to {baseline}, in nats. {'; '.join(parts)}."
        return finish(axes, "paired_differences", "Paired differences to the baseline", alt)


def run_dots(values: Mapping[str, Sequence[float]], quantity: str = "NLL") -> Drawing | None:
    """Every single run as a dot, the mean of each arm as a tick.

    Args:
        values: For every label, one value per finished run; an arm may have none.
        quantity: What was measured, in nats; lower is better.
    """
    if not any(values.values()):
        return None
    with styled_axes(5.6, 1.2 + 0.5 * len(values)) as axes:
        for row, runs in enumerate(values.values()):
            color = SERIES_LIGHT[row % len(SERIES_LIGHT)]
            axes.plot(
                runs, [row] * len(runs), MARKERS[row % len(MARKERS)], color=color, markersize=6, alpha=0.85
            )
            if runs:
                axes.plot(math.fsum(runs) / len(runs), row, "|", color=INK, markersize=20, markeredgewidth=2)
        _label_rows(axes, values)
        axes.set_xlabel(f"{quantity}, nats (left is better)\nvertical tick: mean of the arm")
        parts = (
            f"{label}: {', '.join(map(format_number, runs)) or 'no run'}" for label, runs in values.items()
        )
        alt = f"{quantity} of every run in nats. {'; '.join(parts)}."
        return finish(axes, "every_run", "Every run", alt)


def _two_curves(
    epochs: Sequence[Epoch], quantity: str, title: str, axis: str, *, events: bool = False
) -> Drawing | None:
    lines = {
        "train": [epoch.train.get(quantity, math.nan) for epoch in epochs],
        "validation": [(epoch.validation or {}).get(quantity, math.nan) for epoch in epochs],
    }
    return _epoch_figure(epochs, quantity, title, axis, lines, settle=True, events=events)


def _epoch_figure(
    epochs: Sequence[Epoch],
    name: str,
    title: str,
    axis: str,
    lines: Mapping[str, Sequence[float]],
    *,
    settle: bool = False,
    events: bool = False,
    from_zero: bool = False,
) -> Drawing | None:
    """Lines over the epochs of all stages, with a vertical line and a name for every stage."""
    lines = {label: values for label, values in lines.items() if any(map(math.isfinite, values))}
    if not lines:
        return None
    with styled_axes() as axes:
        axes.set_xlabel(EPOCH_AXIS)
        for label, values in lines.items():
            color, dashes = (TRAIN, (0, (4, 1.5))) if label in _DASHED else (VALIDATION, "-")
            for number, (start, end) in enumerate(_stage_spans(epochs)):
                points = [(i + 1, values[i]) for i in range(start, end) if math.isfinite(values[i])]
                positions, heights = zip(*points, strict=True) if points else ((), ())
                shown = (
                    label if number == 0 else "_" + label
                )  # a leading underscore keeps it out of the legend
                axes.plot(
                    positions,
                    heights,
                    color=color,
                    linestyle=dashes,
                    label=shown,
                    marker=_dots(heights),
                    markersize=3,
                )
        if settle:
            _limit_to_settled_values(axes, [value for values in lines.values() for value in values])
        if from_zero:
            axes.set_ylim(bottom=0)
        _mark_stages(axes, epochs)
        marked = _mark_events(axes, epochs) if events else False
        axes.set_ylabel(axis)
        if len(lines) > 1 or marked:
            _legend_below(axes)
        return finish(axes, name, title, f"{title} over {len(epochs)} epochs. {_describe(lines)}")


def _stage_spans(epochs: Sequence[Epoch]) -> list[tuple[int, int]]:
    """First and one-past-last index of every run of epochs with the same stage."""
    starts = [i for i in range(len(epochs)) if i == 0 or epochs[i].stage != epochs[i - 1].stage]
    return list(zip(starts, [*starts[1:], len(epochs)], strict=True))


def _mark_stages(axes: "Axes", epochs: Sequence[Epoch]) -> None:
    axes.set_xlim(0.5, len(epochs) + 0.5)
    axes.xaxis.set_major_locator(_whole_epochs())
    for number, (start, _) in enumerate(_stage_spans(epochs)):
        axes.axvline(start + 0.5, color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)))
        height = 1.02 + 0.08 * (number % 2)  # two rows, so that the names of short stages do not meet
        name = textwrap.shorten(epochs[start].stage, 24, placeholder="…")
        axes.text(start + 0.5, height, name, transform=axes.get_xaxis_transform(), color=MUTED, fontsize=9)


def _mark_events(axes: "Axes", epochs: Sequence[Epoch]) -> bool:
    """Mark epochs in which the count of skipped steps or of rollbacks rose; whether there was one."""
    marked = False
    for attribute, label, marker, height in (
        ("skipped_steps", "skipped steps", "v", 0.05),
        ("rollbacks", "rollback", "X", 0.13),
    ):
        counts = [0, *(getattr(epoch, attribute) for epoch in epochs)]
        positions = [i for i in range(1, len(counts)) if counts[i] > counts[i - 1]]
        if positions:
            heights = [height] * len(positions)
            transform = axes.get_xaxis_transform()
            axes.plot(
                positions,
                heights,
                marker,
                color=SERIES_LIGHT[3],
                markersize=7,
                transform=transform,
                label=label,
            )
            marked = True
    return marked


def _limit_to_settled_values(axes: "Axes", values: Sequence[float]) -> None:
    """Leave a few extreme values outside the axis where they would flatten the rest.

    The axis spans the central 80% of the values, widened by 40% of that span on both sides.
    """
    import numpy as np

    finite = [value for value in values if math.isfinite(value)]
    low, high = np.quantile(finite, [0.1, 0.9])
    _limit(axes, low - 0.4 * (high - low), high + 0.4 * (high - low), finite)


def _limit_to_second_half(axes: "Axes", bands: Iterable[Sequence[Band]]) -> None:
    """Fit the axis to the second half of every line: there the differences between arms are to be seen."""
    late = [value for points in bands for point in points[len(points) // 2 :] for value in point[2:]]
    _limit(axes, min(late), max(late), [point[1] for points in bands for point in points])


def _limit(axes: "Axes", bottom: float, top: float, values: Sequence[float]) -> None:
    """Show `bottom` to `top` at most, and say how many of the values lie outside."""
    bottom, top = max(min(values), bottom), min(max(values), top)
    margin = 0.06 * (top - bottom) or max(0.05 * abs(top), 1e-6)
    outside = sum(not bottom - margin <= value <= top + margin for value in values)
    axes.set_ylim(bottom - margin, top + margin)
    if outside:
        axes.set_xlabel(f"{EPOCH_AXIS}\n({outside} value{'s' if outside > 1 else ''} outside the axis)")


def _describe(lines: Mapping[str, Sequence[float]]) -> str:
    """First and last value of every line, as a sentence."""
    sentences = []
    for label, values in lines.items():
        points = [(epoch, value) for epoch, value in enumerate(values, 1) if math.isfinite(value)]
        (first, start), (last, end) = points[0], points[-1]
        sentences.append(f"{label}: {start:.5g} at epoch {first}, {end:.5g} at epoch {last}")
    return "; ".join(sentences) + "."


def _bands(runs: Sequence[Sequence[float]]) -> list[Band]:
    """Epoch, mean, lowest and highest value, where every seed has a finite one."""
    points = []
    for i in range(max(map(len, runs), default=0)):
        values = [run[i] for run in runs if i < len(run) and math.isfinite(run[i])]
        if len(values) == len(runs):  # a mean over other seeds would make a step in the line
            points.append((i + 1, math.fsum(values) / len(values), min(values), max(values)))
    return points


def _dots(values: Sequence[float]) -> str | None:
    """A marker where a line has so few points that it might not be seen."""
    return "o" if len(values) <= 5 else None


def _wrap(label: str, width: int = 24) -> str:
    return "\n".join(textwrap.wrap(label, width)) or label


def _label_rows(axes: "Axes", labels: Mapping[str, Any]) -> None:
    axes.set_yticks(range(len(labels)), [_wrap(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _legend_below(axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= 24 else 1
    figure_of(axes).legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=9)


def _legend_of_forest(axes: "Axes", level: float) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D(
            [], [], color=SERIES_LIGHT[0], marker="D", label=f"mean and {100 * level:g}% interval without 0"
        ),
        Line2D([], [], color=MUTED, marker="D", label="interval with 0, or no interval"),
        Line2D([], [], color=SERIES_LIGHT[1], marker="o", markersize=4, linestyle="", label="one seed"),
    ]
    figure_of(axes).legend(handles=entries, loc="outside lower left", fontsize=9)


def _whole_epochs() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)
