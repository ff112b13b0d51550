"""Rows that are longer than the limit: how they are made to fit. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal

from unified.data import Answer, Example, Message, PromptGroup

#: what becomes of a row over the limit; a row that cannot be cut so is dropped
Policy = Literal["refuse", "drop", "cut_prompt", "cut_answer"]


class TooLong(ValueError):  # noqa: N818
    """A row has more tokens than the limit. `row` is its number in the dataset, from 0."""

    def __init__(self, row: int, tokens: int, limit: int) -> None:
        super().__init__(f"row {row} has {tokens} tokens, the limit is {limit}")
        self.row, self.tokens, self.limit = row, tokens, limit


def overflow(group: PromptGroup, limit: int, reserve: int) -> int:
    """Tokens by which the prompt with its longest answer (or with the reserve, where it is not 0) is over the limit."""
    return len(group.prompt) + (reserve or max((len(a.ids) for a in group.answers), default=0)) - limit


def shorter(example: Example, *, sampled: bool) -> Iterator[Example]:
    """A conversation with ever fewer of its oldest turns, for `cut_prompt`; nothing for a prompt of text.

    What is left begins with the system's turn and a later turn of the user; last of all the system's turn goes, too.
    The turns of a single answer, if it is a list of messages, may go as those of the prompt do: the answer then begins
    with the first turn of the assistant that is left. sampled: the answers do not count and stay as they are.
    """
    if isinstance(example.prompt, str):
        return
    prompt: list[Message] = list(example.prompt)
    only = example.answers[0] if len(example.answers) == 1 and not sampled else ""
    turns = prompt + ([] if isinstance(only, str) else list(only))
    system = list(takewhile(lambda turn: turn.get("role") == "system", turns))
    starts = [i for i in range(len(system), len(turns)) if turns[i].get("role") == "user"]
    wanted = [(system, start) for start in starts[1:]] + ([([], starts[-1])] if system and starts else [])
    for head, start in _answered(wanted, turns, len(prompt)):
        if start < len(prompt):
            yield replace(example, prompt=[*head, *prompt[start:]])
            continue
        begin = next(i for i in range(start, len(turns)) if turns[i].get("role") == "assistant")
        yield replace(example, prompt=[*head, *turns[start:begin]], answers=[turns[begin:]])


def _answered(
    wanted: list[tuple[list[Message], int]], turns: Sequence[Message], prompt: int
) -> list[tuple[list[Message], int]]:
    """Those that still have a turn of the assistant to answer with; without a system's turn, the latest of them."""
    last = max((i for i, turn in enumerate(turns) if turn.get("role") == "assistant"), default=-1)
    return [(head, start) for head, start in wanted if start < prompt or start < last]


def cut_left(group: PromptGroup, over: int, bos: int | None, decode: Callable[[list[int]], str]) -> bool:
    """Take tokens from the left of the prompt, but not a beginning token; False where it has too few of them."""
    kept = group.prompt[:1] if group.prompt[:1] == [bos] else []
    rest = group.prompt[len(kept) + over :]
    if not rest:
        return False
    group.prompt = [*kept, *rest]
    group.text = decode(group.prompt)
    return True


def cut_answers(group: PromptGroup, limit: int, decode: Callable[[list[int]], str]) -> bool:
    """Take tokens from the right of the answers that are too long; these end without an end token.

    Of a conversation of several rows, those without a token to learn from are left out. False where an answer would
    have none at all; the group is then as it was.
    """
    room = limit - len(group.prompt)
    cut = [_cut(answer, room, decode) for answer in group.answers]
    kept = [answer for answer in cut if any(answer.loss_mask or [True] * len(answer.ids))]
    if room < 1 or _names(kept) != _names(group.answers):
        return False
    group.answers = kept
    return True


def _cut(answer: Answer, room: int, decode: Callable[[list[int]], str]) -> Answer:
    if len(answer.ids) <= room:
        return answer
    ids = answer.ids[:room]
    mask = answer.loss_mask[:room] if answer.loss_mask is not None else None
    return replace(answer, ids=ids, loss_mask=mask, text=decode(ids), finish="length")


def _names(answers: Sequence[Answer]) -> list[Any]:
    """The conversations of the answers; None for each answer that is one row."""
    rows = [answer.trajectory for answer in answers]
    return [name for i, name in enumerate(rows) if name is None or name not in rows[:i]]
