"""What a recipe says of models by path, hub id or configuration, looked at without loading any."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from unified.adapters import CONFIG, adapter_at, base_of, is_scalar, refuse_without_peft
from unified.configurations import configuration_problems
from unified.errors import Problem, UserError, did_you_mean
from unified.hub import is_cached
from unified.stage import ModelSettings
from unified.weights import architectures_of, pickle_message, pickled_in

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: how like another name a misspelt one is, from 0 to 1
NEAR = 0.8
#: what weights are written in: files, and no models by themselves
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt")
_HOLDS = "a model folder holds config.json, weights and a tokenizer"


def local_path(reference: str, home: Path) -> Path:
    """A reference as a path, read against the folder of the recipe."""
    path = Path(reference).expanduser()
    return path if path.is_absolute() else home / path


def path_problem(reference: str, home: Path, at: tuple[str | int, ...], stages: list[str]) -> Problem | None:
    """Whether a path or hub id cannot be a model: a folder that is not there or holds none."""
    path = local_path(reference, home)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return _adapter_problem(path, home, at)
        if (path / "config.json").is_file():
            return _pickle_problem(path, reference, at)
        inner = [f"{reference}/model"] if (path / "model" / "config.json").is_file() else []
        hints = [f"did you mean '{inner[0]}'?"] if inner else []
        return Problem(f"no model in {reference}", at, (*hints, _HOLDS))
    if path.is_file():
        return Problem(f"{reference} is a file; a model is a folder", at)
    looks_local = reference.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(reference)
    first = reference.partition("/")[0]
    if not looks_local and not ("/" in reference and (home / first).is_dir()):
        if reference in stages:
            return Problem(f"there is no model {reference}", at, (f"did you mean 'stage:{reference}'?",))
        return _misspelt(reference, home, at, stages)
    around = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = did_you_mean(path.name, around)
    hints = [f"did you mean '{reference[: len(reference) - len(path.name)]}{near}'?"] if near else []
    return Problem(f"there is no folder {reference}", at, (*hints, f"relative paths start at {home}"))


def _misspelt(reference: str, home: Path, at: tuple[str | int, ...], stages: list[str]) -> Problem | None:
    """What could be a hub id and is nearly the name of a stage or of a model folder that is here; a file of weights.

    Nothing for what is in the hub's cache on this machine.
    """
    what = f"there is no model {reference}"
    if Path(reference).suffix in _FILES:
        return Problem(what, at, ("name the folder that holds the file, config.json and a tokenizer",))
    plain = [] if "/" in reference else stages
    near = [f"stage:{name}" for name in difflib.get_close_matches(reference, plain, n=1, cutoff=NEAR)]
    if not near:
        first, _, second = reference.partition("/")
        outer = difflib.get_close_matches(first, _folders(home), n=3, cutoff=NEAR) if second else []
        here = [f"{folder}/{name}" for folder in outer for name in _folders(home / folder)] or _folders(home)
        models = [name for name in here if any((home / name / file).is_file() for file in ("config.json", CONFIG))]
        near = difflib.get_close_matches(reference, models, n=1, cutoff=NEAR)
    if not near or is_cached(reference):
        return None  # a hub id
    return Problem(what, at, (f"did you mean '{near[0]}'?", "the hub's models are called OWNER/NAME, a folder ./NAME"))


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def of_the_hub(reference: str, home: Path) -> str | None:
    """The hub id that a reference is, or that a local adapter adapts; None for what is all here."""
    path = local_path(reference, home)
    if not path.exists():
        return reference
    adapter = adapter_at(path, fetch=False)
    return of_the_hub(str(base_of(adapter, path, home)), home) if adapter is not None else None


def _pickle_problem(path: Path, reference: str, at: tuple[str | int, ...]) -> Problem | None:
    """Whether the weights in a folder are none that are read."""
    names = pickled_in(path)
    what, hint = pickle_message(reference, names)
    return Problem(what, at, (hint,)) if names else None


def _adapter_problem(path: Path, home: Path, at: tuple[str | int, ...]) -> Problem | None:
    """Whether the model that an adapter adapts cannot be one."""
    try:
        base = base_of(adapter_at(path) or {}, path, home)
        if (pickled := _pickle_problem(path, str(path), at)) is not None:
            return pickled
        refuse_without_peft(path)
    except UserError as error:
        return as_problem(error, at)
    return path_problem(str(base), home, at, [])


def kind_at(reference: str, home: Path, *, fetch: bool = False, trusted: bool = False) -> str | None:
    """The kind (policy or scalar) by the configuration of a model; None where it is not known.

    fetch: whether a hub id is asked; trusted: whether its own Python may run then. Raises UserError for one that has no
    configuration, or cannot be reached.
    """
    path = local_path(reference, home)
    where: Path | str = path if path.exists() else reference
    adapter = adapter_at(where, fetch=fetch)
    if adapter is not None:
        return "scalar" if is_scalar(adapter) else kind_at(str(base_of(adapter, where, home)), home, fetch=fetch)
    if isinstance(where, Path):
        try:
            names = architectures_of(path)
        except UserError:
            return None
    elif fetch:
        from unified.models import config_at

        names = config_at(reference, trusted=trusted).architectures or []
    else:
        return None
    return "scalar" if any("SequenceClassification" in str(name) for name in names) else "policy"


def as_problem(error: UserError, at: tuple[str | int, ...] = ()) -> Problem:
    """A mistake that was raised, as one to be shown with its place."""
    first, *hints = str(error).splitlines()
    return Problem(first, at, tuple(hint.strip() for hint in hints))


def model_problems(model: ModelSettings, home: Path) -> list[Problem]:
    """What is wrong with the recipe's own model."""
    if (model.path is None) == (model.new is None):
        return [
            Problem(
                "model needs either `path` or `new`", (), ("a folder or hub id, or a configuration with model_type",)
            )
        ]
    if model.path is not None:
        problem = path_problem(model.path, home, (), [])
        return [problem] if problem else []
    problems = (
        [] if model.tokenizer else [Problem("a new model needs `tokenizer`", ("new",), ("the dataset that makes one",))]
    )
    return problems + configuration_problems(dict(model.new or {}))
