"""A rule on text: whether an answer has a form, or the share of its words that have one.

With `of: answer` the format reward, thoughts between tags and the answer behind them; with `of: words` the language
consistency, the share of words in the wanted language's letters. Source: DeepSeek-AI 2025, arXiv:2501.12948, sections
2.2 and 3.1 (how a word's language is told is not published there).
"""

import re
from typing import Any, Literal

from unified import Field, PromptGroup, Reward, Settings, hookimpl


class PatternSettings(Settings):
    """The form."""

    pattern: str = Field(description="regular expression that has to match as a whole; a dot matches line breaks too")
    of: Literal["answer", "words"] = Field("answer", description="answer: 1 or 0; words: the share that matches")

    def model_post_init(self, _: Any) -> None:
        """ValueError for a pattern that is no regular expression."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from error


def judge(groups: list[PromptGroup], settings: PatternSettings) -> list[list[float]]:
    """1 where the answer, white space around it aside, matches, else 0; of words the share, 0 for no word."""
    pattern = re.compile(settings.pattern, re.DOTALL)

    def share(text: str) -> float:
        parts = [text.strip()] if settings.of == "answer" else text.split()
        return sum(pattern.fullmatch(part) is not None for part in parts) / len(parts) if parts else 0.0

    return [[share(answer.text) for answer in group.answers] for group in groups]


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the rule as `reward: {name: pattern, pattern: ...}`."""
    return [Reward("pattern", PatternSettings, judge=judge)]
