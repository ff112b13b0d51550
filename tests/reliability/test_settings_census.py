"""Configuration census: every declared setting of every built-in part is read by something.

The code is searched, not run: a setting of a plugin counts as read where its module, one that this one imports, or one
that imports it, looks at an attribute of that name or has a function with a parameter of that name (rules get their
settings as arguments), or where the engine asks for it by name. Settings of the engine must be looked at in the engine
or in a plugin.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import unified
from unified.registry import Catalogue, using
from unified.settings import Settings

ROOT = Path(unified.__file__).parent
HOMES = {"unified": ROOT, "unified_plugins": ROOT.parent / "plugins"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the engine and of the plugins by its name."""
    out = {}
    for package, folder in HOMES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            out[name] = ast.parse(file.read_text(encoding="utf-8"))
    return out


def read_in(tree: ast.Module) -> set[str]:
    """Names that a module looks at: attributes, parameters of functions, keys, names asked for by getattr."""
    found = asked_by_name(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):  # what was passed on as a dict
            found |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    return found


def asked_by_name(tree: ast.Module) -> set[str]:
    """Texts that are arguments of getattr, alone or in a list that is gone through, and keys of what is written."""
    found = set()
    for node in ast.walk(tree):
        call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
        if call or isinstance(node, (ast.comprehension, ast.For)):
            inside = node.args[1:2] if isinstance(node, ast.Call) else [node.iter]  # type: ignore[attr-defined]
            found |= {
                c.value
                for part in inside
                for c in ast.walk(part)
                if isinstance(c, ast.Constant) and type(c.value) is str
            }
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the plugins that a module imports."""
    out = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("unified_plugins"):
            out |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names if alias.name.startswith("unified_plugins")}
    return frozenset(out & modules().keys())


@cache
def near(module: str) -> frozenset[str]:
    """A module of the plugins, all that it imports at any depth, and those that import it."""
    found, todo = {module}, [module]
    while todo:
        for other in imports(todo.pop()) - found:
            found.add(other)
            todo.append(other)
    return frozenset(found | {name for name in modules() if module in imports(name)})


@cache
def names_read(module: str) -> frozenset[str]:
    return frozenset(read_in(modules()[module]))


@cache
def asked_by_the_engine() -> frozenset[str]:
    trees = [tree for name, tree in modules().items() if not name.startswith("unified_plugins")]
    return frozenset(set().union(*map(asked_by_name, trees)))


def settings_classes(parent: type[Settings] = Settings) -> Iterator[type[Settings]]:
    for cls in parent.__subclasses__():
        if cls.__module__.partition(".")[0] in HOMES:
            yield cls
        yield from settings_classes(cls)


def declared() -> Iterator[tuple[type[Settings], str]]:
    """Every class of settings with each of the keys that it declares itself."""
    for cls in dict.fromkeys(settings_classes()):
        for key in cls.model_fields:
            if key in cls.__annotations__:
                yield cls, key


def is_read(cls: type[Settings], key: str) -> bool:
    """Whether something looks at a setting."""
    if cls.__module__.startswith("unified_plugins"):
        return any(key in names_read(name) for name in near(cls.__module__)) or key in asked_by_the_engine()
    return any(key in names_read(name) for name in modules())


@pytest.fixture(scope="module")
def everything() -> list[tuple[type[Settings], str]]:
    """With every built-in part loaded, and every module of the engine that has settings."""
    from importlib import import_module

    with using(Catalogue()) as found:
        assert found.names("algorithm")
    for name in modules():
        if name.startswith("unified.") and name != "unified.__main__":
            import_module(name)
    return list(declared())


def test_every_setting_is_read_by_something(everything: list[tuple[type[Settings], str]]) -> None:
    assert len(everything) > 300
    unread = [f"{cls.__module__}.{cls.__qualname__}.{key}" for cls, key in everything if not is_read(cls, key)]
    assert not unread, "\n".join(unread)


def test_a_setting_that_nobody_reads_is_found() -> None:
    class Unread(Settings):
        a_number_that_nobody_reads: int = 0
        batch_size: int = 0

    for module in ("unified.stage", "unified_plugins.sources.rollouts"):
        Unread.__module__ = module
        assert not is_read(Unread, "a_number_that_nobody_reads")
    Unread.__module__ = "unified.stage"
    assert is_read(Unread, "batch_size")
    Unread.__module__ = "unified_plugins.sources.rollouts"
    assert not is_read(Unread, "inner_epochs")  # read by the engine of its own settings, but not of a plugin's
