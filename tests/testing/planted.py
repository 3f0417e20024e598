"""Which properties must name each planted error."""

from collections.abc import Callable
from dataclasses import dataclass, field

from latentflows.bijections import Bijection
from tests.testing import wrong
from tests.testing.right import MADE


@dataclass(frozen=True)
class Planted:
    """A wrong bijection, the properties that must fail, and words that must be in what they say."""

    make: Callable[[], Bijection]
    lacks: tuple[str, ...]
    says: str
    settings: dict = field(default_factory=dict)


PLANTED = {
    "untransposed_sylvester": Planted(
        wrong.UntransposedSylvester, ("log_det",), "against the Jacobian's: expected"
    ),
    "elementwise_radial": Planted(wrong.ElementwiseRadial, ("log_det",), "against the Jacobian's: expected"),
    "actnorm_forgets_after_load": Planted(
        wrong.ForgetfulNormalizing,
        ("initialization",),
        "after load and another `initialize`: expected parameters",
    ),
    "actnorm_starts_in_evaluation": Planted(wrong.EagerNormalizing, ("purity",), "but shift, done changed"),
    "posterior_forgets_after_load": Planted(
        wrong.ForgetfulPosterior,
        ("initialization",),
        "forward after load and another `initialize`: expected parameters",
    ),
    "starts_one_way_only": Planted(
        lambda: wrong.NormalizingOneWay(3),
        ("initialization",),
        "forward: expected `initialize` to set every layer; ['NormalizingOneWay'] still wait",
    ),
    "narrow_made": Planted(
        lambda: MADE(width=3),
        ("dependencies",),
        "lost pairs: (3, 4), (3, 5), (4, 5). Is a masked network too narrow?",
        {"autoregressive_block": 1},
    ),
    "narrow_autoregressive": Planted(
        wrong.NarrowAutoregressive,
        ("dependencies",),
        "lost pairs: (2, 3), (2, 4), (3, 4). Is",
        {"autoregressive_block": 1},
    ),
    "deaf_first_variable": Planted(
        lambda: wrong.PartlyDeaf(context_shape=(3,)),
        ("dependencies",),
        "entries [0] do not depend on the context",
        {"autoregressive_block": 1},
    ),
    "slope_of_the_tails": Planted(
        wrong.SteepTails, ("tails",), "in the tails: log-determinant, against the Jacobian's"
    ),
    "clipped_inverse": Planted(
        wrong.Clipped, ("tails",), "in the tails: log-determinant, against the Jacobian's"
    ),
    "sign": Planted(wrong.WrongSign, ("log_det", "round_trip"), "log-determinant"),
    "scale_reads_itself": Planted(wrong.ReadsItself, ("log_det", "round_trip"), "inverse of forward"),
    "state_in_evaluation": Planted(wrong.Counting, ("purity",), "but mean changed"),
    "half_precision_log_det": Planted(
        wrong.Half, ("autocast",), "expected a log-determinant in torch.float32"
    ),
    "rounded_log_det": Planted(wrong.Rounded, ("autocast",), "which has no more digits than bfloat16"),
    "one_pass_too_many": Planted(
        wrong.Dishonest, ("passes",), "inverse declares 1 network passes; counted 2"
    ),
    "two_passes_too_few": Planted(
        wrong.Boastful, ("passes",), "inverse declares 3 network passes; counted 1"
    ),
    "dtype": Planted(wrong.Single, ("dtypes",), "expected torch.float64, got torch.float32"),
    "padding_is_heard": Planted(wrong.LeakyPadding, ("padding",), "when only the value behind it changes"),
    "padding_overflows": Planted(
        wrong.OverflowingPadding, ("padding",), "when only the value behind it changes: expected 0, got nan"
    ),
    "padding_of_the_context_is_heard": Planted(
        lambda: wrong.LeakyContext(context=True), ("padding",), "when only the context behind it changes"
    ),
    "padding_is_counted": Planted(
        wrong.CountedPadding, ("padding", "padded_round_trip"), "padding moved in rows"
    ),
    "lengths_of_the_first_sample": Planted(
        wrong.SharedLengths, ("padding",), "with lengths [[0, 3, 5], [5, 0, 3]], against that row alone"
    ),
    "unsaved_order": Planted(wrong.UnsavedOrder, ("saving",), "one that loaded the saved state"),
    "shared_memory": Planted(wrong.SharedMemory, ("saving",), "shares its memory with"),
    "unbounded_scale": Planted(wrong.Unbounded, ("extremes",), "expected a finite value"),
    "straight_through": Planted(wrong.StraightThrough, ("gradient_values",), "along a random line: expected"),
    "in_place": Planted(wrong.InPlace, ("purity",), "writes into its input"),
    "random_numbers": Planted(wrong.Noisy, ("purity",), "draws random numbers"),
    "tensor_on_the_cpu": Planted(wrong.OnTheCPU, ("device",), "with everything on another device"),
    "branch_on_a_value": Planted(wrong.Branching, ("compilation",), "raised"),
    "folding": Planted(wrong.Folding, ("orientation",), "expected a determinant of one sign at all points"),
    "view": Planted(wrong.Viewing, ("strides",), "raised RuntimeError: view size is not compatible"),
    "no_rows": Planted(
        wrong.Counted, ("shapes",), "raised RuntimeError: cannot reshape tensor of 0 elements"
    ),
    "mean_of_the_batch": Planted(wrong.Mixing, ("rows",), "within a batch, against that row alone"),
    "sample_before": Planted(
        wrong.MixingSamples, ("rows",), "within 2 samples of 5 points, against that row alone: value"
    ),
    "average_of_samples": Planted(
        wrong.AverageOfSamples, ("rows",), "within 2 samples of 5 points, against that row alone: log-det"
    ),
    "deaf": Planted(wrong.Deaf, ("context", "gradients"), "with another context, got changes"),
    "not_the_identity": Planted(
        wrong.Displaced, ("identity",), "against the identity: expected", {"identity_at_start": True}
    ),
    "unused_parameter": Planted(wrong.Unused, ("gradients",), "gradient of `idle`: expected one, got none"),
    "guessed_inverse": Planted(
        lambda: wrong.Guessing(4), ("missing_direction",), "expected MissingDirectionError, got no error"
    ),
    "unchecked": Planted(
        wrong.Unchecked, ("wrong_event_shape", "wrong_context", "non_finite"), "expected NonFiniteError, got"
    ),
    "terse": Planted(
        wrong.Terse, ("wrong_event_shape", "wrong_context"), "expected a message with 'must end in (4,)"
    ),
    "one_log_det_for_all": Planted(wrong.FlatLogDet, ("shapes", "rows"), "expected log-determinant"),
    "generator_inside": Planted(wrong.Uncopyable, ("copies",), "raised TypeError"),
    "off_by_a_constant": Planted(
        lambda: wrong.OffByAConstant(2), ("normalized", "log_det"), "expected 1, got 3.0"
    ),
    "passes_of_no_number": Planted(
        wrong.Undeclared, ("declaration",), "expected `passes` of (forward, inverse)"
    ),
    "nameless": Planted(wrong.Nameless, ("declaration",), "expected a repr that starts with the class"),
}
