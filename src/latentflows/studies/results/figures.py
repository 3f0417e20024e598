"""What is known of figures by their names: which way is better, and what they rest on."""

from __future__ import annotations

# Whether a smaller value is better, where that is known; figures of groups by their key in the group.
BETTER_LOWER = {
    "nll": True,
    "nll_bound": True,
    "bits_per_dim_bound": True,
    "code_nll": True,
    "bits_per_dim": True,
    "elbo": False,
    "reconstruction": False,
    "effective_sample_size": False,
    "seconds": True,
    "annealed_nll": True,
    "importance_nll": True,
    "marginal_kl": True,
    "mmd_rbf": True,
    "mmd_imq": True,
    "approximation_gap": True,
    "amortization_gap": True,
    "inference_gap": True,
    "best_elbo": False,
    "frechet_distance": True,
    "frechet_distance_infinity": True,
    "kernel_distance": True,
    "precision": False,
    "recall": False,
    "density": False,
    "coverage": False,
    "mutual_information_gap": False,
    "disentanglement": False,
    "completeness": False,
    "informativeness": False,
    "separated_attribute_predictability": False,
}

# By group, "" being the bounds: figures of groups that are a log p(x), so that they compare within its kind alone.
OF_LIKELIHOOD = {"gaps": {"best_elbo"}, "annealed": {"annealed_nll", "importance_nll"}}
# Likewise, figures that rest on the density of the prior, or of a flow on data.
ON_DENSITY = {
    "": {"nll", "elbo", "kl", "bits_per_dim"},
    "information": {"marginal_kl", "marginal_kl_lower", "kl"},
    "gaps": {"approximation_gap", "amortization_gap", "inference_gap", "best_elbo", "unfinished"},
    "annealed": {"annealed_nll", "importance_nll", "nll_difference"},
    "target": {"forward_kl", "reverse_kl", "effective_share"},
}
# Of these, means of importance weights, which stay bounds where a density is too low on average.
WEIGHTED = {"nll", "bits_per_dim", "annealed_nll", "importance_nll"}
