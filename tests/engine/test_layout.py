"""Where tokens lie in a forward, worked by hand, and how rows are cut into micro-batches."""

from __future__ import annotations

import random

import pytest
import torch

from unified import Answer, PromptGroup
from unified.layout import Kind, Row, cut, lay_out

#: 2 + 3 tokens of which the middle answer token carries no gradient; 1 + 1; no prompt + 3, whose first token is context
ROWS = [
    Row([11, 12], [13, 14, 15], [True, False, True]),
    Row([21], [22], [True]),
    Row([], [31, 32, 33], [False, True, True]),
]


def test_padded_rows_begin_at_slot_0_and_the_index_counts_slots_of_all_streams() -> None:
    layout = lay_out(ROWS, "padded", pad=9)
    assert layout.input_ids.tolist() == [[11, 12, 13, 14, 15], [21, 22, 9, 9, 9], [31, 32, 33, 9, 9]]
    assert layout.attention_mask is not None
    assert layout.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 0], [0, 1, 2, 0, 0]]
    assert layout.segments is None
    assert layout.row.tolist() == [0, 0, 1, 2, 2]
    assert layout.time.tolist() == [0, 2, 0, 1, 2]
    assert layout.target.tolist() == [13, 15, 22, 32, 33]
    assert layout.after.tolist() == [2, 4, 5 + 1, 10 + 1, 10 + 2]
    assert layout.before.tolist() == [1, 3, 5, 10, 11]
    assert layout.shape == (3, 3)


def test_rows_padded_on_the_left_end_at_the_last_slot_and_keep_their_positions() -> None:
    layout = lay_out(ROWS, "padded-left", pad=9)
    assert layout.input_ids.tolist() == [[11, 12, 13, 14, 15], [9, 9, 9, 21, 22], [9, 9, 31, 32, 33]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1], [0, 0, 0, 1, 2]]
    assert layout.after.tolist() == [2, 4, 5 + 4, 10 + 3, 10 + 4]
    assert layout.before.tolist() == [1, 3, 8, 12, 13]


def test_packed_rows_lie_in_order_of_length_in_one_stream() -> None:
    layout = lay_out(ROWS, "packed")
    assert layout.input_ids.tolist() == [[21, 22, 31, 32, 33, 11, 12, 13, 14, 15]]
    assert layout.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 1, 2, 3, 4]]
    assert layout.segments == (2, 3, 5)
    assert layout.attention_mask is None
    assert (layout.row.tolist(), layout.time.tolist()) == ([0, 0, 1, 2, 2], [0, 2, 0, 1, 2])  # as the plugin sees them
    assert layout.after.tolist() == [7, 9, 1, 3, 4]
    assert layout.before.tolist() == [6, 8, 0, 2, 3]


@pytest.mark.parametrize("kind", ["padded", "padded-left", "packed", "prefix-shared"])
def test_the_index_finds_the_same_tokens_in_every_layout(kind: Kind) -> None:
    layout = lay_out(ROWS, kind)
    flat = layout.input_ids.flatten()
    assert flat[layout.after].tolist() == layout.target.tolist() == [13, 15, 22, 32, 33]
    assert flat[layout.before].tolist() == [12, 14, 21, 31, 32]
    assert layout.scatter(torch.arange(1.0, 6.0)).tolist() == [[1, 0, 2], [3, 0, 0], [0, 4, 5]]


def test_scatter_carries_gradients_back_to_the_tokens_only() -> None:
    x = torch.ones(5, requires_grad=True)
    (lay_out(ROWS, "padded").scatter(x) * torch.arange(9.0).reshape(3, 3)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 7, 8]  # the places (0,0) (0,2) (1,0) (2,1) (2,2)


def test_with_an_empty_prompt_the_first_token_is_context() -> None:
    assert Row.of(PromptGroup([]), Answer([5, 6])).mask == [False, True]
    assert Row.of(PromptGroup([4]), Answer([5, 6])).mask == [True, True]
    assert Row.of(PromptGroup([4]), Answer([5, 6], loss_mask=[False, True])).mask == [False, True]
    assert Row.of(PromptGroup([]), Answer([])).mask == []


def test_the_mask_of_the_answer_itself_is_left_as_it_was() -> None:
    answer = Answer([5, 6], loss_mask=[True, True])
    Row.of(PromptGroup([]), answer)
    assert answer.loss_mask == [True, True]


@pytest.mark.parametrize("kind", ["padded", "padded-left", "packed", "prefix-shared"])
def test_answers_without_a_token_keep_their_row_and_one_place_of_time(kind: Kind) -> None:
    # a plugin that asks for the last token of such a batch would fail on [batch, 0]
    layout = lay_out([Row([1, 2], [], []), Row([3], [], [])], kind)
    assert layout.scatter(torch.zeros(0)).tolist() == [[0.0], [0.0]]


def test_a_row_without_any_token_is_no_segment_of_the_stream() -> None:
    layout = lay_out([Row([], [], []), Row([5], [6], [True])], "packed")
    assert layout.segments == (2,)
    assert layout.input_ids.tolist() == [[5, 6]]
    assert layout.scatter(torch.ones(1)).tolist() == [[0.0], [1.0]]


# --- cutting ---


def rows_of(*costs: int) -> list[Row]:
    """Rows of so many tokens, each with a prompt of its own."""
    return [Row([], [0] * cost, [True] * cost) for cost in costs]


def slots(costs: list[int], micro: list[int], kind: Kind) -> int:
    """What a forward of these rows takes: the longest for each, or their own tokens."""
    own = [costs[i] for i in micro]
    return len(own) * max(own) if kind == "padded" else sum(own)


def test_padded_rows_cost_the_longest_of_them_and_packed_rows_their_own() -> None:
    # 2 + 3 + 5 = 10 packed; padded 2 x 3 = 6, then 5 on its own, for 3 x 5 = 15 is over 10
    rows, units = rows_of(5, 2, 3), [[0], [1], [2]]
    assert cut(rows, units, 10, "packed") == [[[0, 1, 2]]]
    assert cut(rows, units, 10, "padded") == [[[1, 2]], [[0]]]
    assert cut(rows, units, 9, "packed") == [[[0, 2]], [[1]]]


def test_a_stream_is_filled_by_the_dearest_that_fits_the_fullest() -> None:
    # 7, then 6 (13 is over 10), 4 with the 6, 3 with the 7, and 2 alone
    costs = [4, 7, 2, 6, 3]
    assert cut(rows_of(*costs), [[i] for i in range(5)], 10, "packed") == [[[1, 4]], [[0, 3]], [[2]]]
    # 8 and 5 leave bins with room for 2 and 5: the fuller one takes the 2
    assert cut(rows_of(8, 5, 2), [[0], [1], [2]], 10, "packed") == [[[0, 2]], [[1]]]


def test_a_prompt_larger_than_the_budget_is_one_pass_of_several_micro_batches() -> None:
    # the answers of prompt 0 take 3 x 4 = 12 of 8 slots: two forwards of 2 and 1 rows; prompt 1 fits
    passes = cut(rows_of(4, 4, 4, 2, 2), [[0, 1, 2], [3, 4]], 8, "padded")
    assert sorted(passes) == [[[0, 1], [2]], [[3, 4]]]


def test_a_row_larger_than_the_budget_goes_alone() -> None:
    assert cut(rows_of(50, 2, 2), [[0], [1], [2]], 4, "packed") == [[[0]], [[1, 2]]]
    assert cut(rows_of(50, 2), [[0, 1]], 4, "packed") == [[[0], [1]]]


def test_nothing_to_cut_makes_no_pass() -> None:
    assert cut([], [], 8, "packed") == []
    assert cut(rows_of(3), [[]], 8, "packed") == []


@pytest.mark.parametrize("kind", ["padded", "packed", "prefix-shared"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("budget", [1, 7, 20, 60, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_rows_come_once_budgets_hold_and_prompts_stay_whole(kind: Kind, grouped: bool, budget: int, seed: int) -> None:
    r = random.Random(seed)
    costs = [r.randint(1, 12) for _ in range(30)]
    sizes = [r.randint(1, 5) for _ in range(10)] if grouped else [1] * 30
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    units = [list(range(end - size, min(end, 30))) for end, size in zip(ends, sizes, strict=True)]
    rows = sorted(i for u in units for i in u)
    passes = cut(rows_of(*costs), units, budget, kind)
    micros = [m for p in passes for m in p]
    assert sorted(i for m in micros for i in m) == rows
    assert all(slots(costs, m, kind) <= budget for m in micros if len(m) > 1)
    for unit in (u for u in units if u):
        here = [p for p in passes if any(i in m for m in p for i in unit)]
        assert len(here) == 1  # the rows of a prompt are always in one pass
        if slots(costs, unit, kind) <= budget:
            assert len(here[0]) == 1  # in one forward, if they fit one
        elif len(unit) > 1:
            assert sorted(i for m in here[0] for i in m) == unit  # else no other prompt is in the pass


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_wastes_at_most_half_of_every_forward_but_one(seed: int) -> None:
    # two bins that are both at most half full would have been one
    r = random.Random(seed)
    costs = [r.randint(1, 40) for _ in range(60)]
    micros = [m for (m,) in cut(rows_of(*costs), [[i] for i in range(60)], 80, "packed")]
    assert sum(slots(costs, m, "packed") <= 40 for m in micros) <= 1
    assert len(micros) > 5
