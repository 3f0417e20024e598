"""The file of a study: crossing, references, and every fault named at once."""

import re

import pytest

from latentflows.core.errors import ConfigurationError
from latentflows.studies.planning.faults import shared_faults
from latentflows.studies.planning.plan import plan
from latentflows.studies.planning.ready import ready_studies
from latentflows.studies.planning.study import Arm, Budget, Study
from latentflows.studies.planning.study_file import checked, read_study, untaken, unused

LISTED = {
    "name": "s",
    "arms": [{"name": "a"}, {"name": "b", "overrides": ["prior=real_nvp"]}],
    "seeds": [0, 1],
    "baseline": "a",
}
CROSSED = {
    "name": "s",
    "factors": [
        {"name": "latents", "key": "latent_dim", "values": [2, 8]},
        {
            "name": "prior",
            "levels": [
                {"name": "none"},
                {"name": "flow", "overrides": ["prior=real_nvp"], "solve": "prior.width"},
            ],
        },
    ],
    "seeds": [0],
    "baseline": {"prior": "none"},
}


def test_factors_are_crossed_in_order():
    study = Study.model_validate(CROSSED)
    arms = {arm.name: arm for arm in study.all_arms()}
    assert list(arms) == ["latents2-none", "latents2-flow", "latents8-none", "latents8-flow"]
    assert arms["latents8-flow"].overrides == ["latent_dim=8", "prior=real_nvp"]
    assert arms["latents8-flow"].solve == "prior.width"
    assert arms["latents2-none"].solve is None
    assert arms["latents8-flow"].label == "latent_dim=8, flow"
    configuration = study.configuration(arms["latents8-flow"], 3, ["prior.width=7"])
    assert (configuration.latent_dim, configuration.prior.width, configuration.seed) == (8, 7, 3)
    assert configuration.name == "latents8-flow-seed3"


def test_arms_are_crossed_with_factors():
    raw = CROSSED | {"arms": [{"name": "x", "overrides": ["objective.beta=2"]}, {"name": "y"}]}
    study = Study.model_validate(raw)
    assert len(study.all_arms()) == 8
    assert study.all_arms()[0].overrides == ["objective.beta=2", "latent_dim=2"]
    assert study.counterparts({"prior": "none"})["y-latents8-flow"] == "y-latents8-none"


def test_a_level_as_baseline_pairs_arms_that_differ_in_that_factor_alone():
    study = Study.model_validate(CROSSED)
    assert study.pairs() == [("latents2-flow", "latents2-none"), ("latents8-flow", "latents8-none")]
    both = study.counterparts({"prior": "none", "latents": "latents2"})
    assert both == dict.fromkeys(("latents2-flow", "latents8-none", "latents8-flow"), "latents2-none")


def test_two_axes_of_two_levels_have_an_interaction_and_others_have_none():
    study = Study.model_validate(CROSSED)
    assert study.interaction() == {
        "both": "latents8-flow",
        "first": "latents8-none",
        "second": "latents2-flow",
        "neither": "latents2-none",
        "labels": ["latent_dim=8", "flow"],
    }
    assert study.listed()["interaction"] == study.interaction()
    for baseline in (
        "latents8-none",
        {"latents": "latents8"},
    ):  # changes are from what others are compared with
        found = Study.model_validate(CROSSED | {"baseline": baseline}).interaction()
        assert (found["both"], found["neither"], found["labels"]) == (
            "latents2-flow",
            "latents8-none",
            ["latent_dim=2", "flow"],
        )
    three = [CROSSED["factors"][1], {"name": "n", "key": "latent_dim", "values": [2, 4, 8]}]
    assert Study.model_validate(CROSSED | {"factors": three}).interaction() is None
    assert Study.model_validate(CROSSED | {"factors": CROSSED["factors"][1:]}).interaction() is None
    more = CROSSED | {"arms": [{"name": "x"}, {"name": "y", "overrides": ["objective.beta=2"]}]}
    assert Study.model_validate(more).interaction() is None  # three axes
    two = Study.model_validate(more | {"factors": CROSSED["factors"][1:]})
    assert (two.interaction()["first"], two.interaction()["second"]) == ("y-none", "x-flow")
    assert Study.model_validate(LISTED).interaction() is None


def test_a_study_made_in_python_names_all_that_does_not_fit():
    with pytest.raises(
        ValueError, match=r"once; got 1 .*`baseline` must be one of a; .*`comparisons` names q"
    ):
        Study(name="s", arms=[Arm(name="a")], seeds=[0, 1, 1], baseline="zz", comparisons=[("a", "q")])


def test_a_listed_baseline_is_compared_with_every_other_arm():
    study = Study.model_validate(LISTED | {"arms": [*LISTED["arms"], {"name": "c"}]})
    assert study.pairs() == [("b", "a"), ("c", "a")]
    assert Study.model_validate(LISTED | {"comparisons": [("a", "b")]}).pairs() == [("a", "b")]


def test_the_listed_form_reads_as_the_same_arms():
    listed = Study.model_validate(CROSSED).listed()
    assert [arm["name"] for arm in listed["arms"]][:2] == ["latents2-none", "latents2-flow"]
    assert listed["baseline"] == "latents2-none"
    assert listed["comparisons"][0] == ["latents2-flow", "latents2-none"]
    assert "factors" not in listed


FAULTS = {
    "seed twice": (LISTED | {"seeds": [0, 1, 0]}, "a seed must be listed once; got 0"),
    "negative seed": (LISTED | {"seeds": [-1]}, "at least 0"),
    "unknown baseline": (LISTED | {"baseline": "c"}, "`baseline` must be one of a, b; got 'c'"),
    "unknown level": (CROSSED | {"baseline": {"prior": "x"}}, "names the level 'x' of prior"),
    "unknown factor": (CROSSED | {"baseline": {"p": "x"}}, "names the factor 'p'"),
    "no factor": (CROSSED | {"baseline": {}}, "must name a factor and its level"),
    "arms of one folder where case does not count": (
        LISTED | {"arms": [{"name": "a"}, {"name": "A"}, {"name": "b"}]},
        "names of arms must differ in more than case, as they name folders; got A and a",
    ),
    "arm twice": (LISTED | {"arms": [{"name": "a"}, {"name": "a"}]}, "names of arms must differ; got a"),
    "label twice": (
        LISTED | {"arms": [{"name": "a", "label": "L"}, {"name": "b", "label": "L"}]},
        "labels of arms must differ; got L",
    ),
    "no arms": ({"name": "s", "seeds": [0], "baseline": "a"}, "needs `arms`, `factors`, or both"),
    "unknown pair": (LISTED | {"comparisons": [("a", "z")]}, "`comparisons` names z"),
    "pair with itself": (LISTED | {"comparisons": [("a", "a")]}, "compares a with itself"),
    "budget without amount": (LISTED | {"budget": {"hold": "model"}}, "give either `target`"),
    "budget like nothing": (
        LISTED | {"budget": {"hold": "model", "like": "z"}},
        "`budget.like` must be one of a, b",
    ),
    "unknown key": (LISTED | {"sedes": [1]}, "`sedes` is no key here; the keys are name"),
    "unknown key of an arm": (
        LISTED | {"arms": [{"name": "a", "override": []}]},
        "the keys are name, label, overrides",
    ),
    "two forms of a factor": (
        CROSSED | {"factors": [{"name": "f", "key": "latent_dim", "values": [1], "levels": [{"name": "x"}]}]},
        "give either `levels`, or a `key` and its `values`",
    ),
    "key without values": (
        CROSSED | {"factors": [{"name": "f", "key": "latent_dim"}]},
        "give either `levels`",
    ),
    "value twice": (
        CROSSED | {"factors": [{"name": "f", "key": "latent_dim", "values": [2, 2]}]},
        "levels must differ; got f2, f2",
    ),
    "two axes set one key": (
        CROSSED | {"arms": [{"name": "x", "overrides": ["latent_dim=3"]}]},
        "`latent_dim` is set by x and by latents2, which are crossed",
    ),
    "solved and set": (
        CROSSED
        | {
            "factors": [
                CROSSED["factors"][0],
                {"name": "f", "levels": [{"name": "n", "solve": "latent_dim"}]},
            ],
            "baseline": {"latents": "latents2"},
        },
        "n solves for `latent_dim`, which latents2 sets",
    ),
    "no list": (LISTED | {"seeds": 3}, "`seeds`: Input should be a valid list; got 3"),
    "a level that is none": (
        CROSSED | {"baseline": {"latents": 4}},
        "`baseline.latents`: Input should be a valid string; got 4",
    ),
    "two axes solve": (
        CROSSED | {"arms": [{"name": "x", "solve": "latent_dim"}]},
        "`solve` must stand in one of arms and factors; got it in arms, prior",
    ),
    "factor twice": (CROSSED | {"factors": [CROSSED["factors"][0]] * 2}, "factors must differ"),
    "a seed of its own": (
        LISTED | {"arms": [{"name": "a", "overrides": ["seed=5"]}, {"name": "b"}]},
        "`seed` cannot be an override of an arm: list `seeds`; given by a",
    ),
    "a name by override": (
        LISTED | {"arms": [{"name": "a"}, {"name": "b", "overrides": ["name=x"]}]},
        "`name` cannot be an override of an arm",
    ),
    "a size of the arm that others meet": (
        LISTED
        | {
            "arms": [{"name": "a", "solve": "latent_dim"}, {"name": "b"}],
            "budget": {"hold": "model", "like": "a"},
        },
        "a solves for `latent_dim`, but `budget.like` has the others meet its amount",
    ),
    "a size of the level that others meet": (
        CROSSED | {"budget": {"hold": "model", "like": {"prior": "flow"}}},
        "latents2-flow solves for `prior.width`, but",
    ),
    "name with a slash": (LISTED | {"arms": [{"name": "a/b"}]}, "names must be of letters, digits"),
    "name with a line of its own": (LISTED | {"arms": [{"name": "a\n"}]}, "names must be of letters, digits"),
    "pair twice": (
        LISTED | {"comparisons": [("a", "b"), ("a", "b")]},
        "`comparisons` must list a pair once, in one order; got a with b 2 times",
    ),
    "pair in both orders": (
        LISTED | {"comparisons": [("a", "b"), ("b", "a")]},
        "`comparisons` must list a pair once, in one order; got a with b 2 times",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_study_is_refused(name):
    raw, message = FAULTS[name]
    with pytest.raises(ConfigurationError, match="is no study") as error:
        checked(raw, "file.yaml")
    assert message in str(error.value)


def test_all_faults_are_named_at_once():
    raw = LISTED | {"sedes": 1, "seeds": [1, 1], "budget": {"hold": "money"}}
    with pytest.raises(ConfigurationError) as error:
        checked(raw, "file.yaml")
    assert all(key in str(error.value) for key in ("`sedes`", "`seeds`", "`budget.hold`", "4 faults"))
    assert "give either `target`" in str(error.value)


def test_a_wrong_key_does_not_hide_what_names_nothing():
    raw = LISTED | {"sedes": 1, "seeds": [1, 1], "baseline": "c", "budget": {"hold": "model", "like": "d"}}
    with pytest.raises(ConfigurationError) as error:
        checked(raw, "file.yaml")
    parts = (
        "4 faults",
        "`sedes`",
        "`seeds`",
        "`baseline` must be one of a, b",
        "`budget.like` must be one of",
    )
    assert all(part in str(error.value) for part in parts)


def named(raw):
    """The faults of a mapping, one a line."""
    with pytest.raises(ConfigurationError, match="is no study") as error:
        checked(raw, "file.yaml")
    return str(error.value).splitlines()[1:] or [str(error.value)]


def assert_named(raw, *parts):
    """Each part is in a fault of its own, and there is no other."""
    faults = named(raw)
    assert len(faults) == len(parts), faults
    for part, fault in zip(parts, faults, strict=True):
        assert part in fault


def test_no_fault_of_a_file_hides_another():
    arms = [
        {"name": "a", "label": "1", "overrides": ["prior=real_nvpp"]},
        {"name": "a", "label": "2", "overrides": ["foo.bar=1"]},
        {"name": "c", "overrides": ["prior.num_layers=2"], "solve": "network.wdith"},
        {"name": "d", "overrides": ["evaluation.num_images=7"]},
        {"name": "e"},
    ]
    raw = {
        "name": "s",
        "arms": arms,
        "seeds": [0, 0, -1, "x"],
        "baseline": "y",
        "comparisons": [["a", "q"], ["d", "d"]],
        "budget": {"hold": "model", "like": "z", "tolerance": 2},
        "color": "red",
    }
    assert_named(
        raw,
        "`seeds.2`: a seed must be at least 0 and below 2**32; got -1",
        "`seeds.3`: Input should be a valid integer",
        "`budget.tolerance`: Input should be less than 1; got 2",
        "`color` is no key here",
        "`seeds`: a seed must be listed once; got 0",
        "names of arms must differ; got a",
        "`baseline` must be one of a, c, d, e; got 'y'",
        "`budget.like` must be one of a, c, d, e; got 'z'",
        "`comparisons` names q",
        "`comparisons` compares d with itself",
        "a: `prior.kind` must be",
        "a: `foo`",
        "c: `prior.num_layers`",
        "c: no value of `network.wdith` can be built; with 1: `network.wdith` (given '1') is no key of `network`",
        "`evaluation.num_images` differs between arms",
    )


def test_what_cannot_be_read_is_no_fault_of_what_refers_to_it():
    arms = [
        {"name": "a", "overrides": "prior=maf", "solve": "prior.width"},
        {"label": "x", "overrides": ["latent_dim=3"]},
        "c",
        {"name": "d"},
    ]
    budget = {"hold": "model", "like": 3, "solve": "prior.num_layers"}
    assert_named(
        {"name": "s", "arms": arms, "seeds": ["x"], "baseline": "c", "budget": budget},
        "`arms.0.overrides`",
        "`arms.1.name` is missing",
        "`arms.2`",
        "`seeds.0`",
        "`budget.like`",
        "`budget.like`",
    )
    assert_named(LISTED | {"budget": 3, "arms": [{"name": "a", "solve": "latent_dim"}]}, "`budget`")
    assert_named(LISTED | {"base": 3, "arms": [{"name": "a", "overrides": ["prior=x"]}]}, "`base`")
    factors = [{"name": "f", "key": "latent_dim"}]
    assert_named(CROSSED | {"factors": factors, "seeds": [1, 1]}, "`factors.0`: give either", "`seeds`")
    two = {"hold": "model", "like": "z", "target": 3}
    assert_named(LISTED | {"budget": two}, "`budget`: give either `target`", "`budget.like` must be one of")
    assert_named(
        LISTED | {"budget": {1: 2}}, "`budget.hold` is missing", "`budget.1", "`budget`: give either"
    )


def test_all_overrides_of_a_study_that_do_not_apply_are_named(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: s\narms: [{name: a}, {name: b}]\nseeds: [0]\n")
    with pytest.raises(ConfigurationError) as error:
        read_study(path, ["sedes=0", "seed=7", "training"])
    assert [
        part in line
        for part, line in zip(
            ("`sedes=0`", "`seed=7`", "`training`"), str(error.value).splitlines(), strict=True
        )
    ]
    with pytest.raises(ConfigurationError, match=r"`seeds.0`.*\n.*`seeds.1`"):
        read_study(path, ["seeds=-1,a"])


@pytest.mark.parametrize(
    ("arms", "names"),
    [
        ({"arms": [{"name": "a"}, {"name": "b"}]}, "a and b"),
        ({"arms": [{"name": "a", "overrides": ["latent_dim=8"]}, {"name": "c"},
                   {"name": "b", "overrides": ["latent_dim=4", "latent_dim=8"]}]}, "a and b"),
        ({"factors": [{"name": "l", "key": "latent_dim", "values": [8, 8.0]}]}, "l8 and l8.0"),
        (
            {"factors": [{"name": "r", "key": "training.learning_rate", "values": ["1e-3", "0.001"]}]},
            "r1e-3 and r0.001",
        ),
    ],
)  # fmt: skip
def test_arms_that_are_one_are_refused(arms, names):
    study = Study.model_validate({"name": "s", "seeds": [0, 1], **arms})
    with pytest.raises(ConfigurationError, match=f"{re.escape(names)} have the same configuration"):
        plan(study)


def test_arms_that_differ_in_what_is_solved_for_alone_are_two():
    arms = [Arm(name="a"), Arm(name="b", solve="latent_dim"), Arm(name="c", solve="nothing")]
    study = Study(name="s", arms=arms, seeds=[0], budget=Budget(hold="model", target=1.0))
    assert shared_faults(study, arms) == [
        "the arms a and c have the same configuration, so they are one arm. Leave out all but one."
    ]


def test_faults_of_arms_are_named_with_those_of_the_file():
    arms = [{"name": "a", "overrides": ["prior=planar"]}, {"name": "b"}, {"name": "c"}]
    raw = LISTED | {"arms": arms, "seeds": [1, 1], "baseline": "z", "base": {"training": {"epoch": 1}}}
    with pytest.raises(ConfigurationError) as error:
        checked(raw, "file.yaml")
    text = str(error.value)
    assert text.startswith("file.yaml is no study; 4 faults:")
    assert all(part in text for part in ("`seeds`", "`baseline` must be", "b, c: `training.epoch`", "planar"))
    with pytest.raises(ConfigurationError, match="is no study"):
        checked(raw | {"arms": [{"name": "a"}] * 2, "seeds": [1], "baseline": "a"}, "file.yaml")


def test_overrides_reach_every_arm_and_the_studys_own_keys(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\nbase: {latent_dim: 3, training: {epochs: 9, batch_size: 10}}\narms: [{name: a}, {name: b, overrides: "
        "[training.epochs=2]}]\nseeds: [0]\nbaseline: a\nbudget: {hold: model, like: a}\n"
    )
    study = read_study(str(path), ["seeds=4, 5", "training.epochs=7", "data=mnist", "budget.tolerance=0.5"])
    assert study.seeds == [4, 5]
    assert study.budget.tolerance == 0.5
    a, b = (study.configuration(arm, 4) for arm in study.all_arms())
    assert (a.training.epochs, b.training.epochs) == (7, 2)  # an arm's own override stays
    assert (a.latent_dim, a.training.batch_size, a.data.name) == (3, 10, "mnist")
    assert (a.name, a.seed) == ("a-seed4", 4)


def test_what_reaches_some_arms_alone_is_known(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\nbase: {training: {epochs: 9}, prior: real_nvp}\narms: [{name: sets, overrides: [training.epochs=2]}, "
        "{name: takes}, {name: resets, overrides: [prior=maf]}, {name: solves, solve: training.epochs}]\n"
        "seeds: [0]\nbaseline: sets\nbudget: {hold: training_flops, like: takes}\n"
    )
    for overrides, missed in {
        ("training.epochs=7",): {"training.epochs=7": ["sets", "solves"]},
        ("prior.width=3",): {"prior.width=3": ["resets"]},
        ("prior=mixture", "prior.num_components=3"): {
            "prior=mixture": ["resets"],
            "prior.num_components=3": ["resets"],
        },
        ("training.batch_size=7", "seeds=1,2", "budget.tolerance=0.5", "data=mnist"): {},
        ("training.learning_rate=1e-3", "evaluation.gaps=0"): {},  # as it is without them
        ("training.epochs=2",): {"training.epochs=2": ["solves"]},  # an arm that sets the same has it
    }.items():
        assert untaken(read_study(path, overrides), overrides) == missed


def test_what_no_arm_has_from_the_base_is_known():
    base = {"latent_dim": 3, "prior": {"kind": "mixture", "num_components": 9}, "training": {"epochs": 2}}
    sets = [{"name": "flow", "overrides": ["prior=real_nvp"]}, {"name": "maf", "overrides": ["prior=maf"]}]
    study = Study.model_validate(LISTED | {"base": base, "arms": sets, "baseline": "maf"})
    assert unused(study) == ["prior.kind", "prior.num_components"]
    takes = [*sets, {"name": "takes"}]
    assert unused(Study.model_validate(LISTED | {"base": base, "arms": takes, "baseline": "maf"})) == []
    own = {"name": "x", "seed": 0, "data": "mnist"}  # of each run, not of what they share
    solved = {"budget": {"hold": "model", "target": 9}, "arms": [{"name": "a", "solve": "latent_dim"}]}
    assert unused(Study.model_validate(LISTED | {"base": base | own} | solved)) == [
        "latent_dim",
        "name",
        "seed",
    ]
    assert all(not unused(study) for study in ready_studies().values())


def test_labels_follow_what_overrides_make_of_arms(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\nfactors:\n"
        "  - {name: f, levels: [{name: none, label: 'N(0, I)'}, {name: flow, overrides: [prior=real_nvp]}]}\n"
        "  - {name: n, key: latent_dim, values: [2, 4]}\nseeds: [0]\n"
    )
    study = read_study(path, ["prior=maf", "prior=mixture", "training.epochs=2", "seeds=1"])
    assert [arm.label for arm in study.all_arms()] == [
        "N(0, I), prior=mixture, latent_dim=2",
        "N(0, I), prior=mixture, latent_dim=4",
        "flow, latent_dim=2",
        "flow, latent_dim=4",
    ]
    path.write_text("name: s\narms: [{name: a}, {name: b, overrides: [training.epochs=3]}]\nseeds: [0]\n")
    study = read_study(path, ["training.epochs=7", "latent_dim=3"])
    assert [arm.label for arm in study.all_arms()] == ["a, training.epochs=7", "b"]
    assert [arm.name for arm in study.all_arms()] == ["a", "b"]


def test_null_takes_a_key_of_the_study_away(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\narms: [{name: none}, {name: b}, {name: c}]\nseeds: [0]\nbaseline: b\nsmallest_difference: 0.5\n"
        "budget: {hold: model, like: b, solve: network.width, tolerance: 0.1}\n"
    )
    study = read_study(path, ["baseline=null", "smallest_difference=null", "budget.tolerance=null"])
    assert (study.baseline, study.smallest_difference, study.budget.tolerance) == (None, None, None)
    assert study.budget.solve == "network.width"
    assert read_study(path, ["baseline=none", "budget=null"]).baseline == "none"
    assert read_study(path, ["budget=null"]).budget is None
    with pytest.raises(
        ConfigurationError, match=r"`budget=model`: a budget has the keys hold, .* Give budget\.KEY"
    ):
        read_study(path, ["budget=model"])


def test_what_reaches_no_arm_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\narms: [{name: a, overrides: [prior=real_nvp, prior.width=4]}, {name: b, overrides: [prior=maf]}]\n"
        "seeds: [0]\nbaseline: a\n"
    )
    with pytest.raises(
        ConfigurationError, match=r"`prior\.width=3` would change nothing: a, b set or solve for it"
    ):
        read_study(path, ["training.epochs=7", "prior.width=3"])
    read_study(path, ["prior.width=3", "prior.width=4"])  # of one key the last counts, and a has it


def test_the_listed_form_of_a_study_with_a_single_level():
    one = {"factors": [{"name": "f", "key": "latent_dim", "values": [2]}], "baseline": {"f": "f2"}}
    listed = Study.model_validate(CROSSED | one).listed()
    assert (listed["baseline"], listed["comparisons"]) == ("f2", [])


def test_a_bad_override_of_a_study_is_named_once_for_all_arms(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: s\narms: [{name: a}, {name: b}]\nseeds: [0]\nbaseline: a\n")
    with pytest.raises(ConfigurationError, match="key=value"):
        read_study(path, ["training"])
    with pytest.raises(ConfigurationError, match=r"`sedes=0`: .* Did you mean seeds"):
        read_study(path, ["sedes=0"])
    with pytest.raises(
        ConfigurationError, match=r"`seed=7`: every arm runs with each of `seeds`. Give seeds=7"
    ):
        read_study(path, ["seed=7"])
    with pytest.raises(ConfigurationError) as error:
        plan(read_study(path, ["training.epoch=7"]))
    assert str(error.value).startswith("Arms 'a', 'b': `training.epoch`")


def test_an_override_fits_what_the_arms_make_of_the_base(tmp_path):
    """A base may be complete with its arms alone, and what is filled in for it must not become the arms' own."""
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\nbase: {training: {plan: two_stage}}\narms: [{name: a, overrides: [prior=real_nvp]}, {name: b, "
        "overrides: [prior=mixture]}, {name: c, overrides: [model=flow, prior=real_nvp, training.plan=one_stage]}]\n"
        "seeds: [0]\nbaseline: a\n"
    )
    study = read_study(path, ["training.epochs=7"])
    a, b, c = (study.configuration(arm, 0) for arm in study.all_arms())
    assert (a.training.epochs, b.training.epochs, c.training.epochs) == (7, 7, 7)
    assert (a.data.preparation, c.data.preparation) == ("dynamic_binary", "dequantized")


def test_published_figures_belong_to_arms():
    published = {"source": "A paper, 2020", "epochs": 10, "figures": {"a": "1.0 ± 0.1"}}
    assert Study.model_validate(LISTED | {"published": published}).published.figures == {"a": "1.0 ± 0.1"}
    with pytest.raises(ConfigurationError, match="`published` names z; the arms are a, b"):
        checked(LISTED | {"published": published | {"figures": {"z": "1"}}}, "file.yaml")


def test_without_a_baseline_the_others_are_compared_with_the_first_arm():
    study = Study(name="two", arms=[Arm(name="first"), Arm(name="second")], seeds=[0])
    assert study.pairs() == [("second", "first")]
    assert study.listed()["baseline"] == "first"
    alone = Study(name="one", arms=[Arm(name="only")], seeds=[0])
    assert (alone.pairs(), alone.listed()["baseline"]) == ([], "only")
