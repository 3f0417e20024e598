"""The page of one run."""

import warnings
from pathlib import Path

import yaml

from latentflows.reporting.base import Picture, Run, read_run
from latentflows.reporting.figures import run_figures
from latentflows.reporting.groups import UNCERTAINTIES, GroupTable, group_tables
from latentflows.reporting.page import duration, missing, write_page
from latentflows.reporting.parts import MARK
from latentflows.studies.results.figures import ON_DENSITY
from latentflows.studies.results.records import NO_LIKELIHOOD, Protocol
from latentflows.studies.settings.likelihoods import GrayBernoulliLikelihood
from latentflows.studies.settings.objectives import WITHOUT_DENSITIES
from latentflows.studies.settings.options import tag_of

MOST_EVENTS = 10
USUAL_PICTURES = (
    "data.png",
    "samples.png",
    "sample_means.png",
    "reconstructions.png",
    "interpolations.png",
    "traversals.png",
)
# Key in evaluation.json: name, explanation, decimals.
QUANTITIES = {
    "nll": (
        "NLL",
        "negative log-likelihood from K importance samples: on average an upper bound; lower is better",
        2,
    ),
    "elbo": ("ELBO", "evidence lower bound; higher is better", 2),
    "reconstruction": ("Reconstruction", "E log p(x|z) under the posterior; higher is better", 2),
    "kl": ("KL", "E[log q(z|x) − log p(z)] under the posterior", 2),
    "code_nll": ("Code NLL", "negative log-mass of the codes under the prior; lower is better", 2),
    "nll_bound": (
        "NLL, bound",
        "code NLL less reconstruction: an upper bound, not importance weighted; lower is better",
        2,
    ),
    "bits_per_dim_bound": ("Bits per dimension, bound", "the same bound, in bits; lower is better", 4),
    "perplexity": ("Perplexity of the codes", "over all images: the number of codes, were all used alike", 1),
    "code_usage": ("Codes in use", "share of the codes that occur", 3),
    "bits_per_dim": ("Bits per dimension", "the NLL per pixel or sample, in bits; lower is better", 4),
    "effective_sample_size": (
        "Effective sample size",
        "of the K importance samples; where it is small, the NLL is a loose bound",
        1,
    ),
}
EXACT_NLL = ("NLL", "negative log-likelihood of the data, without importance samples; lower is better", 2)
WITHOUT_LIKELIHOOD = ("Reconstruction", "minus the cross-entropy on gray values, which is no log p(x|z)", 2)
BANNERS = {
    "finished": ("good", "✓ Finished", "Training ended as planned."),
    "running": ("warn", "… Running", "The run is marked as running: it has not ended, or it was killed."),
    "interrupted": (
        "warn",
        "⏸ Interrupted",
        "Training stopped before its end; do not compare with finished runs.",
    ),
    "diverged": (
        "bad",
        "✗ Diverged",
        "Training broke down, or the trained model gives no finite figure; do not compare with finished runs.",
    ),
    "failed": ("bad", "✗ Failed", "An error ended the run; do not compare with finished runs."),
}


def write_run_report(run_folder: Path) -> Path:
    """Write `report.html` and `figures/*.svg` of a run, from its files alone.

    Args:
        run_folder: Folder of a run, finished or not.

    Returns:
        Path of the page.

    Raises:
        DataError: The folder is no run folder, or one of its files cannot be read.

    Warns:
        UserWarning: For each file that is damaged where a page can be made all the same; the page says it too.
    """
    run = read_run(run_folder)
    for fault in run.damage.values():
        warnings.warn(fault, stacklevel=2)
    drawings = run_figures(run.epochs, bounded=_has_likelihood(run))
    values = {
        "title": run.record.name if run.record else run_folder.resolve().name,
        "run": run,
        "banner": _banner(run),
        "training_note": training_note(run.config),
        "missing": {name: missing(run_folder, name) for name in _missing_names(run)},
        "measured": _measured(run),
        "groups": _groups(run),
        "uncertainties": UNCERTAINTIES,
        "mark": MARK,
        "evaluation_seconds": None if run.evaluation is None else run.evaluation.all_seconds,
        "events": _events(run),
        "pictures": _in_reading_order(run.pictures),
        "absent_pictures": _absent_pictures(run),
        "picture_command": missing(run_folder, "samples/index.json")[1],
    }
    return write_page(run_folder, "run.html", drawings, values)


def _kind(config: str | None, part: str) -> str | None:
    """The kind of a part by a configuration; None where it says none."""
    try:
        return yaml.safe_load(config or "")[part]["kind"]
    except (KeyError, TypeError):
        return None


def _has_likelihood(run: Run) -> bool:
    """Whether the model has one: a run that was not evaluated yet is judged by its configuration."""
    if run.evaluation is not None:
        return run.evaluation.protocol.likelihood != NO_LIKELIHOOD
    return _kind(run.config, "likelihood") != tag_of(GrayBernoulliLikelihood)


def training_note(config: str | None) -> str:
    """Say which objective a run was trained by, where that is no bound on log p(x); empty where it is one."""
    kind = _kind(config, "objective")
    if kind not in {tag_of(objective) for objective in WITHOUT_DENSITIES}:
        return ""
    return (
        f"The model was trained by objective={kind}, which is no bound on log p(x): a likelihood or a bound is "
        "measured where the model has one, but nothing was done to make it good."
    )


def _faults(run: Run) -> str:
    """What is wrong with the posterior after the last epoch, however well the run ended."""
    from latentflows.training.diagnostics import faults  # imports torch

    last = run.epochs[-1].diagnostics if run.epochs else {}
    return " ".join(faults({name: value for name, value in last.items() if value is not None}).values())


def _banner(run: Run) -> tuple[str, str, str]:
    """Style, heading and sentence of the status banner."""
    record = run.record
    if record is None:
        return "warn", "? Unknown", "There is no run.json, so it is not known how the run ended."
    style, heading, meaning = BANNERS[record.status]
    reason = f"Reason: {record.reason}." if record.reason else ""
    counts = f"{record.steps:,} steps in {duration(record.seconds)}."
    if record.status == "finished" and (wrong := _faults(run)):
        style, heading, meaning = "warn", "⚠ Finished, but look at the posterior", f"{meaning} {wrong}"
    return style, heading, " ".join(filter(None, (reason.replace("..", "."), meaning, counts)))


def _missing_names(run: Run) -> list[str]:
    present = {
        "run.json": run.record,
        "config.yaml": run.config,
        "metrics.jsonl": run.epochs,
        "evaluation.json": run.evaluation,
        "samples/index.json": run.pictures,
    }
    return [name for name, content in present.items() if not content]


def _events(run: Run) -> tuple[list[str], int]:
    """The first events of the training, and how many more there were."""
    events = [event for epoch in run.epochs for event in epoch.events]
    return events[:MOST_EVENTS], len(events[MOST_EVENTS:])


def _measured(run: Run) -> list[tuple[str, str, int, object, str]]:
    """Name, explanation, decimals, quantity and mark of every figure that was measured."""
    if run.evaluation is None:
        return []
    figures = run.evaluation.figures
    keys = [
        *(key for key in QUANTITIES if key in figures),
        *(key for key in figures if key not in QUANTITIES),
    ]
    protocol = run.evaluation.protocol
    marked = set() if protocol.prior_density == "exact" else ON_DENSITY[""]
    return [
        (*_words(key, protocol), figures[key], MARK if key in marked else "")
        for key in keys
        if figures[key] is not None
    ]


def _words(key: str, protocol: Protocol) -> tuple[str, str, int]:
    """Name, explanation and decimals of a figure; of one level of several, with the level before."""
    if protocol.num_importance_samples is None and key == "nll":  # of a flow on data
        return EXACT_NLL
    if protocol.likelihood == NO_LIKELIHOOD and key == "reconstruction":
        return WITHOUT_LIKELIHOOD
    level, _, rest = key.partition("_")
    if key not in QUANTITIES and level in ("top", "bottom") and rest in QUANTITIES:
        name, explanation, decimals = QUANTITIES[rest]
        return f"{name}, {level} level", explanation, decimals
    return QUANTITIES.get(key, (key.replace("_", " "), "", 4))


def _groups(run: Run) -> list[GroupTable]:
    return [] if run.evaluation is None else group_tables(run.evaluation)


def _in_reading_order(pictures: tuple[Picture, ...]) -> list[Picture]:
    """Data first and samples beside it, then what else there is."""
    rank = {file: position for position, file in enumerate(USUAL_PICTURES)}
    return sorted(pictures, key=lambda picture: rank.get(picture.file, len(rank)))


def _absent_pictures(run: Run) -> list[str]:
    """Usual pictures that are neither there nor known to be impossible."""
    known = {picture.file for picture in (*run.pictures, *run.undrawn)}
    return [file for file in USUAL_PICTURES if file not in known]
