"""Figures of two kinds share no column, no axis and no sentence; those of a density that is not exact are marked."""

import pytest

from latentflows.reporting import export_study, write_comparison_report, write_run_report
from latentflows.reporting.table import table_of
from latentflows.studies.results.results import read_results
from latentflows.terminal import list_runs, show_table
from tests.reporting.test_pages import Page

MASS, GRAY = "probability mass", "density on gray levels without noise"
NO_BOUND = {"without_bound": "the cross-entropy on gray values is no likelihood", "num_importance_samples": 1}


@pytest.fixture
def study(fake, tmp_path):
    return fake.write_comparison(
        tmp_path / "study", gains={"cb": 0.0, "cat": 3.0, "logistic": 4.0, "bce": 0.0}
    )


def with_protocols(fake, study, **protocols):
    """Add to the protocol of every run of these arms."""
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: line | {"protocol": line["protocol"] | protocols.get(line["arm"], {})},
    )


def without_likelihood(fake, study, arm="bce", **protocol):
    """Make an arm one that was trained by cross-entropy on gray values."""

    def changed(line):
        if line["arm"] != arm:
            return line
        figures = {"reconstruction": {"mean": -39.65, "unit": "nats"}}
        return line | {"figures": figures, "protocol": line["protocol"] | NO_BOUND | protocol}

    fake.edit_lines(study / "study.jsonl", changed)


def kinds(fake, study):
    """A density on gray levels, two masses, and a cross-entropy."""
    with_protocols(
        fake, study, cb={"likelihood": GRAY}, cat={"likelihood": MASS}, logistic={"likelihood": MASS}
    )
    without_likelihood(fake, study, likelihood="no likelihood")


def test_masses_and_densities_share_no_column_and_no_statement(fake, study):
    kinds(fake, study)
    table = table_of(read_results(study))
    assert table.protocol_differences == [f"likelihood: {GRAY} (Cb, seed 0) and {MASS} (Cat, seed 0)"]
    assert table.comparisons == []
    assert [[row.arm for row in part.rows] for part in table.parts] == [["cb", "bce"], ["cat", "logistic"]]
    assert [part.likelihood for part in table.parts] == [GRAY, MASS]
    page = Page(write_comparison_report(study))
    assert sum("One row per arm" in tag.get("aria-label", "") for tag in page.all("div")) == 2
    assert "stand in tables of their own" in page.text
    assert "supports" not in page.text
    assert not list((study / "figures").glob("*.svg"))
    runs = page.html[page.html.index("Every run") :]
    assert "± 0.40" not in runs  # no column of NLLs of all runs either


def test_what_is_no_likelihood_has_no_reconstruction_beside_those_of_likelihoods(fake, study):
    kinds(fake, study)
    rows = {row.arm: row for part in table_of(read_results(study)).parts for row in part.rows}
    assert rows["bce"].reconstruction is None
    assert rows["cat"].reconstruction is not None
    page = Page(write_comparison_report(study)).text
    assert "39.65" not in page
    assert "there is no bound on log p(x), as the cross-entropy on gray values is no likelihood" in page


def test_a_cross_entropy_of_an_earlier_version_stands_apart_too(fake, study):
    without_likelihood(fake, study)
    table = table_of(read_results(study))
    assert len(table.parts) == 1
    assert [row.reconstruction is None for row in table.parts[0].rows] == [False, False, False, True]
    assert table.comparisons  # of the others, which compare as before


def test_arms_without_any_likelihood_share_their_reconstructions(fake, study):
    for arm in ("cb", "cat", "logistic", "bce"):
        without_likelihood(fake, study, arm)
    (part,) = table_of(read_results(study)).parts
    assert all(row.reconstruction is not None for row in part.rows)


def test_an_arm_without_a_bound_stands_with_those_of_its_likelihood(fake, study):
    kinds(fake, study)
    point = {"likelihood": MASS, "without_bound": "the posterior is a point without a density"}
    without_likelihood(fake, study, **point)
    parts = table_of(read_results(study)).parts
    assert [[row.arm for row in part.rows] for part in parts] == [["cb"], ["cat", "logistic", "bce"]]
    assert parts[1].rows[2].reconstruction is not None


def test_one_kind_is_one_table_and_an_unknown_one_is_not_guessed_from_another_arm(fake, study):
    with_protocols(fake, study)
    table = table_of(read_results(study))  # of an earlier version: nothing is known
    assert (table.protocol_differences, len(table.parts), len(table.comparisons)) == ([], 1, 3)
    with_protocols(fake, study, cat={"likelihood": MASS})
    table = table_of(read_results(study))
    (said,) = table.protocol_differences
    assert "likelihood: not known (" in said
    assert len(table.parts) == 2


def test_the_terminal_lists_and_exports_keep_kinds_apart(fake, study, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    kinds(fake, study)
    show_table(study)
    shown = capsys.readouterr().out
    assert shown.count("95% interval") == 2
    assert f"log p(x): {MASS}" in shown
    assert "The figures do not compare: likelihood: " in shown
    export_study(study, tmp_path / "out")
    assert (tmp_path / "out" / "table.tex").read_text(encoding="utf-8").count(r"\begin{tabular}") == 2
    arms = (tmp_path / "out" / "arms.csv").read_text(encoding="utf-8")
    assert f"nats,{MASS},exact" in arms
    compared = (tmp_path / "out" / "comparisons.csv").read_text(encoding="utf-8")
    assert "their figures of 'nll' do not compare" in compared
    run = study / "runs" / "cat-seed0"
    evaluation = {
        "likelihood": MASS,
        "split": "test",
        "num_images": 360,
        "num_importance_samples": 5,
        "seed": 0,
    }
    fake.edit_json(run / "evaluation.json", protocol=evaluation | {"data": "digits"})
    list_runs(run)
    assert f"(K = 5), {MASS}" in capsys.readouterr().out


def test_figures_that_rest_on_a_density_that_is_not_exact_are_marked_with_their_owner(fake, study, capsys):
    with_protocols(fake, study, cat={"prior_density": "estimate"}, logistic={"prior_density": "approximate"})
    table = table_of(read_results(study))
    assert [row.mark for row in table.rows] == ["", "≈ ", "≈ ", ""]
    said = [found.verdict for found in table.comparisons]
    assert "The density behind the test NLL of “Cat” is an estimate" in said[0]
    assert "The density behind the test NLL of “Logistic” is approximate" in said[1]
    assert "density" not in said[2]
    page = Page(write_comparison_report(study)).text
    assert "≈: rests on a density of the prior" in page
    assert "“Cat”: The prior's density is an estimate" in page
    show_table(study)
    assert "≈ " in capsys.readouterr().out
    assert "≈ Cat" in (study / "figures" / "every_run.svg").read_text(encoding="utf-8")


def test_the_page_of_a_run_marks_them_too(fake, tmp_path):
    folder = fake.write_run(tmp_path / "run", epochs=3)
    protocol = {
        "prior_density": "approximate",
        "split": "test",
        "num_images": 360,
        "data": "digits",
        "seed": 0,
    }
    fake.edit_json(folder / "evaluation.json", protocol=protocol | {"num_importance_samples": 5})
    figures = {"kl": {"mean": 2.0}, "mutual_information": {"mean": 1.0}}
    model = {"prior_density": "approximate"}
    groups = {"information": {"protocol": {"split": "test"}, "model": model, "figures": figures}}
    fake.edit_json(folder / "evaluation.json", groups=groups)
    page = Page(write_run_report(folder)).text
    assert "KL ≈ 16.00" in page
    assert "KL(q(z|x) || p(z)) ≈ 2.00" in page
    assert "I(x; z), lower bound 1.00" in page
    assert page.count("≈") == 6  # NLL, ELBO, KL, bits, the one of the group, and what it means
