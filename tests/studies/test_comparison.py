"""Comparisons: their folder, what a resume skips, and what is refused."""

import json
import os
import signal

import pytest

from latentflows.core.errors import CheckpointError, ConfigurationError
from latentflows.objectives import ELBO
from latentflows.reporting import comparison_table
from latentflows.studies import comparison as comparison_room
from latentflows.studies.build import build_model, build_stages
from latentflows.studies.comparison import Arm, Study, append_line, compare, read_lines, read_study
from latentflows.studies.demo import demo_study
from latentflows.studies.overrides import read_configuration
from latentflows.studies.pool import Event


def study_of(tiny, **changes):
    arms = [
        Arm(name="plain", label="Plain"),
        Arm(name="flow", label="Flow", overrides=["prior=real_nvp", "prior.width=4"]),
    ]
    base = {}
    for text in tiny[1:]:
        key, value = text.split("=")
        part, _, name = key.partition(".")
        place = base if not name else base.setdefault(part, {})
        place[name or part] = {"name": value} if key == "data" else value
    return Study(
        **{"name": "tiny", "base": base, "arms": arms, "seeds": [0, 1], "baseline": "plain"} | changes
    )


class FakePool:
    """Stands for the worker processes: ends every job at once, in the way that `ends` says for its name."""

    def __init__(self, monkeypatch):
        self.ends, self.jobs = {}, []
        monkeypatch.setattr(comparison_room, "over_jobs", self.over_jobs)

    def over_jobs(self, task, jobs, *, workers, stop):
        for position, job in enumerate(jobs):
            self.jobs.append(job.configuration.name)
            yield Event(position, "started")
            yield Event(position, "progress", 0.5)
            if self.ends.get(job.configuration.name) == "lost":
                yield Event(position, "lost", "out of luck")
            else:
                status = self.ends.get(job.configuration.name, "finished")
                content = {
                    "status": status,
                    "reason": None,
                    "figures": None,
                    "parameters": None,
                    "seconds": 1.0,
                }
                yield Event(position, "result", content)


@pytest.fixture
def pool(monkeypatch):
    return FakePool(monkeypatch)


def test_a_comparison_runs_every_arm_with_every_seed(tiny, tmp_path):
    states = []
    study = study_of(tiny)
    progress = compare(
        study, tmp_path, command="the command", notify=lambda state: states.append(state.fraction)
    )
    assert (progress.done, progress.total, progress.failed, progress.active) == (4, 4, {}, {})
    assert progress.seconds_left == 0
    assert states == sorted(states)
    lines = read_lines(tmp_path)
    assert {(line["arm"], line["seed"]) for line in lines} == {
        ("plain", 0),
        ("plain", 1),
        ("flow", 0),
        ("flow", 1),
    }
    assert {line["status"] for line in lines} == {"finished"}
    assert {line["protocol"]["num_importance_samples"] for line in lines} == {8}
    configuration = read_configuration(tmp_path / "runs" / "flow-seed1" / "config.yaml")
    assert (configuration.seed, configuration.prior.kind, configuration.name) == (1, "real_nvp", "flow-seed1")
    assert json.loads((tmp_path / "study.json").read_text())["command"] == "the command"
    rows = comparison_table(tmp_path)
    assert [(row.label, row.num_finished) for row in rows] == [("Plain", 2), ("Flow", 2)]
    assert rows[1].difference is not None


def test_an_interrupt_leaves_a_comparison_that_goes_on(tiny, tmp_path):
    study = study_of([*tiny, "training.epochs=100000"], seeds=[0])

    def interrupt(state):
        if state.active and max(state.active.values()) > 0:
            os.kill(os.getpid(), signal.SIGINT)

    progress = compare(study, tmp_path, workers=1, notify=interrupt)
    assert progress.done == 0
    (line,) = read_lines(tmp_path)
    assert (line["arm"], line["status"]) == ("plain", "interrupted")
    assert (tmp_path / "runs" / "plain-seed0" / "checkpoint" / "last.safetensors").is_file()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failed_run_is_recorded_and_tried_again(tiny, tmp_path, pool):
    pool.ends = {"plain-seed0": "lost", "plain-seed1": "diverged", "flow-seed0": "interrupted"}
    progress = compare(study_of(tiny), tmp_path)
    assert progress.failed == {"plain-seed0": "out of luck", "plain-seed1": "diverged"}
    assert (progress.done, progress.total) == (3, 4)
    lines = {line["run"]: line for line in read_lines(tmp_path)}
    assert lines["runs/plain-seed0"]["status"] == "failed"
    assert lines["runs/plain-seed0"]["reason"] == "out of luck"
    pool.ends, pool.jobs = {}, []
    progress = compare(study_of(tiny), tmp_path, resume=True)
    assert pool.jobs == ["plain-seed0", "flow-seed0"]
    assert progress.done == 4
    assert len(comparison_table(tmp_path)) == 2


def test_an_existing_comparison_is_not_touched_by_accident(tiny, tmp_path, pool):
    study, other = study_of(tiny), study_of(tiny, seeds=[0, 1, 2])
    compare(study, tmp_path / "c")
    with pytest.raises(ConfigurationError, match=r"holds this comparison already.*--resume"):
        compare(study, tmp_path / "c")
    with pytest.raises(ConfigurationError, match=r"holds another comparison .'tiny'"):
        compare(other, tmp_path / "c", resume=True)
    with pytest.raises(ConfigurationError, match="not an empty folder and holds no comparison"):
        compare(study, tmp_path)
    compare(other, tmp_path / "c", overwrite=True)
    assert len(read_lines(tmp_path / "c")) == 6


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path):
    append_line(tmp_path, {"n": 1})
    path = tmp_path / "study.jsonl"
    path.write_text(path.read_text() + '{"n": 2')
    assert read_lines(tmp_path) == [{"n": 1}]
    append_line(tmp_path, {"n": 3})
    assert read_lines(tmp_path) == [{"n": 1}, {"n": 3}]
    path.write_text("{\n" + path.read_text())
    with pytest.raises(CheckpointError, match="line 1 cannot be read"):
        read_lines(tmp_path)


def test_a_wrong_arm_is_refused_before_anything_runs(tiny, tmp_path, pool):
    study = study_of(
        tiny, arms=[Arm(name="plain", label="A"), Arm(name="b", label="B", overrides=["prior=planar"])]
    )
    with pytest.raises(ConfigurationError, match=r"Arm 'b': `prior.kind`"):
        compare(study, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(ConfigurationError, match="`workers` must be at least 1; got 0"):
        compare(study_of(tiny), tmp_path, workers=0)


WRONG = {
    "no arms": ("arms: []\n", "`arms`: List should have at least 1 item"),
    "an unknown key": ("armes: []\n", "`armes`: Extra inputs"),
    "no such baseline": ("baseline: z\n", "`baseline` must be one of a, b; got 'z'"),
    "one seed twice": ("seeds: [1, 1]\n", "seeds must differ"),
    "one label twice": ("arms: [{name: a, label: A}, {name: b, label: A}]\n", "labels must differ"),
    "a name that is a path": (
        "arms: [{name: ../a, label: A}]\n",
        "`arms.0.name`: String should match pattern",
    ),
}
STUDY = """\
name: s
arms:
  - {name: a, label: A}
  - {name: b, label: B, overrides: [prior=maf]}
seeds: [0]
baseline: a
"""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_study_is_refused(name, tmp_path):
    text, message = WRONG[name]
    key = text.split(":")[0]
    path = tmp_path / "study.yaml"
    path.write_text(_without(key) + text)
    with pytest.raises(ConfigurationError, match=message):
        read_study(path)


def _without(key):
    """`STUDY` without a key and the list below it."""
    kept, skipping = [], False
    for line in STUDY.splitlines(keepends=True):
        skipping = line.startswith(f"{key}:") or (skipping and line.startswith(" "))
        if not skipping:
            kept.append(line)
    return "".join(kept)


def test_a_study_is_read_from_a_file(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    study = read_study(tmp_path / "study.yaml")
    assert study.configuration(study.arms[1], 5).prior.kind == "maf"
    assert study.configuration(study.arms[1], 5).seed == 5


def test_the_demo_compares_five_arms_with_equal_networks():
    study = demo_study()
    assert len(study.arms) == 5
    assert len(study.seeds) == 3
    configurations = [study.configuration(arm, 0) for arm in study.arms]
    assert len({(c.network, c.latent_dim, c.data, c.likelihood) for c in configurations}) == 1
    assert [(c.posterior.kind, c.prior.kind, c.training.plan) for c in configurations] == [
        ("gaussian", "standard", "one_stage"),
        ("gaussian", "real_nvp", "one_stage"),
        ("gaussian", "real_nvp", "two_stage"),
        ("iaf", "standard", "one_stage"),
        ("iaf", "real_nvp", "one_stage"),
    ]
    assert configurations[1].prior == configurations[2].prior == configurations[4].prior
    assert configurations[3].posterior == configurations[4].posterior
    models = [build_model(c, (1, 8, 8)) for c in configurations]
    stages = [build_stages(c, model)[0] for c, model in zip(configurations, models, strict=True)]
    assert {stage.objective for stage in stages} == {ELBO(1, warmup_epochs=10.0, kl="monte_carlo")}


def test_the_runs_of_a_comparison_have_no_trackers_unless_asked():
    study = demo_study()
    assert study.configuration(study.arms[0], 0).training.trackers == ()
    asked = study.model_copy(update={"base": {"training": {"trackers": ["tensorboard"]}}})
    assert asked.configuration(study.arms[0], 0).training.trackers == ("tensorboard",)
