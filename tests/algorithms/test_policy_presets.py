"""The presets of the policy-gradient family: a number by hand for each, and what the family refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms.batches import known, loss, mean_metrics, pushed, random_fields, term
from unified import Batch
from unified.coefficient import coefficients
from unified.settings import choose

# Two prompts with two answers each, of 1 and 3 tokens and of 2 and 2; rewards 1 and 0, then 0 and 4. Sampled by the
# policy itself, so that every ratio is 1.
MASK = torch.tensor([[True, False, False], [True] * 3, [True, True, False], [True, True, False]])
REWARD = torch.tensor([1.0, 0.0, 0.0, 4.0], dtype=torch.float64)
GROUP = torch.tensor([0, 0, 1, 1])
SAME = torch.full((4, 3), -1.0, dtype=torch.float64)
HALF = 0.5**0.5  # (1 - 1/2) / sqrt(1/2), the largest deviation of two


def _step(name: str, ratio: Tensor | None = None, **settings: Any) -> Tensor:
    """w GC at the first token of each answer, of a step that is these four."""
    one = term(name, **settings)
    logp = SAME if ratio is None else SAME + ratio.double().log()[:, None]
    fields = {"loss_mask": MASK, "reward": REWARD, "group": GROUP, "old_logp": SAME, "logp": logp, "ref_logp": SAME}
    batch = Batch(fields)
    batch = batch.plus(**{k: batch.expand(v) for k, v in one.call("credit", batch=batch).items()})
    return pushed(one, batch)["logp"][:, 0]


def _close(found: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # A = +- sqrt(1/2); each answer 1/4, each token 1 / length
        ("grpo", [HALF / 4, -HALF / 12, -HALF / 8, HALF / 8]),
        ("gspo", [HALF / 4, -HALF / 12, -HALF / 8, HALF / 8]),
        ("gmpo", [HALF / 4, -HALF / 12, -HALF / 8, HALF / 8]),
        ("sapo", [HALF / 4, -HALF / 12, -HALF / 8, HALF / 8]),
        # the same without the length
        ("luspo", [HALF / 4, -HALF / 4, -HALF / 4, HALF / 4]),
        # all eight tokens weigh 1/8
        ("dapo", [HALF / 8, -HALF / 8, -HALF / 8, HALF / 8]),
        ("cispo", [HALF / 8, -HALF / 8, -HALF / 8, HALF / 8]),
        ("dppo", [HALF / 8, -HALF / 8, -HALF / 8, HALF / 8]),
        # r - mean: +- 1/2 and +- 2; 1 / (4 * 256) a token, or 1/8
        ("dr_grpo", [0.5 / 1024, -0.5 / 1024, -2 / 1024, 2 / 1024]),
        ("gpg", [0.5 / 8, -0.5 / 8, -2 / 8, 2 / 8]),
        # r - the other's r: +- 1 and +- 4; 1/4 a token
        ("rloo", [1 / 4, -1 / 4, -1.0, 1.0]),
        # the reward itself
        ("reinforce", [1 / 4, 0.0, 0.0, 1.0]),
        # less the mean by length: (1 * 1 + 3 * 0) / 4 and (2 * 0 + 2 * 4) / 4
        ("opo", [0.75 / 4, -0.25 / 4, -2 / 4, 2 / 4]),
    ],
)
def test_one_step_on_policy(name: str, wanted: list[float]) -> None:
    _close(_step(name), wanted)


def test_reinforce_pp_whitens_over_all_tokens() -> None:
    # 1 on one token, 0 on five, 4 on two: mean 9/8, population variance 33/8 - 81/64 = 183/64
    deviation = math.sqrt(183) / 8
    _close(_step("reinforce_pp"), [(r - 9 / 8) / deviation / 8 for r in (1.0, 0.0, 0.0, 4.0)])


def test_reinforce_pp_baseline_whitens_what_the_mean_leaves() -> None:
    # 1/2 on one token, -1/2 on three, -2 and 2 on two each: mean -1/8, variance (1/4 * 4 + 4 * 4) / 8 - 1/64 = 135/64
    deviation = math.sqrt(135) / 8
    wanted = [(a + 1 / 8) / deviation / 8 for a in (0.5, -0.5, -2.0, 2.0)]
    torch.testing.assert_close(_step("reinforce_pp_baseline"), torch.tensor(wanted).double(), rtol=1e-7, atol=0)


def test_remax_compares_with_the_greedy_answer_and_counts_only_the_others() -> None:
    # the second answer of each prompt is the greedy one: 1 - 0 and 0 - 4, over two answers
    one = term("remax")
    probe = torch.tensor([False, True, False, True])
    batch = Batch({"loss_mask": MASK, "reward": REWARD, "group": GROUP, "probe": probe, "logp": SAME, "old_logp": SAME})
    batch = batch.plus(advantage=batch.expand(one.call("credit", batch=batch)["advantage"]))
    _close(pushed(one, batch)["logp"][:, 0], [1 / 2, 0.0, -4 / 2, 0.0])


def test_the_clip_of_dapo_lets_good_tokens_rise_further() -> None:
    # ratio 1.25 is inside 1.28 for a good answer; 0.75 is outside 0.8 for a bad one
    _close(_step("dapo", torch.tensor([1.25, 0.75, 1.25, 1.35])), [1.25 * HALF / 8, 0.0, -1.25 * HALF / 8, 0.0])


def test_the_cap_of_cispo_leaves_no_token_out() -> None:
    found = _step("cispo", torch.tensor([8.0, 1.0, 1.0, 1.0]))
    assert float(found[0]) == pytest.approx(5 * HALF / 8)


def test_rloo_has_the_kl_in_the_reward_that_it_compares() -> None:
    # log(policy / reference) = 1 on each of 1 and 3 tokens: rewards 1 - 0.03 and 0 - 0.09
    one = term("rloo")
    fields = {"loss_mask": MASK[:2], "reward": REWARD[:2], "group": GROUP[:2], "old_logp": SAME[:2]}
    found = one.call("credit", batch=Batch({**fields, "ref_logp": SAME[:2] - 1}))["advantage"]
    _close(found, [1.06, -1.06])


def test_clip_cov_leaves_out_the_token_that_would_sharpen_most() -> None:
    # logp -1 and -3, A = +- sqrt(1/2): covariances +- 0.707; with a floor of 0.5 one token in four is left out
    one = term("clip_cov", ratio={"name": "clip_cov", "floor": 0.5})
    logp = torch.tensor([[-1.0, -3.1], [-3.0, -3.0]], dtype=torch.float64)
    advantage = torch.tensor([HALF, -HALF], dtype=torch.float64)[:, None].expand(2, 2)
    batch = Batch({"loss_mask": torch.ones(2, 2), "logp": logp, "old_logp": logp, "advantage": advantage})
    found = coefficients(one, batch, known(one, batch))["logp"]
    # mean -2.525: covariances 1.08, -0.41, 0.34, 0.34
    torch.testing.assert_close(found, torch.tensor([[0.0, HALF], [-HALF, -HALF]], dtype=torch.float64))


def test_kl_cov_has_no_clip_but_a_pull() -> None:
    one = term("kl_cov")
    logp = torch.tensor([[-1.0, -3.1], [-3.0, -3.0]], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None].expand(2, 2)
    batch = Batch({"loss_mask": torch.ones(2, 2), "logp": logp, "old_logp": logp - 1, "advantage": advantage})
    found = coefficients(one, batch, known(one, batch))["logp"]
    e = math.e
    torch.testing.assert_close(found, torch.tensor([[e - 1, e], [-e, -e]], dtype=torch.float64))


def test_vapo_credits_by_a_lambda_of_length_and_teaches_the_critic_whole_returns() -> None:
    # 40 tokens: lambda 1 - 1 / (0.05 * 40) = 1/2. Critic 0, reward 1 at the end: A = (1/2)^(39 - t), R = 1
    mask = torch.ones(1, 40, dtype=torch.bool)
    fields = {"loss_mask": mask, "reward": torch.ones(1), "old_value": torch.zeros(1, 40)}
    found = term("vapo").call("credit", batch=Batch(fields))
    torch.testing.assert_close(found["advantage"], 0.5 ** torch.arange(39, -1, -1).float()[None])
    torch.testing.assert_close(found["returns"], torch.ones(1, 40))


# --- factors and the entropy bonus ---


def test_factors_multiply_the_policy_term_and_leave_the_kl() -> None:
    # weight min(e, 2) = 2 on the push of A = 3; the k2 pull -0.1 * log-ratio is not weighed
    ones = torch.ones(1, 1, dtype=torch.float64)
    fields = {"loss_mask": ones, "logp": -ones, "old_logp": -ones, "sampling_logp": -2 * ones, "ref_logp": -2 * ones}
    one = term("grpo", kl="k2", kl_weight=0.1, factors=["importance"])
    batch = Batch({**fields, "advantage": 3 * ones})
    torch.testing.assert_close(coefficients(one, batch)["logp"], 6.0 * ones - 0.1)
    assert mean_metrics(one, batch)["factor"] == pytest.approx(2.0)
    assert one.reads == {"logp", "old_logp", "sampling_logp", "ref_logp"}


def test_a_rejected_token_is_counted_but_not_pushed_however_large_its_ratio() -> None:
    fields = {**random_fields(), "sampling_logp": torch.full((12, 7), -50.0, dtype=torch.float64)}
    fields["old_logp"] = fields["logp"] - 1000
    one = term("dapo", factors=[{"name": "reject", "high": 2.0}])
    batch = Batch({**fields, "sampling_logp": fields["old_logp"] - 5})
    assert (pushed(one, batch)["logp"] == 0).all()
    assert one.normalisers(batch, one.rows(batch), batch._reach)["logp"].min() > 0
    assert mean_metrics(one, batch)["factor_zero"] == 1.0


def test_the_entropy_bonus_is_paid_only_below_its_target_and_follows_it() -> None:
    one = term("grpo", kl_weight=0.0, entropy_target=0.5, entropy_weight=0.1, entropy_rate=0.02)
    batch = Batch(random_fields())
    assert float(coefficients(one, batch)["entropy"].max()) == pytest.approx(0.1)
    # above the target: off, and 0.02 less for the next time; below it: on again, 0.02 more
    one.state = one.call("update", totals={"entropy": 0.8})
    assert float(coefficients(one, batch)["entropy"].max()) == 0.0
    one.state = one.call("update", totals={"entropy": 0.3})
    assert float(coefficients(one, batch)["entropy"].max()) == pytest.approx(0.1)
    one.state = one.call("update", totals={"entropy": 0.3})
    assert one.state == {"kl_weight": 0.0, "entropy_weight": pytest.approx(0.12), "entropy": 0.3}
    assert loss(one, batch) == pytest.approx(loss(term("grpo", kl_weight=0.0, entropy_weight=0.12), batch))


def test_the_weight_of_the_bonus_never_falls_below_zero() -> None:
    one = term("grpo", entropy_target=0.5, entropy_rate=0.02)
    assert one.call("update", totals={"entropy": 0.8, "kl": 0.0})["entropy_weight"] == 0.0
    assert "entropy" in one.aggregations  # its head is there from the first step


# --- what is refused ---


def test_an_advantage_that_needs_a_critic_is_refused_where_none_is_trained() -> None:
    _, problems = choose("algorithm", {"name": "grpo", "advantage": "gae"})
    assert "looks at a critic, and this algorithm trains none" in problems[0].text()
    assert not choose("algorithm", {"name": "ppo", "advantage": "temporal_difference"})[1]


def test_only_a_rule_that_asks_for_the_whole_step_costs_a_second_pass() -> None:
    assert term("dapo").scope == "answer"
    assert term("dapo", factors=["importance"]).scope == "answer"
    assert term("dapo", factors=[{"name": "importance", "mean_one": True}]).scope == "step"
    assert term("dapo", ratio="kl_cov").scope == "step"
    assert term("clip_cov").scope == "step"
