"""Configurations: defaults, overrides, files, and every fault with its message."""

import re
from pathlib import Path

import pytest
import yaml

from latentflows.core.errors import ConfigurationError
from latentflows.studies.planning.study_file import read_study
from latentflows.studies.results.reading import parse
from latentflows.studies.settings.combinations import LIKELIHOODS_OF
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.likelihoods import GaussianLikelihood
from latentflows.studies.settings.options import kinds, options, parts
from latentflows.studies.settings.overrides import (
    configuration_from,
    differences,
    read_configuration,
    to_yaml,
)


def test_defaults_fill_in_the_name_and_the_usual_preparation():
    configuration = configuration_from({})
    assert configuration.name == "digits-gaussian-standard"
    assert configuration.data.preparation == "dynamic_binary"
    assert configuration_from({}, ["data=cifar10", "likelihood=gaussian"]).data.preparation == "dequantized"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["posterior=iaf", "prior=real_nvp"], "digits-iaf-real_nvp"),
        (["prior=real_nvp", "prior_base=mixture"], "digits-gaussian-real_nvp-mixture_base"),
        (
            ["condition.on=labels", "prior=real_nvp", "data.preparation=dequantized", "likelihood=gaussian"],
            "digits-gaussian-real_nvp-labels-gaussian",
        ),
        (["network=gated_mlp", "objective=iwae"], "digits-gaussian-standard-gated_mlp-iwae"),
        (["prior=real_nvp", "training.plan=two_stage"], "digits-gaussian-real_nvp-two_stage"),
        (["model=vq_vae"], "digits-vq_vae"),
    ],
)
def test_runs_of_other_kinds_have_other_names(overrides, name):
    """They would meet in one folder."""
    assert configuration_from({}, overrides).name.endswith(name)
    assert configuration_from({}, [*overrides, "name=own"]).name == "own"


def test_overrides_name_a_kind_in_short_and_reach_into_parts():
    configuration = configuration_from(
        {}, ["posterior=iaf", "prior.kind=maf", "prior.num_layers=3", "latent_dim=16"]
    )
    assert configuration.posterior.kind == "iaf"
    assert (configuration.prior.kind, configuration.prior.num_layers, configuration.prior.depth) == (
        "maf",
        3,
        2,
    )
    assert configuration.latent_dim == 16


def test_the_order_of_overrides_does_not_matter():
    texts = ["prior.num_layers=4", "prior=real_nvp", "training.plan=two_stage", "training.prior_epochs=7"]
    assert configuration_from({}, texts) == configuration_from({}, texts[::-1])


def test_naming_a_kind_resets_the_other_keys_of_its_part():
    raw = {"prior": {"kind": "real_nvp", "num_layers": 12, "width": 7}}
    assert configuration_from(raw, ["prior.depth=1"]).prior.num_layers == 12
    reset = configuration_from(raw, ["prior=real_nvp", "prior.width=9"]).prior
    assert (reset.num_layers, reset.width) == (8, 9)


def test_naming_a_plan_keeps_the_keys_that_both_plans_have():
    raw = {"prior": "maf", "training": {"plan": "two_stage", "batch_size": 7, "prior_epochs": 3}}
    assert configuration_from(raw, ["training=two_stage_joint"]).training.prior_epochs == 3
    training = configuration_from(raw, ["training.plan=one_stage"]).training
    assert training.batch_size == 7
    assert "prior_epochs" not in type(training).model_fields


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", ".001"])
def test_every_spelling_of_a_number_is_read(text, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"training:\n  learning_rate: {text}\n")
    assert read_configuration(path).training.learning_rate == 1e-3
    assert configuration_from({}, [f"training.learning_rate={text}"]).training.learning_rate == 1e-3


def test_null_and_booleans_in_overrides():
    raw = {"training": {"gradient_clip": 5.0}}
    training = configuration_from(raw, ["training.gradient_clip=null", "training.compile=true"]).training
    assert training.gradient_clip is None
    assert training.compile is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", ()),
        ("null", None),
        ("wandb", ("wandb",)),
        ("[mlflow, wandb]", ("mlflow", "wandb")),
        ("tensorboard,mlflow", ("tensorboard", "mlflow")),
    ],
)
def test_trackers_are_a_list(text, expected, tmp_path):
    configuration = configuration_from({}, [f"training.trackers={text}"])
    assert configuration.training.trackers == expected
    (tmp_path / "c.yaml").write_text(to_yaml(configuration))
    assert read_configuration(tmp_path / "c.yaml") == configuration


@pytest.mark.parametrize("part", ["posterior", "prior", "network", "likelihood", "objective", "training"])
def test_a_written_file_is_complete_and_reads_back(part, tmp_path):
    for name in parts()[part]:
        overrides = [f"{part}={name}"]
        overrides += ["prior=real_nvp"] if part == "training" else []
        overrides += [f"data.preparation={LIKELIHOODS_OF[name][0]}"] if part == "likelihood" else []
        overrides += ["objective=autoencoder"] if name == "delta" else []
        overrides += ["training.plan=two_stage"] if name in OWN_STAGE else []
        overrides += [f"posterior={name}", f"prior={name}"] if name in LEVELS else []
        configuration = configuration_from({}, overrides)
        path = tmp_path / f"{name}.yaml"
        path.write_text(to_yaml(configuration))
        assert read_configuration(path) == configuration
        written = yaml.safe_load(path.read_text())
        assert set(written) == set(RunConfiguration.model_fields)
        assert set(written[part]) == set(parts()[part][name].model_fields)


def test_toml_reads_as_yaml_does(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('latent_dim = 5\nposterior = "iaf"\n[prior]\nkind = "maf"\nnum_layers = 2\n')
    expected = configuration_from(
        {"latent_dim": 5, "posterior": "iaf", "prior": {"kind": "maf", "num_layers": 2}}
    )
    assert read_configuration(path) == expected


WRONG = {
    "unknown key": (
        ["latentdim=3"],
        "`latentdim` .* is no key of a configuration, .*Did you mean latent_dim",
    ),
    "unknown key of a part": (
        ["training.learning_rat=1"],
        "`training.learning_rat`.*Did you mean learning_rate",
    ),
    "the beginning of several kinds": (
        ["posterior=nsf"],
        "got 'nsf'. Did you mean nsf_coupling or nsf_autoregressive",
    ),
    "unknown part": (["priro.width=1"], "`priro` .*Did you mean prior"),
    "key of another kind": (
        ["prior.num_layers=4"],
        "kind standard.*It belongs to kind adversarial, radial, real_nvp, nice, nsf_coupling",
    ),
    "key of another plan": (["training.prior_epochs=4"], "plan one_stage.*It belongs to plan two_stage"),
    "unknown kind": (
        ["posterior=ifa"],
        r"`posterior.kind` must be gaussian \| .*; got 'ifa'. Did you mean iaf",
    ),
    "planar as a prior": (["prior=planar"], "it has no inverse.*use it as the posterior"),
    "iaf as a prior": (["prior=iaf"], "use maf"),
    "maf as a posterior": (["posterior=maf"], "use iaf"),
    "text for a number": (["latent_dim=ten"], "`latent_dim` must be an integer above 0; got 'ten'"),
    "out of range": (
        ["training.learning_rate=-1"],
        "`training.learning_rate` must be a number above 0; got '-1'",
    ),
    "infinite": (
        ["training.learning_rate=inf"],
        "`training.learning_rate` must be a finite number; got 'inf'",
    ),
    "a fraction for a count": (
        ["training.epochs=1.5"],
        "`training.epochs` must be an integer above 0; got '1.5'",
    ),
    "a boolean for a number": (["seed=true"], "`seed`: must be a number; got true"),
    "an unknown choice": (
        ["training.optimizer=adm"],
        r"must be adam \| adamax \| adamw; got 'adm'. Did you mean adam",
    ),
    "an unknown data set": (["data=mnits"], "`data.name` must be .*Did you mean mnist"),
    "half an image": (["data.validation=20.5"], "`data.validation`: .*whole number"),
    "not an override": (["prior"], "`prior`: an override must be key=value"),
    "a key in a scalar": (["latent_dim=3", "latent_dim.x=3"], "`latent_dim.x`: `latent_dim` has no keys"),
    "an empty name": (["name="], "`name` must be text that is not empty or null; got ''"),
    "a key of the whole in a part": (["model.latent_dim=2"], r"which has kind\. Did you mean latent_dim\?$"),
    "a key of a part in the whole": (["epochs=3"], r"Did you mean training\.epochs\?$"),
    "a key of several parts": (["temperature=2"], r"Did you mean evaluation\.temperature\?$"),
    "a value for a part of one kind": (
        ["condition=labels"],
        r"^`condition` must hold keys \(on, parts, unlabeled, embed\); got 'labels'\.$",
    ),
    "a value for a part, and one for its key": (
        ["condition=labels", "condition.on=labels"],
        r"^`condition` must hold keys \(on, parts, unlabeled, embed\); got 'labels'\.$",
    ),
    "a key in the key of a part": (
        ["prior.kind=gaussian", "prior.kind.x=1"],
        r"^`prior.kind.x`: `prior.kind` has no keys inside it\.$",
    ),
    "more than 64 bits": ([f"latent_dim={2**63}"], r"`latent_dim`: must be below 2\*\*63; got"),
    "fixed variance without scale": (
        ["data.preparation=unit", "likelihood=gaussian", "likelihood.variance=fixed"],
        "`likelihood`: `scale` and variance=fixed go together",
    ),
    "an unknown tracker": (
        ["training.trackers=mlflow,tensorbord"],
        r"`training.trackers` must be a list of tensorboard \| mlflow \| wandb or null; got 'tensorbord'. Did you mean "
        r"tensorboard\?",
    ),
    "a tracker that is no text": (
        ["training.trackers=true"],
        "`training.trackers` must be a list of .*; got true",
    ),
    "free bits of single latents that are estimated": (
        ["objective.free_bits=1", "objective.gradient=stick_the_landing"],
        "`free_bits` per dimension or channel need kl=closed_form .or auto. and gradient=reparameterized",
    ),
    "a mask of other numbers": (
        ["prior=real_nvp", "prior.own_mask=[1,2]"],
        r"`prior.own_mask` must be a list of 0 \| 1 or null; got '2'",
    ),
    "a mask of one kind": (
        ["prior=nice", "prior.own_mask=1,1"],
        "`prior`: `own_mask` must hold 0 and 1, each at least once",
    ),
    "two masks": (
        ["prior=nice", "prior.own_mask=1,0", "prior.mask=alternating"],
        "`prior`: `own_mask` takes the place of `mask`: give one of them",
    ),
    "no labels to leave out": (["condition.unlabeled=0.1"], "`condition`: `unlabeled` leaves out labels"),
    "an import path": (["posterior=torch.nn.Linear"], "`posterior.kind` must be gaussian"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_with_what_is_allowed(name):
    overrides, message = WRONG[name]
    with pytest.raises(ConfigurationError, match=message):
        configuration_from({}, overrides)


def test_all_faults_are_reported_at_once():
    raw = {"latent_dim": 0, "posterior": {"kind": "iaf", "widht": 3}, "data": [1], "prior": 3}
    with pytest.raises(ConfigurationError) as caught:
        configuration_from(raw, ["training.epochs=x", "nonsense"])
    text = str(caught.value)
    assert text.startswith("The configuration has 6 faults:")
    for key in ("`latent_dim`", "`posterior.widht`", "`data`", "`prior`", "`training.epochs`", "`nonsense`"):
        assert len(re.findall(rf"  - {key}", text)) == 1


def test_a_mask_of_ones_own_is_a_list_of_bits(tmp_path):
    configuration = configuration_from({}, ["prior=real_nvp", "latent_dim=3", "prior.own_mask=[1, 0,0]"])
    assert configuration.prior.own_mask == (1, 0, 0)
    (tmp_path / "c.yaml").write_text(to_yaml(configuration))
    assert read_configuration(tmp_path / "c.yaml") == configuration


FILES = {
    "missing": (None, "no such file"),
    "a list": ("- 1\n", "must hold `key: value` lines"),
    "malformed": ("a: [1\n", "malformed yaml"),
    "given twice": (
        "seed: 1\ntraining:\n  epochs: 3\n  batch_size: 4\n  epochs: 5\n",
        r"key 'epochs' is given twice, first at line 3 \(at line 5, column 3\)",
    ),
    "binary": (b"\xff\xfe\x00", "cannot be read as text"),
    "an object": ("seed: !!python/object/apply:os.getcwd []\n", "malformed yaml"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_named(name, tmp_path):
    content, message = FILES[name]
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_configuration(path)
    assert str(path) in str(caught.value)


def test_the_key_on_of_a_condition_is_read_as_it_stands(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("condition: {on: labels}\nprior: maf\n")
    assert read_configuration(str(path)).condition.on == "labels"
    with pytest.raises(ConfigurationError, match="`condition` must hold keys that are text; got true"):
        configuration_from({"condition": {True: "labels"}})


def test_overrides_leave_what_they_are_applied_to_as_it_is():
    raw = {"condition": {"on": "labels"}, "training": {"epochs": 3}}
    first = configuration_from(raw, ["prior=real_nvp", "training.epochs=7", "condition.parts=[likelihood]"])
    second = configuration_from(raw, ["prior=real_nvp"])
    assert (first.training.epochs, second.training.epochs) == (7, 3)
    assert (len(first.condition.parts), len(second.condition.parts)) == (1, 3)


def test_differences_name_the_keys():
    first = configuration_from({}, ["prior=real_nvp"])
    second = configuration_from({}, ["prior=maf", "seed=3"])
    assert differences(first, second) == ["name", "seed", "prior.kind", "prior.num_layers", "prior.mask"]


def test_kinds_share_a_line_only_where_all_is_the_same():
    lines = {(o.key, o.kinds): o.description for o in options()}
    assert lines["posterior.num_layers", ("planar",)] == "Number of planar layers."
    assert lines["posterior.num_layers", ("real_nvp", "nice")] == "Number of couplings."
    assert lines["posterior.width", ("tarflow",)] == "Width of each Transformer."


OWN_STAGE = ("noise_contrastive", "adversarial")
LEVELS = ("two_level", "dlgm")


def test_every_option_is_described_and_its_default_is_accepted():
    assert {kind.key for kind in kinds()} == {name for name, classes in parts().items() if "" not in classes}
    for option in options():
        assert option.description.endswith("."), option.key
        part, _, key = option.key.partition(".")
        kind = option.kinds[0] if option.kinds else None
        overrides = [f"{option.key}={option.default}"]
        overrides += (
            [f"{part}={kind}"]
            if kind
            else ["training=two_stage", "prior=maf"]
            if key == "prior_epochs"
            else []
        )
        overrides += ["prior=maf"] if part == "training" and kind not in (None, "one_stage") else []
        overrides += ["prior=maf"] if part == "prior_base" else []
        overrides += ["training.plan=two_stage"] if kind in OWN_STAGE else []
        overrides += ["prior=maf"] if kind == "flow" and part == "model" else []
        overrides += ["data=ambiguous_shapes"] if kind == "segmentation_vae" else []
        overrides += [f"posterior={kind}", f"prior={kind}"] if kind in LEVELS else []
        overrides += [f"data.preparation={LIKELIHOODS_OF[kind][0]}"] if part == "likelihood" and kind else []
        configuration_from({}, overrides)


def test_gray_values_take_a_fixed_variance():
    fixed = [
        "data.preparation=unit",
        "likelihood=gaussian",
        "likelihood.variance=fixed",
        "likelihood.scale=0.1",
    ]
    assert configuration_from({}, fixed).likelihood == GaussianLikelihood(variance="fixed", scale=0.1)


EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_valid_configuration_or_study(path):
    if path.stem.endswith("study"):
        study = read_study(path)
        assert all(study.configuration(arm, study.seeds[0]) for arm in study.arms)
    else:
        assert read_configuration(path).name == path.stem.replace("_", "-")


def test_a_file_of_a_run_ends_with_what_it_is_known_to_be_whole_by():
    """A section added after it would make every older run look cut short."""
    *_, last = to_yaml(configuration_from({})).splitlines()
    assert last.startswith(" ")
    assert list(RunConfiguration.model_fields)[-1] == "evaluation"


def test_a_file_of_thousands_of_brackets_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("[" * 5000)
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        read_configuration(path)
    assert parse(b"[" * 100_000) is None
