"""Cautions on densities that are not exact: whose they are, once each, and what a comparison may not say."""

import json

import pytest

from latentflows.studies.results.cautions import cautions, of_owners
from latentflows.studies.results.records import Group, Protocol
from latentflows.studies.results.results import read_results

PLAIN = {"split": "test", "num_images": 5, "num_importance_samples": 10, "seed": 0, "data": "digits"}
LARS = {"prior_density": "approximate"}
SOLVED = {"prior_density": "approximate", "prior_solver": "rk4 with 3 steps", "solver_evaluations": 12.0}


def protocol(**more):
    return Protocol.model_validate(PLAIN | more)


@pytest.fixture
def study(fake, tmp_path):
    """An exact prior, an estimated one and an approximate one, at three seeds."""
    folder = fake.write_comparison(tmp_path / "study", gains={"exact": 0.0, "inner": 3.0, "lars": 3.0})

    def measured(line):
        seed = line["seed"]
        density = {
            "exact": {},
            "inner": {"prior_density": "estimate"},
            "lars": LARS | {"normalizer_error": 0.01 * (1 + seed)},
        }[line["arm"]]
        return line | {"protocol": line["protocol"] | density}

    fake.edit_lines(folder / "study.jsonl", measured)
    return folder


def with_samples(fake, folder, number):
    fake.edit_lines(
        folder / "study.jsonl",
        lambda line: line | {"protocol": line["protocol"] | {"num_importance_samples": number}},
    )


def test_seeds_of_a_model_have_one_caution_with_the_range_of_their_errors():
    runs = [protocol(**LARS, normalizer_error=error, seed=seed) for seed, error in enumerate((0.021, 0.012))]
    (said,) = cautions(runs)
    assert "approximate, not exact, with an error of 0.012 to 0.021 nats" in said
    runs = [protocol(**SOLVED, solver_error=error) for error in (0.0004, 0.0004)]
    (said,) = cautions(runs)
    assert said.endswith(
        "by rk4 with 3 steps: 12 evaluations for each latent, 0.0004 nats from that of a finer solution, on average."
    )
    assert cautions([protocol()]) == []


def test_a_caution_names_its_owners_unless_it_is_of_all():
    found = of_owners(
        {
            "NVP": [protocol(split="validation")],
            "LARS": [protocol(split="validation", **LARS, normalizer_error=0.01)],
            "FM": [protocol(split="validation", **SOLVED)],
            "no run": [],
        }
    )
    assert found[0].startswith("The weights were selected on the validation split")
    assert [sentence.split(":")[0] for sentence in found[1:]] == ["“LARS”", "“FM”"]
    alike = of_owners({"A": [protocol(**LARS)], "B": [protocol(**LARS)], "C": [protocol()]})
    assert len(alike) == 1
    assert alike[0].startswith("“A”, “B”: The prior's density is approximate")


def test_an_estimate_is_said_to_shift_elbo_and_kl_and_not_to_break_the_nll():
    (said,) = cautions([protocol(prior_density="estimate")])
    assert "the ELBO is too low and the KL too high" in said
    assert "the NLL stays a bound" in said
    of_data = protocol(prior_density="approximate", num_importance_samples=None)
    assert cautions([of_data])[0].startswith(
        "The model's density is approximate, not exact: the NLL is right up to"
    )


def test_a_density_on_gray_levels_is_said_to_be_no_probability():
    (said,) = cautions([protocol(likelihood="density on gray levels without noise")])
    assert "compares with no figure of another kind" in said
    assert cautions([protocol(likelihood="probability mass")]) == []


def test_a_comparison_of_elbos_says_that_an_estimate_does_not_compare(study, fake):
    results = read_results(study)
    inner, lars = (results.comparison_row(found)["caution"] for found in results.compare("elbo"))
    assert (
        "The density behind the elbo of “Inner” is an estimate, too low on average, so this figure does not"
        in inner
    )
    assert "The density behind the elbo of “Lars” is approximate, not exact (off by about 0.03 nats)" in lars
    inner = results.comparison_row(results.compare("nll")[0])["caution"]
    assert "its bound is looser for that, to its disadvantage" in inner
    with_samples(fake, study, 1)  # the NLL is the negative ELBO
    results = read_results(study)
    assert "nothing about the models follows" in results.comparison_row(results.compare("nll")[0])["caution"]
    assert results.comparison_row(results.compare("reconstruction")[0])["caution"] is None
    assert results.comparisons("elbo")["caution"].notna().all()


def test_exact_densities_need_no_caution(fake, tmp_path):
    results = read_results(fake.write_comparison(tmp_path / "exact"))
    assert [results.comparison_row(found)["caution"] for found in results.compare("elbo")] == [None, None]


def test_rows_say_what_figures_are(study, fake):
    fake.edit_lines(
        study / "study.jsonl",
        lambda line: line | {"protocol": line["protocol"] | {"likelihood": "probability mass"}},
    )
    results = read_results(study)
    rows = {row["arm"]: row for row in results.rows()}
    assert rows["inner"]["likelihood"] == "probability mass"
    assert [rows[arm]["prior_density"] for arm in ("exact", "inner", "lars")] == [
        "exact",
        "estimate",
        "approximate",
    ]
    assert "(3 of 3 seeds), probability mass" in repr(results)


def test_a_lower_bound_from_an_estimate_in_an_older_file_is_left_out():
    figures = {"marginal_kl": {"mean": 2.0}, "marginal_kl_lower": {"mean": 1.5}}
    for density, kept in (("estimate", False), ("approximate", True)):
        group = Group.model_validate({"model": {"prior_density": density}, "figures": figures})
        assert ("marginal_kl_lower" in group.figures) == kept
        assert group.density == density
    assert Group.model_validate({"figures": figures}).density == "exact"


def test_an_older_record_of_a_cross_entropy_is_known_by_its_words():
    reason = "the cross-entropy on gray values is no likelihood"
    assert protocol(without_bound=reason).likelihood == "no likelihood"
    assert protocol(without_bound="the posterior is a point without a density").likelihood is None
    assert json.loads(protocol().model_dump_json())["likelihood"] is None
