"""A flow on data and a model of masks from a configuration: trained, measured, drawn from, resumed, refused."""

import json
import os
import re
import signal

import numpy as np
import pytest
import torch

from latentflows.cli import main
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.data import PlaneEnergy
from latentflows.distributions import AmortizedMixture
from latentflows.evaluation import (
    evaluate_bounds,
    evaluate_likelihood,
    evaluate_segmentation,
    evaluate_target,
)
from latentflows.models import VAE, DensityModel
from latentflows.objectives import ForwardKL, ReverseKL
from latentflows.reporting.base import read_run
from latentflows.studies.building.build import build_data, build_model, build_stages, load_run
from latentflows.studies.measuring.measure import evaluate
from latentflows.studies.running.run import run
from latentflows.studies.settings.overrides import configuration_from
from latentflows.training import Callback

FLOW = [
    "model=flow",
    "prior=real_nvp",
    "prior.width=8",
    "prior.num_layers=2",
    "data.name=digits",
    "training.epochs=2",
    "training.batch_size=256",
    "training.trackers=[]",
]
ENERGY = [
    "model=flow",
    "model.objective=reverse_kl",
    "prior=real_nvp",
    "prior.width=8",
    "prior.num_layers=2",
    "data=energy",
    "data.energy=wave",
    "data.validation=50",
    "data.test=100",
    "training.epochs=2",
    "training.batch_size=1000",
    "training.trackers=[]",
]
MASKS = [
    "model=segmentation_vae",
    "data.name=ambiguous_shapes",
    "data.size=12",
    "data.validation=20",
    "data.test=12",
    "latent_dim=2",
    "model.num_components=2",
    "model.width=2",
    "model.decoder_width=4",
    "model.num_blocks=1",
    "training.epochs=1",
    "training.batch_size=250",
    "evaluation.num_importance_samples=5",
    "evaluation.num_masks=6",
    "training.trackers=[]",
]


def mean(figures, name):
    """The mean of a figure that is there."""
    assert figures[name] is not None
    return figures[name].mean


def trained(overrides, folder):
    assert main(["train", *overrides, "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A run folder of a flow on digits, made by the command line."""
    return trained(FLOW, tmp_path_factory.mktemp("flow") / "run")


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """A run folder of a model of masks, made by the command line."""
    return trained([*MASKS, "prior=real_nvp", "prior.width=4"], tmp_path_factory.mktemp("masks") / "run")


class Interrupt(Callback):
    """Sends this process an interrupt after the first epoch."""

    def on_epoch(self, line):
        if line["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("overrides", [FLOW, [*MASKS, "training.epochs=2", "evaluation.segmentation=0"]])
def test_an_interrupted_run_goes_on_bit_by_bit(overrides, tmp_path):
    configuration = configuration_from({}, [*overrides, "evaluation.holes=0", "evaluation.information=0"])
    whole = run(configuration, tmp_path / "whole")
    stopped = run(configuration, tmp_path / "cut", callbacks=[Interrupt()])
    assert (whole.status, stopped.status) == ("finished", "interrupted")
    assert run(configuration, tmp_path / "cut", resume=True).figures == whole.figures
    first, second = load_run(tmp_path / "whole")[1], load_run(tmp_path / "cut")[1]
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_flow_on_data_is_measured_by_its_exact_likelihood(flow):
    read = read_run(flow)
    assert read.record is not None
    assert read.evaluation is not None
    configuration, model = load_run(flow)
    assert isinstance(model, DensityModel)
    data = build_data(configuration)
    exact = evaluate_likelihood(model, data.test, seed=0)
    figures = read.evaluation.figures
    assert mean(figures, "nll") == pytest.approx(float(exact.nll.mean()))
    nats_in_bits = float(exact.nll.mean()) / (64 * np.log(2)) + np.log2(17)
    assert mean(figures, "bits_per_dim") == pytest.approx(nats_in_bits)
    assert figures["nll"] is not None
    assert figures["nll"].monte_carlo_error is None
    assert read.evaluation.protocol.num_importance_samples is None
    assert read.record.parameters.shown == model.num_parameters()
    assert configuration.data.preparation == "dequantized"
    assert read.record.name == "digits-flow-real_nvp"
    assert read.evaluation.groups == {}
    asked = configuration.evaluation.model_copy(update={"holes": 50})
    assert "has no latents" in evaluate(model, data, asked, None)["groups"]["holes"]["reason"]


def test_the_commands_know_a_flow_on_data(flow, capsys, tmp_path):
    assert main(["sample", str(flow), "--num", "5", "--out", str(tmp_path / "x.npy")]) == 0
    drawn = np.load(tmp_path / "x.npy")
    assert drawn.shape == (5, 1, 8, 8)
    assert -0.06 < drawn.min() < drawn.max() < 1.06  # the sigmoid's margin on both sides of [0, 1]
    assert main(["sample", str(flow), "--mean"]) == 2
    assert "has no mean of p(x|z) to show. Leave out --mean" in capsys.readouterr().err
    assert "mean=" not in (flow / "samples" / "index.json").read_text()
    assert main(["evaluate", str(flow), "--num-importance-samples", "10"]) == 2
    assert "this model uses no importance samples" in capsys.readouterr().err
    asked = ["evaluation.samples=60", "evaluation.sample_features=pixels", "evaluation.neighbors=10"]
    assert main(["evaluate", str(flow), *asked]) == 0
    out = capsys.readouterr().out
    assert "Fréchet distance" in out
    assert "Nearer than 5% of test, data space" in out
    assert "400 data points, no importance samples" in out
    assert main(["list", str(flow)]) == 0
    assert re.search(
        r"finished +test NLL -?\d+\.\d\d ± \d+\.\d\d nats, density on dequantized data +[\d,]+ parameters",
        capsys.readouterr().out,
    )
    page = (flow / "report.html").read_text()
    assert '<th scope="row">density</th>' in page
    assert "Reconstructions: Not drawn: A density of the data has no latents" in page
    assert "Not there: " not in page


@pytest.mark.parametrize("prior", ["maf", "nsf_coupling", "nice", "radial", "tarflow"])
def test_other_flows_are_densities_of_data_too(prior):
    layers = "num_blocks" if prior == "tarflow" else "num_layers"
    c = configuration_from({}, ["model=flow", f"prior={prior}", f"prior.{layers}=1"])
    model = build_model(c, (1, 4, 4)).eval()
    assert isinstance(model, DensityModel)
    x = torch.rand(3, 1, 4, 4)
    assert model.density_at().log_prob(x).shape == (3,)
    (stage,) = build_stages(c, model)
    stage.check(model)


def test_vectors_and_real_values_have_no_sigmoid_and_a_mixture_may_be_the_base():
    c = configuration_from(
        {},
        ["model=flow", "prior=nice", "data.name=arrays", "data.preparation=continuous", "prior_base=mixture"],
    )
    model = build_model(c, (5,)).eval()
    assert isinstance(model, DensityModel)
    assert torch.isfinite(model.density_at().log_prob(torch.tensor([[-3.0, 4.0, 0.0, 2.0, -1.0]]))).all()
    assert type(model.density.base).__name__ == "GaussianMixture"  # pyright: ignore[reportAttributeAccessIssue]


def test_labels_condition_a_flow_on_data(tmp_path):
    c = configuration_from({}, [*FLOW, "condition.on=labels", "condition.parts=[prior]"])
    assert run(c, tmp_path / "run").status == "finished"
    assert main(["sample", str(tmp_path / "run"), "--label", "3", "--num", "2"]) == 0
    index = json.loads((tmp_path / "run" / "samples" / "index.json").read_text())
    assert "2 draws from p(x | y) at temperature 1" in index[-1]["caption"]


def test_a_flow_is_fitted_to_an_energy_from_its_own_draws(tmp_path, capsys):
    folder = trained([*ENERGY, "model.num_samples=2", "model.warmup_epochs=1"], tmp_path / "run")
    configuration, model = load_run(folder)
    assert configuration.name == "energy-flow-reverse_kl-real_nvp"
    assert configuration.data.preparation == "continuous"
    assert isinstance(model, DensityModel)
    (stage,) = build_stages(configuration, model)
    assert stage.objective == ReverseKL(PlaneEnergy("wave"), num_samples=2, warmup_epochs=1.0)
    read = read_run(folder)
    assert read.evaluation is not None
    test = build_data(configuration).test
    energy = PlaneEnergy("wave")
    found = evaluate_target(model, test, energy, energy.log_normalizer, seed=0)
    group = read.evaluation.groups["target"]
    assert mean(group.figures, "forward_kl") == pytest.approx(float(found.forward.mean()))
    assert mean(group.figures, "reverse_kl") == pytest.approx(float(found.reverse.mean()))
    assert (group.protocol["num_points"], group.protocol["target"]) == (100, "wave")
    assert (folder / "samples" / "plane.png").is_file()
    assert "KL(target || model)" in (folder / "report.html").read_text()
    assert main(["sample", str(folder), "--num", "3", "--out", str(tmp_path / "x.npy")]) == 0
    assert np.load(tmp_path / "x.npy").shape == (3, 2)
    capsys.readouterr()
    assert main(["sample", str(folder), "--num", "3"]) == 2
    assert "Draws of shape (2,) are no pictures. Write them as an array" in capsys.readouterr().err


def test_a_flow_is_fitted_to_an_energy_from_draws_of_the_target():
    c = configuration_from({}, [*ENERGY, "model.objective=forward_kl", "data.energy=null"])
    data = build_data(c)
    (stage,) = build_stages(c, build_model(c, data.train.event_shape))
    assert stage.objective == ForwardKL(PlaneEnergy("ring"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [10_000, 50, 100]
    assert build_data(configuration_from({}, [*ENERGY, "data.test=null"])).test.event_shape == (2,)
    with pytest.raises(ConfigurationError, match="`num_samples` and `warmup_epochs` go with objective=rev"):
        configuration_from({}, [*ENERGY, "model.objective=forward_kl", "model.num_samples=3"])


def test_the_distance_from_a_density_that_is_not_known_is_told_why(flow):
    configuration, model = load_run(flow)
    asked = configuration.evaluation.model_copy(update={"target": 5})
    found = evaluate(model, build_data(configuration), asked, None)["groups"]["target"]
    assert "The density of these data is not known. Use data=energy" in found["reason"]


def test_masks_are_measured_against_the_known_ones(masks):
    read = read_run(masks)
    assert read.evaluation is not None
    configuration, model = load_run(masks)
    assert isinstance(model, VAE)
    assert model.context_shape == (1, 12, 12)
    assert type(model.prior).__name__ == "Flow"
    test = build_data(configuration).test
    group = read.evaluation.groups["segmentation"]
    found = evaluate_segmentation(model, test, num_samples=6, seed=0)  # pyright: ignore[reportArgumentType]
    for name, figure in found.figures().items():
        assert mean(group.figures, name) == pytest.approx(figure["mean"])
    shares = [mean(group.figures, f"{mask}_frequency") for mask in ("empty", "small", "middle", "large")]
    assert shares == pytest.approx([each.value for each in found.frequencies])
    assert group.protocol["num_masks"] == 6
    assert group.protocol["num_pictures"] == 12
    nll = evaluate_bounds(model, test, num_importance_samples=5, seed=0).nll.mean()
    assert mean(read.evaluation.figures, "nll") == pytest.approx(float(nll))
    assert read.evaluation.protocol.given == "picture"


def test_the_commands_know_a_model_of_masks(masks, capsys, tmp_path):
    assert main(["sample", str(masks), "--num", "3", "--out", str(tmp_path / "x.npy")]) == 0
    assert np.load(tmp_path / "x.npy").shape == (24, 1, 12, 12)
    assert main(["sample", str(masks), "--num", "3", "--mean"]) == 0
    index = {
        entry["file"]: entry["caption"]
        for entry in json.loads((masks / "samples" / "index.json").read_text())
    }
    assert "24 means of p(x|z, picture)" in index["drawn.png"]
    assert "A row for each of the first test pictures" in index["drawn.png"]
    assert "beside each 9 draws" in index["several.png"]
    assert main(["sample", str(masks), "--label", "3"]) == 2
    assert "This model is given no label" in capsys.readouterr().err
    assert main(["sample", str(masks), "--num", "0"]) == 2
    assert main(["evaluate", str(masks), "evaluation.segmentation=5"]) == 0
    out = capsys.readouterr().out
    assert "Masks of one picture" in out
    assert re.search(r"Energy distance +-?\d\.\d{4} ± \d\.\d{4} IoU\n", out)
    assert re.search(r"Frequency of the empty mask +\d\.\d{3} ± \d\.\d{3} share\n", out)
    assert re.search(r"distance: 1 - IoU; known shares: empty 0\.\d{3}, small 0\.\d{3}, ", out)
    assert "given the picture of every image" in out
    assert "Energy distance" in (masks / "report.html").read_text()


def test_settings_reach_the_model_of_masks():
    c = configuration_from(
        {}, [*MASKS, "model.num_components=3", "model.mean_bound=2", "model.scale_bound=1"]
    )
    model = build_model(c, (1, 12, 12), (1, 12, 12))
    assert isinstance(model, VAE)
    assert isinstance(model.prior, AmortizedMixture)
    assert (model.prior.num_components, model.prior.mean_bound, model.prior.scale_bound) == (3, 2.0, 1.0)
    assert model.latent_shape == (2,)
    (stage,) = build_stages(c, model)
    assert stage.objective.kl == "monte_carlo"  # pyright: ignore[reportAttributeAccessIssue]
    stage.check(model)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400"])
def test_a_bound_is_finite(value):
    for key in ("mean_bound", "scale_bound"):
        with pytest.raises(
            ConfigurationError, match=rf"`model.{key}` must be a finite number; got '{value}'"
        ):
            configuration_from({}, [*MASKS, f"model.{key}={value}"])
    with pytest.raises(ConfigurationError, match=r"`model.scale_bound` must be a number above 0; got 'wide'"):
        configuration_from({}, [*MASKS, "model.scale_bound=wide"])


def test_numbers_of_drawn_pictures_are_whole():
    data = build_data(configuration_from({}, MASKS))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [2000, 20, 12]
    with pytest.raises(
        ConfigurationError, match=r"`data.test` of ambiguous_shapes is a number .* fraction 0.2"
    ):
        build_data(configuration_from({}, [*MASKS, "data.test=0.2"]))
    with pytest.raises(ConfigurationError, match="`size` at least 12"):
        build_data(configuration_from({}, [*MASKS, "data.size=8"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=flow"], "`prior.kind`=standard is no flow, and model.kind=flow is the flow of `prior`"),
        (["model=flow", "prior=vamp"], "`prior.kind`=vamp is no flow"),
        (["model=flow", "prior=maf", "latent_dim=3"], "`latent_dim`=3 is not looked at by model.kind=flow"),
        (["model=flow", "prior=maf", "likelihood=gaussian"], "`likelihood`=gaussian is not looked at"),
        (["model=flow", "prior=maf", "posterior=iaf"], "`posterior`=iaf is not looked at"),
        (["model=flow", "prior=maf", "objective.beta=2"], "`objective`=elbo with beta=2.0 is not looked at"),
        (["model=flow", "prior=maf", "network=gated_mlp"], "`network`=gated_mlp is not looked at"),
        (["model=flow", "prior=maf", "training.plan=two_stage"], "model.kind=flow, which trains at once"),
        (["model=flow", "prior=maf", "data.preparation=unit"], "gives values without a density"),
        (["model=flow", "prior=maf", "condition.on=labels"], "Use condition.parts=[prior]"),
        (
            ["model=flow", "prior=maf", "prior_base=mixture", "prior_base.start=em"],
            "Use prior_base.start=spread",
        ),
        (["model=flow", "prior=maf", "objective=iwae"], "What it minimizes is set by model.objective."),
        (
            ["model=flow", "prior=maf", "model.objective=reverse_kl"],
            "`model.objective`=reverse_kl needs the energy of the target, which data.name=digits does not have",
        ),
        (
            [*ENERGY, "prior_base=mixture"],
            "those of prior_base.kind=mixture carry none. Use prior_base=standard",
        ),
        (["data.energy=wave"], "`data.energy`=wave does not apply to digits. Use data=energy"),
        ([*ENERGY, "data.size=8"], "`data.size`=8 does not apply to energy. Leave it out."),
        ([*ENERGY, "data.preparation=unit"], "whose points are real numbers. Leave it out."),
        (
            [*ENERGY, "condition.on=labels", "condition.parts=[prior]"],
            "`condition.on`=labels needs labels, and data.name=energy has none",
        ),
        (["data=energy"], "`likelihood.kind`=bernoulli is a probability of binary data"),
        (
            [*MASKS, "objective=info_vae"],
            "those of the mixture of model.kind=segmentation_vae carry no gradient",
        ),
        ([*MASKS, "objective.free_bits=1"], "Use objective.free_bits_per=latent: the whole KL as one group."),
        (["model=segmentation_vae"], "needs masks with their pictures. Use data=ambiguous_shapes"),
        (["data=ambiguous_shapes"], "would not look at the picture. Use model=segmentation_vae"),
        ([*MASKS, "prior=vamp"], "takes from `prior` the flow after its mixture"),
        ([*MASKS, "prior_base=mixture"], "`prior_base`=mixture is not looked at"),
        ([*MASKS, "posterior=iaf"], "`posterior`=iaf is not looked at"),
        ([*MASKS, "network.width=3"], "`network`=mlp with width=3 is not looked at"),
        (
            [*MASKS, "likelihood.kind=continuous_bernoulli"],
            "`likelihood`=continuous_bernoulli is not looked at",
        ),
        ([*MASKS, "condition.on=labels"], "all parts of which are given the picture"),
        ([*MASKS, "objective.kl=closed_form"], "Use objective.kl=monte_carlo (or auto)"),
        ([*MASKS, "objective=autoencoder"], "would not learn. Use objective=elbo"),
        ([*MASKS, "training.plan=two_stage"], "model.kind=segmentation_vae, which trains at once"),
        ([*MASKS, "data.preparation=unit"], "draws one of the masks of each picture anew for every batch"),
        ([*MASKS, "data.mode=rgb"], "`data.mode`=rgb does not apply to ambiguous_shapes"),
        ([*MASKS, "prior=real_nvp", "latent_dim=1"], "Use prior=maf, or more latents"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, message):
    with pytest.raises(CombinationError, match=re.escape(message)):
        configuration_from({}, overrides)


def test_a_masked_flow_too_narrow_for_the_data_is_refused():
    c = configuration_from({}, ["model=flow", "prior=maf", "prior.width=20"])
    with pytest.raises(
        ConfigurationError, match=r"`prior.width` must be at least 63 .* among the 64 numbers"
    ):
        build_model(c, (1, 8, 8))


def test_arrays_are_prepared_by_their_values(tmp_path):
    """The usual preparation of arrays is decided by what they hold."""
    np.save(tmp_path / "x.npy", np.zeros((40, 3), dtype=np.float32))
    c = configuration_from(
        {}, ["model=flow", "prior=nice", "data.name=arrays", f"data.root={tmp_path / 'x.npy'}"]
    )
    assert c.data.preparation is None
    assert build_data(c).train.values == "continuous"
