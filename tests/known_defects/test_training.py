"""Training: the objective that is minimized is the one that selects, runs are apart, and the test set waits."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.data import ArraySplit, from_tensors
from latentflows.generation import sample
from latentflows.models import VAE
from latentflows.objectives import ELBO
from latentflows.studies.building.build import build_model, build_options, build_stages
from latentflows.studies.measuring.measure import evaluate, finish_prior
from latentflows.studies.running import run as run_module
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.overrides import configuration_from
from latentflows.testing import randomize
from latentflows.training import Stage, fit
from tests.known_defects.parts import configuration, data, fitted
from tests.studies.matrix import KINDS, PARTS, SHAPE, overrides, refusal
from tests.training.tiny import same, state

pytestmark = pytest.mark.filterwarnings("ignore")


def coins(count: int = 64) -> Tensor:
    return torch.randint(2, (count, *SHAPE), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("kind", KINDS["objective"])
def test_training_and_validation_log_the_same_terms_at_the_same_weights(kind):
    """Wrong: a KL that weighs 0.00025 in training and 1 in what selects, a mean over pixels, a sign."""
    with noise.stream(1):
        lines = [*overrides(objective=kind), "training.epochs=6", "training.learning_rate=1e-12"]
        c = configuration_from({}, lines)
        model = build_model(c, SHAPE)
        randomize(model, 1.0)
        source = ArraySplit(coins(1000), values="binary")
        (stage,) = build_stages(c, model, 1000)
        stage = dataclasses.replace(stage, batch_size=500)  # a batch of validation
        history = fit(model, [stage], source, validation=source, options=build_options(c))
    lines = [line for line in history.epochs if line["epoch"] > stage.objective.schedule_epochs + 1]
    for name in stage.objective.metrics:
        trained, validated = (sum(line[part][name] for line in lines) for part in ("train", "validation"))
        assert trained == pytest.approx(validated, rel=0.12, abs=0.2 * len(lines)), name
    assert len(lines) > 3


def seeded(seed: int, **kinds: str) -> VAE:
    return build_model(configuration(**kinds).model_copy(update={"seed": seed}), SHAPE)


@pytest.mark.parametrize(
    ("part", "kind"), [(part, kind) for part in ("posterior", "prior", "likelihood") for kind in KINDS[part]]
)
def test_runs_of_two_seeds_share_no_weight_that_is_drawn(part, kind):
    """Wrong: "independent" runs that go on from each other's flows."""
    one, other = (dict(getattr(seeded(seed, **{part: kind}), part).named_parameters()) for seed in (0, 1))
    for name, weight in one.items():
        equal = weight[weight == other[name]]
        assert len(equal.unique()) <= 2, name  # what is not drawn: 0, 1, another constant
    again = dict(getattr(seeded(0, **{part: kind}), part).named_parameters())
    assert all(torch.equal(again[name], weight) for name, weight in one.items())


@pytest.mark.parametrize("kind", ["planar", "real_nvp", "vamp"])
def test_training_one_model_leaves_the_others_of_a_process_alone(kind):
    part = "posterior" if kind == "planar" else "prior"
    first, second = seeded(0, **{part: kind}), seeded(1, **{part: kind})
    before, own = state(second), state(first)
    c = configuration(**{part: kind})
    fit(first, build_stages(c, first, 64), data().train, options=build_options(c))
    assert same(state(second), before)
    assert not same(state(first), own)
    places = {p.data_ptr() for p in first.parameters()}
    assert not places & {p.data_ptr() for p in second.parameters()}


class Watched(ArraySplit):
    """A split that remembers what the run was doing when it was read."""

    def __init__(self, x: Tensor, reads: list[str], doing: list[str]) -> None:
        super().__init__(x, values="binary")
        self.reads, self.doing = reads, doing

    def batch(self, indices: Tensor) -> Batch:
        self.reads.append(self.doing[-1])
        return super().batch(indices)


def test_the_test_split_is_not_read_before_training_has_ended(monkeypatch, tmp_path):
    """Wrong: weights, lengths or runs that are chosen by the figure that is reported."""
    reads: list[str] = []
    doing = ["building"]
    sets = from_tensors(coins(), coins()[:16], coins()[:16], values="binary")
    sets = dataclasses.replace(sets, test=Watched(coins()[:16], reads, doing))
    monkeypatch.setattr(run_module, "build_data", lambda _: sets)
    c = configuration_from({}, [*overrides(), "evaluation.split=test", "evaluation.num_importance_samples=2"])
    run_module.run(c, tmp_path / "run", announce=doing.append)
    assert "training" in doing
    assert {part.partition(":")[0] for part in reads} == {"evaluation", "pictures"}


def test_a_first_loss_of_any_size_is_survived():
    """Wrong: a best loss that starts at 1e10, with nothing to select above it."""
    x = 1e7 * torch.randn(64, *SHAPE)
    c = configuration("likelihood.variance=fixed", "likelihood.scale=1")
    source = from_tensors(x, x[:16], x[:16], values="continuous")
    model = build_model(c, SHAPE)
    before = state(model)
    stage = Stage("joint", ELBO(), max_epochs=3, batch_size=16)
    history = fit(model, [stage], source.train, validation=source.validation)
    assert history.status == "finished"
    assert history.epochs[0]["train"]["loss"] > 1e12
    assert not same(state(model), before)
    assert all(value.isfinite().all() for value in state(model).values())


def built(lines: list[str]) -> tuple[RunConfiguration | None, str]:
    """The configuration if a model can be built of it, or else why not."""
    try:
        c = configuration_from({}, lines)
        build_stages(c, build_model(c, SHAPE), 64)
    except (CombinationError, ConfigurationError) as reason:
        return None, str(reason)
    return c, ""


@pytest.mark.parametrize(("part", "kind"), [(part, kind) for part in PARTS for kind in KINDS[part]])
def test_one_latent_is_enough_or_is_refused_when_it_is_built(part, kind):
    """Wrong: masks of an autoregressive network, covariances and permutations of a single variable."""
    assert refusal(((part, kind),)) is None
    lines = [
        *overrides(**{part: kind}),
        "latent_dim=1",
        "training.epochs=1",
        "evaluation.num_importance_samples=1",
    ]
    lines += ["training.prior_epochs=1"] if "training.plan=two_stage" in lines else []
    c, refused = built(lines)
    if c is None:
        assert part in ("posterior", "prior")
        assert "latent_dim" in refused or "variable" in refused
        return
    values = {"dynamic_binary": "binary", "unit": "unit"}.get(c.data.preparation, "continuous")
    x = coins()
    sets = from_tensors(x, x[:16], x[:16], values=values)
    model = fitted(c, sets)
    finish_prior(model, 0)
    figures = evaluate(model.eval(), sets, c.evaluation, None)["figures"]
    means = [figure["mean"] for figure in figures.values() if figure is not None]
    assert means
    assert all(math.isfinite(mean) for mean in means)
    assert sample(model, 2).isfinite().all()
