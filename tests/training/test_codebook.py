"""A codebook that moves outside the optimizer survives crashes, bad steps and pieces of a batch as weights do."""

import pytest
import torch

from latentflows.bijections import ActNorm
from latentflows.distributions import AmortizedGaussian, Flow
from latentflows.networks import ResidualMapDecoder
from latentflows.training import Options, fit, load_weights
from tests.training.tiny import (
    SHAPE,
    Crash,
    Fixed,
    Images,
    assert_same_run,
    code_model,
    code_stages,
    crash_at,
    same,
    state,
)


@pytest.mark.parametrize("codebook", ["moving_average", "gradient"])
@pytest.mark.parametrize("read", [5, 10, 16])
def test_a_crash_resumes_to_the_same_bits(tmp_path, codebook, read):
    settings = {"seed": 11, "options": Options(checkpoint_every=2)}
    fit(code_model(codebook), code_stages(), Images(), out=tmp_path / "whole", **settings)
    source = Images(on_read=crash_at(read))
    with pytest.raises(Crash):
        fit(code_model(codebook), code_stages(), source, out=tmp_path / "parts", **settings)
    model = code_model(codebook, seed=8)
    fit(model, code_stages(), Images(), out=tmp_path / "parts", resume=True, **settings)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert "quantizer.0.counts" in state(model)


def test_weights_are_saved_as_tensors_alone_and_loaded_again(tmp_path):
    model = code_model(levels=2)
    fit(model, code_stages(), Images(), out=tmp_path, seed=1)
    files = sorted(path.suffix for path in (tmp_path / "checkpoint").iterdir())
    assert files == [".safetensors", ".safetensors"]  # a format that holds nothing to run
    other = code_model(levels=2, seed=9)
    load_weights(other, tmp_path / "checkpoint" / "model.safetensors")
    assert same(state(model), state(other))
    assert torch.equal(other.codes(Fixed().x), model.codes(Fixed().x))


class Spoiled(Fixed):
    """NaN in the data of one step."""

    def batch(self, indices):
        batch = super().batch(indices)
        return batch._replace(x=batch.x * torch.nan) if self.reads == 4 else batch


def test_a_bad_step_leaves_no_trace_in_the_codebook():
    model = code_model()
    history = fit(model, code_stages()[:1], Spoiled(), seed=2)
    assert (history.skipped_steps, history.rollbacks) == (1, 0)
    assert all(value.isfinite().all() for value in state(model).values())
    counts = model.levels[0].counts
    assert counts.sum() > 0


def test_pieces_of_a_batch_are_one_batch_to_the_codebook():
    counts = []
    for pieces in (1, 2, 4):
        model = code_model()
        fit(model, code_stages(accumulate_grad_batches=pieces, max_steps=1)[:1], Fixed(), seed=2)
        counts.append(model.levels[0].counts)
    # One update by 1 - decay of all 8 images times 4 tokens; codes that restart get the mean count on top.
    live = [count[count > count.min()].sum() for count in counts]
    torch.testing.assert_close(live[0], live[1])
    torch.testing.assert_close(live[0], live[2])


def test_a_layer_of_the_likelihood_that_waits_for_data_is_set_by_the_first_batch():
    """A flow of the data given codes, with a layer that the first batch sets."""
    likelihood = Flow(
        AmortizedGaussian(SHAPE, (3, 2, 2), ResidualMapDecoder((3, 2, 2), (2, 8, 8), width=4, num_blocks=1)),
        ActNorm(SHAPE),
    )
    model = code_model()
    model.likelihood = likelihood
    fit(model, code_stages(max_steps=1)[:1], Fixed(), seed=2)
    assert likelihood.bijection.initialized
