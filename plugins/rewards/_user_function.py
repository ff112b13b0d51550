"""Finds a Python function by the name that a recipe gives it."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from unified import UserError, did_you_mean


def find_function(file: str | None, name: str, folder: Path | None) -> Callable[..., Any]:
    """The function `name` of a file, or of a module: `package.module:function` or `package.module.function`.

    A file is relative to `folder`, the recipe's (None: the working directory), and is run once in a program. Modules
    that lie in the folder are found, too, behind those that are installed.

    Raises UserError: no such file, module or function, or importing it raised.
    """
    with _LOCK:  # rewards may be asked side by side
        return _found(file, name, (folder or Path.cwd()).resolve())


def file_and_name(function: str) -> tuple[str | None, str]:
    """FILE.py:name apart; no file where it names a module."""
    file, _, name = function.rpartition(":")
    return (file, name) if file.endswith(".py") else (None, function)


def could_name(name: str, *, in_file: bool) -> bool:
    """Whether a function could be called so, in a file or else as package.module:function."""
    parts = name.replace(":", ".", 1).split(".")
    return all(part.isidentifier() for part in parts) and (in_file or len(parts) > 1)


_LOCK = Lock()


def _found(file: str | None, name: str, home: Path) -> Callable[..., Any]:
    module, _, attribute = name.replace(":", ".").rpartition(".") if file is None else ("", "", name)
    where = str(home / file) if file is not None else f"module {module}"
    owner = _run_file(Path(where), home) if file is not None else _import(module, home)
    found = owner
    for part in attribute.split("."):
        names = [n for n in dir(found) if not n.startswith("_")]
        if not hasattr(found, part):
            near = did_you_mean(part, names)
            raise UserError(f"there is no '{part}' in {where}", *([f"did you mean '{near}'?"] if near else []))
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"'{attribute}' in {where} is {type(found).__name__}, not a function")
    return found


@lru_cache(maxsize=256)
def _run_file(path: Path, home: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path}", f"relative paths start at {home}")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"  # two folders may have a rewards.py
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be run as Python", "give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    _see(path.parent)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _import(name: str, home: Path) -> ModuleType:
    _see(home)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no module {name}",
                f"install it, or put it into {home}; for a file write FILE.py:FUNCTION, relative to the recipe",
            ) from error
        raise UserError(f"module {name} cannot be imported: {error}") from error
    except Exception as error:
        raise UserError(f"module {name} cannot be imported: {type(error).__name__}: {error}") from error


def _see(folder: Path) -> None:
    """Let what lies in a folder be imported, behind what is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
