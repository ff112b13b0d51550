"""Rows of `chosen` and `rejected`: two answers to one prompt, rewards 1 and 0.

The prompt stands in `prompt` or `conversations`; or it is what the two share: the turns before the last of two
transcripts (HH-RLHF, Bai et al. 2022, arXiv:2204.05862) or message lists, else the text up to the last white space
before the first difference; a space there belongs to the answers, as tokenizers have it, a line break to the prompt.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import cell, messages, prompt, text
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
    given = next((name for name in ("prompt", "conversations") if row.get(name) is not None), None)
    asked: Any
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        asked, answers = _from_turns(messages(chosen, "chosen"), messages(rejected, "rejected"))
        if not asked:
            asked = prompt(row, given or "prompt", chat=True)
    elif given:
        asked, answers = prompt(row, given, chat=settings.chat), [text(row, "chosen"), text(row, "rejected")]
    elif is_transcript(chosen) and is_transcript(rejected):
        asked, answers = _from_turns(turns(chosen), turns(rejected))
    else:
        asked, answers = _shared_prefix(chosen, rejected)
        asked = [{"role": "user", "content": asked.strip()}] if settings.chat else asked
    if answers[0] == answers[1]:
        raise ValueError("chosen and rejected are the same")
    return Example(asked, answers, [1.0, 0.0], dict(row))


def _from_turns(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[str]]:
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected differ before their last turn, so they answer different prompts")
    return chosen[:-1], [chosen[-1]["content"], rejected[-1]["content"]]


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
