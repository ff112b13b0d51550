"""What the pages show is true: recipes pass the check, programs run, commands print what is said."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from tests.docs.snippets import PAGES, ROOT, Snippet, all_snippets, snippets
from tests.docs.tables import renewed, rule_kinds, tables
from unified import TrainSettings, examine, load_recipe
from unified.check import check_recipe
from unified.cli import app
from unified.parts import Algorithm
from unified.registry import Catalogue, catalogue
from unified.show import nested_fields

AtPage = Callable[[Path], Catalogue]
#: commands that take seconds at most: they run, and what a console block shows under them must be what they print
CHEAP = ("check", "list", "show", "coefficients", "--help")


def of(*languages: str, named: bool | None = None) -> list[object]:
    """Parameters for a test: one block each. No block at all fails the test below that counts them."""
    found = [s for s in all_snippets(*languages) if named is None or s.is_plugin == named]
    return [pytest.param(s, id=s.label) for s in found]


@pytest.mark.parametrize(
    ("languages", "least"),
    [(("yaml",), 10), (("python",), 10), (("console",), 6), (("bash",), 4), (("json",), 4), (("toml",), 2)],
)
def test_the_pages_have_snippets_to_be_tested(languages: tuple[str, ...], least: int) -> None:
    assert len(all_snippets(*languages)) >= least


def test_every_code_block_is_of_a_language_that_is_tested() -> None:
    tested = {"yaml", "python", "console", "bash", "json", "toml", "text"}
    fences = [
        (page.name, line) for page in PAGES for line in re.findall(r"^```.*$", page.read_text(encoding="utf-8"), re.M)
    ]
    blocks = [s for page in PAGES for s in snippets(page)]
    assert {s.language for s in blocks} <= tested
    assert len(fences) == 2 * len(blocks)  # each is opened, understood and closed


@pytest.mark.parametrize("block", of("yaml"))
def test_a_recipe_passes_the_check(block: Snippet, at_page: AtPage, tmp_path: Path) -> None:
    if block.name.startswith("broken"):
        pytest.skip("shown for its mistakes, which the console block of its page compares")
    at_page(block.page)
    file = tmp_path / "as-shown.yaml"
    file.write_text(block.recipe)
    assert check_recipe(load_recipe(file)).stages


@pytest.mark.parametrize("block", of("json"))
def test_a_data_file_is_json(block: Snippet) -> None:
    rows = block.text.splitlines() if block.name.endswith("l") else [block.text]
    assert all(isinstance(json.loads(row), dict) for row in rows)


@pytest.mark.parametrize("block", of("toml"))
def test_a_pyproject_has_one_entry_point_and_the_module_that_it_names(block: Snippet) -> None:
    project = tomllib.loads(block.text)["project"]
    (module,) = project["entry-points"]["unified"].values()
    assert project["dependencies"] == [tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]]
    assert re.fullmatch(r"[a-z_]+", module)


@pytest.mark.parametrize("block", of("python", named=False))
def test_a_program_runs_with_public_names_only(block: Snippet, at_page: AtPage) -> None:
    at_page(block.page)
    assert not re.search(r"\b(from|import) unified[._]\w", block.text)
    exec(compile(block.text, block.label, "exec"), {"__name__": "__snippet__"})


@pytest.mark.parametrize("block", of("python", named=True))
def test_a_plugin_is_loaded_with_public_names_only(block: Snippet, at_page: AtPage) -> None:
    known = at_page(block.page)
    assert not re.search(r"\b(from|import) unified[._]\w", block.text)
    stem = Path(block.name).stem
    assert known.manager.get_plugin(stem) is not None
    offered = [(kind, n) for kind in known.kinds() for n in known.names(kind) if known.provider(kind, n).endswith(stem)]
    events = [hook for hook in re.findall(r"^def (\w+)", block.text, re.M) if hasattr(known.manager.hook, hook)]
    assert offered or events
    for kind, name in offered:
        part = known.get(kind, name)
        if not isinstance(part, Algorithm):
            continue
        batch = {"logp": [[-1.0, -2.0], [-0.5, -1.5]], "reward": [1, 0], "group": [0, 0]}
        shown = examine(name, batch)
        assert shown.coefficient["logp"].abs().sum() > 0


def _commands() -> list[object]:
    blocks = all_snippets("console", "bash")
    return [
        pytest.param(block, command, shown, id=f"{block.label}-{command[:40]}")
        for block in blocks
        for command, shown in block.commands
    ]


@pytest.mark.parametrize(("block", "command", "shown"), _commands())
def test_a_command_exists_and_prints_what_is_shown(block: Snippet, command: str, shown: str, at_page: AtPage) -> None:
    program, *arguments = shlex.split(command)
    if program != "unified":
        _check_other(program, arguments)
        return
    at_page(block.page)
    if arguments[0] not in CHEAP and "--scaling" not in arguments:
        _parse(arguments)
        assert not shown, "what a long command prints is not compared; show it in a text block"
        return
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == (2 if "broken" in command else 0), result.output
    if shown:
        printed = _lines(result.output)
        assert len(printed) == len(_lines(shown)), result.output
        assert [(p, s) for p, s in zip(printed, _lines(shown), strict=True) if not _fits(p, s)] == []


def _fits(printed: str, shown: str) -> bool:
    """Whether a line is what is shown; ... in it stands for anything, where a list grows with the plugins."""
    return re.fullmatch(".*".join(re.escape(part) for part in shown.split("...")), printed) is not None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _parse(arguments: list[str]) -> None:
    """The command line understands the command, and its recipe (where it has one) is sound with these changes."""
    group = typer.main.get_command(app)
    command = group.commands[arguments[0]]  # type: ignore[attr-defined]
    context = command.make_context(arguments[0], list(arguments[1:]))
    if "recipe" in context.params:
        given = context.params
        assert check_recipe(load_recipe(Path(given["recipe"]), given["sets"] or (), given["profile"])).stages


def _check_other(program: str, arguments: list[str]) -> None:
    assert program in ("make", "python", "git", "pip")
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        assert {a for a in arguments if "=" not in a} <= set(targets)
        variables = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.M)
        assert {a.partition("=")[0] for a in arguments if "=" in a} <= set(variables)
    if program == "python" and arguments[:1] == ["-m"]:
        file = ROOT / f"{arguments[1].replace('.', '/')}.py"
        assert file.exists() or arguments[1] in ("pytest", "mypy")
        assert all((ROOT / a).exists() for a in arguments[2:] if "/" in a)


@pytest.mark.parametrize("page", [p for p in PAGES if tables(p)], ids=lambda p: p.name)
def test_tables_of_settings_and_parts_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == renewed(text), "run `python -m tests.docs.tables`, and read what it changed"


def test_the_docs_have_a_table_for_every_setting_of_recipes_and_every_kind_of_part() -> None:
    found = {what for page in PAGES for what in tables(page)}
    kinds = set(catalogue().kinds()) - {"stage", *rule_kinds()}
    stages = {f"settings stage {name}" for name in catalogue().names("stage")}
    nested = {f"settings stage train {name}" for name in nested_fields(TrainSettings)}
    assert found >= {"settings recipe", "rules", *stages, *nested, *(f"parts {kind}" for kind in kinds)}


def test_links_between_the_pages_lead_somewhere() -> None:
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 8
    assert [target for page, target in links if not (page.parent / target).exists()] == []


def test_the_pages_name_no_path_of_a_machine() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.:/])/(home|work|tmp|root|Users)\b", text), page.name
        assert os.sep + "venv" + os.sep not in text, page.name
