"""Faults to plant in `reporting`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "reporting/base.py": [
        (
            "report: to go on with a study is to replace it",
            'word not in ("--resume", "--overwrite")',
            'word not in ("--resume",)',
        ),
    ],
    "reporting/compared_groups.py": [
        (
            "comparison: an error over data passes for a deviation over seeds",
            "found.standard_deviation if over_seeds else",
            "found.standard_deviation if len(quantities) > 1 else",
        ),
        (
            "comparison: runs that did not finish count",
            'run is None or run.status != "finished"',
            "run is None",
        ),
    ],
    "reporting/comparison_page.py": [
        (
            "report: seeds that trained together are taken for a busy machine",
            "alike.setdefault(record.trained_with, [])",
            "alike.setdefault((), [])",
        ),
    ],
    "reporting/damage.py": [
        (
            "report: a log that was cut passes for whole",
            "and last < record.steps:",
            "and last > record.steps:",
        ),
        (
            "report: damaged weights are not told",
            "    try:\n        load_tensors(path)\n",
            "    try:\n        pass\n",
        ),
    ],
    "reporting/export.py": [
        ("export: a file of somebody else is replaced", "    if foreign:\n", "    if False:\n"),
        (
            "export: files of an earlier export count as those of somebody else",
            "[*dict.fromkeys([*contents, *listed])]",
            "list(contents)",
        ),
        ("export: a study without results", 'any(run.status == "finished" for run in', "any(run for run in"),
    ],
    "reporting/latex.py": [
        (
            "LaTeX: a name in brackets passes for an option of the line before it",
            'kept.startswith(("[", "*"))',
            "False",
        ),
        (
            "LaTeX: text is not escaped",
            'return "".join(_ESCAPES.get(character) or _letter(character) for character in composed)',
            "return text",
        ),
        (
            "LaTeX: the label is how the folder is named from here",
            "results.folder.resolve().name",
            "results.folder.name",
        ),
    ],
    "reporting/limits.py": [
        (
            "table: seeds that were asked for count as seeds that finished",
            "[len(found.comparison.by_seed) for found in table.tested]",
            "[max(row.num_seeds for row in table.rows) for _ in table.tested]",
        ),
        (
            "table: the sign-flip test of few seeds is corrected as if it came first",
            "corrected = holm([smallest_sign_flip_p_value(num) if num else None for num in shared])",
            "corrected = [len(shared) * smallest_sign_flip_p_value(num) for num in shared]",
        ),
        (
            "table: the bound is as loose as the mean is noisy",
            "run.protocol.num_images * quantity.monte_carlo_error**2 / 2",
            "quantity.monte_carlo_error**2 / 2",
        ),
    ],
    "reporting/parts.py": [
        (
            "table: a cross-entropy beside likelihoods",
            "together[0].append(replace(row, reconstruction=None))",
            "together[0].append(row)",
        ),
    ],
    "reporting/budgets.py": [
        (
            "budgets: an arm is held to FLOPs or seconds that its measure did not spend",
            "asked[arm] = spent_amount(results, measure)",
            "pass",
        ),
        (
            "budgets: seconds that are not known are held equal",
            'if arm.role != "free" and arm.amount is None',
            "if False",
        ),
        (
            "budgets: the caption hides who does not hold them",
            "_exceptions(arms) + _borrowed(results, budget)",
            "_borrowed(results, budget)",
        ),
    ],
    "reporting/run_page.py": [
        (
            "page: a cross-entropy has an ELBO",
            "bounded=_has_likelihood(run)",
            "bounded=True",
        ),
        (
            "page: a collapsed run is green",
            'if record.status == "finished" and (wrong := _faults(run)):',
            'if record.status != "finished" and (wrong := _faults(run)):',
        ),
    ],
    "reporting/standing.py": [
        (
            "report: a learning rate that was halved on the way passes in silence",
            "    if back:\n",
            "    if False:\n",
        ),
        ("report: a study between two runs is incomplete", "is_held(results.folder / LOCK) or any(", "any("),
        (
            "report: a run that has ended is under way as long as its job",
            "    if results.status(arm, seed) in ENDED:\n        return False\n",
            "",
        ),
    ],
    "reporting/study_figures.py": [
        (
            "curves: a mean over fewer seeds at the end",
            "if len(found) == len(runs):",
            "if found:",
        ),
        ("curves: stages run into each other", "stages.setdefault(key[0], [])", 'stages.setdefault("", [])'),
    ],
    "reporting/table.py": [
        (
            "table: FLOPs that were planned pass for those that were spent",
            'if budget is None or budget.hold != "training_flops":',
            "if True:",
        ),
        (
            "table: seconds that were planned pass for those that were taken",
            '    if budget is not None and budget.hold == "seconds":',
            "    if False:",
        ),
    ],
}
