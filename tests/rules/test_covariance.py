"""Which tokens the covariance rules hold back, and how."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unified_plugins.rules.covariance import (
    clip_cov_coefficient,
    clip_cov_statistics,
    kl_cov_coefficient,
    kl_cov_statistics,
)

# logp -1, -3, -1, -3 and A 2, 2, -2, -2, means -2 and 0: covariances 2, -2, -2, 2
LOGP = torch.tensor([[-1.0, -3.0], [-1.0, -3.0]], dtype=torch.float64)
A = torch.tensor([[2.0, 2.0], [-2.0, -2.0]], dtype=torch.float64)
ALL = torch.ones(2, 2, dtype=torch.bool)
ONE = torch.ones_like(LOGP)
CLIP: dict[str, Any] = {"low": 0.2, "high": 0.2, "share": 1.0, "floor": 1.0, "ceiling": 5.0}


def _reach(keep: Tensor | None = None) -> dict[str, Any]:
    counts = torch.ones(2, dtype=torch.bool) if keep is None else keep
    return {"loss_mask": ALL, "counts": counts, "total": lambda x: x.sum(0), "gather": lambda x: x}


def test_tokens_whose_covariance_lies_between_the_bounds_are_left_out() -> None:
    known = clip_cov_statistics(ONE, LOGP, A, **_reach(), **CLIP)
    found = clip_cov_coefficient(ONE, LOGP, A, known, **CLIP)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0], [-2.0, 0.0]], dtype=torch.float64))
    high = {**CLIP, "ceiling": 1.9}
    known = clip_cov_statistics(ONE, LOGP, A, **_reach(), **high)
    torch.testing.assert_close(clip_cov_coefficient(ONE, LOGP, A, known, **high), A)


def test_of_those_between_the_bounds_only_the_share_with_the_highest_covariance_is_left_out() -> None:
    # logp of the last token -3.4: mean -2.1, covariances 2.2, -1.8, -2.2, 2.6; one in four is the last
    logp = LOGP.clone()
    logp[1, 1] = -3.4
    one = {**CLIP, "share": 0.25}
    known = clip_cov_statistics(ONE, logp, A, **_reach(), **one)
    found = clip_cov_coefficient(ONE, logp, A, known, **one)
    torch.testing.assert_close(found, torch.tensor([[2.0, 2.0], [-2.0, 0.0]], dtype=torch.float64))


def test_a_clipped_token_takes_nobodys_place() -> None:
    # the token of covariance 2.2 has ratio 2 and is clipped: the next, of 2, is left out in its place
    logp, ratio = LOGP.clone(), ONE.clone()
    logp[0, 0], ratio[0, 0] = -0.6, 2.0
    one = {**CLIP, "share": 0.25}
    known = clip_cov_statistics(ratio, logp, A, **_reach(), **one)
    found = clip_cov_coefficient(ratio, logp, A, known, **one)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0], [-2.0, 0.0]], dtype=torch.float64))


def test_tokens_of_the_highest_covariance_are_pulled_back_to_the_policy_that_sampled() -> None:
    # half of four tokens; ratio e: e A, less sign(log ratio) = 1 on the two
    ratio, log_ratio = ONE.exp(), ONE
    keywords = {"share": 0.5, "weight": 0.5}
    known = kl_cov_statistics(LOGP, A, **_reach(), **keywords)
    found = kl_cov_coefficient(ratio, log_ratio, LOGP, A, known, **keywords)
    e = float(ratio[0, 0])
    wanted = torch.tensor([[2 * e - 0.5, 2 * e], [-2 * e, -2 * e - 0.5]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted)


def test_an_answer_that_does_not_count_is_in_no_mean() -> None:
    known = kl_cov_statistics(LOGP, A, **_reach(torch.tensor([True, False])), share=0.5, weight=1.0)
    assert float(known["advantage"]) == 2.0
    assert float(known["logp"]) == -2.0
    assert float(known["tokens"]) == 2.0
