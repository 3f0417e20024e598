"""Run folders and comparison folders that look as the real ones do, made in milliseconds."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from latentflows.studies.settings.overrides import configuration_from, flat, to_yaml

COMMAND = "latentflows train examples/digits.yaml --out {folder} --seed {seed}"


@cache
def configuration_text(*overrides: str) -> str:
    """The whole `config.yaml` that a run folder has."""
    return to_yaml(configuration_from({}, overrides))


class Fake:
    """Writer of fake folders."""

    @staticmethod
    def write_run(
        folder: Path, *, seed=0, epochs=30, gain=0.0, stages=("joint",), status="finished", reason=None
    ):
        """A complete run; `gain` raises its ELBO by so many nats."""
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        lines = _epoch_lines(rng, epochs, gain + 0.3 * rng.standard_normal(), stages)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        record = _record(folder, seed, lines[-1], status, reason)
        text = configuration_text(
            "posterior=iaf", "prior=real_nvp", f"seed={seed}", f"training.epochs={epochs}"
        )
        record["settings"] = len(flat(yaml.safe_load(text)))
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "config.yaml").write_text(text)
        elbo = lines[-1]["validation"]["elbo"]
        (folder / "evaluation.json").write_text(json.dumps(_evaluation(elbo)))
        _write_pictures(folder / "samples", rng, seed)
        return folder

    @staticmethod
    def write_comparison(folder: Path, *, seeds=(0, 1, 2), gains=None, sizes=None, label_of=str.capitalize):
        """A comparison with a run for every arm and seed; the first arm is the baseline."""
        gains = gains or {"gaussian": 0.0, "flow posterior": 2.0, "flow prior": 0.05}
        folder.mkdir(parents=True, exist_ok=True)
        arms = [
            {"name": name.replace(" ", "-"), "label": label_of(name), "overrides": {"prior.layers": 6}}
            for name in gains
        ]
        study = {
            "format": 1,
            "name": "Where does a flow help?",
            "command": f"latentflows study run examples/digits-study.yaml --out {folder.name}",
            "description": "Posterior and prior flows on the 1,797 digits.",
            "arms": arms,
            "seeds": list(seeds),
            "baseline": arms[0]["name"],
        }
        (folder / "study.json").write_text(json.dumps(study))
        lines = []
        for index, (arm, gain) in enumerate(zip(arms, gains.values(), strict=True)):
            for seed in seeds:
                run = f"runs/{arm['name']}-seed{seed}"
                Fake.write_run(folder / run, seed=seed + 100 * index, gain=gain)
                record = json.loads((folder / run / "run.json").read_text())
                record["parameters"]["prior"] += (sizes or {}).get(arm["name"], 0)
                record["parameters"]["total"] += (sizes or {}).get(arm["name"], 0)
                evaluation = json.loads((folder / run / "evaluation.json").read_text())
                measured = {key: evaluation[key] for key in ("figures", "protocol")}
                shared = {key: record[key] for key in ("status", "parameters", "seconds")}
                lines.append({"arm": arm["name"], "seed": seed, "run": run, **measured, **shared})
        (folder / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    @staticmethod
    def cross(folder: Path, **more):
        """Make the four arms of a comparison, neither, first, second and both, those of a crossing.

        At each seed the NLL of the arm is 100 and the seed, with what `more` says of the arm and a little spread.
        """
        names = ("neither", "first", "second", "both")
        labels = ["Flow_1", "Flow_2"]
        Fake.edit_json(
            folder / "study.json", interaction={**{name: name for name in names}, "labels": labels}
        )

        def planted(line):
            spread = 0.01 * ((7 * line["seed"] + names.index(line["arm"])) % 5)
            line["figures"]["nll"]["mean"] = 100.0 + line["seed"] + more[line["arm"]] + spread
            return line

        Fake.edit_lines(folder / "study.jsonl", planted)

    @staticmethod
    def write_plan(folder: Path, budget=None, **arms):
        """A plan with the FLOPs of every arm; `arms` are changes by name."""
        names = [arm["name"] for arm in json.loads((folder / "study.json").read_text())["arms"]]
        planned = [
            {"name": name, "label": name, "stage_flops": {"joint": 100 * number}, **arms.get(name, {})}
            for number, name in enumerate(names, 1)
        ]
        (folder / "plan.json").write_text(json.dumps({"format": 1, "budget": budget, "arms": planned}))

    @staticmethod
    def add_groups(folder: Path, **groups):
        """Put groups of figures beside the bounds of a run; each is a change of the usual one of its name."""
        path = folder / "evaluation.json"
        evaluation = json.loads(path.read_text())
        known = {name: _GROUPS[name] | change for name, change in groups.items()}
        path.write_text(json.dumps(evaluation | {"groups": evaluation.get("groups", {}) | known}))

    @staticmethod
    def edit_json(path: Path, **changes):
        """Change keys of a JSON object in place."""
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    @staticmethod
    def edit_lines(path: Path, change):
        """Apply `change` to every JSON line in place."""
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


_PROTOCOL = {"split": "test", "data": "digits, fixed binarization", "seed": 0}
_GROUPS = {
    "holes": {
        "asked": {"holes": 200},
        "protocol": {**_PROTOCOL, "num_images": 200},
        "model": {"prior_density": "exact"},
        "figures": {
            "mmd_rbf": {
                "mean": 0.00123,
                "standard_error": 0.00045,
                "unit": "squared MMD",
                "p_value": 0.012,
            },
            "classifier_accuracy": {"mean": 0.61, "standard_error": 0.02, "unit": "share", "p_value": 0.002},
        },
        "seconds": 0.5,
    },
    "samples": {
        "asked": {"samples": 400},
        "protocol": {**_PROTOCOL, "features": "classifier-64[digits]", "weights": "ab" * 32, "num_real": 400},
        "model": {},
        "figures": {
            "frechet_distance": {
                "mean": 3.25,
                "standard_error": 0.5,
                "interval": [2.25, 4.25],
                "unit": "squared feature units",
            }
        },
        "seconds": 2.0,
    },
    "units": {
        "asked": {"information": 200},
        "protocol": {**_PROTOCOL, "threshold": 0.01},
        "model": {"posterior_mean": "closed form"},
        "figures": {
            "active_units": {
                "mean": 27.0,
                "standard_error": None,
                "unit": "of 40 units",
                "undecided": 4.0,
            },
            "largest_unit_kl": None,
        },
        "seconds": 0.1,
    },
}


def _epoch_lines(rng, epochs, gain, stages):
    lines = []
    for index in range(epochs):
        stage = stages[index * len(stages) // epochs]
        progress = 1 - math.exp(-6 * (index + 1) / epochs)
        kl = 4 + 12 * progress + 0.1 * rng.standard_normal()
        reconstruction = -120 + 98 * progress + gain * progress + 0.2 * rng.standard_normal()
        parts = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        train = {"loss": -parts["elbo"], "beta": min(1.0, (index + 1) / 5), **parts}
        if stage == "prior":
            train = {"loss": 20 - 4 * progress, "prior_nll": 20 - 4 * progress}
        worse = {"elbo": parts["elbo"] - 0.8, "reconstruction": reconstruction - 0.6, "kl": kl + 0.2}
        lines.append(
            {
                "stage": stage,
                "epoch": 1 + sum(line["stage"] == stage for line in lines),
                "step": 12 * (index + 1),
                "seconds": 0.8 * (index + 1),
                "samples": 1437 * (index + 1),
                "learning_rate": 1e-3 * (1 - 0.9 * index / epochs),
                "skipped_steps": int(index >= 8) + int(index >= 19),
                "rollbacks": int(index >= 20),
                "train": train,
                "validation": worse,
            }
        )
    return lines


def _record(folder, seed, last, status, reason):
    return {
        "format": 1,
        "name": folder.name,
        "status": status,
        "reason": reason,
        "command": COMMAND.format(folder=folder.name, seed=seed),
        "seed": seed,
        "parameters": {"posterior": 151_440, "prior": 20_608, "likelihood": 118_336, "total": 290_384},
        "seconds": 25.3 + seed,
        "steps": last["step"],
        "skipped_steps": last["skipped_steps"],
        "rollbacks": last["rollbacks"],
        "versions": {"latentflows": "0.1.0", "torch": "2.13.0", "python": "3.12.1"},
        "hardware": {"cpu": "x86_64, 2 cores", "threads": 1, "device": "cpu"},
        "started": "2026-02-03T10:11:12+00:00",
    }


def _evaluation(elbo):
    nats = {"unit": "nats"}
    return {
        "format": 1,
        "protocol": {
            "split": "test",
            "num_images": 360,
            "num_importance_samples": 500,
            "seed": 0,
            "data": "digits, fixed binarization",
        },
        "figures": {
            "elbo": {"mean": elbo, "standard_error": 0.41, **nats},
            "reconstruction": {"mean": elbo + 16, "standard_error": 0.38, **nats},
            "kl": {"mean": 16.0, "standard_error": 0.12, **nats},
            "nll": {"mean": -elbo - 1.7, "standard_error": 0.4, "monte_carlo_error": 0.031, **nats},
            "bits_per_dim": {
                "mean": (-elbo - 1.7) / 64 / math.log(2),
                "standard_error": 0.009,
                "unit": "bits/dim",
            },
            "effective_sample_size": {"mean": 61.2, "minimum": 2.4, "unit": "samples"},
        },
        "seconds": 4.5,
    }


def _write_pictures(folder, rng, seed):
    folder.mkdir(exist_ok=True)
    entries = [
        ("data.png", "Data", "Test images, binarized."),
        ("samples.png", "Samples", f"Drawn from p(x|z) at temperature 1, seed {seed}."),
        ("sample_means.png", "Sample means", f"Mean of p(x|z) at temperature 1, seed {seed}."),
        (
            "reconstructions.png",
            "Reconstructions",
            "Odd rows: test images; even rows: mean of p(x|z) at the posterior mean.",
        ),
        (
            "interpolations.png",
            "Interpolations",
            "Straight lines in base space between two test images; mean of p(x|z).",
        ),
        ("traversals.png", "Single latents", "Means of p(x|z), one latent a row moved."),
    ]
    for file, _, _ in entries:
        Image.fromarray(_blobs(rng)).save(folder / file)
    index = [{"file": file, "title": title, "caption": caption} for file, title, caption in entries]
    (folder / "index.json").write_text(json.dumps(index))


def _blobs(rng, rows=6, size=8):
    """A grid of gray blobs with a border, as digits of 8 x 8 pixels have."""
    grid = np.full((rows * (size + 1) + 1, rows * (size + 1) + 1), 110, dtype=np.uint8)
    axis = np.arange(size)
    for row in range(rows):
        for column in range(rows):
            y, x = rng.uniform(2, 5, size=2)
            width, height = rng.uniform(2, 12, size=2)
            blob = 255 * np.exp(-((axis[:, None] - y) ** 2) / width - (axis - x) ** 2 / height)
            top, left = row * (size + 1) + 1, column * (size + 1) + 1
            grid[top : top + size, left : left + size] = blob.astype(np.uint8)
    return grid


@pytest.fixture(scope="session")
def fake():
    """The writer of fake folders."""
    return Fake
