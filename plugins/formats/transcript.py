"""Transcripts with turns opened by an empty line and `Human: ` or `Assistant: `, in a column `transcript`.

Source: Bai et al. 2022, arXiv:2204.05862 (HH-RLHF). `columns: {transcript: chosen}` imitates its preferred answers.
"""

import re
from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Settings, hookimpl
from unified_plugins.formats._rows import said, text

_TURN = re.compile(r"\n\n(Human|Assistant):")


class TranscriptSettings(Settings):
    """Nothing to set."""


def is_transcript(said: str) -> bool:
    """Whether a text is a transcript from its first character on."""
    return said.startswith("\n\nHuman:")


def turns(transcript: str) -> list[dict[str, str]]:
    """The transcript as messages, contents stripped.

    ValueError where it does not begin with Human or does not end with Assistant.
    """
    before, *rest = _TURN.split(transcript)
    said = [
        {"role": "user" if who == "Human" else "assistant", "content": what.strip()}
        for who, what in zip(rest[::2], rest[1::2], strict=True)
    ]
    if before.strip() or not said or said[0]["role"] != "user":
        raise ValueError(f"a transcript must begin with an empty line and 'Human: ', not with {transcript[:30]!r}")
    if said[-1]["role"] != "assistant":
        raise ValueError("the transcript ends with a turn of Human, so it has no answer")
    return said


def recognises(columns: frozenset[str]) -> bool:
    """A transcript, and no pair of them."""
    return "transcript" in columns and not columns & {"chosen", "rejected"}


def convert(row: Mapping[str, Any]) -> Example:
    """The last turn is the answer, the turns before it the prompt."""
    *prompt, answer = turns(text(row, "transcript"))
    return Example(prompt, [said(answer["content"], "transcript")], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: transcript`."""
    return [DataFormat("transcript", TranscriptSettings, recognises=recognises, convert=convert)]
