"""The table of a comparison: what counts, what is left out, and which way differences point."""

import json

import pytest

from latentflows.reporting import comparison_table
from latentflows.reporting.base import read_comparison
from latentflows.reporting.table import quantity_of


@pytest.fixture
def study(fake, tmp_path):
    return fake.write_comparison(
        tmp_path / "study", gains={"gaussian": 0.0, "flow": 3.0}, sizes={"flow": 512}
    )


def lines_of(study):
    return [json.loads(line) for line in (study / "study.jsonl").read_text().splitlines()]


def test_a_row_holds_the_means_over_its_seeds(study):
    baseline, flow = comparison_table(study)
    runs = [line["figures"] for line in lines_of(study) if line["arm"] == "flow"]
    for name in ("nll", "elbo", "kl", "reconstruction"):
        expected = sum(figures[name]["mean"] for figures in runs) / 3
        assert getattr(flow, name).mean == pytest.approx(expected)
    assert flow.nll_standard_error == pytest.approx(0.4)
    assert (flow.num_finished, flow.num_seeds, flow.is_baseline) == (3, 3, False)
    assert flow.parameters.total == baseline.parameters.total + 512
    assert baseline.is_baseline
    assert baseline.difference is None
    assert baseline.verdict is None


def test_differences_are_arm_minus_baseline_at_the_same_seed(study):
    baseline, flow = comparison_table(study)
    for seed, difference in flow.difference_by_seed.items():
        assert difference == pytest.approx(flow.nll_by_seed[seed] - baseline.nll_by_seed[seed])
    assert flow.difference.mean < 0  # a gain in the ELBO is a lower NLL
    assert "supports a lower" in flow.verdict
    assert "does not hold the number of parameters equal" in flow.verdict


@pytest.mark.parametrize(
    "change",
    [
        {"status": "diverged"},
        {"figures": None},
        {"figures": {"nll": None}},
        {"figures": {"nll": {"mean": None, "unit": "nats"}}},
    ],
)
def test_runs_without_a_figure_are_left_out_of_the_pairs(study, fake, change):
    def at_seed_1(line):
        return line | change if (line["arm"], line["seed"]) == ("flow", 1) else line

    fake.edit_lines(study / "study.jsonl", at_seed_1)
    baseline, flow = comparison_table(study)
    assert (flow.num_finished, baseline.num_finished) == (2, 3)
    assert sorted(flow.difference_by_seed) == [0, 2]
    assert flow.difference.num == 2


def test_a_longer_training_is_counted_over_all_stages_and_named(study, fake):
    baseline, flow = comparison_table(study)
    assert (baseline.epochs.mean, flow.epochs.mean) == (30, 30)
    assert "length of training" not in flow.verdict
    for seed in range(3):
        fake.write_run(study / "runs" / f"flow-seed{seed}", epochs=45, stages=("vae", "prior"))
    flow = comparison_table(study)[1]
    assert flow.epochs.mean == 45
    assert "does not hold the length of training equal (45 against 30 epochs over all stages)" in flow.verdict


def test_the_nll_is_called_by_its_split_where_there_is_one(study, fake):
    assert quantity_of(read_comparison(study)) == "test NLL"

    def with_split(line):
        split = "validation" if line["arm"] == "flow" else "test"
        return line | {"protocol": line["protocol"] | {"split": split}}

    fake.edit_lines(study / "study.jsonl", with_split)
    assert quantity_of(read_comparison(study)) == "NLL"


def test_seeds_the_study_does_not_ask_for_do_not_count(study, fake):
    fake.edit_json(study / "study.json", seeds=[0, 2])
    assert [row.num_finished for row in comparison_table(study)] == [2, 2]


def test_an_arm_without_runs_has_a_row_without_figures(study):
    kept = [line for line in lines_of(study) if line["arm"] == "gaussian"]
    (study / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    _, flow = comparison_table(study)
    assert (flow.nll, flow.seconds, flow.parameters, flow.num_finished) == (None, None, None, 0)
    assert "nothing to compare" in flow.verdict
    (study / "study.jsonl").unlink()
    assert [row.nll for row in comparison_table(study)] == [None, None]


def test_the_table_needs_no_plotting():
    import subprocess
    import sys

    code = "import sys, latentflows.reporting; print(*(m for m in ('matplotlib', 'jinja2', 'PIL') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
