"""Results of a study in Python: rows, curves, comparisons by any figure, and what is refused."""

import json
import math
import shutil
import sys

import numpy as np
import pytest

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.studies.results.results import read_results


@pytest.fixture
def study(fake, tmp_path):
    folder = fake.write_comparison(
        tmp_path / "study", gains={"gaussian": 0.0, "flow": 3.0}, sizes={"flow": 512}
    )
    for run in (folder / "runs").iterdir():
        fake.add_groups(run, holes={}, samples={})
    return folder


def test_the_frame_has_a_row_for_every_run(study, fake):
    fake.write_plan(study, flow={"solved": {"network.width": 31}})
    frame = read_results(study).frame()
    assert frame.shape[0] == 6
    assert list(frame["arm"]) == ["gaussian"] * 3 + ["flow"] * 3
    assert list(frame["seed"]) == [0, 1, 2, 0, 1, 2]
    assert set(frame["status"]) == {"finished"}
    line = json.loads((study / "study.jsonl").read_text().splitlines()[4])
    row = frame.iloc[4]
    assert row["nll"] == line["figures"]["nll"]["mean"]
    assert row["nll.standard_error"] == 0.4
    assert row["holes.mmd_rbf"] == 0.00123
    assert row["holes.mmd_rbf.p_value"] == 0.012
    assert row["parameters.total"] == line["parameters"]["total"] == 290_384 + 512
    assert (row["steps"], row["epochs"], row["seconds"]) == (360, 30, line["seconds"])
    assert (row["skipped_steps"], row["rollbacks"]) == (2, 1)
    assert row["folder"] == "runs/flow-seed1"
    assert row["solved.network.width"] == 31


def test_runs_that_are_missing_or_failed_have_a_row(study, fake):
    lines = (study / "study.jsonl").read_text().splitlines()
    failed = json.loads(lines[1]) | {"status": "failed", "reason": "out of memory", "figures": None}
    (study / "study.jsonl").write_text("\n".join([lines[0], json.dumps(failed)]) + "\n")
    shutil.rmtree(study / "runs" / "gaussian-seed2")
    rows = read_results(study).rows()
    assert [row["status"] for row in rows] == ["finished", "failed", "not run"] + ["started"] * 3
    assert rows[1]["reason"] == "out of memory"
    assert "nll" not in rows[1]
    assert [(row["folder"], row["epochs"]) for row in rows[2:4]] == [(None, None), ("runs/flow-seed0", 30)]


def test_a_run_that_failed_before_its_model_was_there_spoils_no_study(study, fake):
    """Its line knows no parameters: older ones have an empty object."""
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: (
            line | {"status": "failed", "reason": "Out of memory.", "parameters": {}, "figures": None}
            if (line["arm"], line["seed"]) == ("flow", 1)
            else line
        ),
    )
    results = read_results(study)
    assert results.runs["flow", 1].parameters is None
    assert [row["status"] for row in results.rows()].count("failed") == 1
    assert sorted(results.compare()[0].by_seed) == [0, 2]


def test_curves_are_long_and_count_flops_by_stage(study, fake):
    fake.write_run(study / "runs" / "flow-seed0", epochs=6, stages=("vae", "prior"))
    fake.write_plan(study)
    frame = read_results(study).curves()
    assert set(frame["split"]) == {"train", "validation"}
    one = frame.query("arm == 'gaussian' and seed == 1 and split == 'validation' and metric == 'elbo'")
    assert list(one["flops"]) == [100 * 1437 * (epoch + 1) for epoch in range(30)]
    assert list(one["samples"]) == [1437 * (epoch + 1) for epoch in range(30)]
    assert list(one["step"])[-1] == 360
    unknown = frame.query("arm == 'flow' and seed == 0")
    assert unknown["flops"].isna().all()  # the plan names no stage "vae"
    fake.write_plan(study, flow={"stage_flops": {"vae": 10, "prior": 1}})
    staged = read_results(study).curves().query("arm == 'flow' and seed == 0 and metric == 'loss'")
    staged = staged.query("split == 'train'")
    assert list(staged["flops"]) == [1437 * flops for flops in (10, 20, 30, 31, 32, 33)]


def test_curves_are_in_the_order_of_the_study_not_of_the_record(study):
    record = study / "study.jsonl"
    record.write_text("".join(reversed(record.read_text().splitlines(keepends=True))))
    results = read_results(study)
    runs = results.curves()[["arm", "seed"]].drop_duplicates().itertuples(index=False, name=None)
    assert [*runs] == [(arm.name, seed) for arm in results.study.arms for seed in results.study.seeds]


def test_without_a_plan_flops_are_not_known(study):
    assert read_results(study).curves()["flops"].isna().all()


def test_comparisons_by_any_figure(study):
    results = read_results(study)
    nll = results.comparisons()
    assert nll.loc[0, ["arm", "label", "other", "other_label"]].tolist() == [
        "flow",
        "Flow",
        "gaussian",
        "Gaussian",
    ]
    assert nll.loc[0, "difference"] < 0
    assert bool(nll.loc[0, "better"])
    elbo = results.compare("elbo")[0]
    assert elbo.lower_is_better is False
    assert elbo.better
    nll_of = {(run.arm, run.seed): run.figures["nll"].mean for run in results.runs.values()}
    assert results.compare("nll")[0].by_seed == pytest.approx(
        {seed: nll_of["flow", seed] - nll_of["gaussian", seed] for seed in range(3)}
    )
    assert results.compare("holes.mmd_rbf")[0].lower_is_better is True
    assert results.compare("kl")[0].lower_is_better is None
    assert results.compare("kl", lower_is_better=True)[0].lower_is_better is True
    assert results.compare("seconds")[0].difference.mean == 100.0
    assert (results.unit("elbo"), results.unit("seconds"), results.unit("samples.frechet_distance")) == (
        "nats",
        "s",
        "squared feature units",
    )


def test_the_comparisons_of_the_study_take_the_place_of_the_baseline(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0, "c": 2.0})
    assert [(c.arm, c.other) for c in read_results(folder).compare()] == [("b", "a"), ("c", "a")]
    fake.edit_json(folder / "study.json", comparisons=[["c", "b"]], smallest_difference=0.5)
    (found,) = read_results(folder).compare()
    assert (found.arm, found.other, found.num_comparisons) == ("c", "b", 1)
    assert found.power.smallest_difference == 0.5
    assert read_results(folder).compare("elbo")[0].power.smallest_difference is None
    fake.edit_json(folder / "study.json", comparisons=[["c", "d"]])
    with pytest.raises(DataError, match=r"study\.json: `comparisons` must hold pairs"):
        read_results(folder)


def test_a_figure_that_no_run_has_is_refused_with_those_that_there_are(study):
    with pytest.raises(DataError, match=r"'fid'\. There are: elbo, .*holes\.mmd_rbf.*seconds"):
        read_results(study).compare("fid")


def test_figures_by_different_protocols_do_not_compare(study, fake):
    fake.add_groups(study / "runs" / "flow-seed2", holes={"protocol": {"num_images": 5}})
    results = read_results(study)
    with pytest.raises(DataError, match=r"num_images: 200 \(Gaussian, seed 0\) and 5 \(Flow, seed 2\)"):
        results.compare("holes.mmd_rbf")
    assert results.compare("nll")

    def other_seed(line):
        return line | {"protocol": line["protocol"] | {"seed": line["seed"]}}

    fake.edit_lines(study / "study.jsonl", other_seed)
    assert read_results(study).compare("nll")

    def fewer(line):
        return line | {"protocol": line["protocol"] | {"num_importance_samples": 5 + line["seed"]}}

    fake.edit_lines(study / "study.jsonl", fewer)
    with pytest.raises(DataError, match="num_importance_samples"):
        read_results(study).compare("nll")


def test_models_of_different_sizes_in_one_arm_do_not_compare(study, fake):
    """Seeds added after a change of the code may be of another model."""

    def larger(line):
        added = 5 if (line["arm"], line["seed"]) == ("flow", 2) else 0
        return line | {"parameters": line["parameters"] | {"total": line["parameters"]["total"] + added}}

    fake.edit_lines(study / "study.jsonl", larger)
    sizes = r"290,896 \(seed 0\), 290,896 \(seed 1\), 290,901 \(seed 2\)"
    message = (
        rf"compare: parameters of “Flow”: {sizes}, as the code changed between its runs; train them all again"
    )
    with pytest.raises(DataError, match=message):
        read_results(study).compare("nll")


@pytest.mark.parametrize("known", [None, "a" * 12])
def test_figures_on_other_data_in_the_same_place_do_not_compare(study, fake, known):
    """Earlier versions wrote no hash of the data: their runs count beside others."""

    def hashed(line, found):
        return line | {"protocol": line["protocol"] | {"data_hash": found}}

    fake.edit_lines(
        study / "study.jsonl", lambda line: hashed(line, known if line["seed"] == 1 else "a" * 12)
    )
    assert read_results(study).compare("nll")
    fake.edit_lines(study / "study.jsonl", lambda line: hashed(line, "b" * 12) if line["seed"] == 2 else line)
    with pytest.raises(
        DataError, match=r"data_hash: a{12} \(Gaussian, seed 0\) and b{12} \(Gaussian, seed 2\)"
    ):
        read_results(study).compare("nll")


def test_a_mass_and_a_density_do_not_compare(study, fake):
    kinds = {"gaussian": "density on gray levels without noise", "flow": "probability mass"}

    def known(line):
        return line | {"protocol": line["protocol"] | {"likelihood": kinds[line["arm"]]}}

    fake.edit_lines(study / "study.jsonl", known)
    results = read_results(study)
    for metric in ("nll", "elbo", "reconstruction"):
        with pytest.raises(DataError, match="likelihood: density on gray levels without noise"):
            results.compare(metric)
    assert results.compare("holes.mmd_rbf")


def test_seconds_on_different_hardware_do_not_compare(study, fake):
    fake.edit_json(study / "runs" / "flow-seed0" / "run.json", hardware={"cpu": "other"})
    with pytest.raises(DataError, match="cpu: "):
        read_results(study).compare("seconds")


def test_seconds_of_seeds_that_trained_together_do_not_compare_with_those_of_lone_ones(study, fake):
    together = {"together": [{"stage": "joint", "runs": 2, "together": True, "text": ""}]}
    for seed in (0, 1):
        fake.edit_json(study / "runs" / f"flow-seed{seed}" / "run.json", **together)
    with pytest.raises(DataError, match=r"runs trained as one program: .*\b1\b.* and 2 \("):
        read_results(study).compare("seconds")
    assert read_results(study).compare("nll")


def test_runs_that_did_not_finish_do_not_count(study, fake):
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: line | {"status": "diverged"} if (line["arm"], line["seed"]) == ("flow", 1) else line,
    )
    assert sorted(read_results(study).compare()[0].by_seed) == [0, 2]


def test_pandas_is_asked_for_by_name_where_it_is_missing(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    results = read_results(study)
    for frame in (results.frame, results.curves, results.comparisons):
        with pytest.raises(ConfigurationError, match=r"pip install 'latentflows\[pandas\]'"):
            frame()
    assert len(results.rows()) == 6


def test_counts_are_whole_and_numbers_are_numbers_where_some_or_all_are_missing(study, fake):
    lines = (study / "study.jsonl").read_text().splitlines()
    (study / "study.jsonl").write_text("\n".join(lines[:5]) + "\n")
    shutil.rmtree(study / "runs" / "flow-seed2")
    results = read_results(study)
    frame = results.frame()
    assert [str(frame[name].dtype) for name in ("seed", "steps", "epochs", "parameters.total")] == [
        "int64",
        "Int64",
        "Int64",
        "Int64",
    ]
    assert frame["epochs"].isna().tolist() == [False] * 5 + [True]
    assert str(results.curves()["flops"].dtype) == "float64"  # there is no plan
    kinds = results.comparisons("kl").dtypes.astype(str)
    assert (kinds["better"], kinds["smallest_difference"], kinds["seeds_for_smallest"]) == (
        "boolean",
        "float64",
        "Int64",
    )


def test_what_a_notebook_shows_is_short_and_says_what_counts(study, fake):
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: line | {"status": "diverged"} if (line["arm"], line["seed"]) == ("flow", 1) else line,
    )
    results = read_results(study)
    values = results.values("nll", "flow").values()
    shown = repr(results).splitlines()
    assert shown[0] == f"Results of “Where does a flow help?” in {study}: 5 of 6 runs finished."
    assert shown[2] == f"  Flow      mean NLL {sum(values) / 2:.2f} (2 of 3 seeds)"
    (study / "study.jsonl").unlink()
    assert "mean NLL none (0 of 3 seeds)" in repr(read_results(study))


def nll_by_image(study, results, spread):
    """Write `nll.npy` of every run, with the mean of its record; return the arrays."""
    rng, found = np.random.default_rng(0), {}
    images = 20 * rng.standard_normal(50)
    for (arm, seed), run in results.runs.items():
        values = images + spread * rng.standard_normal(50)
        found[arm, seed] = values - values.mean() + run.figures["nll"].mean
        np.save(study / run.run / "nll.npy", found[arm, seed])
    return found


def test_the_error_over_images_is_that_of_differences_at_the_same_image(study):
    results = read_results(study)
    assert results.compare()[0].error_over_images is None
    found = nll_by_image(study, results, 1.0)
    by_image = np.mean([found["flow", seed] - found["gaussian", seed] for seed in range(3)], axis=0)
    comparison = read_results(study).compare()[0]
    assert comparison.error_over_images == pytest.approx(by_image.std(ddof=1) / math.sqrt(50))
    assert comparison.error_over_images < 0.2 < 20 / math.sqrt(50)  # the images' own spread is not in it
    assert comparison.row()["error_over_images"] == comparison.error_over_images
    assert read_results(study).compare("elbo")[0].error_over_images is None


@pytest.mark.parametrize("spoil", ["other mean", "fewer images", "missing"])
def test_images_of_another_evaluation_give_no_error(study, spoil):
    results = read_results(study)
    found = nll_by_image(study, results, 1.0)
    path = study / "runs" / "flow-seed1" / "nll.npy"
    values = {
        "other mean": found["flow", 1] + 0.01,
        "fewer images": np.full(3, results.values("nll", "flow")[1]),
    }
    path.unlink() if spoil == "missing" else np.save(path, values[spoil])
    assert read_results(study).compare()[0].error_over_images is None


@pytest.mark.parametrize("content", [b"no array", b""])
def test_a_damaged_array_is_named(study, content):
    nll_by_image(study, read_results(study), 1.0)
    (study / "runs" / "flow-seed1" / "nll.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"flow-seed1/nll\.npy cannot be read as an array"):
        read_results(study).compare()
