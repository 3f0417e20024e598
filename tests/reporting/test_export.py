"""What is written for other programs: CSV that reads back, LaTeX that is well-formed, figures without links."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.reporting import export_study
from latentflows.reporting.budgets import budget_table
from latentflows.reporting.export import to_csv
from latentflows.reporting.latex import escape, latex_table
from latentflows.reporting.table import table_of
from latentflows.studies.results.results import read_results

LABEL = r'100% of β_1 & $x^2$ #{a}~b\c <d> |e| "f"'


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def exported(fake, tmp_path_factory):
    folder = fake.write_comparison(
        tmp_path_factory.mktemp("export") / "study",
        gains={"gaussian": 0.0, "flow": 3.0, "same": 0.0},
        label_of=lambda name: LABEL if name == "flow" else name.capitalize(),
    )
    fake.write_plan(folder, flow={"solved": {"latent_dim": 12}})
    for run in (folder / "runs").iterdir():
        fake.add_groups(run, holes={}, units={"protocol": {"seed": 0, "threshold": len(run.name)}})
    out = folder.parent / "out"
    return folder, out, export_study(folder, out)


def test_every_file_is_written_and_listed(exported):
    _, out, paths = exported
    figures = [
        "paired_differences",
        "every_run",
        *(f"curves_{axis}" for axis in ("step", "samples", "flops", "seconds")),
    ]
    expected = [f"{name}.csv" for name in ("runs", "arms", "comparisons", "budgets", "curves")] + [
        "table.tex"
    ]
    expected += [f"figures/{name}.{ending}" for name in figures for ending in ("svg", "pdf")]
    expected += [f"samples/{name}-seed0-samples.png" for name in ("gaussian", "flow", "same")]
    expected.insert(-3, "samples/gaussian-seed0-data.png")
    expected.append("export.json")
    assert [path.relative_to(out).as_posix() for path in paths] == expected
    assert sorted(paths) == sorted(path for path in out.rglob("*") if path.is_file())


def test_runs_and_curves_hold_what_the_library_gives(exported):
    folder, out, _ = exported
    results = read_results(folder)
    runs = rows_of(out / "runs.csv")
    assert [(row["arm"], int(row["seed"])) for row in runs] == [
        (row["arm"], row["seed"]) for row in results.rows()
    ]
    for written, row in zip(runs, results.rows(), strict=True):
        assert float(written["nll"]) == row["nll"]
        assert float(written["holes.mmd_rbf"]) == row["holes.mmd_rbf"]
    assert runs[3]["label"] == LABEL
    assert [row["solved.latent_dim"] for row in runs] == [""] * 3 + ["12"] * 3 + [""] * 3
    curves = rows_of(out / "curves.csv")
    assert len(curves) == sum(1 for _ in results.curve_rows())
    assert float(curves[-1]["flops"]) == 300 * 1437 * 30


def test_arms_have_both_intervals_of_every_figure(exported):
    folder, out, _ = exported
    found = {(row["arm"], row["figure"]): row for row in rows_of(out / "arms.csv")}
    row = found["flow", "nll"]
    values = list(read_results(folder).values("nll", "flow").values())
    assert float(row["mean"]) == pytest.approx(sum(values) / 3)
    assert float(row["t_low"]) < float(row["bootstrap_low"]) < float(row["mean"]) < float(row["t_high"])
    assert (row["seeds"], row["unit"], row["bootstrap_method"]) == ("3", "nats", "BCa")
    assert found["same", "holes.mmd_rbf"]["bootstrap_method"] == "percentile"  # equal at all seeds


def test_comparisons_cover_every_figure_and_say_which_do_not_compare(exported):
    _, out, _ = exported
    rows = rows_of(out / "comparisons.csv")
    nll = [row for row in rows if row["metric"] == "nll"]
    assert [(row["arm"], row["other"]) for row in nll] == [("flow", "gaussian"), ("same", "gaussian")]
    assert float(nll[0]["corrected_p_value"]) >= float(nll[0]["p_value"])
    assert nll[0]["mean_is_better"] == "True"
    assert "better" not in nll[0]
    budgets = rows_of(out / "budgets.csv")
    assert [(next(iter(row)), row["arm"], row["label"]) for row in budgets][1] == ("arm", "flow", LABEL)
    refused = [row for row in rows if row["reason"]]
    assert {row["metric"] for row in refused} == {"units.active_units"}
    assert "threshold" in refused[0]["reason"]
    assert refused[0]["difference"] == ""


def test_the_table_is_well_formed(exported):
    _, out, _ = exported
    text = (out / "table.tex").read_text(encoding="utf-8")
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    begun, ended = re.findall(r"\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
    assert begun == ended[::-1] == ["table", "tabular"]
    columns = re.search(r"\\begin\{tabular\}\{@\{\}(?:p\{[^}]*\}|l)(r+)@\{\}\}", text)
    assert columns is not None
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns[1])
    assert not re.search(r"(?<!\\)[%#_]", text.replace("% Needs", "", 1))
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0


def test_the_table_names_protocol_and_marks_only_what_the_test_finds(exported):
    _, out, _ = exported
    text = (out / "table.tex").read_text(encoding="utf-8")
    for words in (
        "test split, 360 data points, K = 500 importance samples per data point",
        "corrected for 2 comparisons by Holm's procedure",
        r"mean with its 95\% t interval over 3 seeds",
        "The study holds nothing equal but the configuration",
    ):
        assert words in text
    lines = {
        line.split(" &")[0].removeprefix(r"\raggedright "): line
        for line in text.splitlines()
        if line.endswith(r"\\")
    }
    assert r"\textbf{$-$" in lines[escape(LABEL)]
    assert "textbf" not in lines["Same"]
    assert lines["Gaussian"].endswith(r"& -- & -- & -- \\")


@pytest.mark.parametrize(
    ("data", "brief"),
    [
        (
            "scikit-learn digits, 1,197 / 200 / 400 of 8x8; dynamic binarization, P(x = 1)",
            "scikit-learn digits, dynamic binarization",
        ),
        (
            "MNIST: sizes; uniformly dequantized to [0, 1): x = (v + u) / 256",
            "MNIST, uniformly dequantized to [0, 1)",
        ),
        ("a.npz; gray values in [0, 1], value / 255; no density", "a.npz, gray values in [0, 1], no density"),
    ],
)
def test_the_caption_names_data_without_how_they_were_made(fake, tmp_path, data, brief):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0}, seeds=(0,))
    fake.edit_lines(
        folder / "study.jsonl", lambda line: line | {"protocol": line["protocol"] | {"data": data}}
    )
    export_study(folder, tmp_path / "out")
    text = (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    assert f"importance samples per data point; {brief}. Difference" in text


def test_the_label_is_the_folder_wherever_it_is_named_from(fake, tmp_path, monkeypatch):
    folder = fake.write_comparison(tmp_path / "my study", gains={"a": 0.0, "b": 1.0}, seeds=(0,))
    monkeypatch.chdir(folder)
    results = read_results(Path())
    table = table_of(results)
    assert r"\label{tab:my-study}" in latex_table(results, table, budget_table(results, table), [])


def test_special_characters_are_escaped():
    assert escape("50% & $5_a^2 #1 {x} ~ \\") == (
        r"50\% \& \$5\_a\textasciicircum{}2 \#1 \{x\} \textasciitilde{} \textbackslash{}"
    )
    assert escape("−1 ≤ β") == r"$-$1 $\leq$ $\beta$"


def test_a_name_is_no_option_of_the_line_break_before_it(fake, tmp_path):
    labels = {"a": "* plain", "b": "[2 layers] flow"}
    folder = fake.write_comparison(
        tmp_path / "study", gains={"a": 0.0, "b": 1.0}, label_of=lambda name: labels[name]
    )
    results = read_results(folder)
    table = table_of(results)
    lines = latex_table(results, table, budget_table(results, table), []).splitlines()
    assert [line.partition(" &")[0] for line in lines if "plain &" in line or "flow &" in line] == [
        "{}* plain",
        "{}[2 layers] flow",
    ]


def test_letters_that_the_usual_fonts_lack_are_written_otherwise():
    greek = "θ ≈ ½, ε=0.1, Δ, ΑΒ"
    assert escape(greek) == r"$\theta$ $\approx$ 1/2, $\epsilon$=0.1, $\Delta$, AB"
    assert escape("é ő 日") == "é ő [U+65E5]"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_table_compiles(exported, tmp_path):
    _, out, _ = exported
    lines = [
        r"\documentclass{article}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
    ]
    lines += [(out / "table.tex").read_text(encoding="utf-8"), r"\end{document}"]
    (tmp_path / "a.tex").write_text("\n".join(lines), encoding="utf-8")
    made = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stdout[-2000:]


def test_figures_are_whole_files_without_links(exported):
    _, out, _ = exported
    for path in (out / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "<a " not in text
        assert "var(--" not in text
    for path in (out / "figures").glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF-")


def test_the_same_study_gives_the_same_files(exported, tmp_path):
    folder, out, _ = exported
    for path in export_study(folder, tmp_path / "again"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "again")).read_bytes()


def test_neither_pandas_nor_every_run_is_needed(fake, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0}, seeds=(0,))
    lines = (folder / "study.jsonl").read_text().splitlines(keepends=True)
    (folder / "study.jsonl").write_text(lines[0])
    export_study(folder, tmp_path / "out")
    assert [row["status"] for row in rows_of(tmp_path / "out" / "runs.csv")] == ["finished", "started"]
    text = (tmp_path / "out" / "table.tex").read_text()
    assert "B & -- &" in text
    assert "Of ``B'', 0 of 1 runs count." in text
    assert "Difference: paired to ``A'', at the same seed;" in text


def test_a_study_without_a_finished_run_is_refused(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0}, seeds=(0,))
    fake.edit_lines(folder / "study.jsonl", lambda line: line | {"status": "interrupted", "figures": None})
    with pytest.raises(DataError, match=r"none of its runs has finished\. Go on with: .* --resume$"):
        export_study(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_no_export_wrote_are_never_replaced(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0}, seeds=(0, 1))
    out = tmp_path / "out"
    out.mkdir()
    for name in ("table.tex", "export.json"):
        (out / name).write_text("mine")
        with pytest.raises(
            ConfigurationError, match=f"holds {name}. Move or remove it, or choose another `out`"
        ):
            export_study(folder, out)
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "mine")]
        (out / name).unlink()
    (out / "notes.txt").write_text("mine")  # is not in the way
    first = export_study(folder, out)
    (folder / "study.jsonl").write_text((folder / "study.jsonl").read_text().splitlines()[0] + "\n")
    fewer = export_study(folder, out)
    assert len(fewer) < len(first)
    listed = json.loads((out / "export.json").read_text())["exported"]
    assert {out / name for name in listed} | {out / "export.json"} == set(first)
    (out / "figures" / "paired_differences.pdf").unlink()
    (out / "table.tex").unlink()
    assert export_study(folder, out) == fewer


def test_every_pair_has_a_row_where_arms_are_not_all_compared_with_one(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 2.0, "c": 2.1})
    fake.edit_json(folder / "study.json", comparisons=[["c", "b"], ["c", "a"], ["b", "a"]])
    export_study(folder, tmp_path / "out")
    text = (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    assert "Difference: paired, at the same seed;" in text
    rows = [line.split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    assert [(row[0], len(row)) for row in rows] == [
        ("Arm", 4),
        *((name, 4) for name in "ABC"),
        ("Comparison", 4),
        ("``C'' against ``B''", 4),
        ("``C'' against ``A''", 4),
        ("``B'' against ``A''", 4),
    ]


def test_a_place_that_cannot_be_written_and_no_study_are_refused(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study", gains={"a": 0.0, "b": 1.0}, seeds=(0,))
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigurationError, match="`out` must be a folder"):
        export_study(folder, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(DataError, match="must be a study folder"):
        export_study(tmp_path, tmp_path / "out")


def test_csv_keeps_commas_quotes_and_line_breaks():
    rows = [{"a": 'x, "y"\nz', "b": None}, {"a": 1.5, "c": True}]
    text = to_csv(rows).decode()
    assert list(csv.DictReader(io.StringIO(text, newline=""))) == [
        {"a": 'x, "y"\nz', "b": "", "c": ""},
        {"a": "1.5", "b": "", "c": "True"},
    ]
