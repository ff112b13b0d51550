"""Answers of the rows with a label for each step: only the last token of a step carries a gradient and a reward.

Where steps end is told by the column `step_ends` of the row, in characters of the answer (the format `steps` writes
it); by what a search left beside its answers (`source: tree_search` in a sampling stage), labels included; or by
`separator`: text between steps, or the id of a token that ends each. A step told by text ends at the token
that holds its last character, whatever else that token holds (".\\n" ends it, as it does in an answer that a policy
writes). Steps that end in one token share it, with the lowest of their labels.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from unified import Answer, DataSource, Field, PromptGroup, Settings, UserError, hookimpl


class StepEndsSettings(Settings):
    """Where steps end, and where their labels stand."""

    separator: int | str | None = Field(
        None, description="id of the token that ends a step, or text between steps; none: the column `step_ends`"
    )
    labels: str = Field("labels", description="column with one list of labels per row: true, false or in [0, 1]")


def collect(prompts: list[PromptGroup], settings: StepEndsSettings, sample: Any = None) -> list[PromptGroup]:
    """The groups with their ends marked. UserError where there are more or fewer labels than steps."""
    tokenizer = getattr(sample, "tokenizer", None)
    return [replace(g, answers=[_marked(g, a, settings, tokenizer) for a in g.answers]) for g in prompts]


def _marked(group: PromptGroup, answer: Answer, settings: StepEndsSettings, tokenizer: Any) -> Answer:
    if answer.steps is not None and settings.separator is None:
        return _with_labels(answer, {end - 1: value for end, value in answer.steps})
    labels: Any = group.columns.get(settings.labels)
    try:
        ends = _ends(group, answer, settings, tokenizer)
    except ValueError as error:
        raise UserError(f"row {group.key}: {error}", "set `separator` of source 'step_ends', or other data") from error
    if not isinstance(labels, list) or len(labels) != len(ends):
        given = f"{len(labels)} labels" if isinstance(labels, list) else "no list of labels"
        how = "in the column `step_ends`" if settings.separator is None else f"at {settings.separator!r}"
        raise UserError(
            f"row {group.key}: column '{settings.labels}' holds {given} for {len(ends)} steps",
            f"a step ends {how}; set `separator` or `labels` of source 'step_ends'",
        )
    told: dict[int, float] = {}
    for end, label in zip(ends, labels, strict=True):
        told[end] = min(float(label), told.get(end, 1.0))
    return _with_labels(answer, told)


def _with_labels(answer: Answer, told: dict[int, float]) -> Answer:
    """The answer with the labels of its steps, by the tokens (from 0) that they end with."""
    places = range(len(answer.ids))
    return replace(
        answer,
        loss_mask=[place in told for place in places],
        reward=[told.get(place, 0.0) for place in places],
        steps=[(end + 1, label) for end, label in sorted(told.items())],
    )


def _ends(group: PromptGroup, answer: Answer, settings: StepEndsSettings, tokenizer: Any) -> list[int]:
    """The token that each step ends with, counted from 0. ValueError where that cannot be told."""
    if isinstance(settings.separator, int):
        return [place for place, token in enumerate(answer.ids) if token == settings.separator]
    if tokenizer is None:
        raise ValueError("the ends of steps can be found in text only where a stage has a tokenizer")
    if settings.separator is None:
        ends = group.columns.get("step_ends")
        if not isinstance(ends, list) or not all(isinstance(end, int) for end in ends):
            raise ValueError("no `separator` is set, and the row has no column `step_ends`")
    else:
        ends = split_ends(answer.text, settings.separator)
    return token_ends(answer.ids, answer.text, ends, tokenizer)


def split_ends(text: str, separator: str) -> list[int]:
    """Where the steps of a text end, in characters: behind the last that is not white space; blank ones are none."""
    ends = []
    place = 0
    for step in re.split(re.escape(separator), text):
        if step.strip():
            ends.append(place + len(step.rstrip()))
        place += len(step) + len(separator)
    return ends


def token_ends(ids: Sequence[int], text: str, ends: Sequence[int], tokenizer: Any) -> list[int]:
    """The token that holds the last character before each end.

    Args:
        ids: token ids of an answer; a chat template may have put other text around it.
        text: the answer as it reads; white space around it may be missing in the ids.
        ends: in characters of the text, in order, each at least 1.
        tokenizer: that of the ids.
    Returns:
        For each end the index of a token, from 0.
    Raises:
        ValueError: the ids are not those of the text and do not read as it either, so that no place can be found.
    """
    begins = len(text) - len(text.lstrip())
    body = text.strip()
    inside = [min(max(end - begins, 1), len(body)) for end in ends]
    found = _by_offsets(list(ids), body, inside, tokenizer)
    return _by_reading(ids, body, inside, tokenizer) if found is None else found


def _by_offsets(ids: list[int], body: str, ends: Sequence[int], tokenizer: Any) -> list[int] | None:
    """Where the ids are those that the text gives, as for rows of data: also with characters that nobody knows.

    The first token may be another, because of what stands before the text, and so may those behind it.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    for before, after in product(("", "\n", " "), ("", "\n")):
        made = tokenizer(before + body + after, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(made.input_ids, made.offset_mapping, strict=True)
        own = [(token, start - len(before)) for token, (start, end) in pairs if end > len(before)]
        own = [(token, start) for token, start in own if start < len(body)]
        for skipped in (0, 1):
            wanted = [token for token, _ in own[skipped:]]
            place = _find(wanted, ids, at_least=skipped) if wanted else None
            if place is not None:
                starts = [start for _, start in own]
                return [place - skipped + bisect_left(starts, end) - 1 for end in ends]
    return None


def _find(wanted: list[int], ids: list[int], *, at_least: int) -> int | None:
    """The first place, from `at_least` on, where the wanted ids stand one behind the other."""
    places = range(at_least, len(ids) - len(wanted) + 1)
    return next((i for i in places if ids[i] == wanted[0] and ids[i : i + len(wanted)] == wanted), None)


def _by_reading(ids: Sequence[int], body: str, ends: Sequence[int], tokenizer: Any) -> list[int]:
    """Where the ids read as the text, as for sampled answers: how many tokens it takes until each end can be read."""

    def decode(tokens: int) -> str:
        some = list(ids[:tokens])
        return str(tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    whole = decode(len(ids))
    begins = whole.find(body)
    if begins < 0 or not body:
        raise ValueError(f"the tokens of the answer read {whole[:60]!r}, which is not its text {body[:60]!r}")
    found: list[int] = []
    for end in ends:
        wanted = whole[: begins + end]
        read = partial(_reads, decode, wanted)
        fewest = bisect_left(range(len(ids) + 1), True, lo=found[-1] + 1 if found else 1, key=read)
        found.append(min(fewest, len(ids)) - 1)
    return found


def _reads(decode: Callable[[int], str], wanted: str, tokens: int) -> bool:
    return decode(tokens).startswith(wanted)


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer labelled steps as `source: step_ends`."""
    return [DataSource("step_ends", StepEndsSettings, collect=collect, online=False)]
