"""`unified plugin new`: a package with one part that works as it stands, to be changed into one's own."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path
from string import Template

from unified.disk import whole_folder
from unified.errors import UserError, unknown_name
from unified.plugin_package import PYPROJECT, README, RECIPE, TESTS
from unified.plugin_templates import TEMPLATES
from unified.registry import catalogue

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
#: what the tests of a package may use -> the import that brings it
_STANDARD = {
    "tomllib": "import tomllib",
    "Path": "from pathlib import Path",
    "SimpleNamespace": "from types import SimpleNamespace",
}
_PUBLIC = ("Answer", "Catalogue", "Dataset", "PromptGroup", "Sampling", "examine", "hookimpl", "using")


def new_plugin(name: str, kind: str, parent: Path) -> Path:
    """Write a package with a part of that name and kind; the folder that was made.

    The folder is called as the package: NAME with - for _. Its tests pass as they are. All is written, or nothing.

    Raises:
        UserError: a kind or name that cannot be, a name that is taken by a part or module, a folder that is there.
    """
    if kind not in TEMPLATES:
        problem = unknown_name("kind of part that can be written", kind, TEMPLATES)
        more = "rules of other kinds are written like a filter: docs/rules.md says what each may name"
        raise UserError(problem.message, *problem.hints, more)
    _refuse_name(name, kind)
    words = re.split(r"[_-]", name)
    folder = parent / "-".join(words)
    if folder.exists():
        raise UserError(f"{folder} is there already", "choose another name, or another folder with --into")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as draft:
            for path, text in _files(name, kind).items():
                (draft / path).parent.mkdir(exist_ok=True)
                (draft / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def _refuse_name(name: str, kind: str) -> None:
    """UserError for what cannot be the name of a package, a module and a part at once."""
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        hints = [f"did you mean '{near}'?"] if _NAME.fullmatch(near) else []
        raise UserError(f"'{name}' cannot be the name of a plugin", *hints, "use small letters, digits, _ and -")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise UserError(f"'{name}' cannot be the name of a plugin: Python itself has a '{module}'", "choose another")
    if catalogue().find(kind, name) is not None:
        article, owner = "an" if kind[0] in "aeiou" else "a", catalogue().provider(kind, name)
        raise UserError(f"there is {article} {kind} '{name}' already, of {owner}", "choose another name")
    if _is_installed(module):
        raise UserError(f"there is a module '{module}' already, which the plugin's would hide", "choose another name")


def _is_installed(module: str) -> bool:
    """Whether a module of that name can be imported, but for one in the working folder."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return False
    here = Path.cwd().resolve()
    places = [spec.origin, *(spec.submodule_search_locations or [])]
    return not any(place and Path(place).resolve().parent == here for place in places)


def _files(name: str, kind: str) -> dict[str, str]:
    """Path in the package -> text."""
    template, module = TEMPLATES[kind], name.replace("-", "_")
    said = {
        "NAME": name,
        "MODULE": module,
        "PACKAGE": name.replace("_", "-"),
        "CLASS": "".join(word.capitalize() for word in module.split("_")),
        "KIND": kind,
        "HOOK": template.hook,
    }
    said["NEEDS"] = f", {dict(template.needs)}".replace("'", '"') if template.needs else ""
    said["SETS"] = "".join(f" --set {key}={value}" for key, value in template.needs)
    said["USE"] = _filled(template.use, said)
    tests = TESTS + template.tests
    said["STANDARD"] = "\n".join(line for word, line in _STANDARD.items() if re.search(rf"\b{word}\b", tests))
    said["IMPORTS"] = ", ".join(word for word in _PUBLIC if re.search(rf"\b{word}\b", template.tests))
    files = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"{module}.py": template.module,
        f"tests/test_{module}.py": tests if said["IMPORTS"] else tests.replace("from unified import $IMPORTS\n", ""),
    }
    if kind == "algorithm":
        files["recipe.yaml"] = RECIPE
    return {path: _filled(text, said).lstrip("\n") for path, text in files.items()}


def _filled(text: str, said: dict[str, str]) -> str:
    return Template(text).substitute(said)


def kinds_said() -> str:
    """The kinds, for a help text; no plugin is loaded."""
    return ", ".join(TEMPLATES)
