"""One look for every figure: matplotlib to SVG that follows the colors of the page it stands in.

Figures are drawn in the light palette. `Drawing.inline` replaces each color by a CSS variable of the page, so
that one drawing serves the light scheme, the dark scheme and the printer; `Drawing.standalone` keeps the colors
on white.
"""

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, SURFACE = "#1b1e23", "#555e69", "#d3d8de", "#ffffff"
# At least 3:1 against the page, and apart for the common color deficiencies (both checked in the tests).
SERIES_LIGHT: tuple[str, ...] = ("#0f7fd0", "#bd7800", "#14502e", "#e0406e", "#7444e0", "#5d1a6b")
SERIES_DARK: tuple[str, ...] = ("#6f8cff", "#e8d94a", "#6fe39a", "#e0652a", "#f79fe0", "#9a8c74")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
FEW_EPOCHS = 10  # below, every value of a curve is shown, however far from the rest
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", SURFACE: "--surface"} | {
    color: f"--series-{number}" for number, color in enumerate(SERIES_LIGHT, 1)
}
STYLE = {
    "svg.fonttype": "none",  # text stays text: small files, selectable, read in the font of the page
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib; measures wide, so other fonts fit as well
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": SURFACE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "figure.facecolor": SURFACE,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in the name of an arm is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: File name without its ending, unique on the page.
        title: Heading.
        alt: What the figure shows, in words and numbers.
        svg: The drawing in the light palette; its links are relative to the folder of the page.
        figure: The figure it was made from.
    """

    name: str
    title: str
    alt: str
    svg: str
    figure: "Figure" = field(repr=False, compare=False)

    def inline(self) -> str:
        """SVG element for an HTML page: colors are variables, names are unique, the width is the page's."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r"#[0-9a-f]{6}\b", lambda match: _css_color(match.group()), svg)
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
        svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
        return svg.replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1)

    def standalone(self, links: str | None = None) -> str:
        """Complete SVG file with the title and the description inside.

        Args:
            links: The way from the file to the folder of the page, such as "../"; None leaves out all links.
        """
        head = f"<title>{escape(self.title)}</title><desc>{escape(self.alt)}</desc>"
        svg = re.sub(r"(<svg\b[^>]*>)", lambda match: match.group() + head, self.svg, count=1)
        if links is None:
            return re.sub(r"<a xlink:href=[^>]*>|</a>", "", svg)
        return re.sub(r'<a xlink:href="', lambda match: match.group() + links, svg)

    def pdf(self) -> bytes:
        """The figure as a PDF file with embedded fonts; the same bytes for the same content."""
        from matplotlib import rc_context

        buffer = io.BytesIO()
        with rc_context({**STYLE, "pdf.fonttype": 42}):  # pyright: ignore[reportArgumentType]
            self.figure.savefig(
                buffer,
                format="pdf",
                metadata={"CreationDate": None, "Title": self.title, "Subject": self.alt},
            )
        return buffer.getvalue()


def _css_color(color: str) -> str:
    return f"var({CSS_VARIABLES[color]})" if color in CSS_VARIABLES else color


@contextmanager
def styled_axes(width: float = 5.0, height: float = 3.3) -> "Iterator[Axes]":
    """Axes of a new figure, with the style in force inside the block and no global change after it.

    Args:
        width: Width in inches; 5 keeps the text readable on a telephone.
        height: Height in inches.

    Yields:
        The axes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # pyright: ignore[reportArgumentType]  # the stub lists the keys it knows
        yield Figure(figsize=(width, height), layout="constrained").subplots()


def figure_of(axes: "Axes") -> "Figure":
    """The figure that holds `axes`."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # `styled_axes` makes axes inside a figure
    return figure


def finish(axes: "Axes", name: str, title: str, alt: str) -> Drawing:
    """Render the figure of `axes` to SVG, the same bytes for the same content.

    Args:
        axes: Axes from `styled_axes`.
        name: File name without its ending.
        title: Heading of the figure on the page.
        alt: What it shows, in words.

    Returns:
        The drawing.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure_of(axes)).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"<!DOCTYPE[^>]*>\s*", "", svg)
    return Drawing(name, title, alt, svg, figure_of(axes))


def series_style(index: int) -> dict[str, Any]:
    """Color and dashes of the line with this index; both together stay unique for 24 lines."""
    rounds, color = divmod(index, len(SERIES_LIGHT))
    return {"color": SERIES_LIGHT[color], "linestyle": DASHES[(color + rounds) % len(DASHES)]}


def limit(axes: "Axes", bottom: float, top: float, values: Sequence[float]) -> None:
    """Show `bottom` to `top` at most, and say how many of the values lie outside."""
    bottom, top = max(min(values), bottom), min(max(values), top)
    margin = 0.06 * (top - bottom) or max(0.05 * abs(top), 1e-6)
    outside = sum(not bottom - margin <= value <= top + margin for value in values)
    axes.set_ylim(bottom - margin, top + margin)
    if outside:
        axes.set_xlabel(
            f"{axes.get_xlabel()}\n({outside} value{'s' if outside > 1 else ''} outside the axis)"
        )


def dots(values: Sequence[float]) -> str | None:
    """A marker where a line has so few points that it might not be seen."""
    return "o" if len(values) <= 5 else None


def wrap(label: str, width: int = 24) -> str:
    """Break a label into lines of at most `width`: after commas, else alike in length; inside no short parentheses."""

    def kept_whole(match: re.Match[str]) -> str:
        text = match.group()
        return text.replace(" ", "\N{NO-BREAK SPACE}") if len(text) <= width else text

    whole = re.sub(r"\([^()]*\)", kept_whole, label)
    lines = textwrap.wrap(whole, width)
    parts = whole.replace(", ", ",\n").split("\n")
    if len(parts) == len(lines) and max(map(len, parts)) <= width:
        return "\n".join(parts)
    for narrower in range(width - 1, 0, -1):
        shorter = textwrap.wrap(whole, narrower, break_long_words=False)
        if len(shorter) > len(lines) or max(map(len, shorter), default=0) > narrower:
            break
        lines = shorter
    return "\n".join(lines) or label


def legend_below(axes: "Axes") -> None:
    """Put the legend of the axes below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= 24 else 1
    figure_of(axes).legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=9)
