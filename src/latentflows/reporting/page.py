"""Fill a page template, format its numbers, and write it with its figures."""

import base64
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflows.core.files import write_atomically
from latentflows.reporting.base import COMMANDS, Picture
from latentflows.reporting.drawing import CSS_VARIABLES, SERIES_DARK, SERIES_LIGHT, Drawing
from latentflows.studies.results.records import Quantity
from latentflows.studies.statistics.means import Estimate, format_interval, format_number, format_p_value
from latentflows.studies.statistics.resampling import BootstrapInterval
from latentflows.studies.statistics.significance import MOST_SEEDS

if TYPE_CHECKING:
    from markupsafe import Markup

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_page(folder: Path, template: str, drawings: Sequence[Drawing], values: dict[str, Any]) -> Path:
    """Write `report.html` and `figures/*.svg` into `folder`; each file appears complete or not at all.

    Args:
        folder: Run or comparison folder.
        template: File name in `templates/`.
        drawings: Figures of the page, in order.
        values: What the template shows.

    Returns:
        Path of the page.
    """
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("latentflows.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        mean=mean,
        interval=interval,
        p_value=format_p_value,
        seeds=seeds,
        amount=amount,
        with_error=with_error,
        uncertainty=uncertainty,
        duration=duration,
        first_upper=lambda text: text[:1].upper() + text[1:],
        data_uri=data_uri,
        svg=inline_svg,
        yaml=lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True),
    )
    names = [name for name in CSS_VARIABLES.values() if name.startswith("--series")]
    colors = {
        "light": dict(zip(names, SERIES_LIGHT, strict=True)),
        "dark": dict(zip(names, SERIES_DARK, strict=True)),
    }
    html = environment.get_template(template).render(**values, drawings=drawings, colors=colors)
    for drawing in drawings:
        write_atomically(folder / "figures" / f"{drawing.name}.svg", drawing.standalone("../").encode())
    page = folder / "report.html"
    write_atomically(page, html.encode())
    return page


def missing(folder: Path, name: str) -> tuple[str, str]:
    """Sentence that names a missing file, and the command that makes it."""
    return f"{name} is missing or empty. To make it:", COMMANDS[name].format(folder=shlex.quote(str(folder)))


def number(value: float | None, decimals: int = 2) -> str:
    """A number for a table; a dash where there is none."""
    if value is None:
        return "–"
    return format_number(value, decimals) if math.isfinite(value) else "not finite"


def mean(estimate: Estimate | None, decimals: int = 2) -> str:
    """The mean of an estimate; a dash where there is none."""
    return "–" if estimate is None else number(estimate.mean, decimals)


def interval(estimate: Estimate | BootstrapInterval | None, decimals: int | None = None) -> str:
    """An interval with the decimals that it needs, or those of its column; a dash where there is none."""
    return "–" if estimate is None else format_interval(estimate, decimals)


def seeds(needed: int | None) -> str:
    """A number of seeds; None is more than any that is looked for."""
    return f"more than {MOST_SEEDS:,}" if needed is None else f"{needed:,}"


def amount(value: float | None) -> str:
    """A count, or seconds: in full up to ten millions, and with three digits above, or below 100 if not whole."""
    if value is None:
        return "–"
    if value < 100 and value % 1:
        return f"{value:.3g}"
    if value < 1e7:
        return f"{value:,.0f}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits} × 10{str(int(exponent)).translate(_RAISED)}"


def with_error(quantity: Quantity | None) -> str:
    """'mean ± standard error', or the mean alone where the error is not known."""
    if quantity is None:
        return "–"
    mean = number(quantity.mean)
    return mean if quantity.standard_error is None else f"{mean} ± {number(quantity.standard_error)}"


def uncertainty(quantity: Quantity, kind: str, decimals: int = 2) -> str:
    """One uncertainty of a figure, such as its "interval", for a table; a dash where it has none."""
    value = getattr(quantity, kind)
    if kind == "interval" and value is not None:
        return f"{number(value[0], decimals)} to {number(value[1], decimals)}"
    shown = 3 if kind == "p_value" else max(2, decimals)
    if value is not None and 0 < abs(value) < 0.5 * 10**-shown:
        return f"< {10**-shown:.{shown}f}"
    return number(value, shown)


def duration(seconds: float | None) -> str:
    """Seconds as '12.3 s', '3 min 20 s' or '2 h 05 min'."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def data_uri(picture: Picture) -> str:
    """The picture as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii")


def inline_svg(drawing: Drawing) -> "Markup":
    """The drawing as trusted markup: matplotlib escapes the text that it holds."""
    from markupsafe import Markup

    return Markup(drawing.inline())
