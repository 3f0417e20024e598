"""Labels in the data that a configuration asks for, and in the parts that are given them."""

import json

import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.data import SomeUnlabeled
from latentflows.generation.steering import guided_draws
from latentflows.studies.building.build import build_data, build_model, build_stages, load_run
from latentflows.studies.planning.budget import Workshop
from latentflows.studies.settings.overrides import configuration_from, to_yaml
from latentflows.training import save_weights

SHAPE = (1, 8, 8)
SMALL = ["latent_dim=3", "network.width=8", "network.depth=1", "prior.width=6"]
FLOW = ["prior=real_nvp", "prior.num_layers=2"]
EMBED = ["condition.on=labels", "condition.embed=5"]
LABELS = torch.eye(10)[[4, 4, 7]]


def test_training_alone_leaves_labels_out():
    data = build_data(configuration_from({}, ["prior=maf", "condition.on=labels", "condition.unlabeled=0.3"]))
    rows = torch.arange(400)
    with noise.stream(0):
        without = [
            (split.batch(rows[: len(split)]).context == 0).all(1).float().mean()
            for split in (data.train, data.validation, data.test)
        ]
    assert 0.2 < without[0] < 0.4
    assert without[1:] == [0, 0]
    assert data.train.labels is not None
    assert not isinstance(
        build_data(configuration_from({}, ["condition.on=labels", "prior=maf"])).train, SomeUnlabeled
    )


def drawn(c, shape=SHAPE):
    """The model with other weights than the first, so that its prior hears the label."""
    model = build_model(c, shape, (10,))
    with noise.stream(3), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize(
    "prior",
    [FLOW, ["prior=flow_matching", "prior.num_blocks=1", "prior.num_steps=2", "training.plan=two_stage"]],
)
def test_a_prior_hears_the_vector_of_a_class_and_nothing_else_of_it(prior):
    model = drawn(configuration_from({}, [*SMALL, *prior, *EMBED]))
    (table,) = (p for name, p in model.prior.named_parameters() if name.endswith("embed.weight"))
    z = torch.randn(1, 3).expand(3, 3)
    first = model.prior_at(LABELS).log_prob(z)
    assert first[0] == first[1]
    assert abs(first[0] - first[2]) > 1e-3
    with torch.no_grad():
        table[:, 7] = table[:, 4]
    assert torch.equal(model.prior_at(LABELS).log_prob(z)[2], first[0])
    with torch.no_grad():
        table.zero_()
    without = model.prior_at(torch.zeros(3, 10)).log_prob(z)  # a label that was left out
    assert torch.equal(model.prior_at(LABELS).log_prob(z), without)


@pytest.mark.parametrize("prior", ["tarflow", "flow_matching"])
def test_draws_are_guided_away_from_the_vector_zero(prior):
    plan = ["training.plan=two_stage"] if prior == "flow_matching" else []
    sizes = ["prior.num_steps=2"] if prior == "flow_matching" else ["prior.heads=1", "prior.num_blocks=2"]
    model = drawn(configuration_from({}, [*SMALL, f"prior={prior}", *sizes, *EMBED, *plan]))
    draws = {}
    for weight in (0.0, 1.0):
        with noise.stream(1):
            draws[weight] = guided_draws(model, 3, LABELS, weight=weight)
    with noise.stream(1):
        plain = model.sample_latents(3, context=LABELS)
    torch.testing.assert_close(draws[0.0], plain)
    assert (draws[1.0] - plain).abs().amax() > 1e-2


def test_the_vectors_are_learned():
    c = configuration_from({}, [*SMALL, *FLOW, *EMBED])
    model = drawn(c)
    (stage,) = build_stages(c, model)
    x = (torch.rand(3, *SHAPE) > 0.5).float()
    stage.objective(stage.objective.trace(model, x, LABELS)).loss.backward()
    moved = model.prior.embed.weight.grad.abs().sum(0) > 0
    assert moved.nonzero()[:, 0].tolist() == [4, 7]


@pytest.mark.parametrize("overrides", [FLOW, [*FLOW, "model=flow", "condition.parts=[prior]"]])
def test_budgets_count_the_vectors_and_a_loaded_run_has_them(tmp_path, overrides):
    sizes = [text for text in SMALL if "model=flow" not in overrides or text.startswith("prior")]
    configuration = configuration_from({}, [*sizes, *overrides, *EMBED])
    model = drawn(configuration)
    flow = model.density if "model=flow" in overrides else model.prior
    assert flow.context_shape == (10,)
    parameters = Workshop().cost(configuration).parameters
    bijection = sum(p.numel() for p in flow.bijection.parameters())
    assert parameters.get("prior", parameters["total"]) == bijection + 5 * 10
    (tmp_path / "config.yaml").write_text(to_yaml(configuration))
    record = {"format": 1, "status": "finished", "event_shape": list(SHAPE), "context_shape": [10]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    save_weights(model, tmp_path / "checkpoint" / "model.safetensors")
    loaded_configuration, loaded = load_run(tmp_path)
    assert loaded_configuration.condition.embed == 5
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["prior=real_nvp", "condition.embed=5"], ConfigurationError, "needs on=labels with prior in parts"),
        (
            ["prior=real_nvp", *EMBED, "condition.parts=[likelihood]"], ConfigurationError,
            "needs on=labels with prior in parts",
        ),
        ([*EMBED, "condition.embed=0", "prior=maf"], ConfigurationError, "`condition.embed` must be"),
        (
            ["prior=mixture", *EMBED], CombinationError,
            "`condition.embed`=5 does not fit prior.kind=mixture, which has numbers of its own .* Use a flow or",
        ),
        (
            ["prior=two_level", "posterior=two_level", *EMBED], CombinationError,
            "`condition.embed`=5 does not fit prior.kind=two_level",
        ),
        (
            ["model=vq_vae", *EMBED, "condition.parts=[prior]"], CombinationError,
            "`condition.embed`=5 does not fit model.kind=vq_vae, whose prior has a vector",
        ),
    ],
)  # fmt: skip
def test_what_has_no_use_for_a_vector_refuses_it(overrides, error, message):
    with pytest.raises(error, match=message):
        configuration_from({}, overrides)
