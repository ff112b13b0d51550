"""The score of a reward model: `scale` times what it reads after the answer, plus `shift`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from unified import Field, PromptGroup, Reward, Settings, hookimpl

if TYPE_CHECKING:
    from unified import Judge

Judged = list[list[float | None]]


class ModelSettings(Settings):
    """Which model judges."""

    model: str = Field(description="a scalar model: stage:NAME, or the path of one")
    scale: float = Field(1.0, description="factor on the score")
    shift: float = Field(0.0, description="added to the scaled score")


def judge(groups: list[PromptGroup], settings: ModelSettings, models: Mapping[str, Judge]) -> Judged:
    """scale * score + shift; what the model could not judge stays missing."""
    scores = models[settings.model].score(groups)
    return [[None if s is None else settings.scale * s + settings.shift for s in each] for each in scores]


def models(settings: ModelSettings) -> dict[str, str]:
    """The model to load beside the policy."""
    return {settings.model: "scalar"}


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer reward models as `reward: {name: model, model: stage:NAME}`."""
    return [Reward("model", ModelSettings, judge=judge, models=models)]
