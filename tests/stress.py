"""Kill a study of many tiny runs again and again, processes and driver, and look at what it leaves.

By hand: python -m tests.stress --arms 20 --seeds 10 --worker-kills 20 --driver-kills 8
The suite runs a smaller one (studies/execution/test_kills.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from latentflows.studies.execution.compare import compare
from latentflows.studies.execution.engines import engine_from
from latentflows.studies.execution.record import read_lines
from latentflows.studies.planning.study import Arm, Study

EPOCHS = 3


def tiny_study(folder: Path, arms: int, seeds: int) -> Study:
    """Return a study of arms that differ in their width, on 60 images of 4 x 4 pixels."""
    path = folder / "images.npy"
    if not path.exists():
        rows = np.random.RandomState(0)
        np.save(path, (255 * (rows.rand(60, 4, 4) < rows.rand(60, 1, 1))).astype(np.uint8))
    return Study(
        name="stress",
        base={
            "data": {"name": "arrays", "root": str(path), "preparation": "dynamic_binary"},
            "latent_dim": 2,
            "network": {"width": 8, "depth": 1},
            "training": {"epochs": EPOCHS, "batch_size": 16, "trackers": []},
            "evaluation": {"num_importance_samples": 8, "information": 0, "holes": 0},
        },
        arms=[Arm(name=f"width{4 + i}", overrides=[f"network.width={4 + i}"]) for i in range(arms)],
        seeds=list(range(seeds)),
        baseline="width4",
    )


def drive(folder: Path, arms: int, seeds: int, engine: str, together: bool) -> int:
    """Carry out the study, or go on with it; 3 where runs failed."""
    study = tiny_study(folder, arms, seeds)
    progress = compare(
        study, folder / "study", engine=engine_from(engine, workers=2), together=together, resume=True
    )
    for note in progress.notes:
        print(note)
    for name, reason in progress.failed.items():
        print(f"{name} failed: {reason}")
    return 3 if progress.failed else 0


def torment(
    folder: Path,
    *,
    arms: int,
    seeds: int,
    worker_kills: int,
    driver_kills: int,
    engine: str = "local",
    together: bool = True,
    randomness: int = 0,
) -> Counter[str]:
    """Start the study again until it is complete, killing it in between; return how often what was killed."""
    choose, counts = random.Random(randomness), Counter[str]()
    left = {"worker": worker_kills, "driver": driver_kills}
    mode = "together" if together else "apart"
    command = [
        sys.executable,
        "-m",
        "tests.stress",
        "--drive",
        str(folder),
        str(arms),
        str(seeds),
        engine,
        mode,
    ]
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        while True:
            counts["starts"] += 1
            driver = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                counts += _kill_now_and_then(driver, left, choose, folder / "study" / "study.jsonl")
            finally:
                if driver.poll() is None:
                    driver.kill()
                driver.wait()
            if driver.returncode == 0:
                return counts
            if counts["starts"] > 5 + driver_kills + worker_kills:
                text = (folder / "output.txt").read_text(encoding="utf-8")
                raise RuntimeError(f"the study does not end ({counts}):\n{text[-2000:]}")


def _kill_now_and_then(
    driver: subprocess.Popen[bytes], left: dict[str, int], choose: random.Random, record: Path
) -> Counter[str]:
    """Kill workers as long as the driver lives, and at last the driver, if its turn comes."""
    counts = Counter[str]()
    while _lives_on(driver, choose, record):
        kinds = [kind for kind, number in left.items() if number > 0]
        if not kinds:
            driver.wait()
            return counts
        kind = choose.choices(kinds, [left[kind] for kind in kinds])[0]
        targets = [driver.pid] if kind == "driver" else _workers(driver.pid)
        if not targets:  # no worker yet: the driver's turn, so that a quick study is not left alone
            if not left["driver"]:
                continue
            kind, targets = "driver", [driver.pid]
        left[kind] -= 1
        counts[kind] += 1
        with suppress(ProcessLookupError):
            os.kill(choose.choice(targets), signal.SIGKILL)
        if kind == "driver":
            driver.wait()
    return counts


def _lives_on(driver: subprocess.Popen[bytes], choose: random.Random, record: Path) -> bool:
    """Wait a random time, every other time after the record grew; whether the driver lives then."""
    size = record.stat().st_size if record.exists() else 0
    waits = choose.random() < 0.5
    while waits and driver.poll() is None and not (record.exists() and record.stat().st_size > size):
        time.sleep(0.05)
    with suppress(subprocess.TimeoutExpired):
        driver.wait(choose.uniform(0.0, 3.0))
    return driver.poll() is None


def _workers(parent: int) -> list[int]:
    """Return the processes that work for a driver."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in found.stdout.splitlines()]
    below = {parent}
    for _ in range(4):  # driver, raylet, worker
        below |= {int(pid) for pid, ppid, *_ in rows if int(ppid) in below}
    named = ("spawn_main", "ray::_serve")
    return [
        int(pid)
        for pid, _, *words in rows
        if int(pid) in below and any(name in "".join(words) for name in named)
    ]


def faults(folder: Path, arms: int, seeds: int) -> list[str]:
    """Return what is wrong with a study that should be complete: each result there, once."""
    out = folder / "study"
    wanted = {f"runs/width{4 + arm}-seed{seed}" for arm in range(arms) for seed in range(seeds)}
    lines = read_lines(out)
    finished = Counter(line["run"] for line in lines if line["status"] == "finished")
    found = [f"{run}: {finished[run]} finished lines" for run in sorted(wanted) if finished[run] != 1]
    found += [f"{run}: not of the study" for run in finished if run not in wanted]
    if not (out / "study.jsonl").read_bytes().endswith(b"\n"):
        found.append("the record ends with a torn line")
    for line in lines:
        if line["status"] == "finished":
            found += _faults_of_run(out, line)
    found += [f"{path.name} is left over" for path in out.iterdir() if path.name.startswith(".")]
    left = {f"runs/{path.name}" for path in (out / "runs").iterdir()} - wanted
    return found + [f"{name} is left over" for name in sorted(left)]


def _faults_of_run(out: Path, line: dict) -> list[str]:
    folder = out / line["run"]
    epochs = [json.loads(text)["epoch"] for text in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = json.loads((folder / "evaluation.json").read_text())["figures"]
    record = json.loads((folder / "run.json").read_text())
    found = [] if epochs == list(range(1, EPOCHS + 1)) else [f"{line['run']}: epochs {epochs}"]
    if figures != line["figures"] or figures["nll"]["mean"] is None:
        found.append(f"{line['run']}: the line has other figures than the folder")
    if record["status"] != "finished":
        found.append(f"{line['run']}: its record says {record['status']}")
    return found


def main() -> int:
    if sys.argv[1:2] == ["--drive"]:
        folder, arms, seeds, engine, mode = sys.argv[2:]
        return drive(Path(folder), int(arms), int(seeds), engine, mode == "together")
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("arms", 20), ("seeds", 10), ("worker-kills", 20), ("driver-kills", 8), ("randomness", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--apart", action="store_true", help="one run a job")
    given = parser.parse_args()
    started = time.monotonic()
    with TemporaryDirectory() as name:
        counts = torment(
            Path(name),
            arms=given.arms,
            seeds=given.seeds,
            worker_kills=given.worker_kills,
            driver_kills=given.driver_kills,
            engine=given.engine,
            together=not given.apart,
            randomness=given.randomness,
        )
        found = faults(Path(name), given.arms, given.seeds)
        output = (Path(name) / "output.txt").read_text(encoding="utf-8")
    seconds = time.monotonic() - started
    print(f"{given.arms * given.seeds} runs, {dict(counts)}, {seconds:.0f} s, faults: {found or 'none'}")
    if found:
        print(output[-5000:])
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
