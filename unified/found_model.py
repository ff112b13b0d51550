"""What a command means by MODEL: the folder of a run, of one of its stages, of a model, or a hub id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unified.errors import UserError
from unified.manifest import Manifest, read_manifest, stage_folder
from unified.named_models import path_problem
from unified.runner import RUN_FILE

if TYPE_CHECKING:
    from unified.models import Artifact


@dataclass(frozen=True)
class FoundModel:
    """A model by its path or hub id. stage: the folder of the stage that made it, with its manifest; None for others.

    home: the folder of the recipe, where the model that an adapter adapts may lie.
    """

    path: Path | str
    stage: Path | None = None
    manifest: Manifest | None = None
    home: Path | None = None

    def artifact(self, *, trusted: bool = False) -> Artifact:
        """The model, to be loaded. trusted: whether Python that lies beside it may run."""
        from unified.models import artifact_at

        return artifact_at(self.path, self.home or Path.cwd(), trusted=trusted)


def find_model(reference: str) -> FoundModel:
    """The model behind what a person wrote: of a run the last that it made, of a stage its own.

    UserError for a folder without a model, and for what cannot be a hub id.
    """
    folder = Path(reference).expanduser()
    if (folder / RUN_FILE).is_file():
        return _last_of_run(folder)
    if folder.is_dir():
        if (manifest := read_manifest(folder)) is not None:
            return _of_stage(folder, manifest)
        if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
            folder = folder / "model"
    problem = path_problem(str(folder), Path.cwd(), (), [])
    if problem is not None:
        raise UserError(problem.message, *problem.hints)
    if not folder.is_dir():
        return FoundModel(reference)
    made = read_manifest(folder.parent)
    if made is not None and made.model is not None and (folder.parent / made.model).resolve() == folder.resolve():
        return _of_stage(folder.parent, made)
    return FoundModel(folder)


def _last_of_run(run: Path) -> FoundModel:
    names = _about(run).get("stages")
    for name in reversed(names if isinstance(names, list) else []):
        folder = stage_folder(run, str(name))
        manifest = read_manifest(folder)
        if manifest is not None and manifest.model is not None:
            return _of_stage(folder, manifest)
    raise UserError(f"no stage of {run} has made a model yet", f"unified status {run} tells how far it is")


def _of_stage(folder: Path, manifest: Manifest) -> FoundModel:
    if manifest.model is None:
        raise UserError(f"stage '{manifest.name}' in {folder} makes no model", "name a stage that trains or merges")
    home = _about(folder.parents[manifest.name.count(".")]).get("home")
    return FoundModel(folder / manifest.model, folder, manifest, Path(home) if isinstance(home, str) else None)


def _about(run: Path) -> dict[str, object]:
    try:
        about = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
