"""The table of a study in LaTeX, with the rules of booktabs, and text that is safe in it."""

from __future__ import annotations

import re
import unicodedata

from latentflows.reporting.budgets import BudgetTable
from latentflows.reporting.parts import Row
from latentflows.reporting.table import Compared, StudyTable
from latentflows.studies.results.results import Results
from latentflows.studies.results.verdicts import HELD
from latentflows.studies.statistics.means import Estimate, format_interval, format_number, format_p_value

_INTERVAL = r"95\% interval"
_DIFFERENCE = ["Difference", _INTERVAL, "$p$"]
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # a straight one is not in the usual font encoding
    "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{INFINITY}": r"$\infty$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{ALMOST EQUAL TO}": r"$\approx$",
    "\N{SUPERSCRIPT TWO}": "$^2$",
    "\N{LEFT SINGLE QUOTATION MARK}": "`",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{SUPERSCRIPT THREE}": "$^3$",
    "\N{GREEK SMALL LETTER FINAL SIGMA}": r"$\varsigma$",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{DEGREE SIGN}": r"$^\circ$",
    "\N{MICRO SIGN}": r"$\mu$",
    "\N{NOT EQUAL TO}": r"$\neq$",
    "\N{ELEMENT OF}": r"$\in$",
    "\N{SQUARE ROOT}": r"$\sqrt{\,}$",
    "\N{LEFTWARDS ARROW}": r"$\leftarrow$",
    "\n": " ",
}
_GREEK = re.compile("GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)$")
# LaTeX has no command for these.
_UNNAMED = frozenset({"DIGAMMA", "STIGMA", "KOPPA", "SAMPI", "HETA", "SAN", "SHO", "YOT"})
_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))  # of Latin shape


def escape(text: str) -> str:
    """Text as it must stand in LaTeX to be read as it is, by pdfTeX too, which knows letters of Latin scripts alone."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(_ESCAPES.get(character) or _letter(character) for character in composed)


def _letter(character: str) -> str:
    """Return a character that needs no escape, a Greek letter, what a compatible one stands for, or its number."""
    if character.isascii() or (
        character.isalpha() and character <= "\u017f"
    ):  # Latin, Latin-1, Latin Extended-A
        return character
    if character in _LATIN:
        return _LATIN[character]
    greek = _GREEK.match(unicodedata.name(character, ""))
    if greek and greek[2] not in _UNNAMED:
        name = greek[2].replace("LAMDA", "LAMBDA").lower()
        return f"$\\{name if greek[1] == 'SMALL' else name.capitalize()}$"
    plain = unicodedata.normalize("NFKD", character).replace("\N{FRACTION SLASH}", "/")
    return escape(plain) if plain.isascii() else f"[U+{ord(character):04X}]"


def latex_table(results: Results, table: StudyTable, budgets: BudgetTable, protocols: list[str]) -> str:
    r"""A `table` environment with one row per arm, for `\input`; it needs the package booktabs.

    Differences stand beside the arms where all are compared with one arm, else below, a row per comparison, as an
    interaction does. No arm is
    set in bold for having the lowest figure. Bold are the differences that the corrected test finds.

    Args:
        results: The results.
        table: Their tables.
        budgets: Their budgets.
        protocols: How the figures were measured.
    """
    beside = table.baseline is not None
    parts = [
        [_arm(row, table) + (_beside(row, table) if beside else []) for row in part.rows]
        for part in table.parts
    ]
    headings = [
        "Arm",
        "Parameters",
        escape(_upper(table.quantity)),
        _INTERVAL,
        *(_DIFFERENCE if beside else []),
    ]
    lines = [
        "% Needs \\usepackage{booktabs}. Written by latentflows from the files of the study.",
        r"\begin{table}",
        r"\centering\small\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_caption(results, table, budgets, protocols)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', results.folder.resolve().name)}}}",
    ]
    for arms in parts:
        lines += [r"\medskip", *_tabular(headings, arms, 0.2 if beside else 0.5)]
    below = [_compared(found, table) for found in ([] if beside else table.comparisons)]
    if table.interaction is not None:
        below.append(
            [_name(table.interaction.label), *_difference(table.interaction, table.difference_decimals)]
        )
    if below:
        lines += ["", r"\medskip", *_tabular(["Comparison", *_DIFFERENCE], below, 0.5)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tabular(headings: list[str], rows: list[list[str]], width: float) -> list[str]:
    """A tabular whose first column breaks its lines where a name is long; `width` is its share of the line."""
    long = max(len(row[0]) for row in rows) > 110 * width
    first = rf"p{{{width}\linewidth}}" if long else "l"
    ragged = r"\raggedright " if long else ""
    return [
        rf"\begin{{tabular}}{{@{{}}{first}{'r' * (len(headings) - 1)}@{{}}}}",
        r"\toprule",
        " & ".join(headings) + r" \\",
        r"\midrule",
        *(ragged + " & ".join(cells) + r" \\" for cells in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _arm(row: Row, table: StudyTable) -> list[str]:
    parameters = "--" if row.parameters is None else f"{row.parameters.total:,}"
    mean, interval = _interval(row.nll, table.decimals)
    return [_name(row.label), parameters, escape(row.mark) + mean, interval]


def _name(text: str) -> str:
    r"""A name whose parentheses stay on one line, and whose `[` or `*` is no option of the `\\` or rule before it."""
    kept = re.sub(r"\([^()]*\)", lambda match: match.group().replace(" ", "~"), escape(text))
    return "{}" + kept if kept.startswith(("[", "*")) else kept


def _beside(row: Row, table: StudyTable) -> list[str]:
    own = next((found for found in table.comparisons if found.comparison.arm == row.arm), None)
    return _difference(own, table.difference_decimals)


def _compared(found: Compared, table: StudyTable) -> list[str]:
    return [
        _name(f"“{found.label}” against “{found.other_label}”"),
        *_difference(found, table.difference_decimals),
    ]


def _interval(value: Estimate | None, decimals: int) -> list[str]:
    if value is None:
        return ["--", "--"]
    mean = format_number(value.mean, decimals)
    return [escape(mean), "--" if value.low is None else escape(format_interval(value, decimals))]


def _difference(found: Compared | None, decimals: int) -> list[str]:
    if found is None or found.comparison.difference is None:
        return ["--", "--", "--"]
    mean, interval = _interval(found.comparison.difference, decimals)
    shown = format_p_value(found.comparison.corrected_p_value)
    shown = {"–": "--", "< 0.001": "$<0.001$"}.get(shown, shown)
    return [rf"\textbf{{{mean}}}" if found.comparison.significant else mean, interval, shown]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _caption(results: Results, table: StudyTable, budgets: BudgetTable, protocols: list[str]) -> str:
    num_seeds, num = len(results.study.seeds), len(table.tested)
    sentences = [
        results.study.name if results.study.name.endswith((".", "?", "!")) else f"{results.study.name}.",
        f"{_upper(table.quantity)} in nats, lower is better: mean with its 95% t interval over "
        f"{num_seeds} seed{'s' if num_seeds > 1 else ''}{_protocol(protocols)}.",
    ]
    if table.comparisons:
        to = "" if table.baseline is None else f" to “{table.baseline}”"
        corrected = f", corrected for {num} comparisons by Holm's procedure" if num > 1 else ""
        level = f"{table.comparisons[0].comparison.level:g}"
        sentences.append(
            f"Difference: paired{to}, at the same seed; p: paired t-test{corrected}; bold: p at most {level}."
        )
    if table.interaction is not None:
        sentences.append(
            "Interaction: with both, minus with each alone, plus with neither; negative: together they lower it by "
            "more, or raise it by less, than the sum of what each does alone."
        )
    if any(part.marked for part in table.parts):
        sentences.append("≈: rests on a density of the prior, or of the model, that is not exact.")
    if table.protocol_differences:
        sentences.append(
            "The runs differ in what must be equal; their figures do not compare, and stand apart."
        )
    sentences += [
        f"Of “{row.label}”, {_missing(row)}." for row in table.rows if row.num_finished < row.num_seeds
    ]
    whole = [] if budgets.held in (None, HELD["model"]) else ["Parameters are those of the whole model."]
    return escape(" ".join([*sentences, budgets.caption, *whole]))


def _missing(row: Row) -> str:
    """How many runs of an arm are in its figures, and whether that flatters it."""
    flatters = (
        f": {row.num_diverged} diverged or gave no finite NLL, which flatters it" if row.num_diverged else ""
    )
    return f"{row.num_finished} of {row.num_seeds} runs count{flatters}"


def _protocol(protocols: list[str]) -> str:
    return f"; {'; or: '.join(protocols)}" if protocols else ""
