"""Models with levels of latents from a configuration: what each part reads, and what is refused."""

import pytest
import torch

from latentflows.core.errors import CombinationError
from latentflows.data import from_tensors
from latentflows.distributions import AmortizedGaussian, Flow, Hierarchical, VampPrior
from latentflows.evaluation import evaluate_bounds
from latentflows.objectives import ELBO
from latentflows.studies.building.build import build_model, build_options, build_stages
from latentflows.studies.settings.overrides import configuration_from
from latentflows.training import fit

SHAPE = (1, 4, 4)
SMALL = ["latent_dim=5", "network.width=8", "network.depth=1", "posterior.width=6", "prior.width=6"]
TWO_LEVEL = ["posterior=two_level", "prior=two_level", *SMALL]
DLGM = ["posterior=dlgm", "prior=dlgm", "posterior.num_levels=3", *SMALL]


def built(overrides, **shapes):
    return build_model(configuration_from({}, overrides), SHAPE, **shapes)


def moved(model, part):
    """Whether p(x|z) changes with these latents."""
    z = torch.randn(6, model.latent_shape[0])
    changed = z.clone()
    changed[:, part] += 1
    return not torch.equal(model.decode_mean(z), model.decode_mean(changed))


def sizes(conditional):
    assert isinstance(conditional, Hierarchical)
    return [level.event_shape[0] for level in conditional.members]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (TWO_LEVEL, [2, 3]),
        ([*TWO_LEVEL, "posterior.top_dim=4"], [4, 1]),
        (DLGM, [2, 2, 1]),
        ([*DLGM, "posterior.num_levels=2", "latent_dim=6"], [3, 3]),
    ],
)
def test_posterior_and_prior_have_the_same_levels(overrides, expected):
    model = built(overrides)
    assert sizes(model.posterior) == sizes(model.prior) == expected


def test_both_levels_are_decoded_or_the_lowest_alone():
    model = built(TWO_LEVEL)
    assert moved(model, slice(0, 2))
    assert moved(model, slice(2, 5))
    for likelihood in ("bernoulli", "gaussian"):
        preparation = {"bernoulli": "dynamic_binary", "gaussian": "dequantized"}[likelihood]
        model = built([*DLGM, f"likelihood={likelihood}", f"data.preparation={preparation}"])
        assert not moved(model, slice(0, 4))
        assert moved(model, slice(4, 5))
    flow = [*DLGM, "likelihood=flow", "data.preparation=dequantized", "likelihood.width=4"]
    model = built(flow)
    z = torch.randn(3, 5)
    x = torch.rand(3, *SHAPE)
    above, lowest = z.clone(), z.clone()
    above[:, :4] += 1
    lowest[:, 4:] += 1
    expected = model.decode(z).log_prob(x)
    assert torch.equal(model.decode(above).log_prob(x), expected)
    assert not torch.equal(model.decode(lowest).log_prob(x), expected)


def test_a_level_of_the_prior_reads_the_one_above_alone():
    prior = built([*DLGM, "latent_dim=6"]).prior
    assert isinstance(prior, Hierarchical)
    lowest, above = prior.members[2], torch.randn(5, 4)
    top, middle = above.clone(), above.clone()
    top[:, :2] += 1
    middle[:, 2:] += 1
    assert torch.equal(lowest(top).mean, lowest(above).mean)
    assert not torch.equal(lowest(middle).mean, lowest(above).mean)


FLOWS = {
    "posterior.top_flow": "iaf",
    "posterior.flow": "planar",
    "prior.top_flow": "real_nvp",
    "prior.flow": "maf",
}


@pytest.mark.parametrize("base", [TWO_LEVEL, DLGM], ids=["two_level", "dlgm"])
@pytest.mark.parametrize("key", FLOWS)
def test_a_flow_stands_at_its_levels_alone(base, key):
    model = built([*base, "latent_dim=6", f"{key}={FLOWS[key]}"])
    for name in ("posterior", "prior"):
        levels = getattr(model, name).members
        kinds = [isinstance(level, Flow) for level in levels]
        top, below = (f"{name}.top_flow" == key, f"{name}.flow" == key)
        assert kinds == [top, *[below] * (len(levels) - 1)]


@pytest.mark.parametrize("base", [TWO_LEVEL, DLGM], ids=["two_level", "dlgm"])
def test_flows_at_every_level_train_and_are_measured(base):
    overrides = [*base, "latent_dim=6", "training.epochs=6", "training.batch_size=8"]
    overrides += ["posterior.top_flow=real_nvp", "posterior.flow=iaf", "prior.top_flow=nsf_coupling"]
    configuration = configuration_from({}, [*overrides, "prior.flow=maf"])
    x = (torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    data = from_tensors(x, x[:8], x[:8], values="binary")
    model = build_model(configuration, SHAPE)
    stages = build_stages(configuration, model, 16)
    history = fit(model, stages, data.train, options=build_options(configuration))
    losses = [line["train"]["loss"] for line in history.epochs]
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"nothing reads {name}"
    bounds = evaluate_bounds(model, data.test, num_importance_samples=5)
    assert (bounds.nll <= -bounds.elbo + 1e-6).all()


def test_a_label_reaches_posterior_and_likelihood():
    overrides = [*DLGM, "condition.on=labels", "condition.parts=[posterior,likelihood]"]
    model = built(overrides, context_shape=(3,))
    x, labels = torch.rand(3, *SHAPE).round(), torch.eye(3)
    other = labels.roll(1, 0)
    assert not torch.equal(
        model.decode_mean(torch.ones(3, 5), labels), model.decode_mean(torch.ones(3, 5), other)
    )
    top, same = (model.encode(x, given).top.mean for given in (labels, other))
    assert not torch.equal(top, same)


@pytest.mark.parametrize("overrides", [TWO_LEVEL, DLGM, [*DLGM, "prior.top_flow=maf", "prior.flow=radial"]])
def test_the_top_of_the_prior_hears_the_label_and_the_rest_the_level_above(overrides):
    model = built([*overrides, "condition.on=labels", "condition.parts=[prior]"], context_shape=(3,))
    assert model.context_shape == (3,)
    prior, labels = model.prior, torch.eye(3)
    assert isinstance(prior, Hierarchical)
    torch.nn.init.normal_(next(prior.members[0].parameters()))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z = torch.randn(3, 5)
    p, other = prior(labels), prior(labels.roll(1, 0))
    assert not torch.allclose(p.top.log_prob(z[:, :2]), other.top.log_prob(z[:, :2]))
    assert p.log_prob(z).shape == (3,)
    for index, (level, part, context) in enumerate(prior.contexts(z, labels)):
        if index:
            assert context is not None
            assert torch.equal(context[:, :3], labels)
            changed = torch.cat([labels.roll(1, 0), context[:, 3:]], 1)
            assert torch.equal(level(context).log_prob(part), level(changed).log_prob(part))
    assert model.sample(3, context=labels).shape == (3, *SHAPE)


@pytest.mark.parametrize("overrides", [TWO_LEVEL, [*DLGM, "prior.top_flow=maf"]])
def test_the_top_may_be_a_vamp_prior_of_the_posteriors_top(overrides):
    model = built([*overrides, "prior.top_pseudo_inputs=7"])
    posterior, prior = model.posterior, model.prior
    assert isinstance(posterior, Hierarchical)
    assert isinstance(prior, Hierarchical)
    top = prior.members[0]
    vamp = top.base if isinstance(top, Flow) else top
    assert isinstance(vamp, VampPrior)
    assert vamp.posterior is posterior.members[0]
    assert vamp.pseudo_inputs().shape == (7, *SHAPE)
    x = torch.rand(3, *SHAPE).round()
    model.trace(x).log_weight.sum().backward()
    assert vamp.raw_inputs.grad is not None
    assert model.sample(2).shape == (2, *SHAPE)


def test_the_encoder_of_the_top_is_read_where_features_and_data_have_one_size():
    model = build_model(configuration_from({}, [*TWO_LEVEL, "network.width=16"]), (16,))
    top = model.posterior.members[0]
    assert isinstance(top, AmortizedGaussian)
    before = model.encode(torch.ones(1, 16)).top.mean
    with torch.no_grad():
        next(top.parameters()).add_(1)
    assert not torch.equal(model.encode(torch.ones(1, 16)).top.mean, before)


WRONG = {
    "posterior=two_level": "do not have the same levels of latents. Use posterior=two_level and prior=two_level",
    "prior=dlgm": "do not have the same levels of latents. Use posterior=dlgm and prior=dlgm",
    "posterior=dlgm prior=two_level": "do not have the same levels of latents",
    "posterior=two_level prior=two_level latent_dim=1": "needs a latent in every level; latent_dim=1 would give 0, 1",
    "posterior=two_level prior=two_level posterior.top_dim=40": "latent_dim=40 would give 40, 0",
    "posterior=dlgm prior=dlgm posterior.num_levels=5 latent_dim=4": "would give 1, 1, 1, 1, 0",
    "posterior=dlgm prior=dlgm latent_dim=2 prior.flow=real_nvp": "`prior.flow`=real_nvp lets parts of z decide",
    "posterior=dlgm prior=dlgm posterior.top_flow=nice latent_dim=2": "levels of two latents or more; got 1",
    "posterior=two_level prior=two_level latent_dim=300 prior.top_flow=maf": "too narrow for a level of 150 latents",
    "posterior=dlgm prior=dlgm prior.top_pseudo_inputs=9 posterior.top_flow=planar": "`prior.top_pseudo_inputs`=9 "
    "scores every z under every component, but posterior.top_flow=planar has no density",
    "posterior=dlgm prior=dlgm prior.top_pseudo_inputs=9 condition.on=labels condition.parts=[prior]": "takes no label",
    "posterior=dlgm prior=dlgm prior.top_pseudo_inputs=9 condition.on=labels condition.parts=[posterior]": "`prior."
    "top_pseudo_inputs`=9 is made of the posterior, which `condition.parts` gives the label",
    "posterior=dlgm prior=dlgm prior.top_pseudo_inputs=9 objective=info_vae": "of prior.kind=dlgm carry no gradient",
    "posterior=dlgm prior=dlgm prior.top_pseudo_inputs=9 data=arrays likelihood=gaussian": "`prior.top_pseudo_"
    "inputs`=9 keeps its inputs in the range of the data, and data.name=arrays alone does not tell it",
    "posterior=two_level prior=two_level objective.kl=closed_form": "needs a Gaussian posterior and a Gaussian prior",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_levels_that_do_not_fit_are_refused(overrides):
    with pytest.raises(CombinationError) as refused:
        configuration_from({}, overrides.split())
    assert WRONG[overrides] in str(refused.value)


@pytest.mark.parametrize("level", ["top_flow", "flow"])
def test_a_gradient_through_the_density_needs_an_inverse_at_every_level(level):
    sticking = [*TWO_LEVEL, "objective.gradient=stick_the_landing"]
    with pytest.raises(CombinationError, match=r"posterior\.kind=two_level has no inverse to do so"):
        configuration_from({}, [*sticking, f"posterior.{level}=planar"])
    plain = configuration_from({}, [*TWO_LEVEL, f"posterior.{level}=planar"])
    with pytest.raises(CombinationError, match=r"differentiates log q\(z\|x\) in z alone"):
        ELBO(gradient="stick_the_landing").check(build_model(plain, SHAPE))
    ELBO(gradient="stick_the_landing").check(built([*sticking, f"posterior.{level}=real_nvp"]))
