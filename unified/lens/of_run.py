"""What a run has left for the lens: its model, the reference of the stage that made it, and how that stage trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unified.check import typed_plan
from unified.errors import UserError
from unified.found_model import find_model
from unified.made import STAGE
from unified.manifest import stage_folder
from unified.recipe import Recipe
from unified.stage import ModelSettings, TrainSettings
from unified.status import read_run, recipe_of

if TYPE_CHECKING:
    from unified.models import Artifact


@dataclass(frozen=True)
class Standing:
    """A model with what is known of its training. reference: None where no training stage of a run made it.

    settings: of the training stage. reference_name: in words.
    """

    model: Artifact
    reference: Artifact | None = None
    settings: TrainSettings | None = None
    reference_name: str = ""


def standing(reference: str, *, trusted: bool = False) -> Standing:
    """The model behind what a person wrote, and of a run or stage its reference. UserError where there is no model."""
    found = find_model(reference)
    model = found.artifact(trusted=trusted)
    if found.stage is None or found.manifest is None:
        return Standing(model)
    run = found.stage.parents[found.manifest.name.count(".")]
    recipe = recipe_of(read_run(run), run)[0]
    settings = next((s.settings for s in typed_plan(recipe).stages if s.name == found.manifest.name), None)
    if not isinstance(settings, TrainSettings):
        return Standing(model)
    name = settings.model if settings.reference == "input" else settings.reference
    return Standing(model, _behind(name, run, recipe), settings, name)


def _behind(name: str, run: Path, recipe: Recipe) -> Artifact:
    """The model behind a reference of the recipe of a run."""
    from unified.models import base_artifact

    if name.startswith(STAGE):
        return find_model(str(stage_folder(run, name.removeprefix(STAGE)))).artifact()
    if name == "base":
        if recipe.model is None:
            raise UserError(f"the recipe of {run} has no model")
        return base_artifact(recipe.model, recipe.home, recipe.seed)
    return base_artifact(ModelSettings(path=name, new=None, tokenizer=None), recipe.home, recipe.seed)
