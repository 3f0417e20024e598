"""Faults to plant in the command line."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "cli.py": [
        (
            "command line: a run is to be continued and replaced",
            "    check_choice(resume, overwrite)\n",
            "",
        ),
        (
            "command line: two processes train in one folder",
            "with alone(folder) if is_first() else nullcontext():",
            "with nullcontext():",
        ),
        (
            "command line: every error passes for one of the input",
            "if os.environ.get(DEBUG) or message is None:",
            "if os.environ.get(DEBUG):",
        ),
        ("command line: a run is measured while it is worked on", "with alone(run):", "with nullcontext():"),
    ],
}
