"""Faults to plant in `generation`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "generation/drawing.py": [
        (
            "classes: rows and columns change places",
            "torch.tensor(labels).repeat_interleave(num_each)",
            "torch.tensor(labels).repeat(num_each)",
        ),
    ],
    "generation/latents.py": [
        (
            "traversal: another latent than its row says",
            "z[rows, :, torch.tensor(chosen)]",
            "z[rows, :, rows]",
        ),
        ("attribute: with the sign of its absence", "means[1] - means[0]", "means[0] - means[1]"),
    ],
    "generation/pictures.py": [
        (
            "class means: data leave their class twice",
            "own + z - z[(kinds",
            "own + z + z[(kinds",
        ),
        (
            "beside: what was given comes last",
            "torch.cat([first, rest], 1)",
            "torch.cat([rest, first], 1)",
        ),
    ],
    "generation/plane.py": [
        (
            "plane: the second latent points down",
            "(_BINS - 1 - places[inside, 1])",
            "places[inside, 1]",
        ),
    ],
    "generation/steering.py": [
        (
            "guidance: in the mode that the model is in",
            "    with evaluation_mode(model):\n        p, without",
            "    if True:\n        p, without",
        ),
        ("guidance: away from nothing", "part(torch.zeros_like(given))", "part(given)"),
        (
            "guidance: a velocity towards what has no label",
            "given + weight * (given - without)",
            "given - weight * (given - without)",
        ),
        ("guidance: no temperature", "p.base if temperature == 1 else", "p.base if True else"),
        ("steps: the prior keeps them", "            prior.solver = solver\n", "            pass\n"),
    ],
}
