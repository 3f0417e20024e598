"""Data-dependent layers are set once, each from what reaches it, before the stage that trains them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentflows.bijections import ActNorm, Bijection, Chain, Inverse, Planar
from latentflows.bijections.base import waiting_layers
from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.core.errors import CombinationError
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    Conditional,
    Distribution,
    Flow,
    StandardGaussian,
)
from latentflows.models import VAE
from latentflows.models.presets import iaf, real_nvp
from latentflows.networks import MLP
from latentflows.training import fit
from latentflows.training.initialization import initialize
from tests.training.tiny import (
    SHAPE,
    Crash,
    Images,
    Watch,
    assert_same_run,
    crash_at,
    normalized_vae,
    one_stage,
    same,
    state,
    two_stages,
)


def flags(weights: dict[str, Tensor]) -> dict[str, list[bool]]:
    """By part, whether each layer was set."""
    found: dict[str, list[bool]] = {}
    for name, value in weights.items():
        if name.endswith("initialized"):
            found.setdefault(name.split(".")[0], []).append(bool(value))
    return found


def batch(count: int = 32) -> Batch:
    with noise.stream(3):
        return Images(count).batch(torch.arange(count))


def assert_normal(values: Tensor) -> None:
    values = values.detach()
    torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1:]), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1:]), atol=1e-4, rtol=0)


def test_the_posterior_passes_its_noise_forward_and_the_prior_latents_back() -> None:
    model, data = normalized_vae().eval(), batch()
    with noise.stream(1):
        initialize(model, ["posterior"], data)
    with noise.stream(1):
        assert_normal(model.posterior(data.x).sample())  # it ends in the layer
    with noise.stream(2):
        initialize(model, ["prior"], data)
    with noise.stream(2):
        z = model.posterior(data.x).sample()
    assert isinstance(model.prior, Flow)
    assert_normal(model.prior.bijection.inverse(z)[0])  # it begins with the layer
    assert flags(state(model)) == {"posterior": [True, True], "prior": [True, True]}


def test_a_flow_likelihood_meets_the_data() -> None:
    encoder = AmortizedGaussian(2, 3, MLP((3,), (4,), width=8, depth=1))
    base = AmortizedGaussian(3, 2, MLP((2,), (6,), width=8, depth=1, zero_last=True))
    likelihood = Flow(base, ActNorm(3))
    model = VAE(encoder, StandardGaussian(2), likelihood)
    x = torch.randn(100, 3) * torch.tensor([0.1, 1.0, 20.0]) + 7
    initialize(model, ["likelihood"], Batch(x))
    assert_normal(likelihood.bijection.inverse(x)[0])


def posterior_of(bijection: Bijection, base: Conditional | None = None) -> VAE:
    base = base or AmortizedGaussian(2, 6, MLP((6,), (4,), width=8, depth=1))
    embed = MLP(SHAPE, (6,), width=8, depth=1)
    posterior = Flow(base, bijection, embed=embed, context_shape=SHAPE)
    likelihood = AmortizedBernoulli(SHAPE, 2, MLP((2,), SHAPE, width=8, depth=1))
    return VAE(posterior, StandardGaussian(2), likelihood)


def test_a_posterior_needs_no_inverse() -> None:
    model = posterior_of(Chain([Planar(2), Inverse(ActNorm(2))]))
    initialize(model, ["posterior"], batch())
    assert not waiting_layers(model)


def test_a_flow_that_is_a_base_is_reached() -> None:
    inner = Flow(AmortizedGaussian(2, 6, MLP((6,), (4,), width=8, depth=1)), ActNorm(2))
    model, data = posterior_of(ActNorm(2), inner), batch()
    with noise.stream(1):
        initialize(model, ["posterior"], data)
    with noise.stream(1):
        assert_normal(model.posterior(data.x).sample())
    assert not waiting_layers(model)
    with torch.no_grad():
        z = model.posterior(data.x).sample()
    outer = Flow(Flow(StandardGaussian(2), ActNorm(2)), ActNorm(2))
    model.prior = outer
    initialize(model, ["prior"], data)
    assert not waiting_layers(model)
    assert outer(None).log_prob(z).isfinite().all()


class Hidden(Conditional):
    """A flow that does not show itself as one."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow.event_shape)
        self.flow, self.distribution_type = flow, StandardGaussian.distribution_type

    def _condition(self, context: Tensor | None) -> Distribution:
        return StandardGaussian(2)(None)


def test_a_layer_that_no_batch_passes_is_refused() -> None:
    model = normalized_vae()
    model.prior = Hidden(Flow(StandardGaussian(2), ActNorm(2)))
    with pytest.raises(CombinationError, match=r"The prior holds a `ActNorm` that must see a batch"):
        fit(model, one_stage(), Images())


def test_fit_sets_the_parts_that_learn_each_before_its_stage() -> None:
    model, watch = normalized_vae(), Watch()
    first, second = two_stages(max_epochs=1)
    fit(model, [first, second], Images(), callbacks=[watch])
    start, one, two = (flags(weights) for weights in watch.weights)
    assert start == {"posterior": [False, False], "prior": [False, False]}
    assert one == {"posterior": [True, True], "prior": [False, False]}
    assert two == {"posterior": [True, True], "prior": [True, True]}


def test_what_was_set_or_is_frozen_stays() -> None:
    model = normalized_vae()
    fit(model, one_stage(max_epochs=1), Images())
    before = state(model)
    fit(model, one_stage(max_epochs=1, learning_rate=1e-12), Images())
    for name, value in state(model).items():
        torch.testing.assert_close(value, before[name])
    frozen = normalized_vae()
    frozen.prior.requires_grad_(False)
    untouched = {name: value for name, value in state(frozen).items() if name.startswith("prior")}
    fit(frozen, one_stage(max_epochs=1), Images())
    assert same(untouched, {name: state(frozen)[name] for name in untouched})


@pytest.mark.parametrize("read", [4, 14, 20])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, read: int) -> None:
    fit(normalized_vae(), two_stages(), Images(), out=tmp_path / "whole", seed=5)
    with pytest.raises(Crash):
        fit(normalized_vae(), two_stages(), Images(on_read=crash_at(read)), out=tmp_path / "killed", seed=5)
    fit(normalized_vae(), two_stages(), Images(), out=tmp_path / "killed", seed=5, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_models_without_such_layers_read_no_batch_more() -> None:
    source = Images()
    with noise.stream(7):
        model = posterior_of(iaf(2, num_layers=1, width=4, depth=1, context=6))
        model.prior = Flow(StandardGaussian(2), real_nvp(2, num_layers=1, width=4, depth=1))
    fit(model, one_stage(max_epochs=1), source)
    assert source.reads == 1 + 4 + 1  # the check of the data, one per step, and the diagnostics of the epoch


def test_a_frozen_layer_keeps_what_it_holds_in_a_part_that_learns() -> None:
    model = normalized_vae()
    assert isinstance(model.prior, Flow)
    assert isinstance(model.prior.bijection, Chain)
    first, _, last = model.prior.bijection.members
    assert isinstance(first, ActNorm)
    assert isinstance(last, ActNorm)
    with torch.no_grad():
        first.shift.fill_(5.0)
        first.shift.requires_grad_(False)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    fit(model, one_stage(max_epochs=1, learning_rate=1e-12), Images())
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert not first.initialized  # it would still be set if it were to learn
    assert last.initialized
    assert last.log_scale.any()


def test_a_layer_said_to_be_set_keeps_the_values_of_its_owner() -> None:
    model = posterior_of(ActNorm(2))
    assert isinstance(model.posterior, Flow)
    layer = model.posterior.bijection
    assert isinstance(layer, ActNorm)
    with torch.no_grad():
        layer.shift.fill_(5.0)
        layer.initialized.fill_(True)
    fit(model, one_stage(max_epochs=1, learning_rate=1e-12), Images())
    torch.testing.assert_close(layer.shift, torch.full_like(layer.shift, 5.0))
