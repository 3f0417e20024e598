"""Every Python block of the documentation runs, every printed output is what the block prints, and every command,
option and `key=value` that is shown exists.

Blocks of one page run in order, in one namespace, in a folder of their own. A `text` block right after a Python block
is its output; numbers with a decimal point may differ by 2 %. A `yaml` block is a configuration or a study, and
`<!-- file: NAME -->` before it puts it into that folder. `<!-- no-run: REASON -->` before a Python block skips it;
`NOT_RUN` lists the reasons.
"""

import contextlib
import io
import itertools
import re
import shlex
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer
import yaml

from latentflows.cli import app
from latentflows.studies.planning.ready import find_study, ready_studies
from latentflows.studies.planning.study import Study
from latentflows.studies.planning.study_file import read_study
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.options import parts
from latentflows.studies.settings.overrides import configuration_from, read_mapping

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = {  # page: why its blocks are skipped
    "docs/data.md": ["needs the MNIST files"],
    "docs/disentanglement.md": ["takes minutes"],
    "docs/running-studies.md": ["needs a cluster"],
    "docs/runs.md": ["needs a server"],
    "docs/sample-quality.md": ["needs weights"],
    "docs/statistics.md": ["needs a study"],
    "docs/training.md": ["starts a compiler", "needs a GPU"],
}
SHELLS = ("console", "bash", "sh")
MARK = r"(?:<!-- (?P<mark>[a-z-]+): (?P<value>[^>]*?) -->\n+)?"
FENCE = re.compile(
    rf"^{MARK}```(?P<language>\w*)(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
ROOT_COMMAND = typer.main.get_group(app)


class Block(NamedTuple):
    """One fenced block of a page, with the HTML comment before it."""

    language: str
    code: str
    line: int
    mark: str | None
    value: str
    is_output: bool


def blocks(page):
    text = page.read_text(encoding="utf-8")
    found = []
    end = 0
    for match in FENCE.finditer(text):
        mark, value = match["mark"], match["value"] or ""
        if match["info"].strip() == "no-run":
            mark, value = "no-run", "no-run"
        line = text.count("\n", 0, match.start("code"))
        after_python = (
            bool(found) and found[-1].language == "python" and not text[end : match.start()].strip()
        )
        is_output = match["language"] == "text" and after_python
        found.append(Block(match["language"], match["code"], line, mark, value, is_output))
        end = match.end()
    return found


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def pages_with(*languages):
    return [
        pytest.param(page, id=name_of(page))
        for page in PAGES
        if any(block.language in languages for block in blocks(page))
    ]


def same_text(printed, shown):
    """Equal words, equal whole numbers, and other numbers within 2 %."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", shown).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(
        a == b or (not b.lstrip("+-").isdigit() and float(a) == pytest.approx(float(b), rel=0.02))
        for a, b in pairs
    )


def test_numbers_in_outputs_are_compared_as_numbers():
    assert same_text("NLL 20.1 of (4, 2)", "NLL  20.2 of (4, 2)")
    assert not same_text("NLL 20.1", "NLL 21.1")
    assert not same_text("(4, 2)", "(4, 3)")
    assert not same_text("NLL 20.1", "ELBO 20.1")


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run_and_print_what_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LATENTFLOWS_DATA", raising=False)
    torch.set_num_threads(1)
    module = types.ModuleType("__docs__")  # a class of the page can then be found, as that of a script
    monkeypatch.setitem(sys.modules, "__docs__", module)
    namespace = vars(module)
    found = blocks(page)
    for block, after in itertools.zip_longest(found, found[1:]):
        if block.mark == "file":
            (tmp_path / block.value).write_text(block.code, encoding="utf-8")
        if block.language != "python":
            continue
        where = f"{name_of(page)}:{block.line}"
        code = compile("\n" * block.line + block.code, where, "exec")
        if block.mark == "no-run":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if after is not None and after.is_output:
            assert same_text(printed.getvalue(), after.code), f"{where} prints:\n{printed.getvalue()}"
        else:
            assert not printed.getvalue(), f"{where} prints, and no output is shown:\n{printed.getvalue()}"


def test_blocks_that_do_not_run_are_listed():
    skipped = {}
    for page in PAGES:
        reasons = [block.value for block in blocks(page) if block.mark == "no-run"]
        if reasons:
            skipped[name_of(page)] = sorted(reasons)
    assert skipped == {page: sorted(reasons) for page, reasons in NOT_RUN.items()}


def commands(page):
    """Return the words of every `latentflows` command in the console blocks of a page."""
    found = []
    for block in blocks(page):
        if block.language in SHELLS:
            text = block.code.replace("\\\n", " ")
            lines = [line.removeprefix("$ ").strip() for line in text.splitlines()]
            words = [shlex.split(line, comments=True) for line in lines if "latentflows" in line]
            found += [line[1:] for line in words if line and line[0].endswith("latentflows")]
    return found


@pytest.mark.parametrize("page", pages_with(*SHELLS))
def test_commands_and_their_options_exist(page):
    files = {block.value for block in blocks(page) if block.mark == "file"}
    for words in commands(page):
        if words and words[0].startswith("-"):
            assert words[0] in all_options(), words
            continue
        command = ROOT_COMMAND.get_command(typer.Context(ROOT_COMMAND), words[0])
        if words[0] == "study" and not words[1].startswith("-"):
            command = command.get_command(typer.Context(command), words[1])
        assert command is not None, f"no command {words[0]}"
        given = [word.partition("=")[0] for word in words[1:] if word.startswith("-")]
        assert set(given) <= {*options_of(command), "--help"}, words
        for file in (word for word in words if word.endswith((".yaml", ".toml"))):
            assert file in files or (ROOT / file).is_file() or file.startswith("runs/"), (
                f"{file} is not shown"
            )
        overrides = [word for word in words[1:] if "=" in word and not word.startswith("-")]
        if words[0] == "study":
            check_study(page, words, overrides)
            continue
        assert not overrides or words[0] in ("train", "evaluate"), words
        configuration_from(shown_configuration(page, words), overrides)


def check_study(page, words, overrides):
    """Build the configurations of a study that a command names, with its overrides."""
    if words[1] not in ("plan", "run"):
        assert not overrides, words
        return
    if words[2] in ready_studies():
        study = find_study(words[2], overrides)
    elif (ROOT / words[2]).is_file():
        study = read_study(ROOT / words[2], overrides)
    else:
        shown = {block.value: block.code for block in blocks(page) if block.mark == "file"}
        assert not overrides, words
        study = Study.model_validate(yaml.safe_load(shown[words[2]]))
    for arm in study.all_arms():
        study.configuration(arm, study.seeds[0])


def shown_configuration(page, words):
    """Return what the configuration file named by a command holds."""
    names = [word for word in words if word.endswith(".yaml")]
    for block in blocks(page):
        if block.mark == "file" and block.value in names and not is_study(yaml.safe_load(block.code)):
            return yaml.safe_load(block.code)
    file = ROOT / names[0] if names else None
    content = read_mapping(file) if file is not None and file.is_file() else {}
    return {} if is_study(content) else content


def is_study(content):
    return "arms" in content or "factors" in content


def options_of(command):
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def all_options():
    named = ROOT_COMMAND.list_commands(typer.Context(ROOT_COMMAND))
    found = [ROOT_COMMAND.get_command(typer.Context(ROOT_COMMAND), name) for name in named]
    found += [nested for command in found for nested in getattr(command, "commands", {}).values()]
    return set().union(options_of(ROOT_COMMAND), *(options_of(command) for command in found)) | {"--help"}


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_options_and_settings_in_the_text_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    known = all_options()
    for code in INLINE.findall(text):
        for word in code.split() if code.startswith(("-", "latentflows ")) else []:
            assert not word.startswith("--") or word.partition("=")[0] in known, code
        key, equals, value = code.partition("=")
        if equals and re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key) and re.fullmatch(r"\S+", value):
            first, *rest = key.split(".")
            if rest or (first in RunConfiguration.model_fields and value[:1] not in "\"'("):
                assert accepted(code), f"{name_of(page)}: `{code}` is no setting"


def accepted(override):
    """Whether some kind of its part takes this setting; whether the parts then fit is another question."""
    part = override.partition("=")[0].split(".")[0]
    kinds = [f"{part}={kind}" for kind in parts().get(part, {}) if kind and "." in override.partition("=")[0]]
    # Parts that fit almost everything, so that only the setting itself is judged; levels fit their like alone, models
    # with parts of their own what is not set, or masks; some settings go with few latents, labels or known densities.
    grounds = [
        ["prior=real_nvp"],
        [],
        ["model=segmentation_vae", "data=ambiguous_shapes"],
        ["prior=real_nvp", "training.plan=two_stage"],
        ["prior=real_nvp", "latent_dim=4"],
        ["prior=real_nvp", "condition.on=labels"],
        ["model=flow", "prior=real_nvp", "data=energy"],
        *([f"posterior={kind}", f"prior={kind}"] for kind in ("two_level", "dlgm")),
    ]
    for ground, kind in itertools.product(grounds, [[], *([kind] for kind in kinds)]):
        for likelihood in (
            [],
            ["data.preparation=dequantized", "likelihood=gaussian"],
            ["data.preparation=unit"],
            ["likelihood=logistic"],
        ):
            try:
                configuration_from({}, [*ground, *likelihood, *kind, override])
            except ValueError:
                continue
            return True
    return False


def test_a_setting_that_does_not_exist_is_found():
    assert accepted("posterior=iaf")
    assert accepted("training.plan=two_stage")
    assert accepted("likelihood.variance=amortized")
    assert accepted("posterior.num_levels=3")
    assert not accepted("posterior=maf")
    assert not accepted("training.epoch=3")


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_files_shown_are_accepted(page):
    for block in blocks(page):
        if block.language == "yaml":
            content = yaml.safe_load(block.code)
            if is_study(content):
                study = Study.model_validate(content)
                for arm in study.all_arms():
                    study.configuration(arm, study.seeds[0])
            else:
                configuration_from(content)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            file, _, anchor = target.partition("#")
            linked = page if not file else (page.parent / file).resolve()
            assert linked.exists(), f"{name_of(page)} links to {target}"
            if anchor:
                assert anchor in anchors(linked), f"{name_of(page)} links to {target}"


def anchors(page):
    """Return the anchors of a page's headings, as the site makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in headings}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.relative_to(ROOT / "docs").as_posix() in navigation
