"""Ray: two real workers, one of them killed in the middle; machines that die; stops; machines that do not fit."""

import json
import os
import signal
import socket
import time
from contextlib import suppress

import pytest
import torch

from latentflows.core.errors import ConfigurationError, LatentFlowsError
from latentflows.studies.execution.compare import compare
from latentflows.studies.execution.engines import RayEngine
from latentflows.studies.execution.engines import ray as ray_room
from latentflows.studies.execution.record import read_lines
from latentflows.studies.planning.plan import plan
from latentflows.studies.running.run import run
from latentflows.training.checkpoint import load_tensors
from tests.studies.execution.engines.test_local import task
from tests.studies.execution.test_compare import FakePool, study_of

ray = pytest.importorskip("ray")
STORE = 80 * 2**20


def test_ray_is_started_on_this_machine_and_ended():
    with RayEngine(workers=1) as engine:
        assert (engine.workers, ray.is_initialized()) == (1, True)
        events = list(engine.over_jobs(task, [1, "raise"]))
    assert [(event.job, event.kind, event.content) for event in events] == [
        (0, "started", None), (0, "result", (2, 1)), (1, "started", None), (1, "lost", "ValueError: a reason"),
    ]  # fmt: skip
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one core each, as far as Ray can see, and a driver; ended whatever happens."""
    from ray.cluster_utils import Cluster

    found = None
    try:
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
        found = Cluster(initialize_head=True, head_node_args=head)
        found.add_node(num_cpus=1, object_store_memory=STORE)
        ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
        yield found
    finally:
        ray.shutdown()
        if found is not None:
            found.shutdown()


class Killer:
    """Kills the process of a run with SIGKILL once its record has enough lines, and keeps those."""

    def __init__(self, folder):
        self.folder, self.killed, self.before = folder, 0, []

    def __call__(self, progress):
        metrics = self.folder / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        lock = self.folder.parent / f".{self.folder.name}.lock"
        held = ""
        with suppress(FileNotFoundError):  # none yet where an earlier session wrote those lines
            held = lock.read_text()
        if not self.killed and len(lines) > 20 and held:
            self.killed, self.before = json.loads(held)["pid"], lines
            os.kill(self.killed, signal.SIGKILL)


def without_seconds(path):
    return [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]


def test_a_killed_worker_costs_nothing_but_time(tiny, tmp_path, cluster):
    study = study_of([*tiny, "training.epochs=250", "training.checkpoint_every=10"])
    out, names = tmp_path / "study", ["flow-seed0", "flow-seed1", "plain-seed0", "plain-seed1"]
    killer = Killer(out / "runs" / "plain-seed0")
    with RayEngine() as engine:
        assert engine.workers == 2
        progress = compare(study, out, engine=engine, together=False, notify=killer)
    assert killer.killed not in (0, os.getpid())
    assert (progress.done, progress.failed, progress.active) == (4, {}, {})
    (note,) = progress.notes
    assert note.startswith("plain-seed0 will go on in another process: The worker process died")
    finished = [line["run"] for line in read_lines(out) if line["status"] == "finished"]
    assert sorted(finished) == [f"runs/{name}" for name in names]
    assert sorted(path.name for path in (out / "runs").iterdir()) == names  # no lock stays behind
    metrics = killer.folder / "metrics.jsonl"
    # Also the seconds are as before: these epochs were not trained again.
    assert metrics.read_text().splitlines()[:15] == killer.before[:15]
    (configuration,) = (each.configuration for each in plan(study).runs if each.folder == "runs/plain-seed0")
    undisturbed = run(configuration, tmp_path / "undisturbed").folder
    assert without_seconds(metrics) == without_seconds(undisturbed / "metrics.jsonl")
    weights = [
        load_tensors(folder / "checkpoint" / "model.safetensors")[0]
        for folder in (killer.folder, undisturbed)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    figures = [
        json.loads((folder / "evaluation.json").read_text())["figures"]
        for folder in (killer.folder, undisturbed)
    ]
    assert figures[0] == figures[1]


def test_a_stop_interrupts_running_jobs_and_drops_waiting_ones(cluster):
    seen = []
    with RayEngine(workers=1) as engine:
        for event in engine.over_jobs(
            task, ["wait", "wait"], lambda: int(any(e.kind == "progress" for e in seen))
        ):
            seen.append(event)
    assert [(event.job, event.kind, event.content) for event in seen] == [
        (0, "started", None), (0, "progress", 0.5), (0, "result", "stopped"),
    ]  # fmt: skip
    assert ray.is_initialized()  # it is not the engine's


def test_a_second_stop_ends_them_at_once(cluster):
    seen = []
    with RayEngine() as engine:
        for event in engine.over_jobs(task, ["wait on"], lambda: 2 * any(e.kind == "progress" for e in seen)):
            seen.append(event)
    assert [event.kind for event in seen] == ["started", "progress", "lost"]


def test_a_process_that_always_dies_is_given_up(cluster, monkeypatch):
    monkeypatch.setattr(ray_room, "_RETRIES", 1)
    with RayEngine() as engine:
        events = list(engine.over_jobs(task, ["exit", 1]))
    kinds = [event.kind for event in events if event.job == 0]
    assert [kind for kind in kinds if kind != "started"] == ["again", "lost"]
    (end,) = [event for event in events if event.kind == "lost"]
    assert end.content.startswith("The worker process died")
    assert [event.content for event in events if event.job == 1] == [None, (2, 1)]


def test_a_machine_that_dies_gives_its_job_to_another(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    jobs = [(node.node_id, tmp_path / "go")] * 3
    events = []
    try:
        with RayEngine() as engine:
            assert engine.workers == 3
            for event in engine.over_jobs(last, jobs):
                events.append(event)
                if sum(each.kind == "progress" for each in events) == 3 and node in cluster.list_all_nodes():
                    cluster.remove_node(node, allow_graceful=False)
                    (tmp_path / "go").touch()
    finally:
        if node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)
    (again,) = [event for event in events if event.kind == "again"]
    assert "died" in again.content
    assert [event.content for event in events if event.kind == "result"] == ["done"] * 3


def last(job, report):
    """Wait for a file to appear; on the machine that will die, for ever."""
    doomed, go = job
    report(0.5)
    while ray.get_runtime_context().get_node_id() == doomed or not go.exists():
        time.sleep(0.1)
    return "done"


def test_a_cluster_that_is_gone_stops_the_study(tiny, cluster, tmp_path, monkeypatch):
    get, study, out = ray.get, study_of(tiny), tmp_path / "study"

    def get_nothing_of_jobs(reference, *, timeout=None):
        if timeout is None:  # a job, or the board: machines are asked with a timeout
            raise ray.exceptions.LocalRayletDiedError
        return get(reference, timeout=timeout)

    monkeypatch.setattr(ray, "get", get_nothing_of_jobs)
    monkeypatch.setattr(ray, "wait", lambda references, **_: (references, []))
    message = r"^The Ray cluster at h:1 is gone, so the study stopped.* go on with --resume\.$"
    with pytest.raises(LatentFlowsError, match=message):
        compare(study, out, engine=RayEngine("h:1"))
    assert read_lines(out) == []  # no run failed

    def get_nothing(reference, *, timeout=None):
        raise ray.exceptions.LocalRayletDiedError

    monkeypatch.setattr(ray, "get", get_nothing)
    with RayEngine("h:1") as engine, pytest.raises(LatentFlowsError, match=message):
        engine.check(out)
    assert compare(study, out, engine=FakePool(), resume=True).done == 4


def look_at_another_folder(folder, token, node):
    return ray_room._code(), False


def look_with_other_code(folder, token, node):
    return f"{ray_room.__version__} (code 0123)", True


def look_without_the_package(folder, token, node):
    raise ModuleNotFoundError("No module named 'latentflows'")


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (look_at_another_folder, "it does not share .* Put the study on a file system"),
        (look_with_other_code, r"it has latentflows .* \(code 0123\); this is .* Install the same on both"),
        (look_without_the_package, "it cannot run this package .*No module named 'latentflows'"),
    ],
)
def test_machines_that_do_not_fit_are_refused(look, message, cluster, tmp_path, monkeypatch):
    with RayEngine() as engine:
        engine.check(tmp_path)
        monkeypatch.setattr(ray_room, "_look", look)
        with pytest.raises(ConfigurationError, match=f"Not every machine of the cluster .*{message}"):
            engine.check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_without_room_is_refused(cluster):
    with (
        pytest.raises(ConfigurationError, match=r"has 2 CPUs and 0 GPUs; one run needs 1 and 0\.5"),
        RayEngine(gpus_per_run=0.5),
    ):
        pass


def test_an_address_without_a_cluster_is_named(monkeypatch):
    def refuse(**_):
        raise ConnectionError("ray client connection timeout\nmore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray_room, "_knock", lambda address: None)
    message = r"No Ray cluster answers at `address`=h:1 \(ray client connection timeout\)\. Start one with `ray start"
    with pytest.raises(ConfigurationError, match=message), RayEngine("h:1"):
        pass


def test_an_address_where_nobody_listens_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", pytest.fail)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"  # bound, and it does not listen
        for written in (address, f"ray://{address}"):
            with pytest.raises(ConfigurationError, match=f"No Ray cluster answers at `address`={written}"):
                RayEngine(written).__enter__()
        one.listen()
        ray_room._knock(address)
    for named in ("auto", "local"):
        ray_room._knock(named)
