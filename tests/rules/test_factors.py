"""Factors: truncation, rejection, masks and the choice of uncertain tokens, by hand."""

from __future__ import annotations

from typing import Any

import torch

from unified_plugins.rules.factors import (
    importance,
    importance_statistics,
    off_policy,
    reject,
    top_entropy,
    top_entropy_statistics,
    variation,
)

# ratios of trainer over engine: 1/4 and 4, and (outside the loss) 100; 3 and 3 in the second answer
MASK = torch.tensor([[True, True, False], [True, True, False]])
GAP = torch.where(MASK, torch.tensor([[0.25, 4.0, 1.0], [3.0, 3.0, 1.0]], dtype=torch.float64).log(), 0.0)


def _weights(**settings: Any) -> torch.Tensor:
    keywords = {"level": "token", "low": 0.0, "high": 2.0, "mean_one": False, **settings}
    reach = {"counts": torch.ones(2, dtype=torch.bool), "total": lambda x: x.sum(0)}
    known = importance_statistics(GAP, MASK, **reach, **keywords)
    return importance(GAP, MASK, known, **keywords)


def _close(found: torch.Tensor, rows: list[list[float]]) -> None:
    torch.testing.assert_close(found[:, :2], torch.tensor(rows, dtype=torch.float64))


def test_the_weight_is_truncated_above_and_below() -> None:
    _close(_weights(), [[0.25, 2.0], [2.0, 2.0]])
    _close(_weights(low=0.5, high=None), [[0.5, 4.0], [3.0, 3.0]])


def test_the_weight_of_a_whole_answer_is_the_product_and_not_its_mean() -> None:
    _close(_weights(level="product", high=None), [[1.0, 1.0], [9.0, 9.0]])
    _close(_weights(level="mean", high=None), [[1.0, 1.0], [3.0, 3.0]])


def test_weights_can_be_brought_to_a_mean_of_one() -> None:
    # tokens: (1/4 + 2 + 2 + 2) / 4 = 25/16; answers: (1 + 2) / 2 = 3/2
    _close(_weights(mean_one=True), [[0.16, 1.28], [1.28, 1.28]])
    _close(_weights(mean_one=True, level="product"), [[2 / 3, 2 / 3], [4 / 3, 4 / 3]])


def test_tokens_outside_the_bounds_are_rejected_and_not_truncated() -> None:
    _close(reject(GAP, MASK, level="token", low=0.5, high=3.5), [[0.0, 0.0], [1.0, 1.0]])


def test_an_answer_is_rejected_by_its_geometric_mean() -> None:
    _close(reject(GAP, MASK, level="mean", low=0.5, high=2.0), [[1.0, 1.0], [0.0, 0.0]])


def test_in_an_answer_that_varies_too_much_tokens_that_widen_the_gap_are_dropped() -> None:
    # mean |ratio - 1|: (3/4 + 3) / 2 = 1.875 and 2. Good tokens widen it where the ratio is above 1
    good = torch.ones_like(GAP)
    _close(variation(GAP, good, MASK, limit=1.9), [[1.0, 1.0], [0.0, 0.0]])
    _close(variation(GAP, good, MASK, limit=1.0), [[1.0, 0.0], [0.0, 0.0]])
    _close(variation(GAP, -good, MASK, limit=1.0), [[0.0, 1.0], [1.0, 1.0]])


def test_a_bad_answer_that_the_policy_has_left_is_masked_and_a_good_one_is_not() -> None:
    # mean log(old / policy) = 1/2 in both
    log_ratio, mask = torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    advantage = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    assert off_policy(log_ratio, advantage, mask, limit=0.4).tolist() == [[0, 0], [1, 1]]
    assert off_policy(log_ratio, advantage, mask, limit=0.6).tolist() == [[1, 1], [1, 1]]


def test_the_share_of_tokens_with_the_highest_entropy_is_kept_over_all_answers() -> None:
    # of four tokens that count the two highest: 3 and 2; the 9 is no loss token, the 8 of a probe
    entropy = torch.tensor([[3.0, 1.0, 9.0], [0.5, 2.0, 9.0], [8.0, 8.0, 8.0]])
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    counts = torch.tensor([True, True, False])
    known = top_entropy_statistics(entropy, mask, counts, lambda x: x, share=0.5)
    assert top_entropy(entropy, known, share=0.5)[:2, :2].tolist() == [[1, 0], [0, 1]]
