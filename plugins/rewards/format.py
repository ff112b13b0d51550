"""A rule on form: every tag opened and closed once, in order, with something inside.

With `tags: [think, answer]`: "<think> ... </think> <answer> ... </answer>". `partial` gives a share for each tag that
is there instead. Source: DeepSeek-AI 2025, arXiv:2501.12948, section 2.2.2 (format rewards) and table 1 (the form), in
its first version; the share for each tag is what open reproductions of it do.
"""

import re
from typing import Any

from unified import Field, PromptGroup, Reward, Settings, hookimpl

_NAME = re.compile(r"[A-Za-z][\w.-]*")


class FormatSettings(Settings):
    """The tags."""

    tags: list[str] = Field(["think", "answer"], min_length=1, description="names of the tags, in their order")
    strict: bool = Field(True, description="nothing but white space outside the tags")
    opened: bool = Field(False, description="the prompt ends in the first opening tag, so that answers begin inside it")
    partial: bool = Field(
        False, description="the share of opening and closing tags that stand exactly once, wherever, in place of 1 or 0"
    )

    def model_post_init(self, _: Any) -> None:
        """ValueError for a name that no tag can have, or that stands twice."""
        for tag in self.tags:
            if not _NAME.fullmatch(tag):
                raise ValueError(f"'{tag}' in tags is no name of a tag; write `think`, without brackets")
        if len(set(self.tags)) != len(self.tags):
            raise ValueError("tags must differ from each other")


def judge(groups: list[PromptGroup], settings: FormatSettings) -> list[list[float]]:
    """1 where the form is kept, else 0; with `partial` the share of tags, in [0, 1]."""
    read = share_of_tags if settings.partial else keeps_form
    return [[float(read(answer.text, settings)) for answer in group.answers] for group in groups]


def share_of_tags(text: str, settings: FormatSettings) -> float:
    """Opening and closing tags that stand exactly once / all of them; their order and what is inside do not count."""
    marks = _marks(settings)
    return sum(text.count(mark) == 1 for mark in marks) / len(marks)


def keeps_form(text: str, settings: FormatSettings) -> bool:
    """Whether each tag stands once, in order, with more than white space inside."""
    marks = _marks(settings)
    again = settings.opened and f"<{settings.tags[0]}>" in text
    if again or any(text.count(mark) != 1 for mark in marks):
        return False
    places = [text.index(mark) for mark in marks]
    if places != sorted(places):
        return False
    pieces = re.split("|".join(map(re.escape, marks)), text)  # before, inside, between, inside, ..., after
    filled = [bool(piece.strip()) for piece in ([""] if settings.opened else []) + pieces]
    return all(filled[1::2]) and not (settings.strict and any(filled[0::2]))


def _marks(settings: FormatSettings) -> list[str]:
    """The opening and closing tags that an answer has to write, in order."""
    marks = [mark for tag in settings.tags for mark in (f"<{tag}>", f"</{tag}>")]
    return marks[1:] if settings.opened else marks


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the rule as `reward: {name: format, tags: [think, answer]}`."""
    return [Reward("format", FormatSettings, judge=judge)]
