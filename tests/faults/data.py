"""Faults to plant in `data`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "data/ambiguous_shapes.py": [
        (
            "ambiguous shapes: every mask as likely as any",
            "steps = self.probabilities[indices].cumsum(-1)",
            "steps = self.probabilities[indices].sign().cumsum(-1) / 4",
        ),
    ],
    "data/energies.py": [
        ("energy: no wall", " + ((x.abs() - _BOX).clamp_min(0) / _WALL).square().sum(1) / 2", ""),
        ("energy: draws are cut where two bumps meet", "points[2 * noise", "points[noise"),
        (
            "energy: the normalizer of the box's unit",
            "2 * math.log(2 * _EDGE / _CELLS)",
            "math.log(2 * _EDGE)",
        ),
    ],
    "data/readers/shapes2d.py": [
        (
            "shapes2d: factors stay behind in the shuffle",
            "factors[rows, 0], rows, factors[rows])",
            "factors[rows, 0], rows, factors[: len(rows)])",
        ),
        ("shapes2d: hearts upside down", "q = 1.2 * u, -1.2 * v + 0.1", "q = 1.2 * u, 1.2 * v + 0.1"),
    ],
    "data/unlabeled.py": [
        ("unlabeled: the others are left out", "like=labels) >= self.share", "like=labels) < self.share"),
    ],
}
