"""A rule on text: the share of the required words that an answer contains."""

import re

from unified import Field, PromptGroup, Reward, Settings, hookimpl


class ContainsSettings(Settings):
    """The words."""

    words: str | list[str] = Field(description="one word or several; a phrase counts as one")
    ignore_case: bool = Field(True, description="capital letters do not matter")
    whole: bool = Field(True, description="only whole words: `cat` is not in `cats`")


def judge(groups: list[PromptGroup], settings: ContainsSettings) -> list[list[float]]:
    """Words found / words required, in [0, 1]."""
    words = [settings.words] if isinstance(settings.words, str) else settings.words
    flags = re.IGNORECASE if settings.ignore_case else 0
    edge = (r"(?<!\w)", r"(?!\w)") if settings.whole else ("", "")
    patterns = [re.compile(edge[0] + re.escape(word) + edge[1], flags) for word in words]
    return [
        [sum(bool(p.search(answer.text)) for p in patterns) / len(patterns) for answer in group.answers]
        for group in groups
    ]


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the rule as `reward: {name: contains, words: [...]}`."""
    return [Reward("contains", ContainsSettings, judge=judge)]
