"""The arithmetic task: worked sums, slips, and problems that are never trained on."""

from __future__ import annotations

from typing import Any

import pytest

from unified import Example, UserError, call_named, catalogue
from unified_plugins.datasets.arithmetic import held_out, worked


def rows(split: str = "train", seed: int = 0, **settings: Any) -> list[Example]:
    part = catalogue().get("dataset", "arithmetic")
    out: list[Example] = call_named(part.open, settings=part.settings(**settings), split=split, seed=seed, folder=".")
    return out


@pytest.mark.parametrize(
    ("numbers", "answer"),
    [
        ((17, 25), "7+5=12 1+2+1=4 #42"),
        ((57, 65), "7+5=12 5+6+1=12 #122"),  # the last carry is written out
        ((17, 5), "7+5=12 1+0+1=2 #22"),
        ((20, 30), "0+0=0 2+3=5 #50"),
        ((99, 99, 99), "9+9+9=27 9+9+9+2=29 #297"),
        ((0, 0), "0+0=0 #0"),
    ],
)
def test_a_sum_is_worked_from_the_right_with_the_carry_last(numbers, answer):
    assert worked(numbers) == answer


def test_a_slip_in_a_column_is_carried_on():
    assert worked((17, 25), (0, -1)) == "7+5=11 1+2+1=4 #41"
    assert worked((15, 24), (0, 1)) == "5+4=10 1+2+1=4 #40"  # 39 + 1, with the carry
    assert worked((17, 25), (1, 1)) == "7+5=12 1+2+1=5 #52"


def test_every_training_answer_ends_in_the_right_sum():
    for row in rows(digits=3, terms=3):
        total = sum(map(int, str(row.prompt).removesuffix("=").split("+")))
        assert row.answers[0].endswith(f"#{total}")
        assert row.columns["answer"] == total
    assert len(rows(digits=3, terms=3)) == 1000


def test_no_problem_is_both_trained_on_and_held_out_whatever_the_seeds():
    train = {row.prompt for seed in range(3) for row in rows(seed=seed)}
    kept = {row.prompt for seed in range(3) for row in rows("held_out", seed=seed)}
    assert not train & kept
    assert len({row.prompt for row in rows()}) == 1000
    share = sum(held_out((a, b)) for a in range(100) for b in range(100)) / 10_000
    assert share == pytest.approx(0.1, abs=0.012)  # four deviations of a fair draw


def test_a_pair_is_right_and_wrong_and_both_are_well_formed():
    for row in rows(view="pairs", rows=300):
        right, wrong = (int(answer.split("#")[1]) for answer in row.answers)
        assert row.rewards == [1.0, 0.0]
        assert right == row.columns["answer"]
        assert abs(wrong - right) in (1, 10)


def test_answers_without_steps_and_prompts_without_answers():
    assert rows(view="answers", rows=5)[0].answers[0].startswith("#")
    assert rows(view="prompts", rows=5)[0].answers == []


def test_more_rows_than_there_are_problems_are_refused():
    with pytest.raises(UserError, match=r"1 digits has only 8\d train problems of the 1000 asked for|only 9\d train"):
        rows(digits=1)


def test_the_tokenizer_reads_single_characters_and_writes_them_back():
    part = catalogue().get("dataset", "arithmetic")
    tokenizer = part.tokenizer(part.settings())
    text = "7+5=12 1+2+1=4 #42"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
