"""Averages that follow training beside the optimizer: skipped steps leave no trace, pieces are one batch."""

from dataclasses import replace

import pytest
import torch

from latentflows.core.batches import Batch
from latentflows.objectives import ELBO, GECO
from latentflows.training import Options, Stage, fit
from tests.training.tiny import Fixed, geco_vae, lars_vae, optimal_vae, state


class SecondPieceSpoiled(Fixed):
    """NaN in the second piece of the third step, when the first has been seen."""

    def batch(self, indices):
        batch = super().batch(indices)
        return Batch(batch.x * torch.nan) if self.reads == 6 else batch


CASES = {
    "geco": (geco_vae, GECO(0.4), ("auxiliary.average", "auxiliary.started")),
    "lars": (lars_vae, ELBO(), ("prior.normalizer.log_mean", "prior.normalizer.known")),
    "batch-optimal": (optimal_vae, ELBO(), ("likelihood.mean_square", "likelihood.num_steps")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_skipped_step_leaves_no_trace(name):
    """Its piece that was finite is forgotten with the other: no learning, so that nothing but the average moves."""
    make, objective, buffers = CASES[name]
    stage = Stage("s", objective, learning_rate=1e-30, batch_size=8, accumulate_grad_batches=2)
    ends = {}
    for steps, source in ((2, Fixed()), (3, SecondPieceSpoiled()), (3, Fixed())):
        model = make()
        options = Options(diagnose=0)
        history = fit(model, [replace(stage, max_steps=steps)], source, seed=3, options=options)
        ends[steps, history.skipped_steps] = [state(model)[buffer] for buffer in buffers]
    assert ends[2, 0] == ends[3, 1]
    assert ends[3, 0] != ends[3, 1]


def test_a_frozen_prior_keeps_its_normalizer():
    model = lars_vae()
    before = state(model)["prior.normalizer.log_mean"]
    stage = Stage("s", ELBO(), ("posterior", "likelihood"), max_steps=3, batch_size=8)
    fit(model, [stage], Fixed(), seed=3)
    assert torch.equal(state(model)["prior.normalizer.log_mean"], before)
