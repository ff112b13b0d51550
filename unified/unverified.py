"""What a check leaves open, because it would have to fetch it: models and datasets named by a hub id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unified.check import Plan
from unified.made import STAGE
from unified.named_models import of_the_hub
from unified.settings import Chosen, Settings


def not_yet_verified(plan: Plan) -> list[str]:
    """One text for each model and dataset of the recipe that has yet to be fetched, in the order of the stages."""
    home, found = plan.recipe.home, []
    for stage in plan.stages:
        for use in stage.uses:
            reference = use.reference
            if reference == "base":
                reference = (plan.recipe.model.path if plan.recipe.model else None) or "input"
            if not reference.startswith(STAGE) and reference != "input":
                hub = of_the_hub(reference, home)
                found += [f"model {hub}"] if hub else []
        found += [f"dataset {name_of(chosen)}" for chosen in _datasets(stage.settings) if chosen.part.remote]
    return list(dict.fromkeys(found))


def name_of(chosen: Chosen) -> str:
    """What the settings of a remote dataset say that it is: their `id` where they have one."""
    return str(getattr(chosen.settings, "id", chosen.name))


def _datasets(value: Any) -> Iterator[Chosen]:
    """Every dataset that settings choose, at any depth."""
    if isinstance(value, Chosen):
        if value.part.kind == "dataset":
            yield value
        yield from _datasets(value.settings)
    elif isinstance(value, Settings):
        for key in type(value).model_fields:
            yield from _datasets(getattr(value, key))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _datasets(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _datasets(item)
