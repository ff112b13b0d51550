"""The view that a plugin sees: shapes at its boundary, pairs, and parts of a batch."""

from __future__ import annotations

import pytest
import torch

from unified import Batch, pairs
from unified.batch import Nowhere, from_numbers


def batch_of(
    reward: list[float], group: list[int], *, mask: list[list[int]] | None = None, probe: list[int] | None = None
) -> Batch:
    made = mask or [[1, 1]] * len(reward)
    fields = {"loss_mask": torch.tensor(made).bool(), "reward": torch.tensor(reward), "group": torch.tensor(group)}
    return Batch(fields | ({} if probe is None else {"probe": torch.tensor(probe).bool()}))


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("logp", (4, 7), r"logp is \[4, 7\] but loss_mask is \[4, 6\]; it must be \[batch, time\]"),
        ("logp", (4,), r"logp is \[4\] but loss_mask is \[4, 6\]; it must be \[batch, time\]"),
        ("group", (4, 6), r"group is \[4, 6\] but loss_mask is \[4, 6\]; it must be \[batch\]"),
        ("reward", (3,), r"reward is \[3\] but loss_mask is \[4, 6\]"),
        ("probe", (5,), r"probe is \[5\] but loss_mask is \[4, 6\]; it must be \[batch\]"),
        ("advantage", (4, 5), r"advantage is \[4, 5\] but loss_mask is \[4, 6\]"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_with_both_sides(field: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch({"loss_mask": torch.ones(4, 6).bool(), field: torch.zeros(shape)})


def test_a_column_that_is_not_a_number_per_answer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"margin is \[4, 6\] but loss_mask is \[4, 6\]; it must be \[batch\]"):
        Batch({"loss_mask": torch.ones(4, 6).bool()}, {"margin": torch.zeros(4, 6)})


@pytest.mark.parametrize("name", ["reward", "advantage", "returns"])
def test_rewards_advantages_and_returns_may_be_per_answer_or_per_token(name: str) -> None:
    for shape in ((2,), (2, 3)):
        assert getattr(Batch({"loss_mask": torch.ones(2, 3).bool(), name: torch.zeros(shape)}), name).shape == shape


def test_a_mask_is_needed_and_has_two_axes() -> None:
    with pytest.raises(ValueError, match=r"a batch needs loss_mask \[batch, time\]"):
        Batch({"logp": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=r"loss_mask is \[3\]; it must be \[batch, time\]"):
        Batch({"loss_mask": torch.ones(3)})


def test_what_is_not_given_stands_for_one_answer_a_prompt_no_probe_and_reward_0() -> None:
    batch = Batch({"loss_mask": torch.ones(2, 3)})
    assert batch.loss_mask.dtype == torch.bool
    assert batch.group.tolist() == batch.trajectory.tolist() == [0, 1]
    assert batch.probe.tolist() == [False, False]
    assert batch.reward.tolist() == [0.0, 0.0]


def test_groups_are_numbered_in_order_of_appearance_within_every_part_of_the_batch() -> None:
    batch = batch_of([0.0] * 5, [17, 3, 17, 8, 3])
    assert batch.group.tolist() == [0, 1, 0, 2, 1]
    assert batch.groups == 3
    # rows 3, 1, 4 are of the prompts 8, 3, 3
    assert batch.rows(torch.tensor([3, 1, 4])).group.tolist() == [0, 1, 1]


def test_a_missing_field_says_where_to_declare_it_and_what_is_there() -> None:
    batch = Batch({"loss_mask": torch.ones(1, 2), "logp": torch.zeros(1, 2)})
    with pytest.raises(AttributeError, match=r"no 'ref_logp': declare it in `reads`.*'logp', 'loss_mask'"):
        _ = batch.ref_logp
    assert batch.has("logp")
    assert not batch.has("ref_logp")


def test_probes_and_answers_without_a_loss_token_do_not_count() -> None:
    batch = batch_of([0, 0, 0], [0, 0, 1], mask=[[1, 0], [0, 0], [1, 1]], probe=[0, 0, 1])
    assert batch.counts.tolist() == [True, False, False]
    assert batch.lengths.tolist() == [1, 0, 2]


def test_the_last_token_is_the_last_that_carries_a_gradient() -> None:
    batch = batch_of([0, 0, 0], [0, 1, 2], mask=[[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert batch.last.int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_rewards_per_token_add_up_to_that_of_the_answer() -> None:
    # 0.5 + 0.25 in the mask, 9 in the padding behind it
    fields = {"loss_mask": torch.tensor([[1, 1, 0]]), "reward": torch.tensor([[0.5, 0.25, 9.0]])}
    assert Batch(fields).total_reward.tolist() == [0.75]


def test_expand_repeats_a_number_per_answer_over_its_tokens_and_is_0_off_the_mask() -> None:
    batch = batch_of([0, 0], [0, 1], mask=[[1, 0], [1, 1]])
    assert batch.expand(torch.tensor([2.0, 3.0])).tolist() == [[2.0, 0.0], [3.0, 3.0]]
    assert batch.expand(torch.tensor([[2.0, torch.nan], [4.0, 5.0]])).tolist() == [[2.0, 0.0], [4.0, 5.0]]
    with pytest.raises(
        ValueError, match=r"advantage is \[3\] but loss_mask is \[2, 2\]; it must be \[batch\] or \[batch, time\]"
    ):
        batch.expand(torch.zeros(3), "advantage")


def test_rows_are_cut_to_their_longest_answer_or_to_the_time_that_is_asked() -> None:
    fields = {
        "loss_mask": torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]),
        "logp": torch.arange(12.0).reshape(3, 4),
    }
    batch = Batch(fields, {"margin": torch.tensor([1.0, 2.0, 3.0])})
    part = batch.rows(torch.tensor([1, 0]))
    assert part.logp.tolist() == [[4.0, 5.0, 6.0], [0.0, 1.0, 2.0]]  # the mask of row 1 ends at its third token
    assert part.columns["margin"].tolist() == [2.0, 1.0]
    assert batch.rows(torch.tensor([0]), time=2).logp.tolist() == [[0.0, 1.0]]


def test_no_rows_at_all_are_a_batch_too() -> None:
    none = batch_of([0.0, 1.0], [0, 0]).rows(torch.tensor([], dtype=torch.long))
    assert (none.size, none.groups) == (0, 0)
    assert pairs(none).better.tolist() == []
    assert none.counts.tolist() == none.last.any(1).tolist() == []


def test_plus_adds_fields_and_checks_them() -> None:
    batch = batch_of([0.0], [0])
    assert batch.plus(logp=torch.ones(1, 2)).logp.tolist() == [[1.0, 1.0]]
    assert not batch.has("logp")
    with pytest.raises(ValueError, match=r"logp is \[2, 2\] but loss_mask is \[1, 2\]"):
        batch.plus(logp=torch.ones(2, 2))


def test_totals_and_gather_are_refused_where_other_processes_cannot_be_asked() -> None:
    batch = batch_of([1.0, 2.0], [0, 0])
    assert batch.total(batch.reward).item() == 3.0
    nowhere = batch.plus(Nowhere())
    for ask in (nowhere.total, nowhere.gather):
        with pytest.raises(RuntimeError, match="work in credit and statistics, not in a coefficient or loss"):
            ask(batch.reward)


def test_a_pair_is_the_better_answer_and_the_worse_with_share_1() -> None:
    found = pairs(batch_of([0.0, 1.0], [0, 0]))
    assert (found.better.tolist(), found.worse.tolist(), found.share.tolist()) == ([1], [0], [1.0])


def test_four_ranked_answers_make_six_pairs_that_weigh_a_sixth_each() -> None:
    # ranks 2 > 1 > 0 > −1 in the rows 1, 3, 0, 2: 4 · 3 / 2 = 6 ordered pairs
    found = pairs(batch_of([0.0, 2.0, -1.0, 1.0], [0] * 4))
    both = sorted(zip(found.better.tolist(), found.worse.tolist(), strict=True))
    assert both == [(0, 2), (1, 0), (1, 2), (1, 3), (3, 0), (3, 2)]
    assert found.share.tolist() == pytest.approx([1 / 6] * 6)


def test_equal_rewards_make_no_pair_and_shares_are_of_the_pairs_that_are_left() -> None:
    # 1, 1, 0: the two equal ones are each better than the third: two pairs of 1/2; the second prompt ties altogether
    found = pairs(batch_of([1.0, 1.0, 0.0, 5.0, 5.0], [0, 0, 0, 1, 1]))
    assert (found.better.tolist(), found.worse.tolist(), found.group.tolist()) == ([0, 1], [2, 2], [0, 0])
    assert found.share.tolist() == [0.5, 0.5]
    assert found.per_group(torch.tensor([3.0, 5.0]), 2).tolist() == [4.0, 0.0]  # the mean of 3 and 5; no pair: 0


def test_answers_of_different_prompts_make_no_pair() -> None:
    assert pairs(batch_of([1.0, 0.0], [0, 1])).better.tolist() == []


def test_probes_and_empty_answers_make_no_pair() -> None:
    found = pairs(batch_of([3.0, 2.0, 1.0, 0.0], [0] * 4, mask=[[1], [1], [0], [1]], probe=[1, 0, 0, 0]))
    assert (found.better.tolist(), found.worse.tolist()) == ([1], [3])


def test_what_pairs_give_to_their_answers_is_weighed_by_share() -> None:
    # prompt 0: one pair (0 over 1); prompt 1: (2 over 3), (2 over 4), share 1/2 each
    found = pairs(batch_of([1.0, 0.0, 1.0, 0.0, 0.0], [0, 0, 1, 1, 1]))
    given = found.per_row(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-1.0, -2.0, -4.0]), 5)
    assert given.tolist() == [1.0, -1.0, 3.0, -1.0, -2.0]  # row 2: (2 + 4) / 2


def test_pairs_compare_what_whole_answers_got_where_rewards_are_per_token() -> None:
    reward = torch.tensor([[1.0, 0.0], [0.75, 0.75]])
    assert pairs(
        Batch({"loss_mask": torch.ones(2, 2), "reward": reward, "group": torch.tensor([0, 0])})
    ).better.tolist() == [1]


def test_from_numbers_takes_the_mask_from_the_shape_of_another_field() -> None:
    batch = from_numbers(
        {"logp": [[-1, -2], [-3, -4]], "reward": [1, 0], "group": [4, 4], "columns": {"margin": [1, 2]}}
    )
    assert batch.loss_mask.tolist() == [[True, True], [True, True]]
    assert batch.logp.dtype == batch.reward.dtype == batch.columns["margin"].dtype == torch.float64
    assert batch.group.tolist() == [0, 0]
    assert from_numbers({"loss_mask": [[1, 0]], "probe": [1]}).probe.tolist() == [True]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"logp": [[1.0, 2.0], [3.0]]}, "'logp' is no table of numbers with rows of equal length"),
        ({"logp": [["a"]]}, "'logp' is no table of numbers"),
        ({"reward": [1.0]}, r"give loss_mask, or one field that is \[batch, time\]"),
        ({"logp": [[1.0, 2.0]], "ref_logp": [[1.0]]}, r"ref_logp is \[1, 1\] but loss_mask is \[1, 2\]"),
        ({"logp": [[1.0]], "columns": {"margin": [1.0, 2.0]}}, r"margin is \[2\] but loss_mask is \[1, 1\]"),
    ],
)
def test_numbers_that_make_no_batch_are_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_numbers(data)
