"""The engine knows no algorithm and no plugin, plugins know only what is public, and files stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import unified

ROOT = Path(__file__).resolve().parents[1]
ENGINE = sorted((ROOT / "unified").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
ALL = [*ENGINE, *PLUGINS, *sorted((ROOT / "tests").rglob("*.py"))]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name taken from it or "") of every import anywhere in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            for value in node.args[:1]:
                if isinstance(value, ast.Constant):
                    yield str(value.value), ""


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_files_to_look_at() -> None:
    # each test below would hold of an empty list
    assert len(ENGINE) > 20
    assert len(PLUGINS) > 20
    assert len(ALL) > len(ENGINE) + len(PLUGINS)


def test_the_engine_imports_no_plugin() -> None:
    wrong = [
        f"{shown(f)}: {m}" for f in ENGINE for m, _ in imports(f) if re.match(r"\.*(unified_plugins|plugins)\b", m)
    ]
    assert wrong == []


def test_the_engine_does_not_speak_of_an_algorithm() -> None:
    word = re.compile(r"\b(sft|rm|ppo|dpo|grpo)\b", re.IGNORECASE)
    wrong = [
        f"{shown(f)}:{number}: {line.strip()}"
        for f in ENGINE
        for number, line in enumerate(f.read_text().splitlines(), 1)
        if word.search(line)
    ]
    assert wrong == []


def test_plugins_import_only_what_the_engine_exports() -> None:
    wrong = [
        f"{shown(f)}: from {module} import {name}" if name else f"{shown(f)}: import {module}"
        for f in PLUGINS
        for module, name in imports(f)
        if module.split(".")[0] == "unified" and not (module == "unified" and (not name or name in unified.__all__))
    ]
    assert wrong == []


def test_plugins_reach_into_the_engine_through_no_attribute_that_is_not_exported() -> None:
    # `import unified` and then unified.step.push would pass the test above
    wrong = [
        f"{shown(f)}:{node.lineno}: unified.{node.attr}"
        for f in PLUGINS
        for node in ast.walk(ast.parse(f.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "unified"
        if node.attr not in unified.__all__
    ]
    assert wrong == []


def test_a_strangers_plugin_needs_only_what_the_engine_exports() -> None:
    taken = [name for module, name in imports(ROOT / "tests" / "strangers.py") if module.split(".")[0] == "unified"]
    assert taken
    assert set(taken) <= set(unified.__all__)


@pytest.mark.parametrize("name", sorted(unified.__all__))
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(unified, name) is not None


def test_no_file_is_over_400_lines() -> None:
    lengths = {shown(f): len(f.read_text().splitlines()) for f in ALL}
    assert {f: n for f, n in lengths.items() if n > LONGEST_FILE} == {}


def test_no_function_is_over_60_lines() -> None:
    assert [(shown(f), name, n) for f in ALL for name, n in functions(f) if n > LONGEST_FUNCTION] == []


def test_the_rules_of_this_file_find_what_they_are_for(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "def f():\n    from unified.step import push\n" + "    x = 1\n" * 60 + "import unified_plugins.x as y\n"
    )
    assert list(functions(path)) == [("f", 62)]
    assert sorted(imports(path)) == [("unified.step", "push"), ("unified_plugins.x", "")]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_or_what_a_plugin_declares_does_not_import_torch() -> None:
    declares = "from unified import Algorithm, Answer, Example, Field, PromptGroup, Reward, Settings, hookimpl, choice"
    for statement in ("import unified", declares, "import unified.stage, unified.registry, unified.recipe"):
        assert {"torch", "transformers"} & loaded_by(statement) == set()
    assert "torch" in loaded_by("from unified import Batch")
