"""From configurations to data, models, stages and options."""

import json
import typing
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from latentflows import data as data_room
from latentflows.core.errors import CheckpointError, CombinationError, ConfigurationError
from latentflows.data.load import DATASETS
from latentflows.data.prepare import Preparation
from latentflows.distributions import StandardGaussian
from latentflows.objectives import ELBO, IWAE, PriorLikelihood
from latentflows.studies.building.build import build_data, build_model, build_options, build_stages, load_run
from latentflows.studies.settings.configuration import USUAL_PREPARATION, DataSettings
from latentflows.studies.settings.options import parts
from latentflows.studies.settings.overrides import configuration_from, to_yaml
from latentflows.training import save_weights

SMALL = ["latent_dim=3", "network.width=8", "network.depth=1"]
SHAPE = (1, 8, 8)
SIZES = {
    "num_layers": 2, "num_blocks": 2, "width": 6, "heads": 1, "depth": 1, "num_components": 3, "num_exemplars": 4,
    "num_proposals": 20, "num_steps": 3, "num_normalizer_samples": 30,
}  # fmt: skip
POSTERIORS = sorted(parts()["posterior"])
PRIORS = sorted(parts()["prior"])
LEVELED = ("two_level", "dlgm")
ZUKO = ("cnf", "naf", "unaf", "sospf", "bpf")
OWN_STAGE = ("noise_contrastive", "adversarial")  # priors that learn in a stage of their own
ELSEWHERE = ("mixture", "vamp", "exemplar", "resampled", "second_stage", *OWN_STAGE, *ZUKO)
MADE_OF_POSTERIOR = {  # the posteriors that a prior made of them can be made of
    "exemplar": {"gaussian", "full_gaussian", "low_rank_gaussian", "noisy"},
    "vamp": set(POSTERIORS)
    - {"planar", "delta", "sylvester_orthogonal", "sylvester_householder", "sylvester_triangular"},
}
LEARNED_PRIORS = [
    name for name in PRIORS if name not in ("standard", *LEVELED)
]  # those of test_hierarchical_parts


def small(*overrides):
    """A small configuration; its flows are small too."""
    flows = [text for part in ("posterior", "prior") for text in _small_flow(part, overrides)]
    return configuration_from({}, [*SMALL, *flows, *overrides])


def _small_flow(part, overrides):
    kind = next((text.split("=")[1] for text in overrides if text.startswith(f"{part}=")), None)
    keys = parts()[part][kind].model_fields if kind else {}
    return [f"{part}.{key}={value}" for key, value in SIZES.items() if key in keys]


def binary(count=5, shape=SHAPE):
    return (torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_pair_builds_and_takes_a_step(posterior, prior):
    overrides = [f"posterior={posterior}", f"prior={prior}"]
    overrides += ["objective=autoencoder"] if posterior == "delta" else []
    apart = prior in OWN_STAGE or (posterior == "delta" and prior != "standard")
    overrides += ["training.plan=two_stage"] if apart else []
    if posterior != prior and {posterior, prior} & set(LEVELED):
        with pytest.raises(CombinationError, match="do not have the same levels"):
            small(*overrides)
        return
    if prior in MADE_OF_POSTERIOR and posterior not in MADE_OF_POSTERIOR[prior]:
        with pytest.raises(CombinationError, match=r"`prior.kind`=.* Use posterior=gaussian"):
            small(*overrides)
        return
    configuration = small(*overrides)
    model = build_model(configuration, SHAPE)
    stage = build_stages(configuration, model)[0]
    stage.check(model)
    with model.standard_prior() if stage.standard_prior else nullcontext():
        loss = stage.objective(stage.objective.trace(model, binary())).loss
    loss.backward()
    assert torch.isfinite(loss)
    learning = [p for part in ("posterior", "likelihood") for p in getattr(model, part).parameters()]
    learning += [] if apart else model.prior.parameters()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learning)


@pytest.mark.parametrize("variance", ["shared", "amortized", "fixed"])
@pytest.mark.parametrize("network", ["mlp", "gated_mlp", "gated_convolution", "residual_convolution"])
def test_every_network_builds_with_every_variance(network, variance):
    overrides = ["data.preparation=dequantized", "likelihood=gaussian", f"likelihood.variance={variance}"]
    overrides += ["likelihood.scale=0.5"] if variance == "fixed" else []
    configuration = configuration_from(
        {}, [f"network={network}", "network.width=4", "latent_dim=2", *overrides]
    )
    model = build_model(configuration, (3, 8, 6))
    p = model.likelihood(model.sample_latents(4))
    assert p.sample().shape == (4, 3, 8, 6)
    if variance == "fixed":
        assert torch.allclose(p.log_scale.exp(), torch.tensor(0.5))


@pytest.mark.parametrize("shape", [(64,), (1, 3, 8)])
@pytest.mark.parametrize("network", ["gated_convolution", "residual_convolution"])
def test_a_convolution_of_what_is_no_image_is_refused(network, shape):
    message = (
        rf"`network.kind`={network} needs images .* at least 4 x 4 pixels; .* Use network=mlp or gated_mlp"
    )
    with pytest.raises(ConfigurationError, match=message):
        build_model(configuration_from({}, [f"network={network}"]), shape)


def test_arms_with_one_seed_start_with_equal_networks():
    plain = build_model(small(), SHAPE)
    flows = build_model(small("posterior=iaf", "prior=real_nvp"), SHAPE)
    encoder, last = plain.posterior.network
    pairs = [
        (encoder, flows.posterior.embed),
        (last, flows.posterior.base.network),
        (plain.likelihood, flows.likelihood),
    ]
    for one, other in pairs:
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
    assert not torch.equal(build_model(small("seed=1"), SHAPE).likelihood.network.first.weight,
                           plain.likelihood.network.first.weight)  # fmt: skip


def test_building_leaves_the_generator_alone():
    before = torch.get_rng_state()
    build_model(small("posterior=planar", "prior=maf"), SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prior", [name for name in LEARNED_PRIORS if name not in ELSEWHERE])
def test_an_untrained_prior_is_the_standard_normal(prior):
    configuration = small(f"prior={prior}", "training.plan=two_stage")
    model = build_model(configuration, SHAPE)
    z = 3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.prior().log_prob(z), StandardGaussian(3)().log_prob(z))


@pytest.mark.parametrize("prior", ["maf", "cnf"])
def test_the_first_of_two_stages_sees_the_standard_prior_wherever_its_own_starts(prior):
    configuration = small(f"prior={prior}", "training.plan=two_stage")
    model = build_model(configuration, SHAPE)
    first, second = build_stages(configuration, model)
    assert first.standard_prior
    assert first.objective.kl == "closed_form"  # of a Gaussian to N(0, I)
    assert not second.standard_prior
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.fill_(torch.nan)
    first.check(model)
    with model.standard_prior():
        value = first.objective(first.objective.trace(model, binary()))
    assert torch.isfinite(value.loss)


@pytest.mark.parametrize("posterior", ["tarflow", "nsf_autoregressive", "naf", "iaf"])
def test_a_posterior_is_cheap_to_draw_from(posterior):
    forward, inverse = build_model(small(f"posterior={posterior}"), SHAPE).posterior.bijection.passes
    assert forward < inverse


@pytest.mark.parametrize("prior", ["tarflow", "nsf_autoregressive", "naf", "maf"])
def test_a_prior_is_cheap_to_score(prior):
    forward, inverse = build_model(small(f"prior={prior}"), SHAPE).prior.bijection.passes
    assert inverse < forward


@pytest.mark.parametrize("prior", LEARNED_PRIORS)
def test_the_first_stage_is_that_of_a_vae_with_a_fixed_prior(prior):
    configuration = small(f"prior={prior}", "training.plan=two_stage")
    model = build_model(configuration, SHAPE)
    baseline = build_model(small(), SHAPE)
    with torch.random.fork_rng(), model.standard_prior():
        torch.manual_seed(5)
        trace = model.trace(binary())
        torch.manual_seed(5)
        expected = baseline.trace(binary())
    torch.testing.assert_close(trace.log_weight, expected.log_weight)


def test_stages_of_the_plans():
    objective = ["objective.warmup_epochs=3", "training.epochs=11"]
    one = small("prior=real_nvp", *objective)
    (stage,) = build_stages(one, build_model(one, SHAPE))
    assert (stage.name, stage.max_epochs, stage.objective) == (
        "joint", 11, ELBO(warmup_epochs=3.0, kl="monte_carlo"),
    )  # fmt: skip
    three = small("prior=real_nvp", "training.plan=two_stage_joint", "training.prior_epochs=12", *objective)
    stages = build_stages(three, build_model(three, SHAPE))
    assert [(s.name, s.train, s.max_epochs) for s in stages] == [
        ("vae", ("posterior", "likelihood"), 11),
        ("prior", ("prior",), 12),
        ("joint", ("posterior", "prior", "likelihood"), 50),
    ]
    assert stages[1].objective == PriorLikelihood()
    assert (stages[0].objective.warmup_epochs, stages[2].objective.warmup_epochs) == (3.0, 0.0)
    two = small("prior=real_nvp", "training.plan=two_stage", *objective)
    assert len(build_stages(two, build_model(two, SHAPE))) == 2


def test_a_first_stage_may_need_what_its_prior_alone_has():
    """Free bits per dimension need a Gaussian prior, which N(0, I) in a flow's place is."""
    free = ["prior=real_nvp", "objective.free_bits=0.5"]
    two = small(*free, "training.plan=two_stage")
    assert build_stages(two, build_model(two, SHAPE))[0].objective == ELBO(kl="closed_form", free_bits=0.5)
    for plan in ("one_stage", "two_stage_joint"):
        with pytest.raises(CombinationError, match="dimension needs the KL of every single latent"):
            small(*free, f"training.plan={plan}")


@pytest.mark.parametrize(
    "objective",
    [
        ["objective.warmup_epochs=2", "objective.cycle_epochs=4"],
        ["objective=capacity", "objective.warmup_epochs=2"],
    ],
)
def test_no_schedule_begins_anew_in_the_joint_stage(objective):
    three = small("prior=real_nvp", "training.plan=two_stage_joint", *objective)
    first, _, joint = build_stages(three, build_model(three, SHAPE))
    assert first.objective.settings(0.0) != first.objective.settings(100.0)
    assert joint.objective.settings(0.0) == first.objective.settings(100.0)
    assert joint.objective.schedule_epochs == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ELBO(kl="closed_form")),
        (["posterior=iaf"], ELBO(kl="monte_carlo")),
        (["objective.kl=monte_carlo", "objective.beta=2", "objective.num_samples=3"], ELBO(3, beta=2.0)),
        (["objective=iwae", "objective.num_samples=7"], IWAE(7)),
    ],
)
def test_objectives(overrides, expected):
    configuration = small(*overrides)
    assert build_stages(configuration, build_model(configuration, SHAPE))[0].objective == expected


def test_every_training_setting_arrives():
    configuration = small(
        "training.epochs=3", "training.batch_size=12", "training.optimizer=adamax", "training.learning_rate=0.5",
        "training.schedule=cosine", "training.warmup_steps=4", "training.weight_decay=0.25",
        "training.gradient_clip=2", "training.accumulate=6", "training.ema_decay=0.75", "training.patience=8",
        "training.accelerator=cpu", "training.precision=bf16-mixed", "training.compile=true",
        "training.checkpoint_every=9", "training.max_bad_steps=10",
    )  # fmt: skip
    (stage,) = build_stages(configuration, build_model(configuration, SHAPE))
    assert (stage.max_epochs, stage.batch_size, stage.optimizer, stage.learning_rate) == (
        3,
        12,
        "adamax",
        0.5,
    )
    assert (stage.schedule, stage.warmup_steps, stage.weight_decay) == ("cosine", 4, 0.25)
    assert (stage.gradient_clip_val, stage.accumulate_grad_batches) == (2.0, 6)
    assert (stage.ema_decay, stage.patience) == (0.75, 8)
    options = build_options(configuration)
    assert (options.accelerator, options.precision, options.compile) == ("cpu", "bf16-mixed", True)
    assert (options.checkpoint_every, options.max_bad_steps) == (9, 10)


def test_choices_are_those_of_the_data_room():
    fields = DataSettings.model_fields
    assert typing.get_args(fields["name"].annotation) == (
        *data_room.dataset_names(),
        "ambiguous_shapes",
        "energy",
    )
    preparations = typing.get_args(typing.get_args(fields["preparation"].annotation)[0])
    assert preparations == typing.get_args(Preparation)
    usual = {name: entry.preparation for name, entry in DATASETS.items() if entry.preparation}
    drawn = {"ambiguous_shapes": "dynamic_binary", "energy": "continuous"}
    assert usual | drawn == USUAL_PREPARATION


def test_data_are_loaded_as_configured(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20 * 6, dtype=np.float32).reshape(20, 6))
    overrides = [
        f"data.root={tmp_path / 'x.npy'}",
        "data.validation=4",
        "data.test=0.25",
        "likelihood=gaussian",
    ]
    loaded = build_data(configuration_from({}, ["data=arrays", *overrides]))
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [11, 4, 5]
    assert loaded.train.event_shape == (6,)


def test_pseudo_inputs_must_know_the_range_of_the_data():
    overrides = ["data=arrays", "likelihood=gaussian", "prior=vamp"]
    with pytest.raises(CombinationError, match=r"data\.name=arrays alone does not tell it"):
        configuration_from({}, overrides)
    configuration_from({}, [*overrides, "data.preparation=continuous"])


def test_a_likelihood_without_probability_for_the_data_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(20, 6).astype(np.float32))
    configuration = configuration_from({}, ["data=arrays", f"data.root={tmp_path / 'x.npy'}"])
    with pytest.raises(CombinationError, match="bernoulli does not fit data with continuous values"):
        build_data(configuration)


def test_a_conditional_model_is_built_and_loaded_with_the_shape_of_its_labels(tmp_path):
    configuration = small("prior=maf", "condition.on=labels")
    model = build_model(configuration, SHAPE, (10,))
    assert model.context_shape == (10,)
    assert model.posterior.context_shape == (11, 8, 8)  # labels are constant channels beside an image
    assert model.likelihood.context_shape == (13,)
    label = torch.nn.functional.one_hot(torch.arange(5), 10).float()
    assert model.trace(binary(), context=label).log_weight.shape == (1, 5)
    (tmp_path / "config.yaml").write_text(to_yaml(configuration))
    record = {"format": 1, "status": "finished", "event_shape": list(SHAPE), "context_shape": [10]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    save_weights(model, tmp_path / "checkpoint" / "model.safetensors")
    assert load_run(tmp_path)[1].context_shape == (10,)


@pytest.mark.parametrize("part", ["posterior", "prior", "likelihood"])
def test_one_part_alone_may_be_given_the_label(part):
    model = build_model(small("prior=maf", "condition.on=labels", f"condition.parts=[{part}]"), SHAPE, (10,))
    shapes = {"posterior": (1, 8, 8), "prior": None, "likelihood": (3,)}
    given = {"posterior": (11, 8, 8), "prior": (10,), "likelihood": (13,)}
    for name, shape in (shapes | {part: given[part]}).items():
        assert getattr(model, name).context_shape == shape


@pytest.fixture
def folder(tmp_path):
    """A run folder with all that `load_run` reads."""
    configuration = small("posterior=iaf", "prior=real_nvp", "seed=3")
    model = build_model(configuration, SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    (tmp_path / "checkpoint").mkdir()
    save_weights(model, tmp_path / "checkpoint" / "model.safetensors")
    (tmp_path / "config.yaml").write_text(to_yaml(configuration))
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "status": "finished", "event_shape": SHAPE}))
    return tmp_path, configuration, model


def test_load_run_gives_the_model_back(folder):
    path, configuration, model = folder
    loaded_configuration, loaded = load_run(path)
    assert loaded_configuration == configuration
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_last_good_weights_of_a_diverged_run_can_be_looked_at(folder):
    record(folder[0], status="diverged")
    assert load_run(folder[0])[0] == folder[1]


def record(path, **changes):
    content = {"format": 1, "status": "finished", "event_shape": SHAPE} | changes
    (path / "run.json").write_text(json.dumps(content))


def cut(path, where):
    text = path.read_text()
    path.write_text(text[: text.rindex(where)])


DAMAGE = {
    "no run": (lambda path: (path / "config.yaml").unlink(), CheckpointError, "is no run folder"),
    "no weights": (
        lambda path: (path / "checkpoint" / "model.safetensors").unlink(), CheckpointError, "No checkpoint at",
    ),
    "no record": (lambda path: (path / "run.json").unlink(), CheckpointError, "does not hold the shape"),
    "no shape": (lambda path: (path / "run.json").write_text("{}"), CheckpointError, "does not hold the shape"),
    "a wrong shape": (
        lambda path: record(path, event_shape=[-1]), CheckpointError, "positive integers",
    ),
    "another model": (
        lambda path: record(path, event_shape=[1, 8, 9]), CheckpointError, "another model",
    ),
    "another format": (
        lambda path: record(path, format=2), CheckpointError,
        "run.json has format 2; this version reads 1. Use the latentflows version that wrote it",
    ),
    "between two stages": (
        lambda path: record(path, status="interrupted"), CheckpointError,
        "holds a run that is interrupted, .*resume it first: latentflows train .*config.yaml --out .* --resume",
    ),
    "still training": (
        lambda path: record(path, status="running"), CheckpointError, "is running, .*Wait for the process",
    ),
    "a damaged configuration": (
        lambda path: (path / "config.yaml").write_text("latent_dim: -1\n"), ConfigurationError, "latent_dim",
    ),
    "a configuration that was cut": (
        lambda path: cut(path / "config.yaml", "evaluation:"), ConfigurationError,
        "config.yaml is cut short: it has no `evaluation`, with which it ended. Restore it",
    ),
    "a configuration that was cut in its last line": (
        lambda path: cut(path / "config.yaml", "\n"), ConfigurationError, "its last line has no end",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_named(folder, name):
    damage, error, message = DAMAGE[name]
    damage(folder[0])
    with pytest.raises(error, match=message):
        load_run(folder[0])


@pytest.mark.parametrize("prior", [["noise_contrastive"], ["adversarial", "prior.num_proposals=9"]])
def test_no_encoder_is_trained_against_a_normalizer_known_from_draws(prior):
    overrides = [f"prior={prior[0]}", *prior[1:]]
    configuration = small(*overrides, "training.plan=two_stage_joint")
    model = build_model(configuration, SHAPE)  # a trained one is still measured and drawn from
    with pytest.raises(CombinationError, match=f"{prior[0]} is known from draws .* training.plan=two_stage,"):
        build_stages(configuration, model)
    build_stages(small(*overrides, "training.plan=two_stage"), model)
