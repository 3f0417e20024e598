"""Both pages as a reader gets them: complete, self-contained, accessible; and honest where something is missing."""

import json
import re
from html.parser import HTMLParser

import pytest

from latentflows.reporting import write_comparison_report, write_run_report


class Page(HTMLParser):
    """What the tests look at in a page."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags, self.words, self.open = [], [], []
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("style", "svg"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("style", "svg"):
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.words.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def run_page(fake, tmp_path_factory):
    folder = fake.write_run(tmp_path_factory.mktemp("reports") / "my-run", epochs=8)
    return Page(write_run_report(folder)), folder


@pytest.fixture(scope="module")
def comparison(fake, tmp_path_factory):
    folder = fake.write_comparison(tmp_path_factory.mktemp("reports") / "study", sizes={"flow-prior": 40})
    write_run_report(folder / "runs" / "gaussian-seed0")
    return Page(write_comparison_report(folder)), folder


@pytest.fixture(params=["run_page", "comparison"])
def page(request):
    return request.getfixturevalue(request.param)[0]


def test_nothing_is_loaded_from_elsewhere(page):
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:image/png;base64,", "#", "runs/")) or not value
    assert not page.all("script")
    assert not page.all("link")
    assert "@import" not in page.html


def test_pictures_and_figures_have_words(page):
    images, drawings = page.all("img"), page.all("svg")
    assert images
    assert drawings
    assert all(len(image["alt"]) > 10 for image in images)
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in drawings)


def test_names_in_the_page_are_unique(page):
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert names
    assert len(names) == len(set(names))


def test_tables_have_headers_with_scope_and_a_caption(page):
    assert all(header.get("scope") in ("row", "col", "colgroup") for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert [attributes["lang"] for attributes in page.all("html")] == ["en-US"]
    assert len(page.all("h1")) == 1


def test_both_color_schemes_and_the_printer_are_served(page):
    assert "prefers-color-scheme: dark" in page.html
    assert "@media print" in page.html
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page.html))
    defined = set(re.findall(r"(--[a-z0-9-]+):", page.html))
    assert used <= defined


def test_the_run_page_shows_all_that_the_folder_holds(run_page):
    page, folder = run_page
    record = json.loads((folder / "run.json").read_text())
    nll = json.loads((folder / "evaluation.json").read_text())["figures"]["nll"]["mean"]
    expected = [
        "✓ Finished",
        record["command"],
        "test split, 360 images, K = 500",
        "digits, fixed binarization",
    ]
    expected += [f"{nll:.2f}", "0.03", "290,384", "151,440", "2.13.0", "x86_64, 2 cores", "25.3 s"]
    expected += ["Drawn from p(x|z) at temperature 1, seed 0.", "Straight lines in base space"]
    for words in expected:
        assert words in page.text
    for line in (folder / "config.yaml").read_text().splitlines():
        assert line.strip() in page.text
    assert len(page.all("img")) == 6
    assert "missing" not in page.text


def test_figures_are_saved_beside_the_page(run_page, comparison):
    names = {path.name for path in (run_page[1] / "figures").iterdir()}
    assert names == {f"{name}.svg" for name in ("elbo", "reconstruction", "kl", "learning_rate", "beta")}
    names = {path.name for path in (comparison[1] / "figures").iterdir()}
    assert names == {"paired_differences.svg", "every_run.svg", "validation_curves.svg"}
    assert not list(run_page[1].glob("**/*.part*"))


@pytest.mark.parametrize(
    ("status", "words"),
    [("interrupted", "Interrupted"), ("diverged", "Diverged"), ("failed", "Failed"), ("running", "Running")],
)
def test_the_banner_says_how_the_run_ended_and_why(fake, tmp_path, status, words):
    folder = fake.write_run(tmp_path / "run", epochs=2, status=status, reason="the loss was not finite")
    text = Page(write_run_report(folder)).text
    assert words in text
    assert "Reason: the loss was not finite." in text
    assert "Finished" not in text


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("evaluation.json", "latentflows evaluate"),
        ("metrics.jsonl", "latentflows train"),
        ("run.json", "latentflows train"),
        ("config.yaml", "latentflows train"),
        ("samples/index.json", "latentflows sample"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(fake, tmp_path, name, command):
    folder = fake.write_run(tmp_path / "my run", epochs=2)
    (folder / name).unlink()
    text = Page(write_run_report(folder)).text
    assert f"{name} is missing or empty. To make it: {command}" in text
    assert f"'{folder}'" in text  # quoted, because of the space


def test_a_missing_picture_and_a_torn_line_are_told(fake, tmp_path):
    folder = fake.write_run(tmp_path / "run", epochs=2)
    (folder / "samples" / "interpolations.png").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage')
    page = Page(write_run_report(folder))
    assert "Not there: interpolations.png" in page.text
    assert "1 torn line at the end of metrics.jsonl was left out" in page.text
    assert len(page.all("img")) == 5


def test_text_from_files_cannot_become_markup(fake, tmp_path):
    folder = fake.write_run(tmp_path / "run", epochs=2, status="failed", reason="<script>alert(1)</script>")
    fake.edit_json(
        folder / "run.json", command='x "><img src=http://example.org/a.png>', name="</title><script>"
    )
    fake.edit_lines(folder / "metrics.jsonl", lambda line: line | {"stage": "<script>"})
    page = Page(write_run_report(folder))
    assert not page.all("script")
    assert len(page.all("img")) == 6


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
    assert "supports a lower (better) test NLL of Flow posterior" in page.text
    assert "does not hold the number of parameters equal (290,424 against 290,384)" in page.text
    assert "not corrected for making 2 comparisons" in page.text
    assert "so few seeds" in page.text
    assert re.search(r"Epochs over all stages\..* 30 ", page.text)
    assert len(page.all("img")) == 4  # data, and samples of three arms
    assert page.text.count(" ± 0.40") == 9
    assert str(folder) not in page.html


def test_a_comparison_says_what_was_torn_and_that_hardware_differs(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "c", seeds=(0, 1))
    page = Page(write_comparison_report(folder))
    assert "hardware" not in page.text
    assert "torn line" not in page.text
    other = {"cpu": "aarch64, 8 cores", "threads": 4, "device": "cpu"}
    fake.edit_json(folder / "runs" / "gaussian-seed1" / "run.json", hardware=other)
    with (folder / "study.jsonl").open("a") as file:
        file.write('{"arm')
    page = Page(write_comparison_report(folder))
    assert "different hardware; their seconds do not compare" in page.text
    assert "cpu: aarch64, 8 cores, threads: 4, device: cpu" in page.text
    assert "1 torn line at the end of study.jsonl was left out" in page.text
    assert "--resume" in page.text


def test_runs_with_a_page_are_linked_relatively_and_others_say_so(comparison):
    page, folder = comparison
    links = [attributes["href"] for attributes in page.all("a") if "href" in attributes]
    assert set(links) == {"runs/gaussian-seed0/report.html"}
    assert len(links) == 3  # data, samples, and the row of the run
    assert all((folder / link).is_file() for link in links)
    assert page.text.count("(no page yet)") == 8


def test_an_incomplete_comparison_names_what_is_left_out(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0, 1), gains={"a": 0.0, "b": 1.0})
    lines = [json.loads(line) for line in (folder / "study.jsonl").read_text().splitlines()]
    lines = [lines[0], lines[2] | {"status": "diverged"}, lines[3]]
    (folder / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Page(write_comparison_report(folder)).text
    assert "2 of 4 runs finished" in text
    assert "Left out: A, seed 1 (not run yet)." in text
    assert "Left out: B, seed 0 (diverged)." in text
    assert "nothing to compare" in text
    assert "flatters an arm that diverges" in text


def test_a_comparison_without_runs_has_a_page(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", seeds=(0,), gains={"a": 0.0, "b": 1.0})
    (folder / "study.jsonl").unlink()
    text = Page(write_comparison_report(folder)).text
    assert "No run has finished yet. study.jsonl is missing or empty." in text
    assert "0 of 2 runs finished" in text


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
    assert "supports a lower (better) validation NLL of B" in page.text
    assert "the same validation images" in page.text
    assert "validation NLL of every run" in page.html
    assert "test nll" not in page.html.lower()
    assert page.text.count(caution) == 1
    run = folder / "runs" / "a-seed0"
    assert caution not in Page(write_run_report(run)).text
    protocol = json.loads((run / "evaluation.json").read_text())["protocol"]
    fake.edit_json(run / "evaluation.json", protocol=protocol | {"split": "validation"})
    assert caution in Page(write_run_report(run)).text


def test_a_page_is_the_same_when_written_again(comparison):
    page, folder = comparison
    assert write_comparison_report(folder).read_text(encoding="utf-8") == page.html


def test_events_of_the_training_are_told_on_the_page(fake, tmp_path):
    folder = fake.write_run(tmp_path / "run", epochs=12)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["events"] = [f"event number {number} <b>"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_run_report(folder).read_text()
    assert "event number 0 &lt;b&gt;" in page
    assert "event number 9 " in page
    assert "event number 10 " not in page
    assert "2 more events are in metrics.jsonl." in page
