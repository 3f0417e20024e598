"""`check_bijection` names every planted error, passes what is right, and touches nothing."""

import copy
import re
from pathlib import Path

import pytest
import torch

from latentflows.bijections import Bijection, Inverse, Sigmoid
from latentflows.core.errors import ConfigurationError
from latentflows.testing import PROPERTIES, PropertyError, Settings, Subject, check_bijection
from latentflows.testing.check import Report
from tests.testing.planted import PLANTED
from tests.testing.right import RIGHT, Halves
from tests.testing.wrong import ForgetfulNormalizing, UntransposedSylvester, WrongSign

QUICK = tuple(key for key in PROPERTIES if key not in ("log_det", "round_trip"))


class Raises(Bijection):
    """A map that was never written."""

    def __init__(self) -> None:
        super().__init__(3, passes=(0, 0))

    def _forward(self, u, context):
        raise RuntimeError("not written yet")

    _inverse = _forward


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Sigmoid, "without arguments, but `Sigmoid` needs some (missing a required argument: 'event_shape')"),
        (
            torch.nn.Linear(3, 3),
            "expects a Bijection, or a function that makes one; got Linear. Give a bijection",
        ),
        (lambda: 3, "expects a Bijection, or a function that makes one; got int"),
    ],
)
def test_what_is_no_bijection_is_refused(source, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        check_bijection(source)


def test_a_text_is_no_list_of_properties():
    with pytest.raises(
        ConfigurationError, match=re.escape("got the text 'dtypes'. Write skip=[\"dtypes\"].")
    ):
        check_bijection(Sigmoid(2), skip="dtypes")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_named(name):
    planted = PLANTED[name]
    skip = () if "compilation" in planted.lacks else ("compilation",)
    with pytest.raises(PropertyError) as caught:
        check_bijection(planted.make, skip=skip, **planted.settings)
    failed = caught.value.report.failed
    assert set(planted.lacks) <= set(failed)
    assert any(planted.says in failed[key] for key in planted.lacks), failed


def test_every_property_catches_some_error():
    assert {key for planted in PLANTED.values() for key in planted.lacks} == set(PROPERTIES)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name):
    make, settings = RIGHT[name]
    report = check_bijection(make, **settings)
    assert not report.failed
    assert set(report.passed) | set(report.left_out) == set(PROPERTIES)
    assert str(report) == f"`{report.bijection}` has all {len(report.passed)} properties."


def test_every_property_passes_somewhere():
    subjects = [Subject(make, Settings(**settings)) for make, settings in RIGHT.values()]
    tried = {key for key, item in PROPERTIES.items() if any(not item.left_out(s) for s in subjects)}
    assert tried | {"identity"} == set(PROPERTIES)


def test_all_that_fail_are_reported_together():
    with pytest.raises(PropertyError) as caught:
        check_bijection(WrongSign(), skip=QUICK)
    lines = str(caught.value).splitlines()
    assert lines[0] == "`WrongSign` lacks 2 of 2 properties:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["log_det", "round_trip"]
    with pytest.raises(PropertyError) as caught:
        check_bijection(Raises, skip=("compilation",))
    text = str(caught.value)
    assert text.count("raised RuntimeError: not written yet") == 1  # one fault, all that it breaks before it
    assert "shapes, rows, strides, log_det" in text
    assert text.endswith("return: the value and a log-determinant that broadcasts to (K, B).")
    assert "hooks" not in str(PropertyError(Report("A", (), {"shapes": "raised TypeError: no"}, {})))
    assert isinstance(caught.value, AssertionError)


def test_an_error_that_small_parameters_hide():
    check_bijection(UntransposedSylvester, scales=(0.01,), tolerance=1e-6)
    with pytest.raises(PropertyError, match=r"log_det: forward at parameter scale 1\.0"):
        check_bijection(UntransposedSylvester, scales=(0.01, 1.0), tolerance=1e-6, skip=("compilation",))


def test_an_instance_is_checked_like_what_a_function_builds():
    with pytest.raises(PropertyError) as caught:
        check_bijection(ForgetfulNormalizing(), skip=("compilation",))
    assert set(caught.value.report.failed) == {"initialization"}


def test_the_bijection_and_the_random_generator_stay_as_they_are():
    bijection = Halves(context_shape=(3,)).eval()
    before, generator = copy.deepcopy(bijection.state_dict()), torch.get_rng_state()
    check_bijection(bijection)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in bijection.state_dict().items())
    assert not bijection.training
    assert all(parameter.grad is None for parameter in bijection.parameters())
    assert all(not module._forward_hooks for module in bijection.modules())


def test_the_seed_decides_what_is_drawn():
    found = []
    for seed in (0, 0, 1):
        with pytest.raises(PropertyError) as caught:
            check_bijection(WrongSign, seed=seed, skip=QUICK)
        found.append(str(caught.value))
    assert found[0] == found[1] != found[2]


def test_what_has_an_end_is_drawn_within_it():
    check_bijection(lambda: Sigmoid(3), event_support=(0, 1))
    check_bijection(lambda: Inverse(Sigmoid(3)), base_support=(0, 1))
    with pytest.raises(PropertyError):
        check_bijection(lambda: Inverse(Sigmoid(3)), skip=("compilation",))


@pytest.mark.parametrize(
    ("support", "low", "high"),
    [((0.0, 1.0), 0, 1), ((2.0, torch.inf), 2, 1e9), ((-torch.inf, -1.0), -1e9, -1)],
)
def test_draws_lie_inside_the_support(support, low, high):
    subject = Subject(Halves, Settings(base_support=support))
    u = subject.values(subject.build(), "forward", 1000)
    assert ((u > low) & (u < high)).all()
    assert u.std() > 0.2


def test_what_is_skipped_is_said():
    report = check_bijection(Halves, skip=("compilation", "device"))
    assert report.left_out["compilation"] == "`skip` names it"
    assert report.left_out["context"] == "it takes no context"
    assert not {"compilation", "device", "context"} & set(report.passed)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (Halves, {"skip": ("speed",)}, r"`skip` must hold names of \[.*\]; got \['speed'\]"),
        (lambda: torch.nn.Linear(2, 2), {}, "expects a Bijection, or a function that makes one; got Linear"),
        (Halves, {"tolerance": 0}, "`tolerance` must be positive and finite; got 0"),
        (Halves, {"scales": ()}, "`scales` must name at least one scale"),
        (Halves, {"scales": (1.0, -1.0)}, "`scales` must be positive and finite; got -1.0"),
        (Halves, {"event_support": (1, 1)}, r"`event_support` must be \(low, high\) with low < high"),
        (Halves, {"autoregressive_block": -1}, "`autoregressive_block` must be a positive integer; got -1"),
        (Halves, {"frame_group": 0}, "`frame_group` must be a positive integer; got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(source, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        check_bijection(source, **settings)


def test_every_property_says_what_it_is():
    for item in PROPERTIES.values():
        assert item.summary.endswith(".")
        assert len(item.summary) < 120


def test_the_documentation_lists_every_property():
    page = Path(__file__).parents[2] / "docs" / "testing-your-own.md"
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [row for row in rows if row[0] in PROPERTIES] == [
        (key, item.summary) for key, item in PROPERTIES.items()
    ]
