"""What a stage will be, before it runs: its settings, inputs by hash, and the fingerprint that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified.adapters import adapter_at, base_of
from unified.check import PlannedStage
from unified.errors import UserError
from unified.made import STAGE
from unified.manifest import Manifest, files_named, fingerprint_of, hashes_under
from unified.named_models import local_path
from unified.own_checks import own_files
from unified.recipe import Recipe

#: full name of a stage that is done -> its manifest and folder
Made = Mapping[str, tuple[Manifest, Path]]


def draft_of(recipe: Recipe, stage: PlannedStage, made: Made) -> Manifest:
    """The manifest as far as it is known before the stage runs. Every stage that it refers to must be in `made`."""
    settings = stage.written()
    references = dict.fromkeys(use.reference for use in stage.uses if use.reference != "input")
    inputs = {reference: input_of(recipe, reference, made) for reference in references}
    files = files_named(stage.settings, recipe.home) | own_files(stage.settings, recipe.home)
    about = {"kind": stage.part.name, "settings": settings, "seed": recipe.seed}
    content = {reference: value["sha256"] for reference, value in inputs.items()}
    print_ = fingerprint_of(**about, inputs=content, files=files)
    return Manifest(stage.name, stage.part.name, settings, print_, recipe.seed, recipe.threads, inputs, files)


def input_of(recipe: Recipe, reference: str, made: Made) -> dict[str, Any]:
    """What a stage uses, by path and by the hash of its files (a new model by its configuration)."""
    if reference.startswith(STAGE):
        manifest, folder = made[reference.removeprefix(STAGE)]
        under = f"{manifest.model}/" if manifest.model else ""
        hashes = {k.removeprefix(under): v for k, v in manifest.outputs.items() if k.startswith(under)}
        return {"path": str(folder / (manifest.model or "")), "sha256": hashes}
    path = reference
    if reference == "base":
        if recipe.model is None:
            raise UserError("the recipe has no `model`")
        if recipe.model.path is None:
            new = fingerprint_of(model=recipe.model.model_dump(mode="json"), seed=recipe.seed)
            return {"path": None, "sha256": {"new": new}}
        path = recipe.model.path
    return {"path": path, "sha256": _hashes(path, recipe.home)}


def _hashes(path: str, home: Path) -> dict[str, str]:
    """The files of a folder by hash, those of the model that an adapter adapts among them; a hub id by its name."""
    folder = local_path(path, home)
    if not folder.is_dir():
        return {"hub id": path}
    adapter = adapter_at(folder, fetch=False)
    adapted = _hashes(str(base_of(adapter, folder, home)), home) if adapter is not None else {}
    return {**hashes_under(folder), **{f"base/{name}": value for name, value in adapted.items()}}
