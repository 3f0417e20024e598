"""Loss curves of three small runs: `python -m tests.training.regenerate_golden` writes them anew.

A refactor leaves them as they are; a numerical change brings new ones, and a line in the changelog.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from latentflows.models import VAE
from latentflows.training import Stage, fit
from tests.training.tiny import Images, one_stage, two_stages, vae

FOLDER = Path(__file__).parent / "golden"
CASES = ("gaussian_standard", "iaf_real_nvp", "two_stage")


def _run_of(case: str) -> tuple[VAE, list[Stage]]:
    if case == "gaussian_standard":
        return vae(), one_stage(max_epochs=5)
    if case == "iaf_real_nvp":
        return vae("iaf", "real_nvp"), one_stage(max_epochs=5)
    return vae("gaussian", "real_nvp"), two_stages()


def curve(case: str) -> list[dict]:
    """Train for 20 steps, and return the figures of every epoch."""
    model, stages = _run_of(case)
    history = fit(model, stages, Images(), validation=Images(16, seed=1), seed=1)
    assert history.steps == 20
    return [
        {"stage": line["stage"], "train": line["train"], "validation": line["validation"]}
        for line in history.epochs
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in CASES:
        (FOLDER / f"{name}.json").write_text(json.dumps(curve(name), indent=1) + "\n")
