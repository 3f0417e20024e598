"""The table of a study in LaTeX, with the rules of booktabs, and text that is safe in it."""

from __future__ import annotations

from latentflows.reporting.budgets import BudgetTable
from latentflows.reporting.table import Compared, Row, StudyTable
from latentflows.studies.results.results import Results
from latentflows.studies.statistics.means import Estimate, format_interval, format_number

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
    '"': r"\textquotedbl{}",
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
    "\N{SUPERSCRIPT TWO}": "$^2$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$",
    "\N{GREEK SMALL LETTER BETA}": r"$\beta$",
    "\N{GREEK SMALL LETTER GAMMA}": r"$\gamma$",
    "\N{GREEK SMALL LETTER LAMDA}": r"$\lambda$",
    "\N{GREEK SMALL LETTER MU}": r"$\mu$",
    "\N{GREEK SMALL LETTER SIGMA}": r"$\sigma$",
    "\n": " ",
}


def escape(text: str) -> str:
    """Text as it must stand in LaTeX to be read as it is."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def latex_table(results: Results, table: StudyTable, budgets: BudgetTable, protocols: list[str]) -> str:
    r"""A `table` environment with one row per arm, for `\input`; it needs the package booktabs.

    No arm is set in bold for having the lowest figure. Bold are the differences that the corrected test finds.

    Args:
        results: The results.
        table: Their tables.
        budgets: Their budgets.
        protocols: How the figures were measured.
    """
    rows = [_row(row, table) for row in table.rows]
    named = _names_others(table)
    headings = [
        "Arm",
        "Parameters",
        f"{escape(table.quantity[:1].upper() + table.quantity[1:])}",
        r"95\% interval",
        *(["To"] if named else []),
        "Difference",
        r"95\% interval",
        "$p$",
    ]
    lines = [
        "% Needs \\usepackage{booktabs}. Written by latentflows from the files of the study.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_caption(results, table, budgets, protocols)}}}",
        rf"\begin{{tabular}}{{lrrr{'l' if named else ''}rrr}}",
        r"\toprule",
        " & ".join(headings) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _names_others(table: StudyTable) -> bool:
    """Whether a column must say which arm another one is compared with."""
    return bool(table.comparisons) and table.baseline is None


def _row(row: Row, table: StudyTable) -> list[str]:
    own = next((found for found in table.comparisons if found.comparison.arm == row.arm), None)
    parameters = "--" if row.parameters is None else f"{row.parameters.total:,}"
    return [
        escape(row.label),
        parameters,
        *_interval(row.nll, table.decimals),
        *([escape(own.other_label) if own else "--"] if _names_others(table) else []),
        *_difference(own, table.difference_decimals),
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
    p_value = found.comparison.corrected_p_value
    shown = "--" if p_value is None else "$<0.001$" if p_value < 0.001 else f"{p_value:.3f}"
    return [rf"\textbf{{{mean}}}" if found.comparison.significant else mean, interval, shown]


def _caption(results: Results, table: StudyTable, budgets: BudgetTable, protocols: list[str]) -> str:
    num_seeds, num = len(results.study.seeds), len(table.comparisons)
    sentences = [
        results.study.name if results.study.name.endswith((".", "?", "!")) else f"{results.study.name}.",
        f"{table.quantity[:1].upper()}{table.quantity[1:]} in nats, lower is better: mean with its 95% t interval over "
        f"{num_seeds} seed{'s' if num_seeds > 1 else ''}{_protocol(protocols)}.",
    ]
    if table.comparisons:
        to = "the arm that is named" if table.baseline is None else f"“{table.baseline}”"
        corrected = f", by Holm's procedure corrected for {num} comparisons" if num > 1 else ""
        level = f"{table.comparisons[0].comparison.level:g}"
        sentences.append(
            f"Difference: to {to}, at the same seed. p: paired t-test{corrected}; bold: at most {level}."
        )
    incomplete = [f"“{row.label}”" for row in table.rows if row.num_finished < row.num_seeds]
    if incomplete:
        sentences.append(f"Runs that did not finish are left out, of: {', '.join(incomplete)}.")
    if table.protocol_differences:
        sentences.append("The runs were measured by different protocols; their figures do not compare.")
    return escape(" ".join([*sentences, budgets.caption]))


def _protocol(protocols: list[str]) -> str:
    return f"; measured on: {'; or on: '.join(protocols)}" if protocols else ""
