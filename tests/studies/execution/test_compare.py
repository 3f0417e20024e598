"""Comparisons: their folder, what a resume skips, and what is refused."""

import json
import multiprocessing
import os
import signal

import pytest

from latentflows.core.errors import ConfigurationError
from latentflows.core.files import source_hash
from latentflows.objectives import ELBO
from latentflows.studies.building.build import build_model, build_stages
from latentflows.studies.demo import demo_study
from latentflows.studies.execution import compare as room
from latentflows.studies.execution.compare import compare, grouped
from latentflows.studies.execution.engines import Engine, Event, LocalPool, RayEngine
from latentflows.studies.execution.job import unfinished
from latentflows.studies.execution.locks import locked
from latentflows.studies.execution.progress import Estimate
from latentflows.studies.execution.record import read_lines
from latentflows.studies.execution.study_folder import LOCK, check_folder
from latentflows.studies.planning import plan as planning
from latentflows.studies.planning.budget import Workshop
from latentflows.studies.planning.plan import PlannedRun
from latentflows.studies.planning.study import Arm, Budget, Study
from latentflows.studies.results.results import read_results
from latentflows.studies.running.run import run
from latentflows.studies.settings.overrides import configuration_from, read_configuration, to_yaml


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


class FakePool(Engine):
    """Stands for worker processes: ends every job at once, in the way that `ends` says for the runs in it."""

    def __init__(self):
        self.ends, self.jobs, self.folder = {}, [], None

    workers = 2

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check(self, folder):
        self.folder = folder

    def over_jobs(self, task, jobs, stop):
        for position, job in enumerate(jobs):
            names = [run.configuration.name for run in job.runs]
            self.jobs.append(names)
            yield Event(position, "started")
            yield Event(position, "progress", 0.5)
            ends = [self.ends.get(name, "finished") for name in names]
            if "lost" in ends:
                yield Event(position, "lost", "out of luck")
                continue
            outcomes = [unfinished(end, None) | {"seconds": 1.0} for end in ends]
            yield Event(position, "progress", (0, outcomes[0]))
            yield Event(position, "result", list(enumerate(outcomes)))


@pytest.fixture
def pool():
    return FakePool()


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
    results = read_results(tmp_path)
    assert {run.status for run in results.runs.values()} == {"finished"}
    assert [arm.label for arm in results.study.arms] == ["Plain", "Flow"]
    assert [arm.name for arm in results.plan.arms] == ["plain", "flow"]


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
    progress = compare(study_of(tiny), tmp_path, engine=pool, together=False)
    assert progress.failed == {"plain-seed0": "out of luck", "plain-seed1": "diverged"}
    assert (progress.done, progress.total, progress.active) == (3, 4, {})
    lines = {line["run"]: line for line in read_lines(tmp_path)}
    assert lines["runs/plain-seed0"]["status"] == "failed"
    assert lines["runs/plain-seed0"]["reason"] == "out of luck"
    assert pool.folder == tmp_path
    pool.ends, pool.jobs = {}, []
    progress = compare(study_of(tiny), tmp_path, engine=pool, together=False, resume=True)
    assert pool.jobs == [["plain-seed0"], ["flow-seed0"]]
    assert progress.done == 4
    assert [run.status for run in read_results(tmp_path).runs.values()].count("finished") == 3


def test_a_run_that_stands_as_diverged_counts_once_it_finished_by_another_measure(tiny, tmp_path, pool):
    """One that was trained in another way since is another run, beside which the study does not go on."""
    pool.ends = {"plain-seed0": "diverged", "plain-seed1": "diverged"}
    compare(study_of(tiny), tmp_path, engine=pool)

    def again(seed, change):
        configuration = configuration_from({}, [*tiny, change, f"seed={seed}", f"name=plain-seed{seed}"])
        run(configuration, tmp_path / "runs" / f"plain-seed{seed}")

    again(0, "evaluation.num_importance_samples=20")
    pool.jobs = []
    for _ in range(2):
        compare(study_of(tiny), tmp_path, engine=pool, resume=True)
    lines = [line for line in read_lines(tmp_path) if line["arm"] == "plain"]
    assert [(line["seed"], line["status"]) for line in lines] == [
        (0, "diverged"), (1, "diverged"), (0, "finished"),
    ]  # fmt: skip
    assert lines[2]["figures"]["nll"]["mean"] > 0
    assert pool.jobs == []
    assert read_results(tmp_path).runs["plain", 0].protocol.num_importance_samples == 20
    again(1, "latent_dim=3")
    with pytest.raises(
        ConfigurationError, match=r"asks for: runs/plain-seed1 differs in latent_dim\. A default"
    ):
        compare(study_of(tiny), tmp_path, engine=pool, resume=True)


def test_the_seeds_of_an_arm_go_to_one_worker_and_apart_where_that_died(tiny, tmp_path, pool):
    pool.ends = {"plain-seed1": "lost"}
    progress = compare(study_of(tiny), tmp_path, engine=pool)
    assert pool.jobs == [
        ["plain-seed0", "plain-seed1"],
        ["flow-seed0", "flow-seed1"],
        ["plain-seed0"],
        ["plain-seed1"],
    ]
    assert progress.failed == {"plain-seed1": "out of luck"}
    assert (progress.done, progress.active, progress.fraction) == (4, {}, 1.0)
    lines = read_lines(tmp_path)
    assert sorted(line["run"] for line in lines) == [
        "runs/flow-seed0", "runs/flow-seed1", "runs/plain-seed0", "runs/plain-seed1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "sizes"), [(1, [3, 2]), (2, [3, 2]), (3, [2, 1, 2]), (9, [1, 1, 1, 1, 1])]
)
def test_every_worker_has_a_job_where_there_are_enough_runs(workers, sizes):
    runs = [PlannedRun(arm, seed, None, "") for arm, seeds in (("a", 3), ("b", 2)) for seed in range(seeds)]
    groups = grouped(runs, workers)
    assert [len(group) for group in groups] == sizes
    assert [run for group in groups for run in group] == runs
    assert grouped([], workers) == []


def test_what_was_done_stays_done_when_a_group_goes_apart(tiny, tmp_path, pool):
    """Runs go on at their checkpoints, so the bar does not go back; those that wait are not under way."""
    pool.ends = {"plain-seed1": "lost"}
    states = []
    compare(
        study_of(tiny, seeds=[0, 1, 2]),
        tmp_path,
        engine=pool,
        notify=lambda state: states.append((state.fraction, *sorted(state.waiting), list(state.active))),
    )
    fractions = [fraction for fraction, *_ in states]
    assert fractions == sorted(fractions)
    assert states[2] == (
        pytest.approx(1.5 / 6),
        "plain-seed0",
        "plain-seed1",
        "plain-seed2",
        [],
    )
    assert states[-1] == (1.0, [])


def test_the_fraction_of_a_job_is_spread_over_its_runs(tiny, tmp_path, pool):
    states = []
    compare(
        study_of(tiny),
        tmp_path,
        engine=pool,
        notify=lambda state: states.append((state.fraction, *state.active.values())),
    )
    assert states == [
        (0.0, 0.0, 0.0), (0.25, 0.5, 0.5), (0.25, 0.0), (0.5,),
        (0.5, 0.0, 0.0), (0.75, 0.5, 0.5), (0.75, 0.0), (1.0,),
    ]  # fmt: skip


def test_the_estimate_knows_how_much_work_every_arm_is(tiny, tmp_path, pool, monkeypatch):
    given = []
    monkeypatch.setattr(room, "Estimate", lambda *arguments: given.append(arguments) or Estimate(*arguments))
    compare(study_of(tiny), tmp_path, engine=pool)
    ((jobs, workers, before, work),) = given
    assert (jobs, workers, before) == ([("plain", 2), ("flow", 2)], 2, {})
    assert work["flow"] > work["plain"] > 0


def test_the_estimate_counts_the_evaluation_of_earlier_sessions(tiny, tmp_path, pool, monkeypatch):
    """Runs of this session are timed with it; lines of earlier versions do not say it."""
    compare(study_of(tiny), tmp_path, engine=pool)
    lines = read_lines(tmp_path)
    lines[0] |= {"evaluation_seconds": 40.0}
    del lines[1]["evaluation_seconds"]
    (tmp_path / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = []
    monkeypatch.setattr(room, "Estimate", lambda *arguments: given.append(arguments) or Estimate(*arguments))
    compare(study_of(tiny, seeds=[0, 1, 2]), tmp_path, engine=pool, resume=True)
    assert given[0][2] == {"plain": [41.0, 1.0], "flow": [1.0, 1.0]}


def test_a_study_is_planned_with_the_threads_of_its_engine(tiny, tmp_path, pool, monkeypatch):
    given, planned = [], planning.plan
    monkeypatch.setattr(planning, "plan", lambda *a, **known: given.append(known) or planned(*a, **known))
    pool.threads = 3
    compare(study_of(tiny), tmp_path, engine=pool)
    assert given == [{"threads": 3}]
    assert (LocalPool(threads=4).threads, RayEngine(cpus_per_run=2).threads) == (4, 2)


def test_seeds_train_one_by_one_where_seconds_are_held(tiny, tmp_path, pool, monkeypatch):
    monkeypatch.setattr(Workshop, "seconds", lambda self, configuration: 1.0)
    timed = study_of(tiny).model_copy(update={"budget": Budget(hold="seconds", like="plain")})
    notes = compare(timed, tmp_path, engine=pool).notes
    assert pool.jobs == [["plain-seed0"], ["plain-seed1"], ["flow-seed0"], ["flow-seed1"]]
    assert notes == ["Seeds train one by one, as they were timed: the budget holds seconds."]


def test_a_worker_that_imports_a_script_without_a_guard_starts_no_study(tiny, tmp_path, pool, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(ConfigurationError, match="put its call under `if __name__ ==") as error:
        compare(study_of(tiny), tmp_path / "c", engine=pool)
    assert "holds" not in str(error.value)
    assert not (tmp_path / "c").exists()


def test_an_existing_study_is_not_touched_by_accident(tiny, tmp_path, pool):
    study, other = study_of(tiny), study_of(tiny, seeds=[0])
    out = tmp_path / "c"
    compare(study, out, engine=pool)
    with pytest.raises(ConfigurationError, match=r"holds this study already.*--resume"):
        compare(study, out, engine=pool)
    with pytest.raises(ConfigurationError, match=r"holds another study \(.tiny.\)"):
        compare(other, out, engine=pool, resume=True)
    with pytest.raises(ConfigurationError, match="not an empty folder and holds no study"):
        compare(study, tmp_path, engine=pool)
    (out / "runs" / "plain-seed0").mkdir(parents=True)
    compare(other, out, engine=pool, overwrite=True)
    assert len(read_lines(out)) == 2
    assert sorted(item.name for item in out.iterdir()) == ["plan.json", "study.json", "study.jsonl"]


def test_a_study_goes_on_with_more_seeds(tiny, tmp_path, pool):
    compare(study_of(tiny), tmp_path, engine=pool)
    pool.jobs = []
    progress = compare(study_of(tiny, seeds=[2, 0, 1]), tmp_path, engine=pool, resume=True)
    assert pool.jobs == [["plain-seed2"], ["flow-seed2"]]
    assert (progress.done, progress.total) == (6, 6)
    assert json.loads((tmp_path / "study.json").read_text())["seeds"] == [2, 0, 1]


def leave(out, run, configuration, source=None):
    """Write what a run that ended has in its folder."""
    folder = out / "runs" / run
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(configuration))
    record = {"format": 1, "versions": {} if source is None else {"source": source}}
    (folder / "run.json").write_text(json.dumps(record))


def test_runs_that_other_code_trained_or_whose_folders_are_gone_are_told_of(tiny, tmp_path, pool):
    study = study_of(tiny)
    compare(study, tmp_path, engine=pool)
    sources = {("plain", 0): "0" * 12, ("plain", 1): source_hash(), ("flow", 0): None}
    for (arm, seed), source in sources.items():
        leave(
            tmp_path, f"{arm}-seed{seed}", study.configuration(study.all_arms()[arm == "flow"], seed), source
        )
    more = study_of(tiny, seeds=[0, 1, 2])
    code, folders = compare(more, tmp_path, engine=pool, resume=True).notes
    assert code.startswith("2 of 4 runs that had ended were trained by other code of latentflows")
    assert folders.startswith(
        "The folders of 1 of 4 runs that had ended are gone: runs/flow-seed1. Their figures"
    )


@pytest.mark.parametrize("key", ["training.epochs", "evaluation.num_importance_samples", "data.root"])
def test_a_run_that_ended_by_other_settings_than_the_study_now_asks_for_is_refused(tiny, tmp_path, pool, key):
    """A default may have changed in between: the study file does not say it, the folder of the run does."""
    study = study_of(tiny)
    compare(study, tmp_path, engine=pool)
    before = configuration_from(
        study.configuration(study.all_arms()[0], 1).model_dump(mode="json"), [f"{key}=77"]
    )
    leave(tmp_path, "plain-seed1", before)
    more = study_of(tiny, seeds=[0, 1, 2])
    if key != "training.epochs":
        assert compare(more, tmp_path, engine=pool, resume=True).done == 6
        return
    with pytest.raises(
        ConfigurationError, match=r"now asks for: runs/plain-seed1 differs in training\.epochs\. A def"
    ):
        compare(more, tmp_path, engine=pool, resume=True)
    path = tmp_path / "runs" / "plain-seed1" / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 77", "epoch: 77"))
    with pytest.raises(
        ConfigurationError, match=r"plain-seed1/config\.yaml of a run that has ended cannot be read: .*epoch"
    ):
        compare(more, tmp_path, engine=pool, resume=True)
    assert len(read_lines(tmp_path)) == 4
    assert compare(more, tmp_path, engine=pool, overwrite=True).done == 6


def test_a_study_goes_on_with_data_that_have_a_name_elsewhere(tmp_path):
    def study(root):
        return Study(
            name="s", base={"data": {"name": "mnist", "root": root}}, arms=[Arm(name="a")], seeds=[0]
        )

    content = {"study": study("here").model_dump(mode="json")}
    (tmp_path / "study.json").write_text(json.dumps(content))
    check_folder(study("there"), tmp_path, resume=True, overwrite=False)


def test_a_study_goes_on_where_it_runs_otherwise(tiny, tmp_path, pool):
    compare(study_of(tiny), tmp_path, engine=pool)
    after = study_of(tiny)
    after.base["training"]["checkpoint_every"] = 7
    check_folder(after, tmp_path, resume=True, overwrite=False)
    after.base["data"]["root"] = "elsewhere"  # other arrays, for all that is known
    after.base["training"]["epochs"] = 7
    with pytest.raises(ConfigurationError, match=r"which differs in data\.root, training\.epochs\. Choose"):
        check_folder(after, tmp_path, resume=True, overwrite=False)


def test_a_study_goes_on_under_other_titles_and_however_it_is_written(tiny, tmp_path, pool):
    compare(study_of(tiny), tmp_path, engine=pool)
    study = study_of(tiny)
    arms = [arm.model_copy(update={"label": f"{arm.label}, renamed"}) for arm in study.arms]
    base = study.base | {"likelihood": {"kind": "bernoulli"}}  # as by default
    compare(study_of(tiny, name="Other", base=base, arms=arms), tmp_path, engine=pool, resume=True)
    assert read_results(tmp_path).study.labels == {"plain": "Plain, renamed", "flow": "Flow, renamed"}
    for changes, key in (
        ({"base": base | {"latent_dim": 3}}, "latent_dim"),
        ({"arms": [*arms, Arm(name="more", overrides=["latent_dim=3"])]}, "arms"),
        ({"baseline": "flow"}, "baseline"),
    ):
        with pytest.raises(
            ConfigurationError, match=rf"holds another study \(.Other.\), which differs in {key}"
        ):
            compare(study_of(tiny, **changes), tmp_path, engine=pool, resume=True)


def test_what_a_process_left_that_was_killed_at_the_start_is_no_content(tiny, tmp_path, pool):
    for name in (".study.json.partial", ".plan.json.partial", ".lock"):
        (tmp_path / name).touch()
    (tmp_path / ".removed").mkdir()
    assert compare(study_of(tiny), tmp_path, engine=pool).done == 4


def test_two_processes_do_not_work_on_one_study(tiny, tmp_path, pool):
    with (
        locked(tmp_path / LOCK, "it"),
        pytest.raises(
            ConfigurationError, match=rf"The study in .* is in use by process {os.getpid()} on .* since"
        ),
    ):
        compare(study_of(tiny), tmp_path, engine=pool)
    assert pool.jobs == []
    compare(study_of(tiny), tmp_path, engine=pool)
    assert not (tmp_path / LOCK).exists()


def test_a_wrong_arm_is_refused_before_anything_runs(tiny, tmp_path, pool):
    study = study_of(
        tiny, arms=[Arm(name="plain", label="A"), Arm(name="b", label="B", overrides=["prior=planar"])]
    )
    with pytest.raises(ConfigurationError, match=r"Arm 'b': `prior.kind`"):
        compare(study, tmp_path / "c", engine=pool)
    with pytest.raises(ConfigurationError, match="`workers` must be at least 1"):
        compare(study_of(tiny), tmp_path / "c", workers=0)
    (tmp_path / "f").touch()
    with pytest.raises(ConfigurationError, match="`out` must be a folder"):
        compare(study, tmp_path / "f", engine=pool)
    assert not (tmp_path / "c").exists()


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
