"""Verifier of the arithmetic task: 1 where the number behind "#" is the sum that the prompt asks for, else 0."""

import re

from unified import Field, PromptGroup, Reward, Settings, hookimpl

_RESULT = re.compile(r"#\s*([0-9]{1,40})\s*$")


class ArithmeticRewardSettings(Settings):
    """What a wrong answer is worth."""

    format_reward: float = Field(
        0.0, ge=0, le=1, description="of a wrong answer that ends in # and a number, as it should"
    )


def judge(groups: list[PromptGroup], settings: ArithmeticRewardSettings) -> list[list[float | None]]:
    """1 right, format_reward wrong but well formed, 0 otherwise; missing where the prompt is no sum."""
    return [[_worth(answer.text, _sum(group), settings) for answer in group.answers] for group in groups]


def _sum(group: PromptGroup) -> int | None:
    """The right answer: of the row's column `answer`, else of the prompt itself."""
    if "answer" in group.columns:
        return int(group.columns["answer"])
    terms = group.text.strip().removesuffix("=").split("+")
    return sum(map(int, terms)) if all(term.isdecimal() for term in terms) else None


def _worth(text: str, right: int | None, settings: ArithmeticRewardSettings) -> float | None:
    if right is None:
        return None
    found = _RESULT.search(text)
    if found is None:
        return 0.0
    return 1.0 if int(found[1]) == right else settings.format_reward


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the verifier as `reward: arithmetic`."""
    return [Reward("arithmetic", ArithmeticRewardSettings, judge=judge)]
