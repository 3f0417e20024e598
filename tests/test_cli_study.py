"""`latentflows study`: plans, runs, exports; one message for every mistake."""

import csv
import json

import pytest

from latentflows.cli import main
from tests.studies.conftest import tiny  # noqa: F401 - a fixture

STUDY = """
name: Small
base: {latent_dim: 3, network: {kind: mlp, width: 16, depth: 1}, training: {epochs: 1}}
arms:
  - {name: flow, label: Flow, overrides: [prior=real_nvp, prior.num_layers=2, prior.width=8]}
  - {name: wide, label: Wide, solve: network.decoder_width}
  - {name: free, label: Free, solve: nothing}
seeds: [0, 1]
baseline: flow
budget: {hold: decoder_and_prior, like: flow, tolerance: 0.1}
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LATENTFLOWS_DEBUG", raising=False)
    monkeypatch.delenv("LATENTFLOWS_DATA", raising=False)
    (tmp_path / "study.yaml").write_text(STUDY)


def test_list_names_the_studies_of_the_package(capsys):
    assert main(["study", "list"]) == 0
    out = capsys.readouterr().out
    for name in ("prior-at-equal-budget", "posterior-and-prior", "stages", "which-prior"):
        assert f"\n{name}\n" in f"\n{out}"


def test_plan_shows_sizes_and_trains_nothing(capsys, tmp_path):
    assert main(["study", "plan", "study.yaml", "seeds=0,1,2", "latent_dim=4"]) == 0
    out = capsys.readouterr().out
    assert "solved: network.decoder_width=" in out
    assert "which others meet" in out
    assert "not held" in out
    assert "Held equal: decoder and prior" in out
    assert "3 arms x 3 seeds: 9 runs." in out
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_what_does_not_reach_every_arm_is_said(capsys):
    assert main(["study", "plan", "study.yaml", "network.decoder_width=20", "latent_dim=4"]) == 0
    captured = capsys.readouterr()
    assert "Note: `network.decoder_width=20` does not reach wide: what an arm sets" in captured.err
    assert "latent_dim" not in captured.err


def test_what_no_arm_takes_from_the_base_is_said(capsys, tmp_path):
    path = tmp_path / "idle.yaml"
    path.write_text(STUDY.replace("base: {", "base: {seed: 5, "))
    assert main(["study", "plan", "idle.yaml"]) == 0
    assert "Note: no arm has `seed` from `base`: " in capsys.readouterr().err


def test_plan_of_a_study_without_a_budget(capsys, tmp_path):
    (tmp_path / "plain.yaml").write_text(
        "name: s\narms: [{name: a}, {name: b, overrides: [latent_dim=2]}]\nseeds: [0]\nbaseline: a\n"
    )
    assert main(["study", "plan", "plain.yaml"]) == 0
    out = capsys.readouterr().out
    assert "Held equal" not in out
    assert "2 arms x 1 seed: 2 runs." in out


def test_plan_says_what_a_prior_draws_through_and_does_not_count(capsys, tmp_path):
    """Posterior of the VampPrior: 64 pixels to 16 units, those to mean and scale of 3 latents."""
    vamp = "{name: vamp, overrides: [prior=vamp], solve: prior.num_components}"
    text = STUDY.replace("{name: wide, label: Wide, solve: network.decoder_width}", vamp)
    text = text.replace("tolerance: 0.1", "tolerance: 0.4")
    said = f"as well, vamp {64 * 16 + 16 + 16 * 6 + 6:,}."
    for hold, is_said in (("decoder_and_prior", True), ("prior", True), ("sampling_flops", False)):
        (tmp_path / "vamp.yaml").write_text(text.replace("hold: decoder_and_prior", f"hold: {hold}"))
        assert main(["study", "plan", "vamp.yaml"]) == 0
        assert (said in capsys.readouterr().out) == is_said


def test_plan_of_a_budget_of_nothing(capsys, tmp_path):
    """N(0, I) has no parameters: an arm without them meets a budget of none."""
    (tmp_path / "plain.yaml").write_text(
        "name: s\narms: [{name: a}, {name: b, overrides: [latent_dim=2]}]\nseeds: [0]\nbaseline: a\n"
        "budget: {hold: prior, like: a}\n"
    )
    assert main(["study", "plan", "plain.yaml"]) == 0
    out = capsys.readouterr().out
    assert "0 parameters (none, as asked for)" in out
    assert "Held equal: prior, at 0 parameters" in out


def test_a_study_runs_with_settled_sizes_and_is_exported(capsys, tmp_path, tiny):  # noqa: F811
    changes = [
        text for text in tiny if not text.startswith(("name=", "training.trackers", "latent_dim", "network"))
    ]
    again = ["study", "run", "study.yaml", *changes, "--out", "s", "--workers", "1", "--quiet"]
    assert main([*again, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "--resume: there is nothing in s yet, so it starts from the beginning.\n" in captured.err
    assert "Report: s/report.html" in captured.out
    settled = {arm["name"]: arm for arm in json.loads((tmp_path / "s" / "plan.json").read_text())["arms"]}
    size = settled["wide"]["solved"]["network.decoder_width"]
    for seed in (0, 1):
        text = (tmp_path / f"s/runs/wide-seed{seed}/config.yaml").read_text()
        assert f"decoder_width: {size}\n" in text
    lines = [json.loads(line) for line in (tmp_path / "s" / "study.jsonl").read_text().splitlines()]
    assert sorted((line["arm"], line["seed"]) for line in lines) == [
        (arm, seed) for arm in ("flow", "free", "wide") for seed in (0, 1)
    ]
    assert {line["status"] for line in lines} == {"finished"}
    assert main(["study", "export", "s", "--out", "files"]) == 0
    with open(tmp_path / "files" / "runs.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert list((tmp_path / "files").rglob("*.tex"))
    assert list((tmp_path / "files").rglob("*.pdf"))
    assert main(again) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    assert "--resume" not in capsys.readouterr().err
    assert len((tmp_path / "s" / "study.jsonl").read_text().splitlines()) == 6


OWN_DATA = """
name: own
seeds: [0]
arms: [{name: a, overrides: [data=mnist, data.root=there]}, {name: b}]
baseline: b
"""
MISTAKES = {
    "no such study": (["plan", "stagse"], "Did you mean stages"),
    "no such file": (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
    "no such key": (["plan", "study.yaml", "training.epoch=3"], "Did you mean epochs"),
    "no such budget": (["plan", "study.yaml", "budget.hold=money"], "`budget.hold`"),
    "seed twice": (["plan", "study.yaml", "seeds=1,1"], "a seed must be listed once; got 1"),
    "no seed": (["plan", "study.yaml", "seeds=x"], "`seeds.0`"),
    "unmet budget": (
        ["run", "study.yaml", "budget.tolerance=0.00001"],
        "no value of `network.decoder_width` meets",
    ),
    "no such engine": (
        ["run", "study.yaml", "--engine", "slurm"],
        "`engine` must be local or ray; got 'slurm'",
    ),
    "no workers": (["run", "study.yaml", "--workers", "0"], "`workers` must be at least 1; got 0"),
    "an address of nothing": (["run", "study.yaml", "--address", "a:1"], "use it with the engine ray"),
    "no data": (["plan", "study.yaml", "data=mnist"], "LATENTFLOWS_DATA"),
    "two places of the data": (
        ["plan", "study.yaml", "data=mnist", "data.root=there", "--data-root", "here"],
        "`data.root` is given twice: 'data.root=there', and here by its option",
    ),
    "a place that no arm looks at": (
        ["plan", "own.yaml", "--data-root", "here"],
        "--data-root does not reach a: `data.root`=there stands in the study; got here. Change it there",
    ),
    "a range of seeds": (
        ["plan", "study.yaml", "seeds=0-3"],
        "seeds are listed one by one, as seeds=0,1,2,3; got '0-3'",
    ),
    "a key of the file": (
        ["plan", "study.yaml", "arms=a,b"],
        "`arms` is changed in the file of the study; here seeds, name,",
    ),
    "a key of a value": (
        ["plan", "study.yaml", "baseline.x=1"],
        "`baseline` has no keys. Give baseline=VALUE.",
    ),
    "what arms share": (["plan", "study.yaml", "base.latent_dim=4"], "by its own key, as latent_dim=4"),
    "export of nothing": (["export", "nowhere"], "nowhere"),
    "no number of GPUs": (
        ["run", "study.yaml", "--engine", "ray", "--gpus-per-run", "nan"],
        "`gpus_per_run` must be between 0 and 1, or a whole number; got nan.",
    ),
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latent_dim: 3\n", "is the configuration of one run, not a study, which has `seeds` and `arms`"),
        ("", "other.yaml is no study; 3 faults:\n  - `name` is missing\n  - `seeds` is missing\n"),
    ],
)
def test_a_file_that_is_no_study_is_named(capsys, tmp_path, text, said):
    (tmp_path / "other.yaml").write_text(text)
    assert main(["study", "plan", "other.yaml"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_message_and_code_2(name, capsys, tmp_path):
    arguments, message = MISTAKES[name]
    (tmp_path / "own.yaml").write_text(OWN_DATA)
    assert main(["study", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.yaml", "study.yaml"]
