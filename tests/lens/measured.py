"""Writes the measured numbers of docs/lens.md: `python -m tests.lens.measured`; a test compares them.

They stand between `<!-- measured: tokens -->` or `<!-- measured: blame -->` and `<!-- end -->`: what `unified lens
--example credit` gives to each token on the tiny model that it makes, and sums over words.
"""

from __future__ import annotations

import math
import re

from tests.docs.snippets import ROOT
from unified.lens.command import Wish, find
from unified.lens.picture import Column, Picture
from unified.lens.terminal import EXACT, signed

PAGE = ROOT / "docs" / "lens.md"
ALGORITHMS = ("sft", "rft", "dft", "dpo", "grpo", "ppo", "token_reward_model")
_BLOCK = re.compile(r"(<!-- measured: (?P<what>\w+) -->\n).*?(<!-- end -->)", re.S)


def example() -> Picture:
    """The built-in example on its own model."""
    return find(Wish(example="credit", algorithms=ALGORITHMS)).strips[""][0]


def head_of(column: Column) -> str:
    """The head that is shown: of a policy its log-probs, of a reward model its score."""
    return "logp" if "logp" in column.aggregation else next(iter(column.aggregation))


def tokens(picture: Picture) -> str:
    """For every answer a table: an algorithm to a line, a token to a column."""
    out = []
    for number, shown in enumerate(picture.answers):
        words = [f"`{token.strip()}`" for token in shown.tokens]
        out += ["", f"Answer {number + 1}, reward {shown.reward:g}:", "", f"| | {' | '.join(words)} |"]
        out.append(f"|---|{'---|' * len(words)}")
        for column in picture.columns:
            seen = column.seen[number]
            assert seen is not None
            cells = [signed(p) for p in seen.pushes(head_of(column))]
            out.append(f"| `{column.name}` | {' | '.join(cells)} |")
    return "\n".join([*out, ""])


def pushed(picture: Picture, column: Column, word: str, answer: int | None = None) -> float:
    """The sum of w · GC over the places where a word stands, in one answer or in all."""
    head, found = head_of(column), [0.0]
    for number, (shown, seen) in enumerate(zip(picture.answers, column.seen, strict=True)):
        if seen is not None and answer in (None, number):
            pairs = zip(shown.tokens, seen.pushes(head), strict=True)
            found += [push for token, push in pairs if token.strip() == word]
    total, size = math.fsum(found), max(map(abs, found))
    return total if abs(total) > EXACT * size else 0.0


def blame(picture: Picture) -> str:
    """An algorithm to a line: what it gives to the wrong word, harmless in 2 and wrong in 3, and to others."""
    heads = ["`Nanjing` in 2", "`Nanjing` in 3", "`Nanjing`", "`Beijing`", "`not`", "`The`"]
    asked: list[tuple[str, int | None]] = [
        ("Nanjing", 1), ("Nanjing", 2), ("Nanjing", None), ("Beijing", None), ("not", None), ("The", None),
    ]  # fmt: skip
    rows = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for column in picture.columns:
        cells = [signed(pushed(picture, column, word, answer)) for word, answer in asked]
        rows.append(f"| `{column.name}` | {' | '.join(cells)} |")
    return "\n".join(["", *rows, ""])


def renewed(text: str, picture: Picture) -> str:
    """The page with the numbers of a picture."""
    made = {"tokens": tokens(picture), "blame": blame(picture)}
    return _BLOCK.sub(lambda m: f"{m[1]}{made[m['what']]}\n{m[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), example()), encoding="utf-8")
