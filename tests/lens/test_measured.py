"""The numbers of docs/lens.md are those that are measured, and what the page says of them is so."""

from __future__ import annotations

import re

import pytest

from tests.lens.measured import ALGORITHMS, PAGE, example, pushed, renewed
from unified.lens.picture import Picture


@pytest.fixture(scope="module")
def measured() -> Picture:
    return example()


def test_the_numbers_on_the_page_are_those_that_are_measured(measured: Picture) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- measured: ", text)) == 2
    assert text == renewed(text, measured), "write them anew: python -m tests.lens.measured"


def test_what_the_page_says_of_the_example_is_so(measured: Picture) -> None:
    columns = {c.name: c for c in measured.columns}
    assert list(columns) == list(ALGORITHMS)

    def gives(name: str, word: str, answer: int | None = None) -> float:
        return pushed(measured, columns[name], word, answer)

    assert gives("sft", "Nanjing", 2) > 0  # the wrong answer is imitated like the others
    assert gives("rft", "Nanjing", 2) == 0  # it is left out
    assert gives("rft", "Nanjing", 1) > 0
    for name in ("dpo", "grpo", "ppo"):
        assert gives(name, "Nanjing", 1) > 0 > gives(name, "Nanjing", 2)  # praised in one answer, blamed in the other
        assert gives(name, "Nanjing") < 0 < gives(name, "Beijing")
    assert gives("dpo", "The") == 0
    assert abs(gives("grpo", "The")) < 0.5 * abs(gives("grpo", "Nanjing"))
    within = [[one.pushes("logp") for one in columns[name].seen if one] for name in ("dpo", "grpo", "ppo")]
    assert [[len({round(p, 6) for p in answer}) for answer in answers] for answers in within[:2]] == [[1, 1, 1]] * 2
    assert within[2][1] == sorted(within[2][1])  # rises to the end, from below 0
    assert within[2][1][0] < 0
    assert len({round(p, 6) for p in within[2][2]}) == 1
