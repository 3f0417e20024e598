"""Faults to plant in `transforms`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "transforms/affine.py": [
        (
            "affine: inverse log-derivative keeps its sign",
            "(-log_scale).exp(), -log_scale",
            "(-log_scale).exp(), log_scale",
        ),
        (
            "affine: log-derivative of the unbounded number",
            "log_scale.exp()), log_scale",
            "log_scale.exp()), scale",
        ),
        (
            "affine: shift and scale swapped",
            "torch.addcmul(shift, u, log_scale.exp())",
            "torch.addcmul(log_scale.exp(), u, shift)",
        ),
        ("additive: inverse adds", "return x - raw[0]", "return x + raw[0]"),
    ],
    "transforms/spline.py": [
        (
            "spline: slopes at the ends swapped",
            "part, whole, slope = _curve(t, 1 - t, left, right)",
            "part, whole, slope = _curve(t, 1 - t, right, left)",
        ),
        (
            "spline: log-derivative without the chord",
            "(slope / whole * (chord / whole)).log()",
            "(slope / whole / whole).log()",
        ),
        ("spline: inverse takes the other root", "falls = half.signbit()", "falls = ~half.signbit()"),
        (
            "spline: inverse keeps the sign of the log-derivative",
            "(whole / slope * (whole / chord)).log()",
            "(slope / whole * (chord / whole)).log()",
        ),
    ],
}
