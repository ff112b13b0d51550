"""Rows of `chosen` and `rejected`: two answers to one prompt, rewards 1 and 0.

The prompt stands in `prompt`, `conversations`, `messages`, `instruction` or `question`; or it is what the two share:
the turns that two transcripts (HH-RLHF, Bai et al. 2022, arXiv:2204.05862) or message lists begin with, else the text
up to the last white space before the first difference; a space there belongs to the answers, as tokenizers have it, a
line break to the prompt.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import ASKED, answer, asked_in, cell, messages, said
from unified_plugins.formats.transcript import is_transcript, turns


class PreferenceSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str]) -> bool:
    """Two answers, one preferred."""
    return {"chosen", "rejected"} <= columns


def convert(row: Mapping[str, Any], settings: PreferenceSettings) -> Example:
    """The preferred answer first. ValueError where the two belong to different prompts, or are the same."""
    chosen, rejected = cell(row, "chosen"), cell(row, "rejected")
    given = any(row.get(column) is not None for column in ASKED)
    asked: Any
    answers: list[Any]
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        shared, answers = _from_turns(messages(chosen, "chosen"), messages(rejected, "rejected"))
        opens = not shared or shared[0]["role"] == "assistant"  # the prompt must come from elsewhere
        asked = [*asked_in(row, chat=True), *shared] if opens else shared
    elif given:
        asked = asked_in(row, chat=settings.chat)
        answers = [said(chosen, "chosen"), said(rejected, "rejected")]
    elif is_transcript(chosen) and is_transcript(rejected):
        one, other = turns(chosen), turns(rejected)
        if one[:-1] != other[:-1]:
            raise ValueError("chosen and rejected differ before their last turn, so they answer different prompts")
        asked, answers = one[:-1], [answer(one[-1:], "chosen"), answer(other[-1:], "rejected")]
    else:
        asked, answers = _shared_prefix(chosen, rejected)
        asked = [{"role": "user", "content": asked.strip()}] if settings.chat else asked
        answers = [said(answers[0], "chosen"), said(answers[1], "rejected")]
    if answers[0] == answers[1]:
        raise ValueError("chosen and rejected are the same")
    return Example(asked, answers, [1.0, 0.0], dict(row))


def _from_turns(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[Any]]:
    """The turns that both begin with, and the two ways on; these are the assistant's, or the prompts differ."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if same == len(chosen) == len(rejected):
        raise ValueError("chosen and rejected are the same")
    for column, said_there in (("chosen", chosen), ("rejected", rejected)):
        if same == len(said_there):
            raise ValueError(f"column '{column}' ends where the other one goes on, so it has no answer")
        if said_there[same]["role"] != "assistant":
            raise ValueError("chosen and rejected differ before the assistant's turn, so they answer different prompts")
    return chosen[:same], [answer(chosen[same:], "chosen"), answer(rejected[same:], "rejected")]


def _shared_prefix(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """Cut at the last white space that both share, so that no word is cut."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = "".join(letter for letter, _ in same)
    end = max((place + 1 for place, letter in enumerate(shared) if letter.isspace()), default=0)
    end -= shared[:end].endswith(" ")
    return shared[:end], [chosen[end:], rejected[end:]]


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: preference`."""
    return [DataFormat("preference", PreferenceSettings, recognises=recognises, convert=convert)]
