"""Groups of figures beside the bounds: each is measured by its own protocol, once, or left out with its reason."""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.data import SomeUnlabeled, ambiguous_shapes
from latentflows.data.base import ArraySplit, ImageData, ImageSplit
from latentflows.evaluation import (
    Annealing,
    draw_once,
    evaluate_annealed,
    evaluate_bounds,
    evaluate_holes,
    load_classifier,
)
from latentflows.models import DensityModel
from latentflows.studies.building.build import build_data, build_model, load_run
from latentflows.studies.measuring import bounds as bounds_room
from latentflows.studies.measuring import groups as groups_room
from latentflows.studies.measuring.groups import GROUPS
from latentflows.studies.measuring.measure import evaluate, is_evaluated, recorded, replaced
from latentflows.studies.running import run as run_room
from latentflows.studies.running.run import run
from latentflows.studies.settings.evaluation import EvaluationSettings
from latentflows.studies.settings.overrides import configuration_from

SMALL = ["latent_dim=3", "network.width=16", "network.depth=1", "evaluation.num_importance_samples=8"]


def images(*, labels=True, factors=False):
    """200 binary images of 4 x 4 in each split, brighter for higher labels; column 0 of the factors is the label."""
    splits = []
    for seed in range(3):
        random = np.random.RandomState(seed)
        kind = random.randint(0, 3, size=200)
        x = torch.from_numpy(
            (random.rand(200, 1, 4, 4) < 0.2 + 0.3 * kind[:, None, None, None]).astype("float32")
        )
        table = torch.from_numpy(np.stack([kind, random.randint(0, 2, size=200)], 1))
        splits.append(
            ArraySplit(
                x,
                values="binary",
                labels=torch.from_numpy(kind) if labels else None,
                factors=table if factors else None,
            )
        )
    names = {"labels": ("dark", "gray", "bright") if labels else ()}
    return ImageData(
        "bars", *splits, description="bars, as drawn", factors=("shape", "coin") if factors else (), **names
    )


@pytest.fixture(scope="module")
def model():
    return build_model(configuration_from({}, SMALL), (1, 4, 4)).eval()


def settings(**asked):
    return EvaluationSettings(
        **{"information": 0, "holes": 0, "num_importance_samples": 8, "num_images": 20, **asked}  # pyright: ignore[reportArgumentType]
    )


def measured(model, data, name, **asked):
    return evaluate(model, data, settings(**asked), None)["groups"][name]


def shorter(monkeypatch):
    """Gaps in 4 steps, annealing in 3 temperatures."""
    gaps, annealed = groups_room.evaluate_gaps, groups_room.evaluate_annealed
    quick = Annealing(num_temperatures=3, num_chains=4, num_leapfrog_steps=1, num_pilot_moves=3)
    monkeypatch.setattr(
        groups_room, "evaluate_gaps", lambda *a, **k: gaps(*a, num_steps=4, num_samples=8, **k)
    )
    monkeypatch.setattr(groups_room, "evaluate_annealed", lambda *a, **k: annealed(*a, quick, **k))
    return quick


ASKED = {
    "information": ({"information": 12}, "mutual_information", {"num_images": 12}),
    "units": ({"information": 12}, "active_units", {"num_images": 12, "threshold": 0.01}),
    "holes": ({"holes": 12}, "mmd_rbf", {"num_images": 12, "num_permutations": 499}),
    "gaps": ({"gaps": 2}, "approximation_gap", {"num_images": 2, "num_steps": 4}),
    "annealed": ({"annealed": 2}, "annealed_nll", {"num_images": 2, "num_importance_samples": 8}),
    "samples": (
        {"samples": 60, "sample_features": "pixels", "sample_shown": "mean", "sample_temperature": 0.5},
        "frechet_distance",
        {"num_real": 60, "features": "pixels", "shown": "mean", "temperature": 0.5},
    ),
    "neighbors": ({"neighbors": 9}, "pixels_distance", {"num_samples": 9, "num_train": 200}),
    "disentanglement": (
        {"disentanglement": 100},
        "mutual_information_gap",
        {"num_images": 100, "factors": "shape, coin", "block_size": 20},
    ),
}


def test_every_group_is_in_these_tests():
    assert set(ASKED) | {"segmentation", "target"} == set(GROUPS)  # which test_whole_models has


@pytest.mark.parametrize("name", ASKED)
def test_a_group_is_measured_with_its_own_protocol(model, monkeypatch, name):
    shorter(monkeypatch)
    asked, figure, protocol = ASKED[name]
    content = evaluate(model, images(factors=True), settings(split="validation", seed=3, **asked), None)
    group = content["groups"][name]
    assert "reason" not in group
    assert group["figures"][figure]["mean"] is not None
    assert group["seconds"] >= 0
    expected = {"split": "validation", "data": "bars, as drawn", **protocol}
    assert {key: group["protocol"][key] for key in expected} == expected
    assert group["protocol"].get("seed", 3) == 3
    assert not {"prior_density", "family", "posterior_mean"} & group["protocol"].keys()
    assert all("protocol" not in entry for entry in group["figures"].values() if entry is not None)
    json.dumps(content, allow_nan=False)
    alone = {"information", "units"} if "information" in asked else {name}
    assert content["groups"].keys() == alone


def test_figures_are_those_of_the_functions(model, monkeypatch):
    quick = shorter(monkeypatch)
    gray = torch.full((200, 1, 4, 4), 128, dtype=torch.uint8)  # binarized anew for every seed
    data = replace(images(), test=ImageSplit(gray, "dynamic_binary"))
    holes = evaluate_holes(model, data.test, num_images=12, seed=5)
    assert measured(model, data, "holes", holes=12, seed=5)["figures"] == holes.figures()
    found = measured(model, data, "annealed", annealed=3, seed=5)["figures"]
    same = draw_once(data.test, 3, seed=5)
    annealed = evaluate_annealed(model, data.test, quick, num_images=3, seed=5)
    bounds = evaluate_bounds(model, same, num_importance_samples=8, seed=5)
    assert found["annealed_nll"]["mean"] == pytest.approx(-float(annealed.log_evidence.mean()))
    assert found["importance_nll"] == bounds.figures()["nll"]
    difference = bounds.nll + annealed.log_evidence
    assert found["nll_difference"]["mean"] == pytest.approx(float(difference.mean()))
    assert found["nll_difference"]["standard_error"] == pytest.approx(float(difference.std() / 3**0.5))


def test_a_count_above_the_split_is_refused_and_a_default_means_all_of_it(model):
    message = (
        "`evaluation.gaps` must be at most the 200 data points of the test split; got 201. Use evaluation.gaps=200 "
        "for all of them.\n`evaluation.samples` must be"
    )
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        evaluate(model, images(), settings(gaps=201, samples=5000), None)
    few = replace(images(), test=ArraySplit(images().test.x[:50], values="binary"))
    assert measured(model, few, "holes", holes=200)["protocol"]["num_images"] == 50


def test_the_default_asks_for_what_is_cheap_and_can_be_had(model):
    names = {
        name for name, group in GROUPS.items() if group.asked(EvaluationSettings(), model, images().test)
    }
    assert names == {"information", "units", "holes"}
    masks = ambiguous_shapes(2, 2, 2, size=12).test
    names = {name for name, group in GROUPS.items() if group.asked(EvaluationSettings(), model, masks)}
    assert names == {"information", "units", "holes", "segmentation"}
    assert GROUPS["segmentation"].asked(EvaluationSettings(segmentation=0), model, masks) is None
    density = DensityModel(model.prior)
    assert not [
        name for name, group in GROUPS.items() if group.asked(EvaluationSettings(), density, images().test)
    ]
    assert GROUPS["holes"].asked(EvaluationSettings(holes=3), density, images().test) is not None


@pytest.mark.parametrize(
    ("name", "asked", "reason"),
    [
        (
            "samples",
            {"samples": 60},
            "no labels to train a classifier on. Use evaluation.sample_features=pixels",
        ),
        ("samples", {"samples": 3, "sample_features": "pixels"}, "must"),
        ("disentanglement", {"disentanglement": 100}, "no known factors. Use data=shapes2d"),
    ],
)
def test_what_the_data_do_not_have_is_a_reason(model, name, asked, reason):
    group = measured(model, images(labels=False), name, **asked)
    assert reason in group["reason"]
    assert "figures" not in group


@pytest.mark.parametrize("posterior", ["planar", "delta"])
def test_a_posterior_without_density_elsewhere_leaves_out_what_needs_it(posterior):
    extra = ["objective=autoencoder"] if posterior == "delta" else []
    other = build_model(configuration_from({}, [*SMALL, f"posterior={posterior}", *extra]), (1, 4, 4))
    content = evaluate(other.eval(), images(), settings(information=12, holes=12, gaps=2), None)
    assert (
        "`" in content["groups"]["information"]["reason"]
        or "posterior" in content["groups"]["information"]["reason"]
    )
    assert content["groups"]["units"]["figures"]["active_units"]["mean"] >= 0
    assert "mmd_rbf" in content["groups"]["holes"]["figures"]
    if posterior == "delta":
        assert "reason" in content["groups"]["gaps"]
        assert content["protocol"]["without_bound"]


def test_pairs_of_latents_are_not_scored_where_that_is_slow_unless_asked_for():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configuration = configuration_from(
            {}, [*SMALL, "latent_dim=12", "posterior=iaf", "posterior.width=12"]
        )
    slow = build_model(configuration, (1, 4, 4)).eval()
    reason = measured(slow, images(), "information", information=None)["reason"]
    assert "network passes each here. To wait for them: evaluation.information=200" in reason
    assert "figures" in measured(slow, images(), "information", information=5)


def test_a_fault_in_a_group_is_its_reason_and_the_others_go_on(model, monkeypatch):
    def broken(*_, **__):
        raise TypeError("a fault of the program")

    monkeypatch.setattr(groups_room, "evaluate_holes", broken)
    content = evaluate(model, images(), settings(holes=12, neighbors=5), None)
    assert content["groups"]["holes"]["reason"] == "TypeError: a fault of the program"
    assert "figures" in content["groups"]["neighbors"]
    assert content["figures"]["nll"]["mean"] > 0


def test_what_was_measured_is_not_measured_again(model, monkeypatch, tmp_path):
    data = images()
    first = evaluate(model, data, settings(holes=12), tmp_path)
    monkeypatch.setattr(bounds_room, "evaluate_bounds", pytest.fail)
    monkeypatch.setattr(groups_room, "evaluate_holes", pytest.fail)
    assert evaluate(model, data, settings(holes=12), tmp_path) == first
    second = evaluate(model, data, settings(holes=12, neighbors=5), tmp_path)
    assert second["groups"].keys() == {"holes", "neighbors"}
    assert second["groups"]["holes"] == first["groups"]["holes"]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == second
    third = evaluate(model, data, settings(), tmp_path)
    assert third == second  # what was asked for earlier stays


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"split": "validation"}, {"num_importance_samples": 9}, {"num_images": 21}]
)
def test_other_settings_are_measured_anew(model, tmp_path, change):
    data = images()
    first = evaluate(model, data, settings(neighbors=5), tmp_path)
    second = evaluate(model, data, settings(neighbors=5, **change), tmp_path)
    assert second["figures"] != first["figures"]
    same_samples = not {"seed", "split"} & change.keys()
    assert (second["groups"]["neighbors"] == first["groups"]["neighbors"]) is same_samples
    told = replaced(first, second)
    assert re.fullmatch(r"figures on the test split, \d+ data points, K = 8, seed 0", told[0])
    assert [line.startswith("figures of neighbors (split test, seed 0") for line in told[1:]] == [True] * (
        not same_samples
    )
    assert recorded(tmp_path) == second
    assert replaced(second, second) == replaced({}, second) == []


def test_a_refusal_is_tried_again_and_never_replaces_figures(model, monkeypatch, tmp_path):
    data = images()
    real = groups_room.evaluate_holes

    def refuse(*_, **__):
        raise CombinationError("not today")

    monkeypatch.setattr(groups_room, "evaluate_holes", refuse)
    assert evaluate(model, data, settings(holes=12), tmp_path)["groups"]["holes"]["reason"] == "not today"
    assert is_evaluated(tmp_path, settings(holes=12), model, data)
    monkeypatch.setattr(groups_room, "evaluate_holes", real)
    found = evaluate(model, data, settings(holes=12), tmp_path)["groups"]["holes"]
    assert "figures" in found
    monkeypatch.setattr(groups_room, "evaluate_holes", refuse)
    assert evaluate(model, data, settings(holes=13), tmp_path)["groups"]["holes"] == found


def test_a_file_from_before_there_were_groups_is_read(model, tmp_path):
    data = images()
    content = evaluate(model, data, settings(), tmp_path)
    del content["groups"]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    assert is_evaluated(tmp_path, settings(), model, data)
    assert not is_evaluated(tmp_path, settings(holes=12), model, data)
    found = evaluate(model, data, settings(holes=12), tmp_path)
    assert found["figures"] == content["figures"]
    assert found["seconds"] == content["seconds"]
    (tmp_path / "evaluation.json").write_text("{")
    assert not is_evaluated(tmp_path, settings(), model, data)
    assert evaluate(model, data, settings(), tmp_path)["figures"] == content["figures"]


def test_the_classifier_is_trained_once_and_shared(model, monkeypatch, tmp_path):
    data, shared = images(), tmp_path / "shared" / "bars.safetensors"
    asked = {"samples": 60, "sample_classifier": str(shared)}
    first = measured(model, data, "samples", **asked)
    assert first["protocol"]["features"] == "classifier-64[bars]"
    assert load_classifier(shared).weights == first["protocol"]["weights"]
    monkeypatch.setattr(groups_room, "train_classifier", pytest.fail)
    second = measured(model, data, "samples", seed=4, **asked)
    assert second["protocol"]["weights"] == first["protocol"]["weights"]
    assert second["figures"] != first["figures"]


def test_the_classifier_does_not_depend_on_the_seed_of_the_evaluation(model):
    data = images()
    hashes = {
        measured(model, data, "samples", samples=60, seed=seed)["protocol"]["weights"] for seed in (0, 1)
    }
    assert len(hashes) == 1


def test_a_run_keeps_its_classifier(model, tmp_path):
    content = evaluate(model, images(), settings(samples=60), tmp_path)
    kept = load_classifier(tmp_path / "checkpoint" / "classifier.safetensors")
    assert kept.weights == content["groups"]["samples"]["protocol"]["weights"]


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(tiny, tmp_path, monkeypatch):
    configuration = configuration_from({}, [*tiny, "evaluation.holes=6", "evaluation.neighbors=5"])
    whole = run(configuration, tmp_path / "whole")
    assert whole.status == "finished"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    real = groups_room.evaluate_neighbors
    monkeypatch.setattr(groups_room, "evaluate_neighbors", interrupt)
    folder = tmp_path / "cut"
    assert run(configuration, folder).status == "interrupted"
    before = json.loads((folder / "evaluation.json").read_text())
    assert before["groups"].keys() == {"holes"}
    monkeypatch.setattr(groups_room, "evaluate_neighbors", real)
    monkeypatch.setattr(bounds_room, "evaluate_bounds", pytest.fail)
    monkeypatch.setattr(groups_room, "evaluate_holes", pytest.fail)
    announced = []
    assert run(configuration, folder, resume=True, announce=announced.append).status == "finished"
    assert announced == ["training", "evaluation: neighbors", "pictures"]
    after = json.loads((folder / "evaluation.json").read_text())
    expected = json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    assert after["figures"] == before["figures"] == expected["figures"]
    for name in ("holes", "neighbors"):
        assert after["groups"][name]["figures"] == expected["groups"][name]["figures"]
    monkeypatch.setattr(run_room, "build_data", pytest.fail)
    assert run(configuration, folder, resume=True).status == "finished"


def test_a_model_that_is_given_labels_has_every_group(tiny, tmp_path, monkeypatch):
    shorter(monkeypatch)
    pixels = np.load(next(text for text in tiny if text.startswith("data.root=")).removeprefix("data.root="))
    np.savez(tmp_path / "labeled.npz", x=pixels, labels=np.arange(len(pixels)) % 2)
    path = f"data.root={tmp_path / 'labeled.npz'}"
    overrides = [
        *(text for text in tiny if not text.startswith("data.root=")),
        path,
        "condition.on=labels",
        "prior=gaussian",
    ]
    asked = ["evaluation.information=6", "evaluation.holes=6", "evaluation.gaps=2", "evaluation.annealed=2"]
    configuration = configuration_from({}, [*overrides, *asked, "evaluation.neighbors=4", "data.test=20"])
    run(configuration, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "p(z|c)" in content["groups"].pop("information")["reason"]
    assert {name: group.get("reason") for name, group in content["groups"].items()} == dict.fromkeys(
        ("units", "holes", "gaps", "annealed", "neighbors")
    )
    _, model = load_run(tmp_path / "run")
    assert model.context_shape == (2,)
    assert build_data(configuration).test.batch(torch.arange(2)).context is not None


def test_neighbors_are_looked_for_among_training_points_with_their_labels():
    given = ["condition.on=labels", "condition.parts=[posterior,likelihood]"]
    conditional = build_model(configuration_from({}, [*SMALL, *given]), (1, 4, 4), (3,))
    names, drawn = ("dark", "gray", "bright"), images()
    train, test = (
        ArraySplit(each.x, values="binary", labels=each.labels, with_labels=True)
        for each in (drawn.train, drawn.test)
    )
    data = ImageData("bars", train, test, test, description="bars, as drawn", labels=names)
    some = replace(data, train=SomeUnlabeled(train, 0.9))
    found, expected = (measured(conditional, each, "neighbors", neighbors=20) for each in (some, data))
    assert found["figures"] == expected["figures"]
