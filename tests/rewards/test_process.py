"""What a process reward model's scores become, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from unified import Answer, PromptGroup, call_named
from unified.settings import choose
from unified_plugins.datasets.arithmetic import ArithmeticSettings, character_tokenizer

TOKENIZER = character_tokenizer(ArithmeticSettings())
SPACE = TOKENIZER(" ").input_ids[0]


class Steps:
    """A process reward model whose score after token t is the logit of the t-th chance."""

    tokenizer = TOKENIZER

    def __init__(self, *chances: float) -> None:
        self.scores = [math.log(p / (1 - p)) for p in chances]

    def score_tokens(self, groups: list[PromptGroup]) -> list[list[list[float]]]:
        return [[self.scores[: len(a.ids)] for a in g.answers] for g in groups]


def _judged(text: str, model: Steps, **settings: Any) -> Any:
    chosen, problems = choose("reward", {"name": "process", "model": "m", **settings})
    assert chosen is not None, [p.text() for p in problems]
    group = PromptGroup([5], [Answer(TOKENIZER(text).input_ids, text)])
    ((found,),) = call_named(chosen.part.judge, groups=[group], settings=chosen.settings, models={"m": model})
    return found


@pytest.mark.parametrize(
    ("reduce", "expected"), [("min", 0.5), ("product", 0.36), ("last", 0.9), ("mean", 2.2 / 3), ("sum", 2.2)]
)
@pytest.mark.parametrize("separator", [SPACE, " "])
def test_steps_are_taken_together_at_their_ends(reduce: str, expected: float, separator: int | str) -> None:
    # "1 2 3": steps end at the tokens 2 and 4 (of the id), or 1 and 3 (of the text, whose last character is the digit);
    # what follows the last end is a step of its own
    chances = (0.8, 0.8, 0.5, 0.5, 0.9)
    assert _judged("1 2 3", Steps(*chances), separator=separator, reduce=reduce) == pytest.approx(expected)


def test_without_a_separator_every_token_is_a_step() -> None:
    assert _judged("12", Steps(0.5, 0.25), reduce="product") == pytest.approx(0.125)


def test_an_answer_without_a_token_is_missing() -> None:
    assert _judged("", Steps()) is None


def test_the_scale_sharpens() -> None:
    assert _judged("1", Steps(0.9), scale=2.0) == pytest.approx(81 / 82)  # odds of 9, squared
