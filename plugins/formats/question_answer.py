"""Rows of `question` and `answer`, as in GSM8K. The answer also stays a column, where a verifier finds it.

Source: Cobbe et al. 2021, arXiv:2110.14168 (the data; its final number stands after "#### ").
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import text


class QuestionAnswerSettings(Settings):
    """How the question is rendered."""

    chat: bool = Field(
        True, description="the question is a user's message; if not, plain text that ends in a line break"
    )


def recognises(columns: frozenset[str]) -> bool:
    """A question and its answer."""
    return {"question", "answer"} <= columns


def convert(row: Mapping[str, Any], settings: QuestionAnswerSettings) -> Example:
    """One answer, whole as it stands."""
    asked = text(row, "question")
    prompt = [{"role": "user", "content": asked}] if settings.chat else f"{asked}\n"
    return Example(prompt, [text(row, "answer")], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: question_answer`."""
    return [DataFormat("question_answer", QuestionAnswerSettings, recognises=recognises, convert=convert)]
