"""Rows of `question` and `answer` (or `response`), as in GSM8K. The answer also stays a column, for a verifier.

`history` holds earlier turns, [question, answer] each, and `system` (or `system_prompt`) opens the conversation.
Source: Cobbe et al. 2021, arXiv:2110.14168 (the data; its final number stands after "#### ").
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import cell, conversation, first, said, text


class QuestionAnswerSettings(Settings):
    """How the question is rendered."""

    chat: bool = Field(
        True, description="the question is a user's message; if not, plain text that ends in a line break"
    )


def recognises(columns: frozenset[str]) -> bool:
    """A question and its answer, and no pair of them."""
    return "question" in columns and bool(columns & {"answer", "response"}) and not columns & {"chosen", "rejected"}


def convert(row: Mapping[str, Any], settings: QuestionAnswerSettings) -> Example:
    """One answer, whole as it stands."""
    column = first(row, "answer", "response")
    prompt = conversation(row, text(row, "question"), chat=settings.chat)
    return Example(prompt, [said(cell(row, column), column)], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: question_answer`."""
    return [DataFormat("question_answer", QuestionAnswerSettings, recognises=recognises, convert=convert)]
