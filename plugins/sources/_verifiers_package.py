"""The package `verifiers` (the extra of that name), and its environments by name. Importing this imports nothing of it.

An environment is named as the package names those that are installed, `word-count` or `owner/word-count`: what the
function `load_environment` of the module `word_count` gives. Or by a function that gives one, in a module or a file.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Any

from unified import Problem, UserError
from unified_plugins.rewards._user_code import look_up, module_files
from unified_plugins.rewards._user_function import could_name, find_function

#: with these the package has environments of several turns; 0.4 has none, and earlier ones were not tried
VERSIONS = "0.3."
_INSTALL = "pip install 'unified-post-training[verifiers]'"
_loaded: dict[tuple[object, ...], Any] = {}


def function_of(environment: str) -> str:
    """The function that gives the environment, as `find_function` reads it."""
    if ":" in environment or "." in environment:
        return environment
    return f"{environment.rpartition('/')[2].replace('-', '_')}:load_environment"


def check_name(environment: str, file: str | None) -> None:
    """ValueError for a name that can be none of an environment."""
    if not could_name(environment if file is not None else function_of(environment), in_file=file is not None):
        raise ValueError(
            "environment is written as the name of an installed one, package.module:function, or FILE.py:function"
        )


def lacking() -> tuple[str, str] | None:
    """What is wrong with the installed package, and what to do; None where it will do."""
    if find_spec("verifiers") is None:
        return "the package verifiers is not installed", _INSTALL
    found = metadata.version("verifiers")
    if not found.startswith(VERSIONS):
        return f"verifiers {found} is installed, but these environments are those of {VERSIONS}*", _INSTALL
    return None


def problems(environment: str, file: str | None, home: Path) -> list[Problem]:
    """What can be seen before anything is imported: no package, or no such file, module or function."""
    wrong = lacking()
    if wrong is not None:
        return [Problem(wrong[0], ("environment",), (wrong[1],))]
    name = environment if file is not None else function_of(environment)
    return look_up(file, name, home, what="function", key="environment").problems


def files_of(environment: str, file: str | None, home: Path) -> dict[str, Path]:
    """The file of the module that an environment comes from."""
    return module_files(file, function_of(environment), home)


def load(environment: str, file: str | None, arguments: Mapping[str, Any], folder: Path | None) -> Any:
    """The environment, made once in a program for each set of arguments.

    Raises UserError: the package is missing or of another version; no such function, or it raised, or it gave something
        else.
    """
    key = (environment, file, dumps(arguments, sort_keys=True, default=str), folder and folder.resolve())
    if key not in _loaded:
        _loaded[key] = _made(environment, file, arguments, folder)
    return _loaded[key]


def _made(environment: str, file: str | None, arguments: Mapping[str, Any], folder: Path | None) -> Any:
    wrong = lacking()
    if wrong is not None:
        raise UserError(f"environment '{environment}': {wrong[0]}", wrong[1])
    import verifiers as vf

    name = environment if file is not None else function_of(environment)
    with _signals_kept():
        function = find_function(file, name, folder)
        try:
            made = function(**arguments)
        except Exception as error:  # of a stranger's function: its datasets, its keys, its arguments
            raise UserError(f"environment '{environment}' cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, vf.Environment):
        raise UserError(
            f"environment '{environment}' is {type(made).__name__}, no environment of verifiers",
            "name a function that gives one; a class with `step` is for `source: environment`",
        )
    return made


@contextmanager
def _signals_kept() -> Iterator[None]:
    """An environment of the package takes Ctrl-C and SIGTERM for itself; they stay whose they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
