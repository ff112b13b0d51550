"""The score of a reward model: `scale` times what it reads after the answer, plus `shift`."""

from collections.abc import Callable

from unified import Field, PromptGroup, Reward, Settings, hookimpl

Judged = list[list[float | list[float] | None]]


class ModelSettings(Settings):
    """Which model judges."""

    model: str = Field(description="a scalar model: stage:NAME, or the path of one")
    scale: float = Field(1.0, description="factor on the score")
    shift: float = Field(0.0, description="added to the scaled score; to every number where there is one per token")


def judge(groups: list[PromptGroup], settings: ModelSettings, score: Callable[[list[PromptGroup]], Judged]) -> Judged:
    """scale * score + shift; what the model could not judge stays missing."""

    def mapped(value: float | list[float] | None) -> float | list[float] | None:
        if value is None:
            return None
        if isinstance(value, list):
            return [settings.scale * x + settings.shift for x in value]
        return settings.scale * value + settings.shift

    return [[mapped(value) for value in values] for values in score(groups)]


def model(settings: ModelSettings) -> str:
    """The model to load beside the policy."""
    return settings.model


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer reward models as `reward: {name: model, model: stage:NAME}`."""
    return [Reward("model", ModelSettings, judge=judge, model=model)]
