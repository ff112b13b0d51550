"""The advantage from a teacher on sampled tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unified_plugins.rules.teacher import teacher_advantage

#: the teacher finds the tokens likelier by 1, −2 and 4 nats; the second answer has a hole that a tool wrote
TEACHER = torch.tensor([[-1.0, -3.0, -1.0], [-1.0, -9.0, -1.0]])
POLICY = torch.tensor([[-2.0, -1.0, -5.0], [-2.0, -1.0, -5.0]])
MASK = torch.tensor([[True, True, True], [True, False, True]])


def advantage(**settings: Any) -> list[list[float]]:
    return teacher_advantage(TEACHER, POLICY, MASK, **settings)["advantage"].tolist()


def test_without_a_discount_each_token_stands_for_itself() -> None:
    assert advantage() == [[1.0, -2.0, 4.0], [1.0, 0.0, 4.0]]


def test_with_discount_1_a_token_gets_all_that_follows() -> None:
    assert advantage(gamma=1.0) == [[3.0, 2.0, 4.0], [5.0, 0.0, 4.0]]


def test_a_discount_counts_tokens_that_carry_a_gradient() -> None:
    # 1 − 2/2 + 4/4 = 1; −2 + 4/2 = 0; over the hole 1 + 4/2 = 3
    assert advantage(gamma=0.5) == [[1.0, 0.0, 4.0], [3.0, 0.0, 4.0]]


def test_normalised_it_is_a_mean_of_what_follows() -> None:
    # 3/3, 2/2, 4; with a hole 5/2, 4
    assert advantage(gamma=1.0, normalise=True) == [[1.0, 1.0, 4.0], [2.5, 0.0, 4.0]]


def test_without_its_own_token_the_last_gets_nothing() -> None:
    # (−2 + 4) / 2, 4, nothing
    assert advantage(gamma=1.0, normalise=True, own=False) == [[1.0, 4.0, 0.0], [4.0, 0.0, 0.0]]


def test_weight_is_a_factor() -> None:
    assert advantage(weight=0.5)[0] == [0.5, -1.0, 2.0]


def test_a_policy_that_is_the_teacher_gets_exactly_zero() -> None:
    found = teacher_advantage(POLICY, POLICY, MASK, gamma=0.9, normalise=True)["advantage"]
    assert (found == 0).all()


@pytest.mark.parametrize("settings", [{}, {"gamma": 0.9}, {"gamma": 0.9, "normalise": True, "own": False}])
def test_padding_does_not_matter(settings: dict[str, Any]) -> None:
    wide = [torch.cat([x, torch.full((2, 2), 7.0)], 1) for x in (TEACHER, POLICY)]
    mask = torch.cat([MASK, torch.zeros(2, 2, dtype=torch.bool)], 1)
    found = teacher_advantage(*wide, mask, **settings)["advantage"]
    assert found[:, :3].tolist() == advantage(**settings)
    assert (found[:, 3:] == 0).all()
