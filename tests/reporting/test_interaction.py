"""The interaction of two crossed factors: in results, on the page, in the terminal and in every export."""

import csv

import pytest

from latentflows.core.errors import DataError
from latentflows.reporting import export_study, write_comparison_report
from latentflows.reporting.table import table_of
from latentflows.studies.results.results import read_results
from latentflows.terminal import show_table
from tests.reporting.test_pages import Page

SUM = "both - first - second + neither"


@pytest.fixture(scope="module")
def study(fake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interaction") / "study"
    fake.write_comparison(folder, gains=dict.fromkeys(("neither", "first", "second", "both"), 0.0))
    fake.cross(folder, neither=0.0, first=-1.0, second=-0.5, both=-3.5)  # -2 more together
    return folder


def test_results_have_what_was_planted_as_a_comparison_of_its_own(study):
    results = read_results(study)
    *pairs, found = results.compare()
    assert [pair.interaction for pair in pairs] == [None] * 3
    assert found.difference.mean == pytest.approx(-2.0, abs=0.06)
    assert found.num_comparisons == pairs[0].num_comparisons == 4
    row = results.comparisons().iloc[3]
    assert (row["arm"], row["label"], row["contrast"]) == (
        "both",
        "Interaction of “Flow_1” and “Flow_2”",
        SUM,
    )
    assert row[["other", "other_label"]].isna().all()
    assert results.comparisons().iloc[0]["contrast"] == "first - neither"
    assert results.comparisons("seconds").shape[0] == 4


def test_page_terminal_and_table_say_it_and_what_its_sign_means(study, capsys):
    table = table_of(read_results(study))
    assert [found.comparison.arm for found in table.comparisons] == ["first", "second", "both"]
    assert table.baseline == "Neither"
    assert table.rows[3].difference.mean == pytest.approx(-3.5, abs=0.06)  # of the arm, not the interaction
    page = Page(write_comparison_report(study))
    words = "this supports an interaction: the test NLL with “Flow_1” and “Flow_2” together is lower (better) than"
    for text in (
        words,
        "“Both” − “First” − “Second” + “Neither” −2.0",
        "Negative: together they lower it by more, or raise it by less, than the sum of what each does alone",
        "corrected for 4 comparisons by Holm’s procedure",
        "p-values are corrected for the 4 comparisons of this study",
        "“Both” with “Neither”. Interaction of “Flow_1” and “Flow_2”.",
    ):
        assert text in page.text
    show_table(study)
    shown = " ".join(capsys.readouterr().out.split())
    assert words in shown
    assert "Interaction of “Flow_1” and “Flow_2” −2.0" in shown
    assert "negative: together they lower it by more, or raise it by less, than the sum" in shown


def test_exports_have_it(study, tmp_path):
    export_study(study, tmp_path / "out")
    with open(tmp_path / "out" / "comparisons.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "nll"]
    assert [row["contrast"] for row in rows][2:] == ["both - neither", SUM]
    assert (rows[3]["other"], rows[3]["comparisons"]) == ("", "4")
    assert float(rows[3]["difference"]) == pytest.approx(-2.0, abs=0.06)
    text = (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    assert r"Interaction of ``Flow\_1'' and ``Flow\_2'' & \textbf{$-$2.0" in text
    assert (
        "minus with each alone, plus with neither; negative: together they lower it by more, or raise it by less"
        in text
    )
    assert "corrected for 4 comparisons" in text


def test_an_interaction_of_arms_that_are_not_there_is_refused(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0,), gains={"a": 0.0, "b": 1.0})
    four = {"both": "a", "first": "b", "second": "c", "neither": "d", "labels": ["x", "y"]}
    fake.edit_json(folder / "study.json", interaction=four)
    with pytest.raises(DataError, match="`interaction` must hold four of the arms"):
        read_results(folder)
