"""The normaliser w, worked by hand on three answers of 2, 1 and 3 tokens, of which the first two share a prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unified import Batch
from unified.aggregation import Counts, normaliser
from unified.batch import Here
from unified.parts import AGGREGATIONS

MASK = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0]]


def step(mask: list[list[int]] = MASK, group: list[int] | None = None, **fields: list[int]) -> Batch:
    given = {name: torch.tensor(value) for name, value in fields.items()}
    return Batch({"loss_mask": torch.tensor(mask).bool(), "group": torch.tensor(group or [0, 0, 1]), **given})


def w_of(batch: Batch, how: str, on: list[int] | None = None, *, length: int | None = None) -> Tensor:
    rows = torch.tensor(on or [1] * batch.size).bool()
    return normaliser(batch, rows, how, Counts.of(batch, rows, Here()), length=length)


def total(batch: Batch, w: Tensor) -> float:
    """Σ of w over all tokens that carry a gradient."""
    return float((w[:, None] * batch.loss_mask).sum())


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("token", [1 / 6, 1 / 6, 1 / 6]),  # 2 + 1 + 3 tokens
        ("sequence", [1 / 3 / 2, 1 / 3 / 1, 1 / 3 / 3]),  # three answers, each by its own length
        ("sequence-sum", [1 / 3, 1 / 3, 1 / 3]),
        ("group", [1 / 2, 1 / 2, 1 / 2]),  # two prompts
        ("group-token", [1 / 2 / 3, 1 / 2 / 3, 1 / 2 / 3]),  # both prompts have three tokens: 2 + 1, and 3
        ("constant", [1 / 3 / 8, 1 / 3 / 8, 1 / 3 / 8]),  # L = 8
    ],
)
def test_weights_by_hand(how: str, wanted: list[float]) -> None:
    assert w_of(step(), how, length=8).tolist() == pytest.approx(wanted)


def test_every_aggregation_is_worked_here() -> None:
    assert set(AGGREGATIONS) == {"token", "sequence", "sequence-sum", "group", "group-token", "constant"}


@pytest.mark.parametrize("how", ["token", "sequence", "group-token"])
@pytest.mark.parametrize("on", [[1, 1, 1], [1, 0, 1], [0, 1, 0]])
def test_means_over_tokens_add_up_to_1(how: str, on: list[int]) -> None:
    assert total(step(), w_of(step(), how, on)) == pytest.approx(1.0)


def test_the_prompt_with_more_tokens_weighs_each_of_them_less_under_group_token() -> None:
    # prompt 0 has 2 + 1 + 1 = 4 tokens, prompt 1 has 1
    batch = step([[1, 1], [1, 0], [1, 0], [1, 0]], [0, 0, 0, 1])
    assert w_of(batch, "group-token").tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 8, 1 / 2])


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_probes_and_empty_answers_neither_weigh_nor_count(how: str) -> None:
    # a probe of prompt 1, an empty answer of prompt 0, and prompts of which nothing counts, beside the three answers
    mask = [*MASK, [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    batch = step(mask, [0, 0, 1, 1, 0, 2, 3], probe=[0, 0, 0, 1, 0, 0, 1])
    w = w_of(batch, how, length=8)
    assert w[:3].tolist() == pytest.approx(w_of(step(), how, length=8).tolist())
    assert w[3:].tolist() == [0.0] * 4


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_rows_that_a_term_does_not_act_on_are_as_if_they_were_not_there(how: str) -> None:
    alone = step([MASK[0], MASK[2]], [0, 1])
    w = w_of(step(), how, [1, 0, 1], length=8)
    assert w[[0, 2]].tolist() == pytest.approx(w_of(alone, how, length=8).tolist())
    assert w[1] == 0


def test_rows_of_one_trajectory_count_as_one_answer_of_their_joint_length() -> None:
    # rows 0 and 2 are one conversation of 2 + 3 = 5 tokens: two answers in all
    batch = step(trajectory=[7, 4, 7])
    assert w_of(batch, "sequence").tolist() == pytest.approx([1 / 2 / 5, 1 / 2 / 1, 1 / 2 / 5])
    assert w_of(batch, "sequence-sum").tolist() == pytest.approx([1 / 2] * 3)
    assert w_of(batch, "constant", length=8).tolist() == pytest.approx([1 / 2 / 8] * 3)
    assert w_of(batch, "token").tolist() == pytest.approx([1 / 6] * 3)
    assert total(batch, w_of(batch, "sequence")) == pytest.approx(1.0)


def test_an_empty_row_of_a_conversation_does_not_make_a_second_answer() -> None:
    batch = step([[1, 1], [0, 0], [1, 0]], [0, 0, 1], trajectory=[0, 0, 1])
    assert w_of(batch, "sequence").tolist() == pytest.approx([1 / 2 / 2, 0.0, 1 / 2 / 1])


def test_counts_are_of_all_processes() -> None:
    class Twice(Here):
        """A second process that holds the same."""

        def sum(self, x: Tensor) -> Tensor:
            return 2 * x

    on = torch.ones(3, dtype=torch.bool)
    assert Counts.of(step(), on, Here()) == Counts(6.0, 3.0, 2.0)
    counts = Counts.of(step(), on, Twice())
    assert counts == Counts(12.0, 6.0, 4.0)
    assert normaliser(step(), on, "token", counts).tolist() == pytest.approx([1 / 12] * 3)
    assert normaliser(step(), on, "sequence", counts).tolist() == pytest.approx([1 / 12, 1 / 6, 1 / 18])


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_a_step_in_which_nothing_counts_weighs_0_without_a_division_by_0(how: str) -> None:
    batch = step([[0, 0], [1, 1]], [0, 1], probe=[0, 1])
    assert w_of(batch, how, length=8).tolist() == [0.0, 0.0]
    none = batch.rows(torch.tensor([], dtype=torch.long))
    assert normaliser(none, torch.ones(0).bool(), how, Counts(0, 0, 0), length=8).tolist() == []


def test_w_is_exact_in_float64_whatever_the_batch_is_in() -> None:
    assert w_of(step(), "sequence").dtype == torch.float64


def test_an_unknown_aggregation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="no aggregation 'mean'; known: token, sequence, sequence-sum, group, group-token"
    ):
        w_of(step(), "mean")


def test_constant_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="aggregation 'constant' needs a length: set `constant_length`"):
        w_of(step(), "constant")
