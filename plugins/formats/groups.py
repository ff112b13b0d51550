"""Rows of `prompt`, `answers` and `rewards`: any number of answers to one prompt, judged or not; what stages write.

All other columns stay, for reward functions. `tokens` are those that a model wrote: they are trained on as they are
while nobody has changed prompt or answers, and the vocabulary is the same.
"""

from collections.abc import Mapping
from typing import Any

from unified import Answer, DataFormat, Example, Field, Settings, TokenRow, hookimpl
from unified_plugins.formats._rows import answer, cell, prompt

OWN = frozenset({"prompt", "answers", "rewards", "tokens"})
#: where a row was read, which is not where it is written
PLACE = frozenset({"file", "row"})


class GroupsSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str]) -> bool:
    """A prompt and a list of its answers."""
    return {"prompt", "answers"} <= columns


def convert(row: Mapping[str, Any], settings: GroupsSettings) -> Example:
    """Answers in the order of the row. ValueError where rewards and answers do not fit each other."""
    answers, rewards = cell(row, "answers"), row.get("rewards")
    if not isinstance(answers, list) or not all(isinstance(a, (str, list)) for a in answers):
        raise ValueError("column 'answers' must be a list of texts, or of lists of messages")
    answers = [a if isinstance(a, str) else answer(a, "answers") for a in answers]
    if rewards is not None:
        numbers = isinstance(rewards, list) and all(
            isinstance(r, (int, float)) and not isinstance(r, bool) for r in rewards
        )
        if not numbers:
            raise ValueError("column 'rewards' must be a list of numbers, one for each answer")
        if len(rewards) != len(answers):
            raise ValueError(f"there are {len(answers)} answers but {len(rewards)} rewards")
        rewards = [float(r) for r in rewards]
    columns = {key: value for key, value in row.items() if key not in OWN}
    asked = prompt(row, "prompt", chat=settings.chat)
    return Example(asked, list(answers), rewards, columns, _tokens(row.get("tokens")))


def _tokens(written: Any) -> TokenRow | None:
    """The column `tokens` as a sampling stage writes it. ValueError for one of another form."""
    if written is None:
        return None
    try:
        answers = [
            Answer(
                list(a["ids"]),
                loss_mask=a.get("loss_mask"),
                finish=a.get("finish") or "stop",
                trajectory=a.get("trajectory"),
                steps=[(int(end), float(v)) for end, v in a.get("steps") or []] or None,
            )
            for a in written["answers"]
        ]
        return TokenRow(written["vocabulary"], written["digest"], list(written["prompt"]), answers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"column 'tokens' is not as a sampling stage writes it: {error!r}") from error


def row_of(example: Example) -> dict[str, Any]:
    """The row that reads as this example; `rewards` is left out where nothing was judged."""
    judged = {} if example.rewards is None else {"rewards": list(example.rewards)}
    columns = {key: value for key, value in example.columns.items() if key not in OWN | PLACE}
    tokens = {} if example.tokens is None else {"tokens": _written(example.tokens)}
    return {"prompt": example.prompt, "answers": list(example.answers), **judged, **columns, **tokens}


def _written(tokens: TokenRow) -> dict[str, Any]:
    names = ("ids", "loss_mask", "finish", "trajectory", "steps")
    answers = [{n: v for n in names if (v := getattr(a, n)) is not None} for a in tokens.answers]
    about = {"vocabulary": tokens.vocabulary, "digest": tokens.digest, "prompt": tokens.prompt}
    return {**about, "answers": answers}


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: groups`."""
    return [DataFormat("groups", GroupsSettings, recognises=recognises, convert=convert)]
