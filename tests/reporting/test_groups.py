"""Groups of figures on both pages: a table with its protocol each, and never figures of two protocols in one column."""

import json
import re

import pytest

from latentflows.core.errors import DataError
from latentflows.reporting import write_comparison_report, write_run_report
from latentflows.reporting.base import read_run
from latentflows.reporting.compared_groups import compared_groups
from latentflows.reporting.groups import TOPICS, group_tables, protocol_in_words, words_of
from latentflows.reporting.page import uncertainty
from latentflows.studies.measuring.groups import GROUPS
from latentflows.studies.results.reading import read_evaluation
from latentflows.studies.results.records import Quantity
from latentflows.studies.results.results import read_results
from tests.reporting.test_pages import Page


@pytest.fixture
def folder(fake, tmp_path):
    return fake.write_run(tmp_path / "run", epochs=2)


@pytest.fixture
def study(fake, tmp_path):
    return fake.write_comparison(tmp_path / "study", seeds=(0, 1), gains={"gaussian": 0.0, "flow": 2.0})


def add_to_all(fake, study, name, change=lambda arm, seed: {}):
    for arm in ("gaussian", "flow"):
        for seed in (0, 1):
            fake.add_groups(study / "runs" / f"{arm}-seed{seed}", **{name: change(arm, seed)})


def only_group(study):
    (group,) = compared_groups(read_results(study))
    return group


def test_every_group_that_is_measured_has_words():
    assert TOPICS.keys() == GROUPS.keys()
    for topic in TOPICS.values():
        assert set(topic.compared) <= set(topic.figures) or not topic.figures


def test_the_run_page_has_a_table_for_every_group_with_its_protocol(fake, folder):
    fake.add_groups(folder, samples={}, holes={}, units={})
    page = Page(write_run_report(folder))
    for words in (
        "Test split; seed: 0; number of images: 200; prior density: exact.",
        "seed: 0; features: classifier-64[digits]; weights: abababababab…; number of real: 400.",
        "0.00123 0.00045 0.012",
        "3.25 0.50 2.25 to 4.25",
        "of 40 units, 4 undecided",
        "dimensions whose posterior mean varies over images",
        "evaluation took 7.1 s",
    ):
        assert words in page.text, words
    assert len(page.all("table")) == len(page.all("caption"))
    places = [page.text.index(TOPICS[name].title) for name in ("units", "holes", "samples")]
    assert places == sorted(places)


def test_a_group_has_the_uncertainties_that_its_figures_have(fake, folder):
    fake.add_groups(folder, samples={}, holes={}, units={})
    evaluation = read_evaluation(folder)
    assert evaluation is not None
    columns = {table.name: table.columns for table in group_tables(evaluation)}
    assert columns == {
        "units": (),
        "holes": ("standard_error", "p_value"),
        "samples": ("standard_error", "interval"),
    }


def test_data_are_named_where_they_are_not_those_of_the_bounds(fake, folder):
    other = {"split": "test", "data": "other digits", "seed": 0}
    fake.add_groups(folder, samples={}, holes={"protocol": other})
    text = Page(write_run_report(folder)).text
    assert text.count("digits, fixed binarization") == 1  # of the bounds
    assert "Test split; seed: 0; prior density: exact; other digits." in text


def test_a_group_that_is_left_out_says_why(fake, folder):
    fake.add_groups(folder, samples={"reason": "the data have no <labels>", "figures": {}, "protocol": {}})
    page = Page(write_run_report(folder))
    assert "Not measured: the data have no <labels>" in page.text
    assert "Fréchet" not in page.text


def test_an_evaluation_without_groups_is_read(folder):
    run = read_run(folder)
    assert run.evaluation is not None
    assert run.evaluation.groups == {}
    assert "Prior holes" not in Page(write_run_report(folder)).text


def test_a_group_or_figure_of_a_later_version_is_shown_by_its_key(fake, folder):
    evaluation = json.loads((folder / "evaluation.json").read_text())
    later = {"protocol": {"split": "test"}, "figures": {"new_figure": {"mean": 1.5, "unit": "x"}}}
    fake.edit_json(folder / "evaluation.json", groups={**evaluation.get("groups", {}), "new_group": later})
    text = Page(write_run_report(folder)).text
    assert "New group" in text
    assert re.search(r"new figure 1\.5000", text)


@pytest.mark.parametrize(
    ("key", "name", "meaning"),
    [
        ("pixels_distance", "Distance of samples, data space", "to the nearest data point of"),
        ("pixels_pca_baseline", "Distance of test data, components of the data", "baseline"),
        ("latents_pca_nearer_than_5%_of_test", "Nearer than 5% of test, components of latents", "0.05 for"),
    ],
)
def test_figures_of_every_space_have_words(key, name, meaning):
    words = words_of("neighbors", key)
    assert words.name == name
    assert meaning in words.meaning


def test_a_protocol_in_words():
    protocol = {"split": "test", "data": "d", "num_images": 12_000, "pixel_range": [0.0, 1.0], "shown": None}
    assert (
        protocol_in_words(protocol)
        == "test split; number of images: 12,000; pixel range: 0.0 to 1.0; shown: None; d"
    )


def test_a_comparison_shows_one_table_where_protocols_agree(fake, study):
    means = {("gaussian", 0): 3.0, ("gaussian", 1): 4.0, ("flow", 0): 1.0, ("flow", 1): 1.0}

    def change(arm, seed):
        figures = {"frechet_distance": {"mean": means[arm, seed], "standard_error": 0.5, "unit": "u"}}
        protocol = {"split": "test", "data": "d", "num_real": 400, "seed": seed}  # seeds may differ
        return {"figures": figures, "protocol": protocol, "model": {"prior_density": arm}}

    add_to_all(fake, study, "samples", change)
    group = only_group(study)
    assert [words.name for words in group.headings] == ["Fréchet distance"]
    assert group.rows == [("Gaussian", ["3.50 ± 0.71"]), ("Flow", ["1.00 ± 0.00"])]
    assert group.differences == []
    text = Page(write_comparison_report(study)).text
    assert "Means over the seeds that finished; ±: the deviation over seeds." in text
    assert "3.50 ± 0.71" in text
    assert "do not compare" not in text


def test_figures_of_different_protocols_share_no_column(fake, study):
    def change(arm, seed):
        weights, count = ("ab" if arm == "gaussian" else "cd") * 32, 400 + (arm == "flow" and seed == 1)
        return {"protocol": {"split": "test", "data": "d", "weights": weights, "num_real": count, "seed": 0}}

    add_to_all(fake, study, "samples", change)
    group = only_group(study)
    assert group.rows == []
    assert group.differences == [
        "weights: abababababab… (Gaussian, seed 0) and cdcdcdcdcdcd… (Flow, seed 0)",
        "num_real: 400 (Gaussian, seed 0) and 401 (Flow, seed 1)",
    ]
    text = Page(write_comparison_report(study)).text
    assert "No table: the runs differ in what must be equal" in text
    assert "3.25" not in text


def test_models_of_different_sizes_in_one_arm_share_no_column(fake, study):
    def change(arm, seed):
        figures = {"frechet_distance": {"mean": 3.0, "standard_error": 0.5, "unit": "u"}}
        return {"figures": figures, "protocol": {"split": "test", "data": "d"}, "model": {}}

    def larger(line):
        added = int((line["arm"], line["seed"]) == ("flow", 1))
        return line | {"parameters": line["parameters"] | {"total": line["parameters"]["total"] + added}}

    add_to_all(fake, study, "samples", change)
    assert len(only_group(study).rows) == 2
    fake.edit_lines(study / "study.jsonl", larger)
    group = only_group(study)
    assert group.rows == []
    assert group.differences[0].startswith("parameters of “Flow”: ")


def test_an_arm_without_a_group_has_a_dash_and_its_reason(fake, study):
    fake.add_groups(study / "runs" / "gaussian-seed0", holes={})
    fake.add_groups(
        study / "runs" / "flow-seed0", holes={"reason": "no inverse", "figures": {}, "protocol": {}}
    )
    group = only_group(study)
    assert group.rows == [("Gaussian", ["0.00123", "0.610"]), ("Flow", ["–", "–"])]  # one seed: no deviation
    assert group.reasons == ["Flow: no inverse"]
    assert "Not measured: Flow: no inverse" in Page(write_comparison_report(study)).text


def test_a_group_that_no_run_could_measure_leaves_its_reasons(fake, study):
    add_to_all(fake, study, "holes", lambda arm, seed: {"reason": "no", "figures": {}, "protocol": {}})
    group = only_group(study)
    assert (group.rows, group.reasons) == ([], ["Flow: no", "Gaussian: no"])


def test_groups_of_runs_that_did_not_finish_are_left_out(fake, study):
    add_to_all(fake, study, "holes")
    fake.edit_lines(study / "study.jsonl", lambda line: line | {"status": "diverged"})
    assert compared_groups(read_results(study)) == []


def test_a_figure_that_is_not_finite_is_left_out_of_the_mean(fake, study):
    def change(arm, seed):
        mean = None if (arm, seed) == ("flow", 1) else 2.0 + seed
        figures = {"frechet_distance": {"mean": mean, "standard_error": 0.5, "unit": "u"}}
        return {"figures": figures, "protocol": {"split": "test"}}

    add_to_all(fake, study, "samples", change)
    assert only_group(study).rows == [("Gaussian", ["2.50 ± 0.71"]), ("Flow", ["2.00"])]
    fake.edit_json(study / "study.json", seeds=[0])
    assert only_group(study).rows == [("Gaussian", ["2.00 ± 0.50"]), ("Flow", ["2.00 ± 0.50"])]


def test_an_error_that_rounds_to_zero_is_not_shown_as_none():
    quantity = Quantity(mean=0.4, monte_carlo_error=9.7e-6, p_value=1e-9, standard_error=0.0)
    assert uncertainty(quantity, "monte_carlo_error", 4) == "< 0.0001"
    assert uncertainty(quantity, "p_value") == "< 0.001"
    assert uncertainty(quantity, "standard_error") == "0.00"
    assert uncertainty(Quantity(mean=0.4, monte_carlo_error=0.0053), "monte_carlo_error") == "0.01"


def nats(mean):
    return {"mean": mean, "standard_error": 0.1, "unit": "nats"}


def test_figures_on_a_density_that_is_not_exact_are_marked_with_their_owner(fake, study):
    """Draws need no density, so prior holes are not marked."""

    def change(arm, seed):
        figures = {"mutual_information": nats(1.0), "marginal_kl": nats(2.0), "marginal_kl_lower": nats(0.5)}
        model = {"prior_density": "approximate" if arm == "flow" else "exact"}
        return {"figures": figures, "protocol": {"split": "test"}, "model": model}

    add_to_all(fake, study, "holes", change)
    group = only_group(study)
    assert "≈" not in str(group)
    for run in (study / "runs").iterdir():
        fake.edit_json(run / "evaluation.json", groups={"information": change(run.name[:4], 0)})
    group = only_group(study)
    assert group.rows[0] == ("Gaussian", ["1.00 ± 0.00", "2.00 ± 0.00", "0.50 ± 0.00"])
    assert group.rows[1] == ("Flow", ["1.00 ± 0.00", "≈ 2.00 ± 0.00", "≈ 0.50 ± 0.00"])
    assert group.caption.endswith("≈: rests on a density that is not exact, that of “Flow” (approximate).")
    assert group.caption in Page(write_comparison_report(study)).text


def test_an_estimate_has_no_lower_bound_and_keeps_its_table(fake, study):
    def change(arm):
        figures = {"marginal_kl": nats(2.0), "marginal_kl_lower": None if arm == "flow" else nats(0.5)}
        model = {"prior_density": "estimate", "without_lower_bound": "too low"} if arm == "flow" else {}
        return {"figures": figures, "protocol": {"split": "test"}, "model": model}

    for run in (study / "runs").iterdir():
        fake.edit_json(run / "evaluation.json", groups={"information": change(run.name[:4])})
    assert [cells[-1] for _, cells in only_group(study).rows] == ["0.50 ± 0.00", "–"]
    assert "without lower bound: too low" in Page(write_run_report(study / "runs" / "flow-seed0")).text


def test_bounds_by_annealing_of_two_kinds_share_no_column_where_gaps_do(fake, study):
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: line | {"protocol": line["protocol"] | {"likelihood": f"of {line['arm']}"}},
    )
    groups = {
        "annealed": {"figures": {"annealed_nll": nats(80.0)}, "protocol": {"split": "test"}},
        "gaps": {
            "figures": {"approximation_gap": nats(1.0), "best_elbo": nats(-81.0)},
            "protocol": {"split": "test"},
        },
    }
    for run in (study / "runs").iterdir():
        fake.edit_json(run / "evaluation.json", groups=groups)
    results = read_results(study)
    gaps, annealed = compared_groups(results)
    assert annealed.rows == []
    assert annealed.differences == ["likelihood: of gaussian (Gaussian, seed 0) and of flow (Flow, seed 0)"]
    assert [label for label, _ in gaps.rows] == ["Gaussian", "Flow"]
    assert results.compare("gaps.approximation_gap")
    for metric in ("gaps.best_elbo", "annealed.annealed_nll"):
        with pytest.raises(DataError, match="likelihood: of gaussian"):
            results.compare(metric)
