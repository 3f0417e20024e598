"""What each process of a data-parallel run does: `torchrun ... tests/training/workers.py FOLDER`, one JSON per rank."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentflows.core.batches import Batch
from latentflows.core.errors import ConfigurationError
from latentflows.models import VAE, VQVAE
from latentflows.objectives import ELBO, GECO, Objective
from latentflows.training import Options, Stage, fit
from tests.training.tiny import (
    Fixed,
    Images,
    Watch,
    code_model,
    code_stages,
    finite,
    geco_vae,
    lars_vae,
    mixture_vae,
    normalized_vae,
    one_stage,
    state,
    two_stages,
    vae,
)

SETTINGS: dict[str, Any] = {"seed": 11, "options": Options(checkpoint_every=3)}


def stages(pieces: int) -> list[Stage]:
    """Two stages whose batch is cut in `pieces` on every process."""
    return [replace(stage, accumulate_grad_batches=pieces) for stage in two_stages()]


def train(
    folder: Path,
    pieces: int,
    *,
    resume: bool = False,
    source: Images | None = None,
    model: VAE | VQVAE | None = None,
    objective: Objective | None = None,
) -> dict[str, Any]:
    """Run the stages, and return what this process knows of the run."""
    model, watch = model or vae("iaf", "real_nvp"), Watch()
    history = fit(
        model,
        _stages(model, pieces, objective),
        source or Images(),
        validation=Images(600, seed=1),  # two blocks, one per process
        out=folder,
        resume=resume,
        callbacks=[watch],
        **SETTINGS,
    )
    weights = {name: value.double().sum().item() for name, value in state(model).items()}
    return asdict(history) | {"weights": weights, "finite": finite(state(model)), "events": watch.events}


def _stages(model: VAE | VQVAE, pieces: int, objective: Objective | None) -> list[Stage]:
    if objective is not None:
        return one_stage(objective, accumulate_grad_batches=pieces)
    return code_stages(accumulate_grad_batches=pieces) if isinstance(model, VQVAE) else stages(pieces)


class SpoiledShard(Fixed):
    """NaN in the data of one step."""

    def batch(self, indices: Tensor) -> Batch:
        batch = super().batch(indices)
        return Batch(batch.x * torch.nan) if self.reads == 7 else batch


def _terminate(read: int) -> None:
    if read == 7:
        os.kill(os.getpid(), signal.SIGTERM)


def main(root: Path) -> None:
    """Go through the cases; the second process alone meets NaN and the signal."""
    torch.set_num_threads(1)
    second = int(os.environ["RANK"]) == 1
    results = {"plain": train(root / "plain", 1)}
    results["spoiled"] = train(root / "spoiled", 1, source=SpoiledShard() if second else Fixed())
    results["normalized"] = train(root / "normalized", 1, model=normalized_vae())
    results["mixture"] = train(root / "mixture", 1, model=mixture_vae())
    results["codes"] = train(root / "codes", 1, model=code_model(levels=2))
    results["lars"] = train(root / "lars", 1, model=lars_vae(), objective=ELBO())
    results["geco"] = train(root / "geco", 1, model=geco_vae(), objective=GECO(0.4))
    results["code_gradient"] = train(root / "code_gradient", 1, model=code_model("gradient"))
    source = Images(on_read=_terminate if second else None)
    results["terminated"] = train(root / "terminated", 1, source=source)
    results["resumed"] = train(root / "terminated", 1, resume=True)
    try:
        fit(vae(), [Stage("s", two_stages()[0].objective, batch_size=9)], Images())
    except ConfigurationError as error:
        results["refused"] = {"message": str(error)}
    (root / f"rank{int(second)}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
