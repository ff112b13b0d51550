"""Rows as a model sees them, in stretches that are learned or not, and pages of them for a person."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.text import Text

from unified.data import Answer, Example, PromptGroup

#: what stands around what is learned where there are no colours
MARKS = ("⟦", "⟧")
#: characters of a stretch that are shown, from its beginning and its end
HEAD, TAIL = 1000, 400
#: what a terminal would obey or that would change the order of what is read; line ends and tabs stay
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

Stretch = tuple[str, bool]


@dataclass
class Shown:
    """One row: where it stands, and per answer (or for the prompt alone) its reward and (text, learned) stretches."""

    place: str
    answers: list[tuple[float | None, list[Stretch]]]


def rendered_shown(group: PromptGroup, tokenizer: Any, place: str) -> Shown:
    """A row as tokens, special ones included."""
    made = [(a.total_reward, _stretches(group.prompt, a, tokenizer)) for a in group.answers]
    return Shown(place, made or [(None, _stretches(group.prompt, Answer([]), tokenizer))])


def messages_shown(example: Example, place: str) -> Shown:
    """A row as text, each turn behind its role: what a tokenizer would make of it is not known."""
    prompt = [(text, False) for text in _turns(example.prompt, "")]
    made = []
    for i, answer in enumerate(example.answers):
        turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        learned = [(text, turn.get("role") == "assistant") for turn in turns for text in _turns([turn], "")]
        if isinstance(answer, str) and isinstance(example.prompt, str):
            learned = [(answer, True)]
        made.append((example.rewards[i] if example.rewards else None, [*prompt, *learned]))
    return Shown(place, made or [(None, prompt)])


def _turns(said: str | Sequence[Mapping[str, Any]], lead: str) -> list[str]:
    if isinstance(said, str):
        return [said] if said else []
    out = []
    for turn in said:
        calls = f" {turn['tool_calls']}" if turn.get("tool_calls") else ""
        out.append(f"{lead}[{turn.get('role')}] {turn.get('content') or ''}{calls}\n")
    return out


def _stretches(prompt: Sequence[int], answer: Answer, tokenizer: Any) -> list[Stretch]:
    """Text of stretches of tokens that are learned, or not; each as it reads behind those before it."""
    ids = [*prompt, *answer.ids]
    mask = [False] * len(prompt) + (answer.loss_mask or [True] * len(answer.ids))
    out: list[Stretch] = []
    done, end = "", 0
    for learned, same in groupby(mask):
        end += len(list(same))
        text = str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        out.append((text[len(done) :], learned))
        done = text
    return out


def plainly(text: str, *, one_line: bool = False) -> str:
    """Text that a terminal shows and does not obey: control characters are written out."""
    shown = _CONTROL.sub(_written, text)
    return shown.replace("\n", "\\n").replace("\t", "\\t") if one_line else shown


def _written(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def page(shown: Shown, *, coloured: bool) -> Text:
    """One row: what is learned is green, or stands between MARKS where there are no colours."""
    out = Text(f"--- {plainly(shown.place, one_line=True)}\n", style="bold" if coloured else "")
    for number, (reward, stretches) in enumerate(shown.answers):
        if len(shown.answers) > 1 or reward is not None:
            out.append(f"answer {number}{f', reward {reward:g}' if reward is not None else ''}:\n", style="")
        for text, learned in stretches:
            said = plainly(_shortened(text))
            if learned and not coloured:
                said = f"{MARKS[0]}{said}{MARKS[1]}"
            out.append(said, style="not bold green" if learned else "not bold dim")
        out.append("\n")
    return out


def _shortened(text: str) -> str:
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]} … {len(text) - HEAD - TAIL} characters … {text[-TAIL:]}"
