"""Looks a user's function or class up in the text of its file or module; nothing of it is imported or run.

What only running it would show is left open: names that a module makes at run time (`from x import *`, `globals()`,
`__getattr__`, a base class elsewhere), modules without a Python file, modules that a package brings by itself.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Literal

from unified import Problem, did_you_mean

Function = ast.FunctionDef | ast.AsyncFunctionDef
_DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
#: what can bind names that the text does not show
_OPEN = frozenset({"globals", "exec", "vars", "__getattr__"})


@dataclass(frozen=True)
class Seen:
    """What the text shows: the definition, None where it shows none, and what is wrong."""

    node: ast.stmt | None = None
    problems: list[Problem] = field(default_factory=list)


def look_up(file: str | None, name: str, home: Path, *, what: Literal["function", "class"], key: str) -> Seen:
    """The definition of a function or class that a recipe names, as `find_function` would find it.

    key: the setting that names it, where problems are shown. What is not there is told with the nearest name that is.
    """
    home = home.resolve()
    if file is not None:
        path, where, attribute = home / file, file, name
        if not path.is_file():
            near = did_you_mean(path.name, _python_files(path.parent))
            hints = [*_meant(near and file[: len(file) - len(path.name)] + near), f"relative paths start at {home}"]
            return Seen(problems=[Problem(f"there is no file {file}", (key,), tuple(hints))])
    else:
        module, _, attribute = name.replace(":", ".").rpartition(".")
        found = _module(module, home)
        if isinstance(found, Problem):
            return Seen(problems=[Problem(found.message, (key,), found.hints)])
        if found is None:
            return Seen()
        path, where = found, f"module {module}"
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:  # ValueError: a zero byte
        line = getattr(error, "lineno", None)
        place = f"{where}{f', line {line}' if line else ''}"
        return Seen(problems=[Problem(f"{place}: no Python that can be read: {error}", (key,))])
    node, problem = _defined(tree.body, attribute, where, what)
    return Seen(node, [Problem(problem.message, (key,), problem.hints)] if problem else [])


def module_files(file: str | None, name: str, home: Path) -> dict[str, Path]:
    """The file of the module that a name leads to, by the name of the module; {} for a file, which is named itself."""
    if file is not None:
        return {}
    home = home.resolve()
    module = name.replace(":", ".").rpartition(".")[0]
    found = _module(module, home)
    return {f"module {module}": found} if isinstance(found, Path) else {}


def parameters_of(node: ast.stmt | None) -> tuple[list[str], list[str], bool] | None:
    """(names of all arguments, those without a default, whether it takes **keywords) of a function; else None.

    None, too, where a decorator may have given it other arguments.
    """
    if not isinstance(node, Function) or node.decorator_list:
        return None
    given = node.args
    plain = [a.arg for a in (*given.posonlyargs, *given.args)]
    needed = plain[: len(plain) - len(given.defaults)]
    needed += [a.arg for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
    return [*plain, *(a.arg for a in given.kwonlyargs)], needed, given.kwarg is not None


# --- modules ---


def _module(name: str, home: Path) -> Path | Problem | None:
    """The file of a module, found as an import would; a Problem where there is none, None where it cannot be told."""
    first, *rest = name.split(".")
    known = sys.modules.get(name)
    if known is not None:
        return _python(getattr(known, "__spec__", None))
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # what is running as a script
        return None
    spec = spec or PathFinder.find_spec(first, [str(home)])
    seen = first
    if spec is None:
        near = did_you_mean(first, [*(p.removesuffix(".py") for p in _python_files(home)), *_packages([str(home)])])
        hint = f"install it, or put it into {home}; for a file write FILE.py:NAME, relative to the recipe"
        return Problem(f"there is no module {first}", (), (*_meant(near), hint))
    for part in rest:
        inside = spec.submodule_search_locations
        if inside is None:  # no package; it may bring modules of its own, as `os` brings `os.path`
            local = spec.origin is not None and Path(spec.origin).is_relative_to(home)
            message = f"there is no module {seen}.{part}: {seen} is a file, not a package"
            return Problem(message, (), (f"write {seen}:NAME",)) if local else None
        below = PathFinder.find_spec(f"{seen}.{part}", inside)
        if below is None:
            near = did_you_mean(part, [*(p.removesuffix(".py") for p in _all_files(inside)), *_packages(inside)])
            return Problem(f"there is no module {seen}.{part}", (), tuple(_meant(near and f"{seen}.{near}")))
        spec, seen = below, f"{seen}.{part}"
    return _python(spec)


def _python(spec: ModuleSpec | None) -> Path | None:
    """The text of a module, None where it has none."""
    origin = spec.origin if spec is not None and spec.has_location else None
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


def _python_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.py")) if folder.is_dir() else []


def _all_files(folders: Sequence[str]) -> Iterator[str]:
    for folder in folders:
        yield from _python_files(Path(folder))


def _packages(folders: Sequence[str]) -> list[str]:
    return [p.name for f in folders if Path(f).is_dir() for p in Path(f).iterdir() if (p / "__init__.py").is_file()]


def _meant(near: str | None) -> list[str]:
    return [f"did you mean '{near}'?"] if near else []


# --- names ---


def _defined(body: Sequence[ast.stmt], name: str, where: str, what: str) -> tuple[ast.stmt | None, Problem | None]:
    """The statement that defines a name (a method behind the dots), and what is wrong with it."""
    first, _, rest = name.partition(".")
    names = dict(_bound(body))
    node = names.get(first)
    if node is None:
        if any(isinstance(n, ast.Name) and n.id in _OPEN for s in body for n in ast.walk(s)) or "*" in names:
            return None, None
        if "__getattr__" in names or any(isinstance(n, ast.Global) and first in n.names for n in _walked(body)):
            return None, None
        shown = [n for n in names if not n.startswith("_")]
        usable = [n for n in shown if isinstance(names[n], _DEFINED)]
        hints = (*_meant(did_you_mean(first, shown)), *([f"it defines: {', '.join(usable)}"] if usable else []))
        return None, Problem(f"there is no '{first}' in {where}", (), hints)
    if rest:
        if isinstance(node, ast.ClassDef) and not (node.bases or node.keywords or node.decorator_list):
            return _defined(node.body, rest, f"{first} of {where}", what)
        return None, None
    if isinstance(node, Function) and what == "class" and not node.decorator_list:
        return node, Problem(f"'{name}' in {where} is a function, not a class")
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(
        node.value, (ast.Constant, ast.List, ast.Dict, ast.Tuple, ast.Set, ast.JoinedStr)
    ):
        return node, Problem(f"'{name}' in {where} is a value, not a {what}")
    return node, None


def _walked(body: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    for statement in body:
        yield from ast.walk(statement)


def _bound(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """(name, statement) of what statements bind, those inside `if`, `try`, `with` and loops included; "*" for all."""
    for node in body:
        if isinstance(node, _DEFINED):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                plain = alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0]
                yield alias.asname or plain, node
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.AsyncFor)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((n.id, node) for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            kept = [item.optional_vars for item in node.items if item.optional_vars is not None]
            yield from ((n.id, node) for t in kept for n in ast.walk(t) if isinstance(n, ast.Name))
        if not isinstance(node, _DEFINED):
            for inner in _inside(node):
                yield from _bound(inner)


def _inside(node: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    """The blocks of a statement."""
    fields: Mapping[str, object] = vars(node)
    for value in fields.values():
        if isinstance(value, list):
            statements = [one for one in value if isinstance(one, ast.stmt)]
            if statements:
                yield statements
            for one in value:
                if isinstance(one, (ast.ExceptHandler, ast.match_case)):
                    yield one.body
