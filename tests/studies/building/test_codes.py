"""Models with codes for latents from a configuration: trained, measured, drawn from, resumed, reported, refused."""

import json
import os
import re
import signal

import pytest
import torch

from latentflows.cli import main
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.evaluation import evaluate_codes
from latentflows.models import VQVAE
from latentflows.reporting import write_run_report
from latentflows.reporting.base import read_run
from latentflows.studies.building.build import build_data, build_model, build_stages, load_run
from latentflows.studies.measuring.measure import evaluate
from latentflows.studies.running.run import run
from latentflows.studies.settings.models import VQVAE2Model, VQVAEModel
from latentflows.studies.settings.overrides import configuration_from, read_configuration, to_yaml
from latentflows.training import Callback
from latentflows.training.checkpoint import load_weights

SMALL = [
    "data.name=digits",
    "model.num_codes=8",
    "model.dim=2",
    "model.width=4",
    "model.num_blocks=1",
    "model.prior_width=8",
    "model.prior_depth=1",
    "model.prior_heads=2",
    "training.epochs=2",
    "training.prior_epochs=1",
    "training.batch_size=256",
    "training.trackers=[]",
]
KINDS = ("vq_vae", "vq_vae_2")


def mean(figures, name):
    """The mean of a figure that is there."""
    assert figures[name] is not None
    return figures[name].mean


def small(kind="vq_vae", *more):
    return configuration_from({}, [f"model={kind}", *SMALL, *more])


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """A run folder made by the command line."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert main(["train", f"model={request.param}", *SMALL, "--quiet", "--out", str(folder)]) == 0
    return request.param, folder


def test_a_run_trains_both_stages_and_measures_the_bound_of_its_codes(trained):
    kind, folder = trained
    read = read_run(folder)
    assert read.record is not None
    assert read.evaluation is not None
    assert read.record.name == f"digits-{kind}"
    assert [epoch.stage for epoch in read.epochs] == ["codes", "codes", "prior"]
    configuration, model = load_run(folder)
    assert isinstance(model, VQVAE)
    assert read.record.parameters.shown == model.num_parameters()
    bound = evaluate_codes(model, build_data(configuration).test, seed=0)
    figures = read.evaluation.figures
    assert mean(figures, "nll_bound") == pytest.approx(-float(bound.elbo.mean()), abs=1e-6)
    assert mean(figures, "code_nll") == pytest.approx(float(bound.code_nll.mean()), abs=1e-6)
    assert "nll" not in figures
    names = [""] if kind == "vq_vae" else ["top_", "bottom_"]
    assert [mean(figures, f"{name}perplexity") for name in names] == pytest.approx(bound.perplexity)
    assert [mean(figures, f"{name}code_usage") for name in names] == pytest.approx(bound.code_usage)
    assert read.evaluation.protocol.num_importance_samples is None
    assert "not importance weighted" in read.evaluation.protocol.caution


def test_what_needs_continuous_latents_is_left_out_with_its_reason(trained):
    _, folder = trained
    assert json.loads((folder / "evaluation.json").read_text())["groups"] == {}
    assert not (folder / "nll.npy").exists()  # a bound is no NLL
    configuration, model = load_run(folder)
    asked = configuration.evaluation.model_copy(update={"holes": 50, "information": 50, "gaps": 2})
    groups = evaluate(model, build_data(configuration), asked, None)["groups"]
    assert set(groups) == {"information", "units", "holes", "gaps"}
    assert all("has codes for latents" in group["reason"] for group in groups.values())
    index = {
        entry["file"]: entry["caption"]
        for entry in json.loads((folder / "samples" / "index.json").read_text())
    }
    assert index["traversals.png"].startswith("Not drawn:")
    assert "the mean of p(x|z) at its codes" in index["reconstructions.png"]


def test_the_commands_know_the_run(trained, capsys, tmp_path):
    kind, folder = trained
    assert (
        main(["sample", str(folder), "--num", "4", "--temperature", "0.5", "--out", str(tmp_path / "x.npy")])
        == 0
    )
    assert main(["evaluate", str(folder), "--num-images", "50", "evaluation.neighbors=20"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"nll bound  \d+\.\d{3} ± \d+\.\d{3} nats\n", out)
    assert "50 data points, no importance samples" in out
    assert "Monte Carlo error" not in out
    before = (folder / "evaluation.json").read_bytes()
    for asked in (["--num-importance-samples", "10"], ["evaluation.num_importance_samples=10"]):
        assert main(["evaluate", str(folder), *asked]) == 2
        assert "this model uses no importance samples" in capsys.readouterr().err
    assert (folder / "evaluation.json").read_bytes() == before
    assert "Nearer than 5% of test, data space" in out
    assert main(["list", str(folder)]) == 0
    assert re.search(
        r"finished +test NLL bound \d+\.\d\d ± \d+\.\d\d nats, probability mass +[\d,]+ parameters",
        capsys.readouterr().out,
    )
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "NLL, bound" in page
    for level in [""] if kind == "vq_vae" else [", top level", ", bottom level"]:
        assert f'<th scope="row">Perplexity of the codes{level}</th>' in page
    for part in ("encoder", "quantizer", "likelihood", "prior", "total"):
        assert f'<th scope="row">{part}</th>' in page
    assert "Code NLL" in page
    assert "Codes in use" in page


class Interrupt(Callback):
    """Sends this process an interrupt after an epoch of a stage."""

    def __init__(self, stage):
        self.stage = stage

    def on_epoch(self, line):
        if line["stage"] == self.stage:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stage", ["codes", "prior"])
def test_an_interrupted_run_goes_on_bit_by_bit(stage, tmp_path):
    configuration = small("vq_vae", "training.prior_epochs=2")
    whole = run(configuration, tmp_path / "whole")
    stopped = run(configuration, tmp_path / "cut", callbacks=[Interrupt(stage)])
    assert (whole.status, stopped.status) == ("finished", "interrupted")
    resumed = run(configuration, tmp_path / "cut", resume=True)
    assert resumed.figures == whole.figures
    first, second = load_run(tmp_path / "whole")[1], load_run(tmp_path / "cut")[1]
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_complete_file_is_read_back(tmp_path):
    configuration = small("vq_vae_2", "condition.on=labels", "condition.parts=[prior]", "seed=3")
    (tmp_path / "c.yaml").write_text(to_yaml(configuration))
    assert read_configuration(tmp_path / "c.yaml") == configuration


def test_two_stages_are_the_usual_plan_of_codes_alone():
    assert configuration_from({}, ["model=vq_vae"]).training.plan == "two_stage"
    assert (
        configuration_from({"model": {"kind": "vq_vae_2"}}, ["training.epochs=3"]).training.plan
        == "two_stage"
    )
    assert configuration_from({}, ["model=vae"]).training.plan == "one_stage"


def test_labels_condition_the_prior(tmp_path):
    configuration = small("vq_vae", "condition.on=labels", "condition.parts=[prior]")
    assert run(configuration, tmp_path / "run").status == "finished"
    _, model = load_run(tmp_path / "run")
    assert model.context_shape == (10,)
    assert (
        main(
            ["sample", str(tmp_path / "run"), "--label", "3", "--num", "5", "--out", str(tmp_path / "x.npy")]
        )
        == 0
    )
    protocol = read_run(tmp_path / "run").evaluation.protocol  # pyright: ignore[reportOptionalMemberAccess]
    assert protocol.given == "label"
    assert (tmp_path / "run" / "samples" / "classes.png").is_file()


def test_settings_reach_the_model_and_its_stages():
    c = small(
        "vq_vae_2", "model.commitment=0.7", "model.decay=0.8", "model.restart_below=0.3", "training.epochs=7"
    )
    model = build_model(c, (1, 8, 8))
    assert isinstance(model, VQVAE)
    assert [(level.num_codes, level.dim, level.decay, level.restart_below) for level in model.levels] == [
        (8, 2, 0.8, 0.3)
    ] * 2
    codes, prior = build_stages(c, model)
    assert (codes.objective.commitment, codes.max_epochs, codes.train) == (  # pyright: ignore[reportAttributeAccessIssue]
        0.7,
        7,
        ("encoder", "quantizer", "likelihood"),
    )
    assert (prior.max_epochs, prior.train) == (1, ("prior",))
    by_gradient = build_model(small("vq_vae", "model.codebook=gradient"), (1, 8, 8))
    assert isinstance(by_gradient, VQVAE)
    assert by_gradient.levels[0].sums is None


@pytest.mark.parametrize(
    ("picture", "one", "two"),
    [
        ((8, 8), ((4, 4),), ((2, 2), (4, 4))),
        ((28, 28), ((7, 7),), ((7, 7), (14, 14))),
        ((64, 64), ((8, 8),), ((8, 8), (16, 16))),
        ((9, 30), ((3, 8),), ((3, 8), (5, 15))),
    ],
)
def test_the_usual_maps_of_codes_are_small(picture, one, two):
    assert VQVAEModel().spaces(picture) == one
    assert VQVAE2Model().spaces(picture) == two


def test_the_number_of_halvings_can_be_said():
    assert VQVAEModel(halvings=0).spaces((8, 8)) == ((8, 8),)
    assert VQVAE2Model(halvings=1, top_halvings=2).spaces((32, 32)) == ((4, 4), (16, 16))
    model = build_model(small("vq_vae_2", "model.halvings=0", "model.top_halvings=2"), (1, 8, 8))
    assert isinstance(model, VQVAE)
    assert [level.space for level in model.levels] == [(2, 2), (8, 8)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["latent_dim=3"], "`latent_dim`=3 is not looked at by model.kind=vq_vae"),
        (["network.width=20"], "`network`=mlp with width=20 is not looked at by model.kind=vq_vae"),
        (["posterior=iaf"], "`posterior`=iaf is not looked at"),
        (["prior=real_nvp"], "`prior`=real_nvp is not looked at"),
        (["prior_base=mixture"], "`prior_base`=mixture is not looked at"),
        (["objective=iwae"], "`objective`=iwae is not looked at by model.kind=vq_vae. What it minimizes is"),
        (["training.plan=one_stage"], "Use training.plan=two_stage"),
        (["training.plan=two_stage_joint"], "Use training.plan=two_stage"),
        (["condition.on=labels"], "whose prior alone can be given a label. Use condition.parts=[prior]"),
        (["likelihood=flow", "data.preparation=dequantized"], "hears a vector, and the latents of"),
        (["model.prior_width=30"], "`model.prior_width` must be an even multiple of `model.prior_heads`"),
        (["likelihood=gaussian"], "data.preparation=dynamic_binary gives only 0 and 1"),
    ],
)
def test_what_would_be_ignored_is_refused(overrides, message):
    with pytest.raises(CombinationError, match=re.escape(message)):
        configuration_from({}, ["model=vq_vae", *overrides])


def test_a_setting_at_its_default_may_be_said():
    """As in the shared configuration of a study."""
    usual = ["latent_dim=40", "likelihood=bernoulli", "prior=standard", "objective=elbo", "network=mlp"]
    assert configuration_from({}, ["model=vq_vae", *usual]) == configuration_from({}, ["model=vq_vae"])
    with pytest.raises(CombinationError, match=r"or at its default \(prior=standard\); or use model=vae"):
        configuration_from({}, ["model=vq_vae", "prior=maf"])


def test_every_model_is_listed(capsys):
    assert main(["list", "components"]) == 0
    out = capsys.readouterr().out
    for kind in ("vae", "vq_vae", "vq_vae_2", "flow", "segmentation_vae"):
        assert re.search(rf"^model={kind} ", out, re.MULTILINE)


def test_keys_of_other_models_are_refused():
    with pytest.raises(ConfigurationError, match=r"`model.top_halvings` .* belongs to kind vq_vae_2"):
        configuration_from({}, ["model=vq_vae", "model.top_halvings=2"])
    with pytest.raises(ConfigurationError, match=r"must be vae \| vq_vae \| vq_vae_2.*Did you mean vq_vae"):
        configuration_from({}, ["model=vq-vae"])


def test_maps_that_do_not_fit_are_refused_by_their_keys():
    with pytest.raises(
        ConfigurationError, match=r"fine map of 15 x 15 and a coarse one of 8 x 8.*model.halvings"
    ):
        build_model(small("vq_vae_2"), (1, 30, 30))
    with pytest.raises(
        ConfigurationError, match=r"has maps of codes, for pictures \(C, H, W\); got .*\(5,\)"
    ):
        build_model(small("vq_vae"), (5,))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("vq_vae", ["model.halvings=4"], "`model.halvings`=4 .* 8 x 8 .* Use model.halvings=3 at most"),
        ("vq_vae", ["model.halvings=1000000000"], "Use model.halvings=3 at most"),
        ("vq_vae_2", ["model.halvings=5"], "Use model.halvings=2 at most"),
        ("vq_vae_2", ["model.top_halvings=9"], "`model.top_halvings`=9 .* Use model.top_halvings=2 at most"),
        ("vq_vae_2", ["model.halvings=0", "model.top_halvings=4"], "Use model.top_halvings=3 at most"),
    ],
)
def test_a_picture_is_halved_no_more_often_than_it_can_be(kind, settings, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        run(small(kind, *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "picture", "settings", "spaces"),
    [
        ("vq_vae", (8, 8), {"halvings": 3}, ((1, 1),)),
        ("vq_vae", (5, 9), {"halvings": 4}, ((1, 1),)),
        ("vq_vae_2", (8, 8), {"halvings": 2, "top_halvings": 1}, ((1, 1), (2, 2))),
        ("vq_vae_2", (8, 8), {"top_halvings": 2}, ((1, 1), (4, 4))),
    ],
)
def test_a_picture_may_be_halved_to_one_pixel(kind, picture, settings, spaces):
    part = {"vq_vae": VQVAEModel, "vq_vae_2": VQVAE2Model}[kind](**settings)
    assert part.beyond(picture) is None
    assert part.spaces(picture) == spaces


@pytest.mark.filterwarnings("ignore:A Bernoulli cross-entropy on gray values")
@pytest.mark.parametrize(
    ("likelihood", "preparation"),
    [
        ("gaussian", "dequantized"),
        ("categorical", "unit"),
        ("logistic", "unit"),
        ("continuous_bernoulli", "unit"),
        ("gray_bernoulli", "unit"),
    ],
)
def test_other_likelihoods_are_built_and_measured(likelihood, preparation, tmp_path):
    c = small("vq_vae", f"likelihood={likelihood}", f"data.preparation={preparation}")
    data = build_data(c)
    model = build_model(c, data.train.event_shape).eval()
    content = evaluate(model, data, c.evaluation, tmp_path)
    if likelihood == "gray_bernoulli":
        assert set(content["figures"]) == {"reconstruction"}
        assert "no likelihood" in content["protocol"]["without_bound"]
    else:
        assert content["figures"]["nll_bound"]["mean"] > 0 or likelihood == "gaussian"


def test_the_first_weights_are_those_of_the_seed(tmp_path):
    one, same, other = (build_model(small("vq_vae", f"seed={seed}"), (1, 8, 8)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_of_a_run_are_those_that_were_measured(trained):
    _, folder = trained
    configuration, model = load_run(folder)
    fresh = build_model(configuration, model.event_shape, model.context_shape)
    load_weights(fresh, folder / "checkpoint" / "model.safetensors")
    x = build_data(configuration).test.batch(torch.arange(4)).x
    assert isinstance(model, VQVAE)
    assert isinstance(fresh, VQVAE)
    assert torch.equal(model.codes(x), fresh.eval().codes(x))


def test_the_page_is_written_from_the_files_alone(trained):
    _, folder = trained
    assert write_run_report(folder).read_text().startswith("<!DOCTYPE html>")
