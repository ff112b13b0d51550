"""A punishment of repetition: of the n-grams of an answer, those that stood in it before.

For the whole answer -max_penalty * (1 - different n-grams / all n-grams), between 0 and -max_penalty. With
`each: token` -max_penalty on every token of an n-gram that stood before, 0 on the others.
Source: Yeo et al. 2025, arXiv:2502.03373, appendix C.2; their runs punish by token, with n = 40 and 0.05.
"""

from collections.abc import Hashable, Sequence
from typing import Literal

from pydantic import model_validator

from unified import Answer, Field, PromptGroup, Reward, Settings, hookimpl


class RepetitionSettings(Settings):
    """What counts as repeated, and how hard it is punished."""

    n: int = Field(3, ge=1, description="length of the n-grams, in `unit`")
    max_penalty: float = Field(1.0, ge=0, description="taken off where all is repeated; with `each: token`, per token")
    unit: Literal["tokens", "words"] = Field("tokens", description="words: between white space, in small letters")
    each: Literal["answer", "token"] = Field("answer", description="one number for the answer, or one for each token")

    @model_validator(mode="after")
    def _tokens_have_tokens(self) -> "RepetitionSettings":
        if self.each == "token" and self.unit == "words":
            raise ValueError("`each: token` needs `unit: tokens`: words have no place among the tokens")
        return self


def judge(groups: list[PromptGroup], settings: RepetitionSettings) -> list[list[float | list[float]]]:
    """0 or less, for the answer or for each of its tokens; 0 for fewer than n words or tokens."""
    return [[_punishment(answer, settings) for answer in group.answers] for group in groups]


def _punishment(answer: Answer, settings: RepetitionSettings) -> float | list[float]:
    units: Sequence[Hashable] = answer.ids if settings.unit == "tokens" else answer.text.lower().split()
    again = repeated(units, settings.n)
    if settings.each == "answer":
        return 0.0 - settings.max_penalty * len(again) / max(1, len(units) - settings.n + 1)
    inside = {start + k for start in again for k in range(settings.n)}
    return [-settings.max_penalty if t in inside else 0.0 for t in range(len(units))]


def repeated(units: Sequence[Hashable], n: int) -> list[int]:
    """Where the n-grams begin that stood before."""
    seen: set[tuple[Hashable, ...]] = set()
    again = []
    for start in range(len(units) - n + 1):
        gram = tuple(units[start : start + n])
        if gram in seen:
            again.append(start)
        seen.add(gram)
    return again


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the rule as `reward: {name: repetition, n: ..., max_penalty: ...}`."""
    return [Reward("repetition", RepetitionSettings, judge=judge)]
