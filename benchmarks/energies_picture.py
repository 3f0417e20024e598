"""The picture of `energies.py`, like figure 3 of Rezende & Mohamed: densities of all fits, from their samples."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.energies_families import DEPTHS, FAMILIES
from benchmarks.targets import BOX, ENERGIES, bin_masses

INCHES = 0.95  # of one cell
PIXELS = 64  # of one cell, a side
DPI = 110
COLORS = 96  # of the file, which is a third of the size so
GROUPS = (("planar", "radial", "sylvester"), ("iaf", "affine", "spline"))


def draw(work: Path, path: Path) -> None:
    """Draw the fits kept in `work`: in each of two blocks a row per energy, p first, then three families by depth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    columns = 1 + len(GROUPS[0]) * len(DEPTHS)
    rows = len(ENERGIES)
    figure = Figure(figsize=(columns * INCHES + 0.4, (len(GROUPS) * (rows + 0.6)) * INCHES))
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    blocks = figure.subfigures(len(GROUPS), 1)
    for block, group in zip(blocks, GROUPS, strict=True):
        grid = block.subplots(rows, columns, squeeze=False)
        block.subplots_adjust(left=0.04, right=0.995, bottom=0.01, top=0.87, wspace=0.04, hspace=0.04)
        for ax in grid.flat:
            ax.set(xticks=[], yticks=[])
        for row, name in enumerate(ENERGIES):
            grid[row, 0].set_ylabel(name)
        fits = [load(work, family, depth) for family in group for depth in DEPTHS]
        for row, name in enumerate(ENERGIES):
            target = bin_masses(name, PIXELS).float()
            show(grid[row, 0], target, target)
            for column, pictures in enumerate(fits, 1):
                if pictures is not None:
                    show(grid[row, column], pictures[row], target)
        grid[0, 0].set_title("p", fontsize=9)
        for column, (family, depth) in enumerate(((f, d) for f in group for d in DEPTHS), 1):
            middle = depth == DEPTHS[len(DEPTHS) // 2]
            heading = f"{FAMILIES[family].label}\n" if middle else "\n"
            grid[0, column].set_title(f"{heading}K = {depth}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def load(work: Path, family: str, depth: int) -> list[Tensor] | None:
    """For every energy the histogram of the seed with the median KL; None if there is no such fit."""
    path = work / f"{family}-{depth}.pt"
    if not path.exists():
        return None
    kept = torch.load(path)
    chosen = []
    for name in ENERGIES:
        mine = [i for i, row in enumerate(kept["rows"]) if row["energy"] == name]
        mine.sort(key=lambda i: kept["rows"][i]["kl"])
        picture = kept["pictures"][mine[(len(mine) - 1) // 2]]
        side = len(picture) // PIXELS
        chosen.append(picture.view(PIXELS, side, PIXELS, side).sum((1, 3)))
    return chosen


def show(ax, density: Tensor, target: Tensor) -> None:
    """One cell; all cells of a row share the scale of p."""
    ax.imshow(
        density.T,
        origin="lower",
        extent=(-BOX, BOX, -BOX, BOX),
        vmin=0,
        vmax=target.max().item(),
        cmap="magma",
        interpolation="bilinear",
    )
