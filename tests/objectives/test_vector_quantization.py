"""The two stages of a VQ-VAE: what they minimize, what they leave alone, and that a run resumes to the same bits."""

import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.evaluation import evaluate_codes
from latentflows.objectives import ELBO, CodeLikelihood, VectorQuantization
from latentflows.training import Stage, fit
from tests.models.parts import vae
from tests.training.tiny import (
    Fixed,
    Watch,
    code_model,
    code_stages,
    moved,
)


def in_step(model):
    """Let the codes stay while they are looked at."""
    for level in model.levels:
        level.begin()
    return model


def test_the_loss_is_the_sum_of_what_is_logged_and_reads_its_weight():
    model, x = in_step(code_model("gradient")), Fixed().x
    objective = VectorQuantization(commitment=0.5)
    value = objective(objective.trace(model, x))
    m = value.metrics
    assert tuple(m) == objective.metrics
    assert all(metric.shape == (len(x),) and not metric.requires_grad for metric in m.values())
    torch.testing.assert_close(m["loss"], m["codebook"] + 0.5 * m["commitment"] - m["reconstruction"])
    torch.testing.assert_close(value.loss.detach(), m["loss"].mean())
    found = model.quantize(x)
    torch.testing.assert_close(m["reconstruction"], model.decode(found.z).log_prob(x).detach())
    (only,) = found.levels
    torch.testing.assert_close(m["commitment"], only.commitment.detach())
    assert (code_model("moving_average").quantize(x).levels[0].codebook_loss == 0).all()


def test_beta_weighs_what_pulls_the_latents_alone():
    """The two squares are equal in value; what they pull is not."""
    model, x = in_step(code_model("gradient")), Fixed().x
    objective, (only,) = VectorQuantization(commitment=0.5), model.levels
    weights = [only.codebook, *model.encoder.parameters()]
    found = torch.autograd.grad(objective(objective.trace(model, x)).loss, weights)
    quantized = model.quantize(x)
    log_likelihood, (level,) = model.decode(quantized.z).log_prob(x), quantized.levels
    by_hand = (level.codebook_loss + 0.5 * level.commitment - log_likelihood).mean()
    for one, other in zip(found, torch.autograd.grad(by_hand, weights, retain_graph=True), strict=True):
        torch.testing.assert_close(one, other)
    (pull,) = torch.autograd.grad(level.codebook_loss.mean(), only.codebook)
    torch.testing.assert_close(found[0], pull)


def test_figures_of_the_codes_are_those_of_the_level_where_they_are_lowest():
    model, x = in_step(code_model("gradient", levels=2)), Fixed().x
    metrics = VectorQuantization()(VectorQuantization().trace(model, x)).metrics
    bound = evaluate_codes(model.eval(), Fixed())
    assert metrics["perplexity"][0].item() == pytest.approx(min(bound.perplexity), rel=1e-5)
    assert metrics["code_usage"][3].item() == pytest.approx(min(bound.code_usage))


def test_gradients_reach_what_they_should():
    model, x = code_model("gradient", levels=2), Fixed().x
    first = VectorQuantization()
    first(first.trace(model, x)).loss.backward()
    for part in ("encoder", "quantizer", "likelihood"):
        assert all(p.grad is not None for p in getattr(model, part).parameters()), part
    assert all(p.grad is None for p in model.prior.parameters())
    model.zero_grad()
    second = CodeLikelihood()
    value = second(second.trace(model, x))
    value.loss.backward()
    assert all(
        p.grad is None
        for part in ("encoder", "quantizer", "likelihood")
        for p in getattr(model, part).parameters()
    )
    assert any(p.grad is not None for p in model.prior.parameters())
    torch.testing.assert_close(value.metrics["code_nll"], -model.prior().log_prob(model.codes(x)).detach())
    assert second.score({"code_nll": 3.0}) == -3.0
    assert first.score({"reconstruction": -3.0}) == -3.0


@pytest.mark.parametrize("codebook", ["moving_average", "gradient"])
def test_two_stages_learn_and_the_second_leaves_the_first_alone(codebook):
    model, watch = code_model(codebook), Watch()
    before = evaluate_codes(model, Fixed())
    fit(model, code_stages(max_epochs=15), Fixed(), validation=Fixed(), callbacks=[watch], seed=3)
    after = evaluate_codes(model, Fixed())
    assert after.elbo.mean() > before.elbo.mean() + 5
    assert after.code_nll.mean() < before.code_nll.mean() - 1
    assert min(after.perplexity) > 2
    first, second = watch.weights[15], watch.weights[-1]
    assert moved(watch.weights[0], first) == {"encoder", "quantizer", "likelihood"}
    assert moved(first, second) <= {"prior", "encoder", "quantizer", "likelihood"}
    assert moved(watch.weights[16], second) == {"prior"}


def test_what_cannot_be_trained_so_is_refused():
    model = code_model()
    with pytest.raises(
        CombinationError, match=r"`train=\('encoder', 'quantizer', 'likelihood'\)`.*`CodeLikelihood`"
    ):
        Stage("s", VectorQuantization()).check(model)
    with pytest.raises(ConfigurationError, match=r'give `train=\("prior",\)`'):
        Stage("s", CodeLikelihood())
    with pytest.raises(CombinationError, match="`ELBO` trains a `VAE`; got a `VQVAE`"):
        Stage("s", ELBO()).check(model)
    with pytest.raises(CombinationError, match="`CodeLikelihood` trains a `VQVAE`; got a `VAE`"):
        Stage("s", CodeLikelihood(), ("prior",)).check(vae(prior="diagonal"))
    with pytest.raises(ConfigurationError, match=r"must name some of \('encoder', 'quantizer'"):
        Stage("s", VectorQuantization(), ("posterior",)).check(model)
    with pytest.raises(ConfigurationError, match="`commitment` must be at least 0"):
        VectorQuantization(commitment=-1)
