"""Every kind of every part trains, is evaluated and drawn from; the page of what combines with what is up to date."""

from pathlib import Path

import pytest

from tests.studies.matrix import (
    KINDS,
    MODELS,
    OWN_STAGE,
    PARTS,
    PARTS_OF_MODEL,
    USUAL,
    WITHOUT_PRIOR,
    model_refusal,
    overrides,
    page,
    refusal,
    train,
    train_model,
)

DOCS = Path(__file__).parents[2] / "docs" / "combinations.md"


def rows():
    """A row for every kind, the other parts taken in turn, so that each kind meets others than the usual ones."""
    longest = max(map(len, KINDS.values()))
    for turn in range(longest):
        yield tuple(
            (part, KINDS[part][(turn * (step + 1) + step) % len(KINDS[part])])
            for step, part in enumerate(PARTS)
        )


ROWS = list(dict.fromkeys(rows()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(kind for _, kind in row))
def test_a_combination_trains_is_measured_and_drawn_from_or_is_refused_with_what_to_use(row):
    why = refusal(row)
    if why is None:
        train(row)
    else:
        assert "Use " in why
        assert "got" in why or "`" in why


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("part", "kind"), [(part, kind) for part in PARTS for kind in KINDS[part]])
def test_every_kind_trains_beside_the_usual_ones(part, kind):
    train(((part, kind),))


MODEL_ROWS = [
    (model, part, kind) for model in MODELS for part in PARTS_OF_MODEL[model] for kind in KINDS[part]
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model", "part", "kind"), MODEL_ROWS)
def test_what_another_model_takes_trains_and_the_rest_is_refused(model, part, kind):
    why = model_refusal(model, part, kind)
    if why is None:
        train_model(model, part, kind)
    else:
        assert "Use " in why


def test_every_model_has_its_rows():
    assert set(PARTS_OF_MODEL) == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_no_kind_of_a_part_that_a_model_does_not_look_at_is_taken(model):
    for part in set(PARTS) - set(PARTS_OF_MODEL[model]):
        taken = [kind for kind in KINDS[part] if model_refusal(model, part, kind) is None]
        assert taken in ([], [USUAL[part]])


def test_the_page_of_combinations_is_that_of_the_code():
    assert DOCS.read_text() == page(), "Run: python -m tests.studies.matrix > docs/combinations.md"


def test_the_plans_that_a_row_needs_are_those_that_are_refused_otherwise():
    for kind in OWN_STAGE:
        assert "training.plan=two_stage" in overrides(prior=kind)
    for kind in WITHOUT_PRIOR:
        assert "training.plan=two_stage" in overrides(objective=kind, prior="maf")
        assert "training.plan=two_stage" not in overrides(objective=kind)
