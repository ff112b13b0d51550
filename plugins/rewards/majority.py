"""A vote: 1 for an answer that ends as most answers to its prompt do, else 0. No label is needed.

What an answer votes for is the last match of `pattern` in it, or, without a pattern, its whole text; white space does
not count. Equally frequent votes all count as the majority, so where every answer votes for itself nothing is learned.
Source: Wang et al. 2023, arXiv:2203.11171, section 2 (self-consistency); as a reward Zuo et al. 2025, arXiv:2504.16084,
section 2.2.
"""

import re
from collections import Counter
from typing import Any

from unified import Field, PromptGroup, Reward, Settings, hookimpl


class MajoritySettings(Settings):
    """What an answer votes for."""

    pattern: str | None = Field(
        None, description="regular expression; its last match in an answer is the vote (its first group, if it has one)"
    )

    def model_post_init(self, _: Any) -> None:
        """ValueError for a pattern that is no regular expression."""
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from error


def judge(groups: list[PromptGroup], settings: MajoritySettings) -> list[list[float]]:
    """1 where the vote of an answer is a most frequent one of its group, else 0; also 0 where it has none.

    Probes neither vote nor win.
    """
    out = []
    for group in groups:
        votes = [None if answer.probe else _vote(answer.text, settings.pattern) for answer in group.answers]
        counted = Counter(vote for vote in votes if vote is not None)
        most = max(counted.values(), default=0)
        out.append([float(vote is not None and counted[vote] == most) for vote in votes])
    return out


def _vote(text: str, pattern: str | None) -> str | None:
    if pattern is None:
        return "".join(text.split()) or None
    found = None
    for match in re.finditer(pattern, text):
        found = match[1] if match.re.groups else match[0]
    return None if found is None else "".join(found.split()) or None


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the vote as `reward: majority`."""
    return [Reward("majority", MajoritySettings, judge=judge)]
