"""The comparison that `latentflows demo` runs: where does a flow help, on 8 x 8 digits, in minutes on two cores?"""

from __future__ import annotations

from typing import Any

from latentflows.studies.planning.study import Arm, Study

# The learning rate falls to 0 along a cosine, so every arm has flattened at the end of its stage; the weights of the
# best epoch by validation are kept.
_BASE: dict[str, Any] = {
    "latent_dim": 16,
    "data": {"name": "digits", "preparation": "dynamic_binary"},
    "network": {"kind": "gated_mlp", "width": 128, "depth": 2},
    # One estimator of the KL for all arms: "auto" would take the closed form in the Gaussian arm alone.
    "objective": {"kind": "elbo", "warmup_epochs": 10, "kl": "monte_carlo"},
    "training": {
        "plan": "one_stage",
        "epochs": 120,
        "batch_size": 50,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "gradient_clip": 20.0,
    },
    "evaluation": {"num_importance_samples": 500},
}
_REAL_NVP = ["prior=real_nvp", "prior.num_layers=4", "prior.width=64"]
_IAF = ["posterior=iaf", "posterior.num_layers=2", "posterior.width=64"]
_TWO_STAGE = ["training.plan=two_stage", "training.prior_epochs=60"]


def demo_study() -> Study:
    """Return the study: five arms with one network size, three seeds."""
    return Study(
        name="Where does a flow help? A first look on digits",
        description=(
            "Five arms on the 1,797 digits of 8 x 8 pixels that ship inside scikit-learn, dynamically binarized, with "
            "one size of encoder and decoder: a Gaussian posterior with prior N(0, I); the same with a Real NVP prior, "
            "trained in one stage and in two (the second one adds 60 epochs); an IAF posterior; and both flows. All "
            "arms estimate the KL from one posterior sample. Small data and few seeds: a demonstration of how to "
            "measure, not a result about these models."
        ),
        base=_BASE,
        arms=[
            Arm(name="gaussian", label="Gaussian posterior, N(0, I)"),
            Arm(name="prior-one-stage", label="Real NVP prior, one stage", overrides=_REAL_NVP),
            Arm(
                name="prior-two-stage",
                label="Real NVP prior, two stages",
                overrides=[*_REAL_NVP, *_TWO_STAGE],
            ),
            Arm(name="iaf", label="IAF posterior", overrides=_IAF),
            Arm(name="iaf-prior", label="IAF posterior, Real NVP prior", overrides=[*_IAF, *_REAL_NVP]),
        ],
        seeds=[0, 1, 2],
        baseline="gaussian",
    )
