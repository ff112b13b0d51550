"""A process reward model: the chance that each step is right, taken together over the answer.

At the end of every step, σ(scale · score); of the steps the smallest, the product, the last, the mean or the sum. What
is written after the last end counts as a step, so that an answer can be judged while it is written.
Source: Lightman et al. 2023, arXiv:2305.20050, section 2.6 (product) and appendix F; Wang et al. 2023, arXiv:2312.08935
(minimum); Snell et al. 2024, arXiv:2408.03314, section 5.1 (last).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from unified import Answer, Field, PromptGroup, Reward, Settings, hookimpl
from unified_plugins.sources.step_ends import split_ends, token_ends

if TYPE_CHECKING:
    from unified import Judge


class ProcessSettings(Settings):
    """Which model judges, where steps end, and how they are taken together."""

    model: str = Field(description="a process reward model: stage:NAME, or the path of one")
    separator: int | str | None = Field(None, description="token id or text that ends a step; none: every token does")
    reduce: Literal["min", "product", "last", "mean", "sum"] = Field("min", description="of the steps to one number")
    scale: float = Field(1.0, gt=0, description="factor on the score before the sigmoid")


def judge(
    groups: list[PromptGroup], settings: ProcessSettings, models: Mapping[str, Judge]
) -> list[list[float | None]]:
    """One number for each answer, 0 to 1 but for the sum; None for an answer without a token."""
    model = models[settings.model]
    scores = model.score_tokens(groups)
    return [
        [_taken(answer, each, settings, model) for answer, each in zip(group.answers, of_group, strict=True)]
        for group, of_group in zip(groups, scores, strict=True)
    ]


def _taken(answer: Answer, scores: list[float], settings: ProcessSettings, model: Judge) -> float | None:
    if not scores:
        return None
    ends = ends_of(answer, settings.separator, model.tokenizer)
    chances = [1 / (1 + math.exp(-settings.scale * max(min(scores[end - 1], 500.0), -500.0))) for end in ends]
    take: dict[str, Callable[[list[float]], float]] = {
        "min": min,
        "product": math.prod,
        "last": lambda c: c[-1],
        "sum": sum,
        "mean": lambda c: sum(c) / len(c),
    }
    return float(take[settings.reduce](chances))


def ends_of(answer: Answer, separator: int | str | None, tokenizer: Any) -> list[int]:
    """Tokens written after each step, the last of them all that there are."""
    whole = len(answer.ids)
    if separator is None:
        return list(range(1, whole + 1))
    if isinstance(separator, int):
        ends = [place + 1 for place, token in enumerate(answer.ids) if token == separator]
    else:
        try:
            ends = [
                end + 1 for end in token_ends(answer.ids, answer.text, split_ends(answer.text, separator), tokenizer)
            ]
        except ValueError:  # nothing that can be read is written yet
            ends = []
    return [*(end for end in ends if end < whole), whole]


def models(settings: ProcessSettings) -> dict[str, str]:
    """The model to load beside the policy."""
    return {settings.model: "scalar"}


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: process, model: stage:NAME, separator: "\\n\\n", reduce: min}`."""
    return [Reward("process", ProcessSettings, judge=judge, models=models)]
