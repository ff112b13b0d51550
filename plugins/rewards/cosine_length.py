"""Length that pays by correctness: right answers are worth more when short, wrong ones lose less when long.

For an answer of `length` tokens short + (long - short) * (1 - cos(π * length / max_tokens)) / 2, with the two end
points of right or of wrong answers; `exceeded` for one that reaches max_tokens.
Source: Yeo et al. 2025, arXiv:2502.03373, section 4.2; the end points are those of their runs.
"""

from collections.abc import Mapping
from math import cos, pi
from pathlib import Path
from typing import Any

from unified import Answer, Chosen, Field, PromptGroup, Reward, Settings, choice, hookimpl
from unified_plugins.rewards._inner import Judged, inner_judge, inner_models


class CosineLengthSettings(Settings):
    """The end points."""

    of: Chosen = choice("reward", description="the reward that says whether an answer is right")
    right_from: float = Field(0.5, description="an answer is right where that reward is so much or more")
    max_tokens: int = Field(ge=1, description="the longest answer that may be sampled, in tokens")
    right_short: float = Field(2.0, description="of a right answer without a token")
    right_long: float = Field(1.0, description="of a right answer of max_tokens")
    wrong_short: float = Field(-10.0, description="of a wrong answer without a token")
    wrong_long: float = Field(0.0, description="of a wrong answer of max_tokens")
    exceeded: float | None = Field(
        -10.0, description="of an answer of max_tokens, right or wrong; none: what stands above"
    )


def worth(answer: Answer, *, right: bool, settings: CosineLengthSettings) -> float:
    """The reward of an answer; every token of it counts, its end included."""
    length = len(answer.ids)
    if length >= settings.max_tokens and settings.exceeded is not None:
        return settings.exceeded
    short, long = (settings.right_short, settings.right_long) if right else (settings.wrong_short, settings.wrong_long)
    way = min(1.0, length / settings.max_tokens)
    return short + (long - short) * (1 - cos(pi * way)) / 2


def judge(
    groups: list[PromptGroup], settings: CosineLengthSettings, models: Mapping[str, Any], folder: Path | None = None
) -> Judged:
    """One number per answer; a reward per token inside counts by its sum. What was not judged stays missing."""

    def shaped(value: float | list[float] | None, answer: Answer) -> float | None:
        if value is None:
            return None
        total = sum(value) if isinstance(value, list) else value
        return worth(answer, right=total >= settings.right_from, settings=settings)

    given = inner_judge(settings.of, groups, models, folder)
    return [[shaped(v, a) for v, a in zip(vs, g.answers, strict=True)] for vs, g in zip(given, groups, strict=True)]


def models(settings: CosineLengthSettings) -> dict[str, str]:
    """The models of the reward inside."""
    return inner_models(settings.of)


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: cosine_length, of: NAME, max_tokens: ...}`."""
    return [Reward("cosine_length", CosineLengthSettings, judge=judge, models=models)]
