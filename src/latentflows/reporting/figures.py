"""Figures of the page of a run, one small function each: a `Drawing`, or None without data."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from latentflows.reporting.drawing import (
    FEW_EPOCHS,
    MUTED,
    SERIES_LIGHT,
    Drawing,
    dots,
    finish,
    legend_below,
    limit,
    styled_axes,
)
from latentflows.studies.results.records import Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

EPOCH_AXIS = "epoch, counted over all stages"
TRAIN, VALIDATION = SERIES_LIGHT[1], SERIES_LIGHT[0]
_DASHED = ("train", "one posterior")


def elbo_curve(epochs: Sequence[Epoch], bounded: bool = True) -> Drawing | None:
    """Train and validation ELBO per epoch, or what there is instead, with skipped steps and rollbacks marked."""
    name = "ELBO" if bounded else "Reconstruction − KL, no bound"
    return _two_curves(epochs, "elbo", name, f"{name}, nats\n(higher is better)", events=True)


def reconstruction_curve(epochs: Sequence[Epoch], bounded: bool = True) -> Drawing | None:
    """Reconstruction part of the ELBO, E_q log p(x|z), per epoch; without a likelihood minus the cross-entropy."""
    axis = "E log p(x|z), nats" if bounded else "minus the cross-entropy, nats"
    return _two_curves(epochs, "reconstruction", "Reconstruction", axis)


def kl_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """KL part of the ELBO, E_q[log q(z|x) - log p(z)], per epoch."""
    return _two_curves(epochs, "kl", "KL", "KL of q(z|x) to p(z), nats")


def prior_nll_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Negative log-density of the prior in stages that train the prior alone."""
    return _two_curves(epochs, "prior_nll", "Prior NLL", "prior NLL, nats\n(lower is better)")


def code_nll_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Negative log-mass of the codes under the prior that learns them."""
    return _two_curves(epochs, "code_nll", "Code NLL", "code NLL, nats\n(lower is better)")


def perplexity_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Perplexity of the codes of a batch, at the level where it is lowest."""
    return _two_curves(epochs, "perplexity", "Perplexity of the codes", "perplexity of a batch's codes")


def nll_curve(epochs: Sequence[Epoch]) -> Drawing | None:
    """Negative log-density of the data, of a flow on data."""
    return _two_curves(epochs, "nll", "NLL", "NLL, nats\n(lower is better)", events=True)


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


def run_figures(epochs: Sequence[Epoch], *, bounded: bool = True) -> list[Drawing]:
    """Every learning curve that the epochs have data for.

    Args:
        epochs: The log.
        bounded: Whether there is a likelihood, so that reconstruction less KL is a bound on its logarithm.
    """
    curves = (
        partial(elbo_curve, bounded=bounded),
        partial(reconstruction_curve, bounded=bounded),
        kl_curve,
        prior_nll_curve,
        code_nll_curve,
        perplexity_curve,
        nll_curve,
        learning_rate_curve,
        beta_curve,
        scale_curve,
        active_units_curve,
        mmd_curve,
    )
    return [drawing for drawing in (curve(epochs) for curve in curves) if drawing is not None]


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
                    marker=dots(heights),
                    markersize=3,
                )
        if settle and len(epochs) >= FEW_EPOCHS:
            _limit_to_settled_values(axes, [value for values in lines.values() for value in values])
        if from_zero:
            axes.set_ylim(bottom=0)
        _mark_stages(axes, epochs)
        marked = _mark_events(axes, epochs) if events else False
        axes.set_ylabel(axis)
        if len(lines) > 1 or marked:
            legend_below(axes)
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
    limit(axes, low - 0.4 * (high - low), high + 0.4 * (high - low), finite)


def _describe(lines: Mapping[str, Sequence[float]]) -> str:
    """First and last value of every line, as a sentence."""
    sentences = []
    for label, values in lines.items():
        points = [(epoch, value) for epoch, value in enumerate(values, 1) if math.isfinite(value)]
        (first, start), (last, end) = points[0], points[-1]
        sentences.append(f"{label}: {start:.5g} at epoch {first}, {end:.5g} at epoch {last}")
    return "; ".join(sentences) + "."


def _whole_epochs() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, min_n_ticks=1)  # of two epochs, else, there would be halves
