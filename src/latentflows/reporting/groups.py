"""Tables of the groups of figures: what each figure means, and which protocol it was measured by."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from latentflows.studies.results.figures import ON_DENSITY
from latentflows.studies.results.protocols import shown
from latentflows.studies.results.records import Evaluation, Group, Quantity


class Words(NamedTuple):
    """How a figure is shown: its name, what it means, and its decimals."""

    name: str
    meaning: str
    decimals: int = 2


class Topic(NamedTuple):
    """What a group is about: title, a sentence for readers, its figures in order, those that a comparison shows."""

    title: str
    about: str
    figures: Mapping[str, Words]
    compared: tuple[str, ...]


@dataclass(frozen=True)
class GroupTable:
    """One group, ready for the page.

    Attributes:
        name: Key in `evaluation.json`.
        title: Heading.
        about: What the figures are for.
        rows: Words and figure, in order.
        columns: Names of the uncertainties that at least one figure has.
        protocol: How they were measured, in words; empty where they were not.
        reason: Why there are no figures; None where there are.
        marked: Those of the rows that rest on a density that is not exact.
    """

    name: str
    title: str
    about: str
    rows: list[tuple[Words, Quantity]]
    columns: tuple[str, ...]
    protocol: str
    reason: str | None
    marked: frozenset[Words] = frozenset()


UNCERTAINTIES = {
    "standard_error": "Standard error",
    "interval": "95% interval",
    "monte_carlo_error": "Monte Carlo error",
    "p_value": "p-value",
}
TOPICS = {
    "information": Topic(
        "What the latents carry",
        "The mean KL divides into what z knows about x and what the prior misses of q(z), the mean of all q(z|x).",
        {
            "mutual_information": Words(
                "I(x; z), lower bound", "nats that z carries about x; never above log n of the n images used"
            ),
            "mutual_information_upper": Words(
                "I(x; z), upper bound",
                "far above the lower one where n is too small to tell; the truth lies between",
            ),
            "marginal_kl": Words(
                "KL(q(z) || p(z)), upper bound",
                "what the prior misses of q(z): what a better prior could win",
            ),
            "marginal_kl_lower": Words(
                "KL(q(z) || p(z)), lower bound",
                "the same, from below; may be negative; none where log p(z) is an estimate, too low on average",
            ),
            "kl": Words(
                "KL(q(z|x) || p(z))",
                "the sum of both, from the same draws; too high on average where log p(z) is an estimate",
            ),
        },
        ("mutual_information", "mutual_information_upper", "marginal_kl", "marginal_kl_lower"),
    ),
    "units": Topic(
        "Active units",
        "A latent dimension whose posterior mean does not move with the data is not used.",
        {
            "active_units": Words("Active units", "dimensions whose posterior mean varies over images", 0),
            "posterior_scale": Words(
                "Posterior scale",
                "mean width of q(z|x), to be read beside that of all latents; near 0, it is all but a point",
                3,
            ),
            "largest_unit_kl": Words(
                "Largest KL of a unit", "of one dimension; far above the rest, it carries most"
            ),
        },
        ("active_units", "posterior_scale"),
    ),
    "holes": Topic(
        "Prior holes",
        "Can draws of q(z) and of the prior be told apart? Where they can, some samples come from where no data are. A "
        "large p-value is no proof that they agree.",
        {
            "mmd_rbf": Words(
                "MMD², Gaussian kernels", "0 on average where prior and q(z) agree; lower is better", 5
            ),
            "mmd_imq": Words(
                "MMD², inverse multiquadratic", "the same, with an eye on differences far out", 5
            ),
            "classifier_accuracy": Words(
                "Accuracy of a classifier", "share of held-out latents told; 0.5 where they agree", 3
            ),
        },
        ("mmd_rbf", "classifier_accuracy"),
    ),
    "gaps": Topic(
        "Where the bound is lost",
        "log p(x) − ELBO is the part that the posterior's family cannot reach, and the part that the encoder loses by "
        "serving all images. A richer posterior helps the first, a larger encoder the second.",
        {
            "approximation_gap": Words(
                "Approximation gap", "of the family, even for one image alone; lower is better"
            ),
            "amortization_gap": Words("Amortization gap", "of the encoder; lower is better"),
            "inference_gap": Words("Inference gap", "the sum of both: estimated log p(x) − ELBO"),
            "best_elbo": Words("Best ELBO", "with a posterior optimized for each image; higher is better"),
            "unfinished": Words(
                "Unfinished",
                "what the last quarter of the optimization still added; large, it was too short",
                3,
            ),
        },
        ("approximation_gap", "amortization_gap"),
    ),
    "annealed": Topic(
        "Annealed importance sampling",
        "A check on the NLL that starts from the prior and owes nothing to the encoder, on the same images. Both are "
        "upper bounds on average, so the lower one is the nearer.",
        {
            "annealed_nll": Words("NLL, annealed", "on average an upper bound; lower is better"),
            "importance_nll": Words(
                "NLL, importance samples", "of the same images, from K samples of q(z|x)"
            ),
            "nll_difference": Words(
                "Difference", "importance samples − annealing: well above 0, K samples miss a part of p(x)", 3
            ),
            "annealed_effective_sample_size": Words("Effective chains", "of all chains of an image", 1),
            "acceptance": Words("Acceptance", "share of accepted moves; about 0.65 is aimed at", 3),
        },
        ("annealed_nll", "nll_difference"),
    ),
    "samples": Topic(
        "Sample quality",
        "Features of drawn images beside those of real ones. Figures compare at the same features, number of images "
        "and all else of the protocol; they are not those of the Inception network.",
        {
            "frechet_distance": Words(
                "Fréchet distance", "FD on these features; too large at a finite n; lower is better"
            ),
            "frechet_distance_infinity": Words("Fréchet distance, n → ∞", "extrapolated; lower is better"),
            "kernel_distance": Words("Kernel distance", "unbiased squared MMD (KID); lower is better", 4),
            "precision": Words("Precision", "samples that lie among real images; higher is better", 3),
            "recall": Words("Recall", "real images that lie among samples; higher is better", 3),
            "density": Words(
                "Density", "how densely real images lie around samples; about 1 for real ones", 3
            ),
            "coverage": Words("Coverage", "real images with a sample nearby; higher is better", 3),
        },
        ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"),
    ),
    "neighbors": Topic(
        "Nearest training data",
        "A model that copies draws samples nearer to its training data than new data are. A share well above its "
        "level shows it.",
        {},
        (
            "pixels_nearer_than_5%_of_test",
            "pixels_pca_nearer_than_5%_of_test",
            "latents_pca_nearer_than_5%_of_test",
        ),
    ),
    "disentanglement": Topic(
        "Disentanglement",
        "Whether single latents stand for single factors of the data, on a scale from 0 to 1.",
        {
            "mutual_information_gap": Words(
                "MIG", "how much more the best latent knows of a factor than the second; higher is better", 3
            ),
            "disentanglement": Words(
                "DCI disentanglement", "a latent stands for one factor; higher is better", 3
            ),
            "completeness": Words("DCI completeness", "a factor is held by one latent; higher is better", 3),
            "informativeness": Words(
                "DCI informativeness", "accuracy of factors from all latents; higher is better", 3
            ),
            "separated_attribute_predictability": Words(
                "SAP",
                "how much better the best latent predicts a factor than the second; higher is better",
                3,
            ),
        },
        (
            "mutual_information_gap",
            "disentanglement",
            "completeness",
            "informativeness",
            "separated_attribute_predictability",
        ),
    ),
    "segmentation": Topic(
        "Masks of one picture",
        "Masks drawn for each picture beside the known ones, whose probabilities are known: do they have the "
        "distribution that they should have?",
        {
            "energy_distance": Words(
                "Energy distance",
                "squared, without bias; 0 where the distributions agree; lower is better",
                4,
            ),
            "matched_iou": Words(
                "Matched IoU", "drawn and known masks matched one to one; higher is better", 3
            ),
            "nearest_iou": Words(
                "Nearest IoU", "with the known mask most alike: are the masks possible? Higher is better", 3
            ),
            "frequency_error": Words(
                "Error of the frequencies", "squared, over the known masks; 0 is best; lower is better", 4
            ),
            **{
                f"{mask}_frequency": Words(f"Frequency of the {mask} mask", "of those drawn", 3)
                for mask in ("empty", "small", "middle", "large")
            },
        },
        ("energy_distance", "matched_iou", "nearest_iou", "frequency_error"),
    ),
    "target": Topic(
        "Distance from the known density",
        "Where the density of the data is known, the KL divergence can be measured in both directions. A mode that the "
        "model lacks shows in the first alone.",
        {
            "forward_kl": Words("KL(target || model)", "at draws of the target; 0 is best", 4),
            "reverse_kl": Words("KL(model || target)", "at draws of the model; 0 is best", 4),
            "effective_share": Words(
                "Effective draws", "what a draw of the model is worth as one of the target; 1 is best", 3
            ),
        },
        ("forward_kl", "reverse_kl", "effective_share"),
    ),
}
_SPACES = {
    "pixels": "data space",
    "pixels_pca": "components of the data",
    "latents_pca": "components of latents",
}
_PLAIN_NAMES = {"data", "data_hash", "split"}


def words_of(group: str, figure: str) -> Words:
    """How a figure is shown; one that is not known is shown by its key."""
    known = TOPICS[group].figures.get(figure) if group in TOPICS else None
    if known is not None:
        return known
    match = re.fullmatch(r"(\w+?)_(distance|baseline|nearer_than_(.+)%_of_test)", figure)
    if group == "neighbors" and match is not None and match[1] in _SPACES:
        space, level = _SPACES[match[1]], match[3]
        if level is not None:
            return Words(
                f"Nearer than {level}% of test, {space}",
                f"share of samples; {float(level) / 100:g} for samples as far from the training data as test data",
                3,
            )
        if match[2] == "distance":
            return Words(f"Distance of samples, {space}", "to the nearest data point of training", 3)
        return Words(
            f"Distance of test data, {space}", "to the nearest data point of training: the baseline", 3
        )
    return Words(figure.replace("_", " "), "", 4)


def title_of(group: str) -> str:
    """Heading of a group."""
    return TOPICS[group].title if group in TOPICS else group.replace("_", " ").capitalize()


def group_tables(evaluation: Evaluation) -> list[GroupTable]:
    """Every group of an evaluation as a table, in the order of `TOPICS`; their data are named where they differ."""
    names = sorted(
        evaluation.groups, key=lambda name: list(TOPICS).index(name) if name in TOPICS else len(TOPICS)
    )
    return [_table(name, evaluation.groups[name], evaluation.protocol.data) for name in names]


def _table(name: str, group: Group, data: str) -> GroupTable:
    """A group as a table, its figures in the order of `TOPICS` and then in that of the file."""
    order = [*(TOPICS[name].figures if name in TOPICS else ()), *group.figures]
    found = {key: group.figures.get(key) for key in dict.fromkeys(order)}
    rows = [(words_of(name, key), quantity) for key, quantity in found.items() if quantity is not None]
    return GroupTable(
        name=name,
        title=title_of(name),
        about=TOPICS[name].about if name in TOPICS else "",
        rows=rows,
        columns=tuple(
            key for key in UNCERTAINTIES if any(getattr(quantity, key) is not None for _, quantity in rows)
        ),
        protocol=protocol_in_words(group.protocol | group.model, data),
        reason=group.reason,
        marked=frozenset(
            words_of(name, key)
            for key in found
            if group.density != "exact" and key in ON_DENSITY.get(name, ())
        ),
    )


def protocol_in_words(protocol: Mapping[str, Any], data: str | None = None) -> str:
    """All of a protocol in one line: the split, then `name: value`, then the data, unless they are `data`."""
    parts = [f"{protocol['split']} split"] if "split" in protocol else []
    parts += [
        f"{key.replace('_', ' ').replace('num ', 'number of ')}: {shown(value)}"
        for key, value in protocol.items()
        if key not in _PLAIN_NAMES
    ]
    return "; ".join(parts + ([str(protocol["data"])] if protocol.get("data", data) != data else []))
