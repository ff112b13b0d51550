"""A rule on length: 1 at the target, falling evenly to 0 at `width` from it."""

from typing import Literal

from unified import Answer, Field, PromptGroup, Reward, Settings, hookimpl


class LengthSettings(Settings):
    """How long an answer should be."""

    target: int = Field(ge=0, description="the best length, in `unit`")
    width: float = Field(gt=0, description="so far from the target the reward is 0, in `unit`")
    unit: Literal["tokens", "words", "characters"] = Field(
        "tokens", description="tokens count the end of the sequence too"
    )


def judge(groups: list[PromptGroup], settings: LengthSettings) -> list[list[float]]:
    """max(0, 1 - |length - target| / width)."""
    return [
        [
            max(0.0, 1.0 - abs(_length(answer, settings.unit) - settings.target) / settings.width)
            for answer in group.answers
        ]
        for group in groups
    ]


def _length(answer: Answer, unit: str) -> int:
    if unit == "tokens":
        return len(answer.ids)
    return len(answer.text.split()) if unit == "words" else len(answer.text)


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the rule as `reward: {name: length, target: ..., width: ...}`."""
    return [Reward("length", LengthSettings, judge=judge)]
