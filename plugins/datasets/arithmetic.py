"""Arithmetic: sums of a few numbers, worked column by column, with an exact verifier.

A prompt is "17+25=", its answer "7+5=12 1+2+1=4 #42": one step a column from the right, the carry last where there is
one, then the sum behind "#". Text is single characters. Problems are divided once and for all: one in ten, by a
checksum of its text, is held out, whatever the seed.

Source: worked steps before the answer as in the addition task of Nye et al. 2021, arXiv:2112.00114.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import Any, Literal

from unified import Dataset, Example, Field, Settings, UserError, hookimpl

ALPHABET = "0123456789+= #"


class ArithmeticSettings(Settings):
    """Which sums, and how they are answered."""

    view: Literal["worked", "answers", "pairs", "prompts"] = Field(
        "worked",
        description="worked: steps and sum; answers: the sum alone; pairs: right and with one slip; prompts: none",
    )
    digits: int = Field(2, ge=1, le=9, description="digits of each number, at most")
    terms: int = Field(2, ge=2, le=9, description="numbers of a sum")
    rows: int = Field(1000, ge=1, description="training rows, all different")
    held_out_rows: int = Field(200, ge=1, description="held-out rows, all different")


def worked(numbers: Sequence[int], slip: tuple[int, int] = (0, 0)) -> str:
    """The answer with its steps. slip (column from the right, amount): that column's sum is off by the amount, and all
    that follows goes on from there."""
    steps: list[str] = []
    carry, result = 0, ""
    columns = max(len(str(number)) for number in numbers)
    for column in range(columns):
        digits = [number // 10**column % 10 for number in numbers]
        total = sum(digits) + carry + (slip[1] if column == slip[0] else 0)
        shown = [*digits, carry] if carry else digits
        steps.append(f"{'+'.join(map(str, shown))}={total}")
        carry, last = divmod(total, 10)
        result = f"{last if column < columns - 1 else total}{result}"
    return f"{' '.join(steps)} #{result}"


def open_arithmetic(settings: ArithmeticSettings, split: str, seed: int) -> list[Example]:
    """Rows of one split; the column `answer` holds the right sum. UserError where there are not so many problems."""
    number = settings.rows if split == "train" else settings.held_out_rows
    draw = random.Random(f"{split} {seed}")
    rows = []
    for numbers in _problems(settings, split, number, draw):
        right = worked(numbers)
        answers, rewards = [right], [1.0]
        if settings.view == "answers":
            answers = [right[right.index("#") :]]
        elif settings.view == "prompts":
            answers, rewards = [], []
        elif settings.view == "pairs":
            answers, rewards = [right, _slipped(numbers, draw)], [1.0, 0.0]
        prompt = "+".join(map(str, numbers)) + "="
        rows.append(Example(prompt, answers, rewards or None, {"answer": sum(numbers)}))
    return rows


def held_out(numbers: Sequence[int]) -> bool:
    """Whether a problem belongs to the held-out tenth."""
    return zlib.crc32("+".join(map(str, numbers)).encode()) % 10 == 0


def _problems(settings: ArithmeticSettings, split: str, number: int, draw: random.Random) -> list[tuple[int, ...]]:
    found: dict[tuple[int, ...], None] = {}
    for _ in range(200 * number + 10_000):
        numbers = tuple(draw.randrange(10**settings.digits) for _ in range(settings.terms))
        if held_out(numbers) == (split == "held_out"):
            found[numbers] = None
        if len(found) == number:
            return list(found)
    raise UserError(
        f"arithmetic with {settings.terms} terms of {settings.digits} digits has only {len(found)} {split} problems "
        f"of the {number} asked for",
        "set fewer rows or held_out_rows, or more digits or terms",
    )


def _slipped(numbers: Sequence[int], draw: random.Random) -> str:
    """Worked with one column off by one, so that the sum is wrong by a power of ten."""
    column = draw.randrange(max(len(str(number)) for number in numbers))
    return worked(numbers, (column, 1 if draw.random() < 0.5 or worked(numbers).split()[column].endswith("=0") else -1))


def character_tokenizer(settings: ArithmeticSettings) -> Any:
    """One token per character of ALPHABET, and <pad>, <unk>, </s> as 0, 1, 2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "</s>", *ALPHABET]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


@hookimpl
def unified_datasets() -> list[Dataset]:
    """Offer the task as `data: arithmetic`."""
    return [Dataset("arithmetic", ArithmeticSettings, open=open_arithmetic, tokenizer=character_tokenizer)]
