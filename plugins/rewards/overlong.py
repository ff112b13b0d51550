"""Soft punishment of long answers: another reward, less what lies in the last stretch before the limit.

r - factor * min(1, max(0, length - (max_tokens - buffer)) / buffer).
Source: Yu et al. 2025, arXiv:2503.14476, DAPO, eq. 13; there 16384 tokens and a buffer of 4096.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from unified import Answer, Chosen, Field, PromptGroup, Reward, Settings, choice, hookimpl
from unified_plugins.rewards._inner import Judged, inner_judge, inner_models


class OverlongSettings(Settings):
    """What is punished, and how hard."""

    of: Chosen = choice("reward", description="the reward to shape")
    max_tokens: int = Field(ge=1, description="the longest answer that may be sampled, in tokens")
    buffer: int = Field(ge=1, description="so many tokens before that the punishment begins")
    factor: float = Field(1.0, ge=0, description="punishment at the limit")

    @model_validator(mode="after")
    def _buffer_fits(self) -> "OverlongSettings":
        if self.buffer > self.max_tokens:
            raise ValueError(f"buffer is {self.buffer}, but answers have at most {self.max_tokens} tokens (max_tokens)")
        return self


def punishment(answer: Answer, settings: OverlongSettings) -> float:
    """What is taken off, 0 to factor; every token of the answer counts, its end included."""
    over = len(answer.ids) - (settings.max_tokens - settings.buffer)
    return settings.factor * min(1.0, max(0.0, over / settings.buffer))


def judge(
    groups: list[PromptGroup], settings: OverlongSettings, models: Mapping[str, Any], folder: Path | None = None
) -> Judged:
    """The shaped reward; of a reward per token the last one is shaped. What was not judged stays missing."""

    def shaped(value: float | list[float] | None, answer: Answer) -> float | list[float] | None:
        if isinstance(value, list):
            return [*value[:-1], value[-1] - punishment(answer, settings)] if value else value
        return None if value is None else value - punishment(answer, settings)

    given = inner_judge(settings.of, groups, models, folder)
    return [[shaped(v, a) for v, a in zip(vs, g.answers, strict=True)] for vs, g in zip(given, groups, strict=True)]


def models(settings: OverlongSettings) -> dict[str, str]:
    """The models of the reward inside."""
    return inner_models(settings.of)


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: overlong, of: NAME, max_tokens: ..., buffer: ...}`."""
    return [Reward("overlong", OverlongSettings, judge=judge, models=models)]
