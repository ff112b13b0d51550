"""Judge answers that were cut off by themselves: another reward, scaled or replaced where an answer did not end.

Source: the value in place of the reward is Lambert et al. 2024, arXiv:2411.15124, Tulu 3, section 6.2 (-10 without an
end of sequence); the factor on it is OpenRLHF's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from unified import Chosen, Field, PromptGroup, Reward, Settings, choice, hookimpl
from unified_plugins.rewards._inner import Judged, inner_judge, inner_models


class CutOffSettings(Settings):
    """What becomes of the reward of an answer that was cut off."""

    of: Chosen = choice("reward", description="the reward to shape")
    value: float | None = Field(None, description="stands in the place of the reward")
    factor: float | None = Field(None, ge=0, description="multiplies the reward")

    @model_validator(mode="after")
    def _one_of_both(self) -> "CutOffSettings":
        if (self.value is None) == (self.factor is None):
            raise ValueError("give `value` or `factor`, one of both")
        return self


def judge(
    groups: list[PromptGroup], settings: CutOffSettings, models: Mapping[str, Any], folder: Path | None = None
) -> Judged:
    """The reward inside; where finish is "length" scaled or replaced (of a reward per token, at its last).

    What was not judged stays missing.
    """

    def shaped(reward: float | list[float] | None) -> float | list[float] | None:
        if isinstance(reward, list):
            scaled = [(settings.factor or 0.0) * x for x in reward]
            return [*scaled[:-1], settings.value] if settings.value is not None and scaled else scaled
        if reward is None or settings.value is not None:
            return None if reward is None else settings.value
        return (settings.factor or 0.0) * reward

    given = inner_judge(settings.of, groups, models, folder)
    return [
        [shaped(v) if a.finish == "length" else v for v, a in zip(vs, g.answers, strict=True)]
        for vs, g in zip(given, groups, strict=True)
    ]


def models(settings: CutOffSettings) -> dict[str, str]:
    """The models of the reward inside."""
    return inner_models(settings.of)


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: cut_off, of: NAME, value: -10}`."""
    return [Reward("cut_off", CutOffSettings, judge=judge, models=models)]
