"""Recipes of one stage for the commands `merge` and `evaluate`: what they do is what the stage kinds do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unified.errors import Problem, UserError
from unified.found_model import find_model
from unified.manifest import Manifest
from unified.recipe import Recipe, assemble
from unified.runner import run_recipe
from unified.tree import Node, Place, located, merge, parse_override, read_yaml


def stage_recipe(
    kind: str, settings: Mapping[str, Any], written: Mapping[str, str | None] | None = None, sets: Iterable[str] = ()
) -> Recipe:
    """A recipe with one stage of that kind, called as the kind, against the working folder.

    written: settings as a person wrote them on the command line, in YAML (None: left out). sets: KEY=VALUE of the
    stage.
    """
    place = Place(f"unified {kind}")
    problems: list[tuple[Place, Problem]] = []
    given = {key: located(value, place) for key, value in settings.items() if value is not None}
    for key, text in (written or {}).items():
        if text is not None:
            given[key] = read_yaml(text, f"--{key} {text}", problems, lines=False)
    root = located({"name": kind, "stages": {kind: {"kind": kind}}}, place)
    stage = merge(Node(given, place), root.value["stages"].value[kind], is_part=False)
    root = Node({**root.value, "stages": Node({kind: stage}, place)}, place)
    for text in sets:
        change = parse_override(text, problems)
        root = merge(root, Node({"stages": Node({kind: change}, place)}, place), is_part=False)
    return assemble(root, source=f"unified {kind}", home=Path.cwd(), problems=problems)


def run_stage(recipe: Recipe, output: Path, *, force: bool = False) -> tuple[Manifest, Path]:
    """Run a recipe of one stage without a word; what it left, and where. UserError as `run_recipe`."""
    from unified.console import RunConsole

    (outcome,) = run_recipe(recipe, output, force=force, console=RunConsole(silent=True))
    return outcome.manifest, outcome.folder


def merge_models(
    models: list[str], output: Path, *, weights: str | None = None, ema_decay: float | None = None, force: bool = False
) -> tuple[Manifest, Path]:
    """The average of models; what the stage left, and where its model is.

    weights: numbers with commas between. UserError for models that do not fit, and numbers that are none.
    """
    found = [find_model(reference) for reference in models]
    paths = [str(one.path.absolute()) if isinstance(one.path, Path) else one.path for one in found]
    settings: dict[str, Any] = {"models": paths, "ema_decay": ema_decay}
    if weights is not None:
        try:
            settings["weights"] = [float(number) for number in weights.split(",")]
        except ValueError as error:
            raise UserError(f"--weights {weights}: these are no numbers", "for example --weights 1,3") from error
    manifest, folder = run_stage(stage_recipe("merge", settings), output, force=force)
    return manifest, folder / str(manifest.model)
