"""Imitation beyond SFT: who is imitated and how hard, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.algorithms.batches import loss, pushed, term
from unified import Batch, UserError

# two prompts with two answers; two tokens, one, one, one
MASK = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
FIELDS = {
    "logp": torch.full((4, 2), -math.log(2), dtype=torch.float64),
    "loss_mask": MASK,
    "reward": torch.tensor([2.0, -1.0, 0.0, 1.0]),
    "group": torch.tensor([0, 0, 1, 1]),
}


def rows(name: str, **settings: Any) -> list[list[float]]:
    found: list[list[float]] = pushed(term(name, **settings), Batch(FIELDS))["logp"].tolist()
    return found


def test_dft_weighs_a_token_by_its_probability() -> None:
    # five tokens at probability 1/2; the loss is their mean of -p log p
    assert rows("dft") == [[0.1, 0.1], [0.1, 0], [0.1, 0], [0.1, 0]]
    assert loss(term("dft"), Batch(FIELDS)) == pytest.approx(math.log(2) / 2)


def test_weighted_sft_weighs_by_reward_and_averages_over_all_tokens() -> None:
    wanted = [[0.4, 0.4], [-0.2, 0], [0, 0], [0.2, 0]]
    assert rows("weighted_sft") == wanted
    # (2 * 2 - 1 + 1) log 2 / 5
    assert loss(term("weighted_sft"), Batch(FIELDS)) == pytest.approx(4 / 5 * math.log(2))


def test_weighted_sft_weighs_by_a_column() -> None:
    batch = Batch(FIELDS, {"trust": torch.tensor([1.0, 0.0, 0.5, 0.0])})
    found = pushed(term("weighted_sft", by="trust"), batch)["logp"]
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.2], [0, 0], [0.1, 0], [0, 0]], dtype=torch.float64))
    with pytest.raises(UserError, match="`by: truth` names no column"):
        pushed(term("weighted_sft", by="truth"), batch)


def test_rft_counts_wrong_answers_but_does_not_push_them() -> None:
    # four answers; the first and the last are right
    assert rows("rft") == [[1 / 8, 1 / 8], [0, 0], [0, 0], [1 / 4, 0]]


def test_raft_imitates_the_best_answer_of_each_prompt() -> None:
    # two prompts; the best answers have two tokens and one
    assert rows("raft") == [[1 / 4, 1 / 4], [0, 0], [0, 0], [1 / 2, 0]]


def test_answers_that_tie_in_raft_share() -> None:
    found = pushed(term("raft"), Batch({**FIELDS, "reward": torch.tensor([1.0, 1.0, 0.0, 1.0])}))["logp"]
    torch.testing.assert_close(found[:, 0], torch.tensor([1 / 8, 1 / 4, 0, 1 / 2], dtype=torch.float64))


@pytest.mark.parametrize("name", ["weighted_sft", "rft", "raft"])
def test_weights_of_imitation_are_known_before_the_forward(name: str) -> None:
    assert term(name).reads == frozenset()
