"""Pages of models that are no VAE of three parts, and of a study that has one."""

import json

import pytest

from latentflows.core.errors import DataError
from latentflows.reporting import write_comparison_report, write_run_report
from latentflows.reporting.base import read_run
from latentflows.reporting.table import table_of
from latentflows.studies.results.records import Parameters, Protocol
from latentflows.studies.results.results import read_results

CODES = {"encoder": 100, "quantizer": 16, "likelihood": 90, "prior": 50, "total": 256}
BOUND = {"nll_bound": {"mean": 31.0, "standard_error": 0.2, "unit": "nats"}}


def with_codes(folder, arm):
    """Rewrite the runs of an arm as those of a model with codes."""
    lines = [json.loads(line) for line in (folder / "study.jsonl").read_text().splitlines()]
    for line in lines:
        if line["arm"] == arm:
            line["figures"], line["parameters"] = BOUND, CODES
            line["protocol"] |= {"num_importance_samples": None, "posterior": "one code sequence per image"}
    (folder / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_bound_of_codes_stands_in_no_column_with_an_nll(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study")
    with_codes(folder, "flow-prior")
    table = table_of(read_results(folder))
    rows = {row.arm: row for row in table.rows}
    assert table.metric == "nll"
    assert rows["flow-prior"].nll is None
    assert rows["flow-posterior"].nll is not None
    page = write_comparison_report(folder).read_text()
    assert (
        "it has an NLL bound of its codes, which is no NLL and does not stand in one column with it" in page
    )


def test_a_study_of_codes_alone_is_judged_by_their_bound(fake, tmp_path):
    folder = fake.write_comparison(tmp_path / "study")
    for arm in ("gaussian", "flow-posterior", "flow-prior"):
        with_codes(folder, arm)
    table = table_of(read_results(folder))
    assert table.metric == "nll_bound"
    assert table.rows[0].nll is not None
    assert table.rows[0].nll.mean == 31.0


def test_parameters_are_those_of_whatever_parts_there_are():
    assert Parameters.model_validate(CODES).shown == CODES
    assert list(Parameters.model_validate({"total": 5, "density": 5}).shown) == ["density", "total"]
    with pytest.raises(ValueError, match="total"):
        Parameters.model_validate({"density": 5})
    with pytest.raises(ValueError, match="encoder"):
        Parameters.model_validate({"encoder": "many", "total": 5})


def test_a_run_record_without_a_total_is_refused(fake, tmp_path):
    folder = fake.write_run(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["parameters"] = {"encoder": 3}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"`parameters.total`"):
        read_run(folder)


def test_a_protocol_without_importance_samples_says_so():
    given = {"split": "test", "num_images": 5, "num_importance_samples": None, "seed": 0, "data": "digits"}
    plain = Protocol.model_validate(given)
    assert plain.conditions == "test split, 5 data points, no importance samples; digits"
    assert plain.caution == ""
    one = Protocol.model_validate(given | {"num_importance_samples": 1})
    assert one.conditions == "test split, 5 data points, K = 1 importance sample per data point; digits"
    point = Protocol.model_validate(
        one.model_dump() | {"without_bound": "the posterior is a point without a density"}
    )
    assert point.conditions == plain.conditions
    codes = Protocol.model_validate(given | {"posterior": "one code sequence per image"})
    assert codes.caution.startswith("The bound is that of one code sequence per image: it is exact, but not")


def test_a_density_that_an_equation_gives_is_said_with_its_solver():
    given = {"split": "test", "num_images": 5, "num_importance_samples": 1, "seed": 0, "data": "digits"}
    solved = {"prior_density": "approximate", "prior_solver": "rk4 with 3 steps", "solver_evaluations": 12.0}
    protocol = Protocol.model_validate(given | solved | {"solver_error": 0.00083, "probe_error": 0.2})
    assert protocol.caution.endswith(
        "It is solved by rk4 with 3 steps: 12 evaluations for each latent, 0.00083 nats from that of a finer solution, "
        "a standard error of 0.2 nats from the probes, on average."
    )
    assert protocol.compared == Protocol.model_validate(given).compared


def test_a_picture_that_could_not_be_drawn_has_its_reason_and_no_command(fake, tmp_path):
    folder = fake.write_run(tmp_path / "run")
    index = folder / "samples" / "index.json"
    entries = [entry for entry in json.loads(index.read_text()) if entry["file"] != "interpolations.png"]
    (folder / "samples" / "interpolations.png").unlink(missing_ok=True)
    entries.append({"file": "interpolations.png", "title": "Interpolations", "caption": "Not drawn: codes."})
    index.write_text(json.dumps(entries))
    page = write_run_report(folder).read_text()
    assert "Interpolations: Not drawn: codes." in page
    assert "interpolations.png, " not in page
    assert "interpolations.png. To make" not in page


def test_an_nll_without_importance_samples_is_not_said_to_have_some(fake, tmp_path):
    folder = fake.write_run(tmp_path / "run")
    assert "from K importance samples: on average an upper bound" in write_run_report(folder).read_text()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["protocol"]["num_importance_samples"] = None
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_run_report(folder).read_text()
    assert "negative log-likelihood of the data, without importance samples" in page
    assert "from K importance samples: on average an upper bound" not in page


def test_a_level_of_codes_is_named_with_its_figure(fake, tmp_path):
    folder = fake.write_run(tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["figures"] = BOUND | {"top_perplexity": {"mean": 3.2, "standard_error": None, "unit": "codes"}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_run_report(folder).read_text()
    assert '<th scope="row">Perplexity of the codes, top level</th>' in page
    assert '<th scope="row">NLL, bound</th>' in page
