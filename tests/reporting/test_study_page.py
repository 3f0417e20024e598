"""The page of a study: every arm, run and difference, budgets, and honesty where something is missing or differs."""

import csv
import json
import os
import re
import shutil
import time

import numpy as np
import pytest

from latentflows.reporting import write_comparison_report, write_run_report
from latentflows.reporting.base import resume_command
from latentflows.reporting.comparison_page import study_drawings
from latentflows.reporting.export import export_study
from latentflows.reporting.published import published_rows
from latentflows.reporting.table import table_of
from latentflows.studies.execution.locks import locked
from latentflows.studies.execution.study_folder import LOCK
from latentflows.studies.results.records import Published
from latentflows.studies.results.results import read_results
from tests.reporting.test_pages import Page


@pytest.fixture(scope="module")
def comparison(fake, tmp_path_factory):
    folder = fake.write_comparison(tmp_path_factory.mktemp("reports") / "study", sizes={"flow-prior": 40})
    write_run_report(folder / "runs" / "gaussian-seed0")
    return Page(write_comparison_report(folder)), folder


def test_the_comparison_page_shows_every_arm_run_and_difference(comparison):
    page, folder = comparison
    for words in (
        "Gaussian",
        "Flow posterior",
        "Flow prior",
        "(baseline)",
        "9 of 9 runs finished",
        "With 3 seeds",
    ):
        assert words in page.text
    assert "supports a lower (better) test NLL of “Flow posterior”" in page.text
    assert "does not hold the number of parameters equal (290,424 against 290,384)" in page.text
    assert "p-values are corrected for the 2 comparisons of this study" in page.text
    assert "cannot reach the level of 0.05 with 3 seeds" in page.text
    assert "so few seeds" in page.text
    assert re.search(r"Epochs over all stages, .* 30 ", page.text)
    assert len(page.all("img")) == 4  # data, and samples of three arms
    assert page.text.count(" ± 0.40") == 9
    assert str(folder) not in page.html


def test_a_comparison_says_what_was_torn_and_that_hardware_differs(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "c", seeds=(0, 1))
    page = Page(write_comparison_report(folder))
    assert "different hardware" not in page.text
    assert "Made on: cpu: x86_64, 2 cores, threads: 1, device: cpu." in page.text
    assert "Versions: latentflows: 0.1.0, torch: 2.13.0, python: 3.12.1." in page.text
    assert "torn line" not in page.text
    other = {"cpu": "aarch64, 8 cores", "threads": 4, "device": "cpu"}
    fake.edit_json(folder / "runs" / "gaussian-seed1" / "run.json", hardware=other)
    lines = (folder / "study.jsonl").read_text()
    (folder / "study.jsonl").write_text(lines[: lines.rindex('{"arm')] + '{"arm')
    page = Page(write_comparison_report(folder))
    assert "different hardware; their seconds do not compare" in page.text
    assert "cpu: aarch64, 8 cores, threads: 4, device: cpu" in page.text
    assert "1 torn line at the end of study.jsonl was left out" in page.text
    assert "--resume" in page.text


def test_runs_with_a_page_are_linked_relatively_and_others_say_so(comparison):
    page, folder = comparison
    links = [attributes["href"] for attributes in page.all("a") if "href" in attributes]
    assert set(links) == {"runs/gaussian-seed0/report.html"}
    assert len(links) == 5  # the arm's row, the curves, data, samples, and the row of the run
    marks = [attributes for attributes in page.all("a") if "xlink:href" in attributes]
    assert [mark["xlink:href"] for mark in marks] == ["runs/gaussian-seed0/report.html"]
    svg = (folder / "figures" / "every_run.svg").read_text()
    assert 'xlink:href="../runs/gaussian-seed0/report.html"' in svg
    assert all((folder / link).is_file() for link in links)
    assert page.text.count("(no page yet)") == 8


def test_budgets_are_shown_with_what_was_solved_and_how_near_it_came(fake, tmp_path):
    folder = fake.write_comparison(
        tmp_path / "study", gains={"none": 0.0, "flow": 2.0}, sizes={"flow": 90_000}
    )
    text = Page(write_comparison_report(folder)).text
    assert "The study has no plan.json" in text
    assert "Without a plan.json that counts FLOPs there is no curve against them" in text
    budget = {"hold": "decoder_and_prior", "target": None, "like": "none", "tolerance": 0.02}
    fake.write_plan(
        folder,
        budget=budget,
        none={"amount": 1000, "sampling_flops": 52_000, "training_flops": 3_210_000_000},
        flow={"amount": 1015, "target": 1000, "solved": {"network.decoder_width": 217}},
    )
    page = Page(write_comparison_report(folder))
    for words in (
        "Held equal: the number of parameters of decoder and prior, at that of “None”, within 2%.",
        "network.decoder_width=217",
        "+1.5% ✓",
        "52,000",
        "3.21 × 10⁹",
        "holds the number of parameters of decoder and prior equal (1,015 against 1,000)",
        "It does not hold that of the whole model equal (380,384 against 290,384)",
        "Against FLOPs of training steps",
    ):
        assert words in page.text
    assert "Not counted" not in page.text
    arms = {"none": {"amount": 1000}, "flow": {"amount": 1100, "target": 1000, "borrowed": 17_680}}
    fake.write_plan(folder, budget=budget, **arms)
    page = Page(write_comparison_report(folder))
    assert "+10.0% ✗" in page.text
    left_out = "Not counted: parameters of the posterior that draws go through as well, “Flow” 17,680."
    assert left_out in page.text
    fake.write_plan(folder, budget=budget | {"hold": "model"}, **arms)
    assert left_out not in Page(write_comparison_report(folder)).text
    assert "at that of “None”, within 2%. Not held by “Flow” (+10%)." in page.text
    assert "the measure" in page.text
    assert "does not hold the number of parameters of decoder and prior equal" in page.text


def test_an_arm_that_the_budget_asks_nothing_of_is_named(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"none": 0.0, "flow": 2.0, "wide": 1.0})
    budget = {"hold": "decoder_and_prior", "target": None, "like": "flow", "tolerance": 0.02}
    wide = {"amount": 1000, "target": 1000, "solved": {"network.width": 9}}
    fake.write_plan(folder, budget=budget, none={"amount": 700}, flow={"amount": 1000}, wide=wide)
    page = Page(write_comparison_report(folder))
    assert "at that of “Flow”, within 2%. Not held by “None” (not asked of it)." in page.text
    assert ("the measure" in page.text, "not asked" in page.text) == (True, True)


def test_flops_of_training_are_those_that_were_spent(fake, tmp_path):
    """An arm that stopped early does not meet the budget, whatever the plan counted."""
    folder = fake.write_comparison(tmp_path / "study", gains={"none": 0.0, "flow": 2.0})
    budget = {"hold": "training_flops", "target": None, "like": "none", "tolerance": 0.02}
    lines = (folder / "runs" / "none-seed0" / "metrics.jsonl").read_text().splitlines()
    planned = 100 * json.loads(lines[-1])["samples"]
    same = {"amount": planned, "stage_flops": {"joint": 100}}
    fake.write_plan(folder, budget=budget, none=same, flow=same | {"target": planned})
    page = Page(write_comparison_report(folder))
    assert "+0.0% ✓" in page.text or "0.0% ✓" in page.text
    assert "holds the FLOPs of training equal" in page.text
    for seed in (0, 1, 2):
        log = folder / f"runs/flow-seed{seed}/metrics.jsonl"
        whole = log.read_text().splitlines(keepends=True)
        log.write_text("".join(whole[: len(whole) // 2]))
    page = Page(write_comparison_report(folder))
    assert "-50.0% ✗" in page.text.replace("\N{MINUS SIGN}", "-")
    assert "does not hold the FLOPs of training equal" in page.text
    for seed in (0, 1, 2):  # the arm that is the measure stops as early
        log = folder / f"runs/none-seed{seed}/metrics.jsonl"
        whole = log.read_text().splitlines(keepends=True)
        log.write_text("".join(whole[: len(whole) // 2]))
    page = Page(write_comparison_report(folder))
    assert "0.0% ✓" in page.text
    assert "Not held by" not in page.text
    assert "holds the FLOPs of training equal" in page.text
    _edit_study(folder, like={"prior": "none"})
    assert "0.0% ✓" in Page(write_comparison_report(folder)).text


def _edit_study(folder, like):
    """Say in the files of a study that the arms are levels of a factor, which the measure of the budget is one of."""
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"budget": plan["budget"] | {"like": like}}))
    levels = [{"name": "none"}, {"name": "flow", "overrides": ["prior=real_nvp"]}]
    whole = json.loads((folder / "study.json").read_text())
    study = {"name": "s", "factors": [{"name": "prior", "levels": levels}], "seeds": [0, 1, 2]}
    (folder / "study.json").write_text(json.dumps(whole | {"study": study}))


def test_seconds_are_those_that_were_taken(fake, tmp_path):
    """An estimate of the plan is not what was held: not in a verdict, the Budgets section, a caption or a file."""
    folder = fake.write_comparison(tmp_path / "study", gains={"none": 0.0, "flow": 2.0})
    budget = {"hold": "seconds", "target": None, "like": "none", "tolerance": 0.1}
    fake.write_plan(folder, budget=budget, none={"amount": 50}, flow={"amount": 50, "target": 50})
    fake.edit_lines(
        folder / "study.jsonl", lambda line: line | {"seconds": 50.0 + 30 * (line["arm"] == "flow")}
    )
    page = Page(write_comparison_report(folder))
    assert "does not hold the seconds of training equal (80 against 50)" in page.text
    assert "at that of “None”, within 10%. Not held by “Flow” (+60%). Sizes were" in page.text
    assert "None – 50 the measure" in page.text
    assert "Flow – 80 +60.0% ✗" in page.text
    caption, held = _exported(folder, tmp_path / "longer")
    assert r"Not held by ``Flow'' (+60\%)." in caption
    assert held == {"none": ("50.0", "", ""), "flow": ("80.0", "0.6000000000000001", "False")}
    fake.edit_lines(
        folder / "study.jsonl", lambda line: line | {"seconds": 2.21 + 0.125 * (line["arm"] == "flow")}
    )
    page = Page(write_comparison_report(folder))
    assert "holds the seconds of training equal (2.33 against 2.21)" in page.text
    assert "Flow – 2.33 +5.7% ✓" in page.text  # of what the measure took, not of its 50 s in the plan
    assert "Not held by" not in page.text
    stage = {"stage": "joint", "runs": 2, "together": True, "text": ""}
    fake.edit_json(folder / "runs" / "flow-seed0" / "run.json", together=[stage])
    page = Page(write_comparison_report(folder))
    assert "seconds of training equal (" not in page.text
    assert "Whether seconds are held equal is not known" in page.text
    assert "Seconds do not compare, as runs that train as one program share them" in page.text
    assert "✓" not in page.text[page.text.index("Budgets") :].replace("(✓ within its tolerance)", "")
    caption, held = _exported(folder, tmp_path / "shared")
    assert "What was spent is not known of ``None'', ``Flow''." in caption
    assert held == {"none": ("", "", ""), "flow": ("", "", "")}


def _exported(folder, out):
    """Return the caption of the exported table, and amount, distance and whether it is within, by arm."""
    export_study(folder, out)
    with (out / "budgets.csv").open(encoding="utf-8") as lines:
        held = {row["arm"]: (row["amount"], row["off"], row["within"]) for row in csv.DictReader(lines)}
    return (out / "table.tex").read_text(encoding="utf-8"), held


def test_the_smallest_difference_of_interest_is_answered(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 0.01})
    assert "smallest of interest" not in Page(write_comparison_report(folder)).text
    fake.edit_json(folder / "study.json", smallest_difference=0.25)
    text = Page(write_comparison_report(folder)).text
    assert "Seeds for 0.25 nats, the smallest of interest" in text
    assert "the smallest of interest, 0.25 nats," in text


def test_comparisons_of_pairs_name_both_arms(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 2.0, "c": 2.1})
    fake.edit_json(folder / "study.json", comparisons=[["c", "b"], ["b", "a"]])
    page = Page(write_comparison_report(folder))
    assert "Comparisons: “C” with “B”; “B” with “A”." in page.text
    assert "“C” against “B”: " in page.html
    assert "minus that of the other arm" in page.html


def test_pages_of_runs_are_written_where_they_are_missing_or_old(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0}, seeds=(0, 1))
    (folder / "runs" / "b-seed1" / "config.yaml").write_text(
        "a: [1"
    )  # cannot be read, and the study does not read it
    old, new = (folder / "runs" / f"a-seed{seed}" / "report.html" for seed in (0, 1))
    for page, seconds in ((old, -100), (new, 100)):
        page.write_text("kept")
        os.utime(page, (time.time() + seconds, time.time() + seconds))
    fake.edit_lines(folder / "study.jsonl", lambda line: line | {"figures": None, "status": "failed"})
    page = Page(write_comparison_report(folder, run_pages=True))
    assert new.read_text() == "kept"
    assert "<h1>a-seed0</h1>" in old.read_text()
    links = {attributes["href"] for attributes in page.all("a") if "href" in attributes}
    assert links == {f"runs/{name}/report.html" for name in ("a-seed0", "a-seed1", "b-seed0")}
    assert page.text.count("(no page yet)") == 1


def test_an_incomplete_comparison_names_what_is_left_out(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0, 1), gains={"a": 0.0, "b": 1.0})
    lines = [json.loads(line) for line in (folder / "study.jsonl").read_text().splitlines()]
    lines = [lines[0], lines[2] | {"status": "diverged", "reason": "the loss was not finite"}, lines[3]]
    (folder / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(folder / "runs" / "a-seed1")
    text = Page(write_comparison_report(folder)).text
    assert "2 of 4 runs finished" in text
    assert "Left out: “A”, seed 1 (not run yet)." in text
    assert "Left out: “B”, seed 0 (diverged: the loss was not finite)." in text
    assert "nothing to compare" in text
    assert "1 run of “B” diverged or gave no finite test NLL, and is left out, which flatters it." in text
    assert "B (1 of 2 seeds, 1 diverged)" in text
    assert "… Incomplete" in text
    assert "A (1 of 2 seeds)" in (folder / "figures" / "every_run.svg").read_text(encoding="utf-8")


def test_runs_under_way_are_told_from_those_that_stopped(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0, 1, 2), gains={"a": 0.0, "b": 1.0})
    lines = (folder / "study.jsonl").read_text().splitlines(keepends=True)
    (folder / "study.jsonl").write_text("".join(lines[:2]))
    shutil.rmtree(folder / "runs" / "b-seed2")
    fake.edit_lines(folder / "runs" / "a-seed2" / "metrics.jsonl", lambda line: line | {"max_epochs": 40})
    staged = folder / "runs" / "b-seed0"
    fake.write_run(staged, epochs=9, stages=("vae", "prior"), status="running")
    with locked(folder / "runs" / ".b-seed0.lock", "The run"):
        text = Page(write_comparison_report(folder)).text
    assert "Left out: “A”, seed 2 (stopped, at epoch 30 of 40)." in text
    assert "Left out: “B”, seed 0 (under way, at epoch 4 of “prior”)." in text
    assert "Left out: “B”, seed 1 (stopped, at epoch 30)." in text
    assert "Left out: “B”, seed 2 (not run yet)." in text
    assert "… Under way" in text
    assert "--resume" not in text
    with locked(folder / LOCK, "The study"):  # between two of its runs
        text = Page(write_comparison_report(folder)).text
    assert "… Under way" in text
    assert "To finish what is missing" not in text
    with locked(folder / "runs" / ".a-seed1.lock", "The run"):  # it has ended, another run of its job has not
        text = Page(write_comparison_report(folder)).text
    assert "under way" not in text
    (staged / "metrics.jsonl").unlink()
    (folder / "study.jsonl").write_text(lines[0])
    text = Page(write_comparison_report(folder)).text
    assert "Left out: “A”, seeds 1, 2 (stopped" not in text  # at different epochs of a known number
    assert "Left out: “B”, seed 0 (stopped)." in text
    assert "To finish what is missing" in text
    (folder / "study.jsonl").write_text("".join(lines))
    with locked(folder / LOCK, "The study"):  # all runs have ended; it is about to
        assert "✓ Complete" in Page(write_comparison_report(folder)).text


def test_a_comparison_without_runs_has_a_page(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0,), gains={"a": 0.0, "b": 1.0})
    (folder / "study.jsonl").unlink()
    text = Page(write_comparison_report(folder)).text
    assert "No run has finished with an NLL yet, so there is nothing to compare." in text
    assert "study.jsonl is missing" not in text
    assert "0 of 2 runs finished" in text
    assert text.count("stopped, at epoch 30") == 4  # what is left out, and the table of runs


def test_an_interrupted_study_says_how_to_go_on(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "a b" / "study", seeds=(0,), gains={"a": 0.0, "b": 1.0})
    lines = (folder / "study.jsonl").read_text().splitlines()
    stopped = {"status": "interrupted", "reason": "Stopped by SIGINT at step 1; resumable.", "figures": None}
    (folder / "study.jsonl").write_text(json.dumps(json.loads(lines[0]) | stopped) + "\n")
    for run in (folder / "runs").iterdir():
        (run / "samples" / "index.json").unlink()
    page = Page(write_comparison_report(folder))
    again = f"latentflows study run examples/digits-study.yaml --out '{folder}' --resume"
    assert f"To finish what is missing: {again}" in page.text
    assert "(interrupted: Stopped by SIGINT at step 1; resumable)." in page.text
    assert "latentflows sample" not in page.text
    assert "No run has finished, so there are no pictures yet." in page.text
    assert "how and on what is shown once one has" in page.text
    (folder / "study.jsonl").write_text("\n".join(lines) + "\n")
    text = Page(write_comparison_report(folder)).text
    assert "To finish what is missing" not in text
    first = folder / "runs" / "a-seed0"
    assert f"latentflows train '{first}'/config.yaml --out '{first}' --resume" in text


@pytest.mark.parametrize(
    ("given", "again"),
    [
        ("latentflows study run x seeds=0 --overwrite", "latentflows study run x seeds=0 --out F --resume"),
        ("latentflows study run x --out=old -q --resume", "latentflows study run x -q --out F --resume"),
        ("", "compare(study, Path('F'), resume=True)"),
        ("latentflows 'open", "compare(study, Path('F'), resume=True)"),
    ],
)
def test_the_command_that_goes_on_is_the_one_that_started(fake, tmp_path, given, again):
    folder = fake.write_comparison(tmp_path / "F", seeds=(0,), gains={"a": 0.0, "b": 1.0})
    fake.edit_json(folder / "study.json", command=given)
    assert resume_command(read_results(folder)) is None
    fake.edit_lines(folder / "study.jsonl", lambda line: line | {"status": "diverged"})
    assert resume_command(read_results(folder)) is None
    fake.edit_lines(folder / "study.jsonl", lambda line: line | {"status": "failed"})
    assert resume_command(read_results(folder)) == again.replace("F", str(folder))


def test_different_protocols_are_told(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0,), gains={"a": 0.0, "b": 1.0})

    def page_with(**changes):
        def change(line):
            return line if line["arm"] == "a" else line | {"protocol": line["protocol"] | changes}

        fake.edit_lines(folder / "study.jsonl", change)
        return Page(write_comparison_report(folder)).text

    assert "do not compare" not in page_with(seed=9)
    text = page_with(num_importance_samples=5)
    assert "figures do not compare" in text
    assert "K = 500 importance samples" in text
    assert "K = 5 importance samples" in text


def test_folders_that_are_gone_are_named_and_nothing_is_made_up_of_their_timing(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0, 1), gains={"a": 0.0, "b": 1.0})
    before = Page(write_comparison_report(folder)).text
    shutil.rmtree(folder / "runs" / "b-seed1")
    text = Page(write_comparison_report(folder)).text
    assert "gone" not in before
    assert "Folders that are gone: runs/b-seed1. What study.jsonl says of them stands" in text
    assert "do not compare" not in text
    fake.edit_lines(folder / "study.jsonl", lambda line: line | {"status": "failed"})
    assert "Folders that are gone" not in Page(write_comparison_report(folder)).text


def test_the_protocol_is_that_of_the_figures_not_of_a_later_evaluation(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0, 1), gains={"a": 0.0, "b": 1.0})
    before = Page(write_comparison_report(folder)).text
    for run in (folder / "runs").iterdir():
        protocol = json.loads((run / "evaluation.json").read_text())["protocol"]
        fake.edit_json(run / "evaluation.json", protocol=protocol | {"num_importance_samples": 5})
    assert Page(write_comparison_report(folder)).text == before
    fake.edit_lines(
        folder / "study.jsonl", lambda line: {key: line[key] for key in line if key != "protocol"}
    )
    assert "Measured on: a protocol that was not recorded." in Page(write_comparison_report(folder)).text


def test_validation_figures_are_called_so_and_come_with_a_caution(fake, tmp_path):
    caution = "weights were selected on the validation split"
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 5.0})
    page = Page(write_comparison_report(folder))
    assert "Test NLL (lower is better)" in page.text
    assert caution not in page.text
    fake.edit_lines(
        folder / "study.jsonl", lambda line: line | {"protocol": line["protocol"] | {"split": "validation"}}
    )
    page = Page(write_comparison_report(folder))
    assert "Validation NLL (lower is better)" in page.text
    assert "supports a lower (better) validation NLL of “B”" in page.text
    assert "the same validation data points" in page.text
    assert "validation NLL of every run" in page.html
    assert "test nll" not in page.html.lower()
    assert page.text.count(caution) == 1
    run = folder / "runs" / "a-seed0"
    assert caution not in Page(write_run_report(run)).text
    protocol = json.loads((run / "evaluation.json").read_text())["protocol"]
    fake.edit_json(run / "evaluation.json", protocol=protocol | {"split": "validation"})
    assert caution in Page(write_run_report(run)).text


def test_published_figures_stand_beside_what_was_reached(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0, 1))
    before = write_comparison_report(folder).read_text(encoding="utf-8")
    assert "Beside the literature" not in before
    arms = [arm["name"] for arm in json.loads((folder / "study.json").read_text())["arms"]]
    published = {"source": "A paper, 2020", "epochs": 1000, "figures": {arms[0]: "84.45 ± 0.12"}}
    fake.edit_json(folder / "study.json", published=published)
    table = table_of(read_results(folder))
    rows = published_rows(Published.model_validate(published), table)
    assert [row.published for row in rows] == ["84.45 ± 0.12", *[None] * (len(arms) - 1)]
    assert rows[0].share == table.rows[0].epochs.mean / 1000
    assert rows[0].reached == table.rows[0].nll
    page = write_comparison_report(folder).read_text(encoding="utf-8")
    section = page[page.index("Beside the literature") : page.index("Paired differences</h2>")]
    assert "A paper, 2020" in section
    assert "84.45 ± 0.12" in section
    assert f"{100 * rows[0].share:.1f}%" in section


def test_errors_over_images_and_of_monte_carlo_are_told_from_those_over_seeds(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 5.0})
    text = Page(write_comparison_report(folder)).text
    assert "Monte Carlo error of one run, from finite K: 0.031 nats at most." in text
    assert "Error over data points: how much" not in text
    rng = np.random.default_rng(0)
    for line in (folder / "study.jsonl").read_text().splitlines():
        run = json.loads(line)
        values = rng.standard_normal(360)
        nll = run["figures"]["nll"]["mean"]
        np.save(folder / run["run"] / "nll.npy", values - values.mean() + nll)
    text = Page(write_comparison_report(folder)).text
    assert "Error over data points: how much the mean would vary with other data points" in text
    error = table_of(read_results(folder)).comparisons[0].comparison.error_over_images
    assert error is not None
    assert f" {error:.2f} " in text


@pytest.mark.parametrize("by_elbo", [True, False])
def test_curves_go_on_through_a_stage_of_the_prior_alone(fake, tmp_path, by_elbo):
    """It logs no ELBO: that is the reconstruction of the best epoch before it less the KL, if the ELBO chose it."""
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0}, seeds=(0,))
    run = fake.write_run(folder / "runs" / "b-seed0", epochs=6, stages=("vae", "prior"))

    def of_prior(line):
        if line["stage"] == "prior":
            return line | {"validation": {"loss": 7.0, "prior_nll": 7.0, "kl": 3.0 - line["epoch"]}}
        validation = {
            "elbo": -10.0 - abs(line["epoch"] - 2),
            "reconstruction": -8.0 - line["epoch"],
            "kl": 1.0,
        }
        return line | {"validation": validation | {"loss": -validation["elbo"] if by_elbo else 5.0}}

    fake.edit_lines(run / "metrics.jsonl", of_prior)
    results = read_results(folder)
    (drawing,) = (
        found for found in study_drawings(results, table_of(results)) if found.name == "curves_step"
    )
    # -8 - 2 at the second epoch, the best, and a KL of 0
    assert ("B ends at −10.00 after 72" in drawing.alt) is by_elbo


def test_uneven_seconds_come_with_a_caution(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0})
    assert "the machine had other work" not in Page(write_comparison_report(folder)).text
    fake.edit_json(folder / "runs" / "b-seed1" / "run.json", seconds=500.0, steps=720)
    text = Page(write_comparison_report(folder)).text
    assert "A step took up to 2.0 times as long in one run of “B” as in another" in text


def test_steps_that_were_not_finite_are_told_of_the_run_and_of_its_arm(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0})
    for run in (folder / "runs").iterdir():
        fake.edit_json(run / "run.json", skipped_steps=0, rollbacks=0)
    text = Page(write_comparison_report(folder)).text
    assert "not finite" not in text
    assert "rollback" not in text
    fake.edit_json(folder / "runs" / "b-seed1" / "run.json", skipped_steps=6, rollbacks=1)
    fake.edit_json(folder / "runs" / "b-seed2" / "run.json", skipped_steps=1)
    text = Page(write_comparison_report(folder)).text
    assert "finished; 6 steps skipped, 1 rollback, each halving the learning rate" in text
    assert "“B” met steps that were not finite (seed 1: 6 steps skipped, 1 rollback" in text
    assert "seed 2: 1 step skipped), so it was not trained throughout as was asked for" in text


def test_seeds_that_trained_together_are_no_sign_of_a_busy_machine(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0})
    stage = {"stage": "joint", "runs": 8, "together": True, "text": ""}
    fake.edit_json(folder / "runs" / "b-seed1" / "run.json", seconds=500.0, steps=720, together=[stage])
    assert "the machine had other work" not in Page(write_comparison_report(folder)).text
    fake.edit_json(folder / "runs" / "b-seed1" / "run.json", together=[stage | {"together": False}])
    assert "the machine had other work" in Page(write_comparison_report(folder)).text
