"""Reward model: coefficients on scores by hand, and the paper's ranking loss."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from tests.algorithms.batches import loss, mean_metrics, pushed, random_fields, term
from unified import Batch, UserError


def _ranking(scores: list[float], **columns: torch.Tensor) -> Batch:
    """One prompt, best answer first; answers of two tokens, of which the first has a score that no one reads."""
    score = torch.tensor([[99.0, s] for s in scores], dtype=torch.float64)
    reward = torch.arange(len(scores)).flip(0)
    return Batch(
        {"score": score, "loss_mask": score == score, "reward": reward, "group": torch.zeros(len(scores))}, columns
    )


def test_only_the_last_token_is_pushed_by_how_surely_the_pair_is_wrong() -> None:
    # s = log 3, 0: sigmoid(-log 3) = 1/4
    found = pushed(term("reward_model"), _ranking([math.log(3), 0.0]))["score"]
    torch.testing.assert_close(found, torch.tensor([[0, 0.25], [0, -0.25]], dtype=torch.float64))


def test_three_equal_scores_are_pushed_apart_by_a_third() -> None:
    # three pairs at sigmoid(0) = 1/2: the best wins two, (1/2 + 1/2) / 3
    found = pushed(term("reward_model"), _ranking([0.0, 0.0, 0.0]))["score"][:, 1]
    torch.testing.assert_close(found, torch.tensor([1, 0, -1], dtype=torch.float64) / 3)


def test_the_gradient_is_that_of_the_papers_ranking_loss() -> None:
    fields = random_fields()
    fields["reward"] = torch.tensor([2.0, 1.0, 0.0] * 4)
    batch = Batch(fields)
    leaf = fields["score"].clone().requires_grad_()
    s = (leaf * batch.last).sum(1).reshape(4, 3)  # best first
    published = torch.stack(  # arXiv:2203.02155, eq. 1
        [-F.logsigmoid(s[:, i] - s[:, j]) for i, j in itertools.combinations(range(3), 2)]
    ).mean()
    published.backward()
    torch.testing.assert_close(pushed(term("reward_model"), batch)["score"], -leaf.grad, rtol=1e-9, atol=1e-9)
    assert loss(term("reward_model"), batch) == pytest.approx(published.item(), abs=1e-12)


def test_a_margin_asks_for_more_distance() -> None:
    # s = log 3 + 1, 0 with margin 1: as log 3 without
    batch = _ranking([math.log(3) + 1, 0.0], gap=torch.tensor([1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(pushed(term("reward_model", margin="gap"), batch)["score"][0, 1].item(), 0.25)


def test_a_margin_that_is_no_column_is_refused() -> None:
    with pytest.raises(UserError, match="names no column"):
        pushed(term("reward_model", margin="gap"), _ranking([1.0, 0.0]))


def test_centring_pulls_the_sum_of_both_to_zero() -> None:
    # (3 + 1)^2 * 0.01: 2 * 0.01 * 4 = 0.08 off both
    with_it, without = (
        pushed(term("reward_model", centring=c), _ranking([3.0, 1.0]))["score"][:, 1] for c in (0.01, 0)
    )
    torch.testing.assert_close(with_it - without, torch.full((2,), -0.08, dtype=torch.float64))


def test_metrics_count_prompts_for_pairs_and_answers_for_scores() -> None:
    # pairs 2 > 0, 2 > 1, 0 < 1: two of three right; margins 2, 1, -1: mean 2/3; scores 2, 0, 1
    found = mean_metrics(term("reward_model"), _ranking([2.0, 0.0, 1.0]))
    assert found == pytest.approx({"accuracy": 2 / 3, "margin": 2 / 3, "score": 1.0, "score_square": 5 / 3})
