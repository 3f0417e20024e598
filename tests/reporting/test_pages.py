"""Both pages as a reader gets them: complete, self-contained, accessible; and honest where something is missing."""

import json
import re
from html.parser import HTMLParser

import pytest

from latentflows.reporting import write_comparison_report, write_run_report
from latentflows.reporting.run_page import training_note
from tests.folders import configuration_text


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
        "test split, 360 data points, K = 500",
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
    curves = {f"curves_{axis}.svg" for axis in ("step", "samples", "seconds")}  # no plan.json: no FLOPs
    assert names == {"paired_differences.svg", "every_run.svg"} | curves
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
    ("figures", "words"),
    [
        ({"largest_share": 0.001}, "The posterior has collapsed"),
        ({"largest_share": 1.0, "needle_units": 2}, "needle-sharp in 2 latent dimensions"),
        ({"largest_share": None, "needle_units": 0}, None),
    ],
)
def test_the_banner_of_a_run_whose_posterior_is_broken_is_not_green(fake, tmp_path, figures, words):
    folder = fake.write_run(tmp_path / "run", epochs=3)
    fake.edit_lines(folder / "metrics.jsonl", lambda line: line | {"diagnostics": figures})
    page = Page(write_run_report(folder))
    (banner,) = [tag["class"] for tag in page.all("div") if tag.get("role") == "status"]
    assert banner == ("banner good" if words is None else "banner warn")
    assert words is None or words in page.text
    assert ("Finished, but look at the posterior" in page.text) == (words is not None)


@pytest.mark.parametrize(
    ("overrides", "said"), [(("posterior=delta", "objective=autoencoder"), True), ((), False)]
)
def test_figures_of_a_model_that_was_trained_for_no_bound_say_so(fake, tmp_path, overrides, said):
    assert training_note("a: b") == ""
    folder = fake.write_run(tmp_path / "run", epochs=3)
    (folder / "config.yaml").write_text(configuration_text(*overrides))
    text = Page(write_run_report(folder)).text
    assert ("was trained by objective=autoencoder, which is no bound on log p(x)" in text) == said


@pytest.mark.parametrize("evaluated", [True, False])
def test_what_is_no_bound_is_not_called_an_elbo(fake, tmp_path, evaluated):
    folder = fake.write_run(tmp_path / "run", epochs=3)
    assert "ELBO over 3 epochs" in write_run_report(folder).read_text(encoding="utf-8")
    gray = configuration_text("likelihood=gray_bernoulli", "data.preparation=unit")
    (folder / "config.yaml").write_text(gray)
    reason = "the cross-entropy on gray values is no likelihood"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    figures = {"reconstruction": evaluation["figures"]["reconstruction"]}
    protocol = evaluation["protocol"] | {"without_bound": reason}
    fake.edit_json(folder / "evaluation.json", figures=figures, protocol=protocol)
    if not evaluated:
        (folder / "evaluation.json").unlink()
    page = Page(write_run_report(folder))
    assert "ELBO" not in page.html
    assert "Reconstruction − KL, no bound over 3 epochs" in page.html
    assert ("minus the cross-entropy on gray values, which is no log p(x|z)" in page.text) == evaluated
    assert "E log p(x|z)" not in page.html


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("evaluation.json", "latentflows evaluate"),
        ("metrics.jsonl", "latentflows train"),
        ("run.json", "latentflows train"),
        ("config.yaml", "latentflows train"),
        ("samples/index.json", "latentflows train"),
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
    with pytest.warns(UserWarning, match="1 torn line at the end was left out"):
        page = Page(write_run_report(folder))
    assert "Not there: interpolations.png" in page.text
    assert "1 torn line at the end was left out" in page.text
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
