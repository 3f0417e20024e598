"""The table of a comparison: what counts, what is left out, and which way differences point."""

import json

import pytest

from latentflows.reporting import comparison_table, write_comparison_report
from latentflows.reporting.limits import limits
from latentflows.reporting.table import quantity_of, table_of
from latentflows.studies.results.results import read_results
from latentflows.terminal import list_runs, show_table


@pytest.fixture
def study(fake, tmp_path):
    return fake.write_comparison(
        tmp_path / "study", gains={"gaussian": 0.0, "flow": 3.0}, sizes={"flow": 512}
    )


def limits_of(results):
    return limits(results, table_of(results))


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
    assert quantity_of(read_results(study)) == "test NLL"

    def with_split(line):
        split = "validation" if line["arm"] == "flow" else "test"
        return line | {"protocol": line["protocol"] | {"split": split}}

    fake.edit_lines(study / "study.jsonl", with_split)
    assert quantity_of(read_results(study)) == "NLL"


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


def test_comparisons_are_those_of_the_study_with_both_names(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "three", gains={"a": 0.0, "b": 2.0, "c": 2.1})
    table = table_of(read_results(folder))
    assert [(found.label, found.other_label) for found in table.comparisons] == [("B", "A"), ("C", "A")]
    assert table.baseline == "A"
    assert [row.is_baseline for row in table.rows] == [True, False, False]
    fake.edit_json(folder / "study.json", comparisons=[["c", "b"], ["b", "a"]])
    table = table_of(read_results(folder))
    assert table.baseline is None
    assert [row.is_baseline for row in table.rows] == [True, True, False]
    assert table.rows[2].difference_by_seed == table.comparisons[0].comparison.by_seed


def test_figures_of_different_protocols_are_not_compared(study, fake):
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: line | {"protocol": line["protocol"] | {"num_images": 9 + (line["arm"] == "flow")}},
    )
    table = table_of(read_results(study))
    assert table.protocol_differences == ["num_images: 9 (Gaussian, seed 0) and 10 (Flow, seed 0)"]
    assert table.comparisons == []
    assert table.rows[1].difference is None
    assert table.rows[1].nll is not None


def test_an_exact_likelihood_compares_with_one_from_importance_samples(study, fake):
    def exact(line):
        samples = None if line["arm"] == "flow" else 500
        return line | {"protocol": line["protocol"] | {"num_importance_samples": samples}}

    fake.edit_lines(study / "study.jsonl", exact)
    results = read_results(study)
    assert table_of(results).comparisons
    assert any("one without importance samples is exact" in sentence for sentence in limits_of(results))


def test_a_study_without_any_nll_is_judged_by_its_bound(study, fake):
    def bounded(line):
        figures = {"nll_bound": line["figures"]["nll"], "reconstruction": line["figures"]["reconstruction"]}
        return line | {"figures": figures}

    fake.edit_lines(study / "study.jsonl", bounded)
    table = table_of(read_results(study))
    assert (table.metric, table.quantity) == ("nll_bound", "test NLL bound")
    assert table.rows[1].nll is not None
    assert "supports a lower (better) test NLL bound of “Flow”" in table.comparisons[0].verdict


@pytest.mark.parametrize("figures", [None, {"reconstruction": {"mean": -80.0}}])
def test_without_any_likelihood_there_is_nothing_to_compare(study, fake, figures):
    fake.edit_lines(study / "study.jsonl", lambda line: line | {"figures": figures})
    table = table_of(read_results(study))
    assert "nothing to compare" in table.comparisons[0].verdict
    assert write_comparison_report(study).is_file()


def test_the_terminal_shows_both_tables_and_the_words(study, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show_table(study)
    shown = capsys.readouterr().out
    comparison = table_of(read_results(study)).comparisons[0]
    for words in (
        "difference to Gaussian",
        "Differences at the same seed",
        "What does not follow.",
        comparison.verdict,
    ):
        assert " ".join(words.split()) in " ".join(shown.split())


def test_a_list_says_how_many_runs_of_a_study_finished(study, capsys):
    lines = (study / "study.jsonl").read_text().splitlines(keepends=True)
    num = len(lines)
    (study / "study.jsonl").write_text("".join([*lines[1:], lines[1].replace("finished", "failed")]))
    list_runs(study.parent)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{study}  study: {num - 2} of {num} runs finished"
    assert len(shown) == 1 + num
    (study / "study.json").write_text("{")
    list_runs(study.parent)
    assert capsys.readouterr().out.startswith(f"{study}  unreadable")


def test_figures_that_rest_on_fewer_seeds_say_so_in_the_terminal_and_in_the_forest_plot(study, fake, capsys):
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: line | {"status": "diverged"} if (line["arm"], line["seed"]) == ("flow", 1) else line,
    )
    assert [row.name for row in comparison_table(study)] == ["Gaussian", "Flow (2 of 3 seeds)"]
    assert [row.num_diverged for row in comparison_table(study)] == [0, 1]
    show_table(study)
    assert "Flow (2 of 3 seeds)" in capsys.readouterr().out
    page = write_comparison_report(study).read_text(encoding="utf-8")
    assert "Flow (2 of 3 seeds)" in (study / "figures" / "paired_differences.svg").read_text(encoding="utf-8")
    assert "! All runs have ended, not all count" in page


def test_what_few_seeds_keep_the_tests_from_is_said_of_those_that_finished(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0})
    fake.edit_json(folder / "study.json", seeds=list(range(12)))
    said = " ".join(limits_of(read_results(folder)))
    assert "With so few seeds" in said
    assert (
        "cannot reach the level of 0.05 with 3 seeds, whatever they show: its smallest p-value is 0.25."
        in said
    )
    (folder / "study.jsonl").write_text("")
    assert "seeds the" not in " ".join(limits_of(read_results(folder)))  # nothing is tested yet


def test_the_comparison_with_the_fewest_seeds_tells_what_the_sign_flip_test_cannot_reach(fake, tmp_path):
    gains = {"a": 0.0, "b": 1.0, "c": 1.0}
    folder = fake.write_comparison(tmp_path / "study", seeds=range(11), gains=gains)
    assert "so few" not in " ".join(limits_of(read_results(folder)))

    def without(seeds):
        fake.edit_lines(
            folder / "study.jsonl",
            lambda line: line | {"status": "failed"} if (line["arm"], line["seed"]) in seeds else line,
        )
        return " ".join(limits_of(read_results(folder)))

    # Seven seeds reach 2 / 2^7 = 0.016, and the other comparison less: Holm's procedure lets it be.
    said = without([("c", seed) for seed in range(4)])
    assert "so few" in said
    assert "sign-flip" not in said
    said = without([("c", seed) for seed in range(6)])
    assert "with 5 seeds, the fewest of a comparison, whatever they show" in said
    assert "its smallest p-value is 0.062, 0.062 after the correction." in said
    said = without([("c", seed) for seed in range(11)])  # one of the comparisons is none
    assert "so few" not in said


def test_how_loose_the_bound_is_at_least_is_said_of_the_tightest_and_the_loosest_arm(study, fake):
    def noisier(line):
        nll = line["figures"]["nll"] | {"monte_carlo_error": 0.01 if line["arm"] == "flow" else 0.02}
        return line | {"figures": line["figures"] | {"nll": nll}}

    fake.edit_lines(study / "study.jsonl", noisier)
    said = " ".join(limits_of(read_results(study)))
    assert (
        "by at least about 0.018 (“Flow”) to 0.072 nats (“Gaussian”)" in said
    )  # 360 images: 360 * 0.01^2 / 2
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: line | {"figures": {"nll": {"mean": 1.0, "unit": "nats"}}},
    )
    assert "fits badly." in " ".join(limits_of(read_results(study)))
