"""A rule on text: how much of an answer ends as sentences should, in a full stop, exclamation or question mark."""

import re

from unified import Field, PromptGroup, Reward, Settings, hookimpl

# an end: marks, closing quotes or brackets, then white space or the end of the text ("3.5" and "e.g" are none)
_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")


class SentenceEndSettings(Settings):
    """What counts."""

    last: bool = Field(False, description="only how the text ends: 1 or 0; otherwise the share of its sentences")


def share_of_sentences(text: str, *, last: bool) -> float:
    """Sentences and paragraphs that end properly / all of them, in [0, 1]; 0 for an empty text.

    A sentence stops at an end mark or at a line break; what stops without a mark did not end properly.
    """
    ended = unended = 0
    whole = False
    for line in text.split("\n"):
        if line.strip():
            ended += len(_END.findall(line))
            tail = _END.split(line)[-1].strip()
            unended += bool(tail)
            whole = not tail
    if last or not ended:
        return float(whole)
    return ended / (ended + unended)


def judge(groups: list[PromptGroup], settings: SentenceEndSettings) -> list[list[float]]:
    """The share, or the end, of each answer's text."""
    return [[share_of_sentences(answer.text, last=settings.last) for answer in group.answers] for group in groups]


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the rule as `reward: sentence_end`."""
    return [Reward("sentence_end", SentenceEndSettings, judge=judge)]
