"""GRPO and PPO: credit by hand, coefficients against the papers' objectives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.algorithms.batches import loss, mean_metrics, pushed, random_fields, term
from unified import Batch, UserError
from unified.coefficient import Term, coefficients
from unified.settings import parse


def _credit(one: Term, **fields: Any) -> dict[str, torch.Tensor]:
    return one.call("credit", batch=Batch(fields))


# --- GRPO ---


def test_grpo_has_the_gradient_of_the_papers_objective() -> None:
    fields = random_fields()
    leaf, mask = fields["logp"].clone().requires_grad_(), fields["loss_mask"]
    ratio, gap = (leaf - fields["old_logp"]).exp(), fields["ref_logp"] - leaf
    clipped = torch.minimum(ratio * fields["advantage"], ratio.clamp(0.8, 1.2) * fields["advantage"])
    each = clipped - 0.04 * (gap.exp() - gap - 1)  # arXiv:2402.03300, eq. 3 and 4
    objective = ((each * mask).sum(1) / mask.sum(1)).mean()
    objective.backward()
    torch.testing.assert_close(pushed(term("grpo"), Batch(fields))["logp"], leaf.grad, rtol=1e-9, atol=1e-9)
    assert loss(term("grpo"), Batch(fields)) == pytest.approx(-objective.item(), abs=1e-12)


def test_on_policy_the_grpo_coefficient_is_the_advantage_and_the_pull_to_the_reference() -> None:
    # arXiv:2402.03300, eq. 21: A + 0.04 (reference / policy - 1)
    fields = random_fields()
    fields["old_logp"] = fields["logp"]
    found = coefficients(term("grpo"), Batch(fields))["logp"]
    wanted = fields["advantage"] + 0.04 * ((fields["ref_logp"] - fields["logp"]).exp() - 1)
    torch.testing.assert_close(found, wanted * fields["loss_mask"], rtol=1e-9, atol=1e-9)


def test_grpo_credit_is_the_reward_within_its_prompt() -> None:
    # mean 1/4, sample deviation 1/2
    mask = torch.ones(4, 2, dtype=torch.bool)
    found = _credit(term("grpo"), reward=torch.tensor([1.0, 0, 0, 0]), group=torch.zeros(4), loss_mask=mask)
    torch.testing.assert_close(found["advantage"], torch.tensor([1.5, -0.5, -0.5, -0.5]))


def test_rewards_per_token_are_summed_over_the_answer() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    reward = torch.tensor([[0.5, 0.5], [0.0, 9.0]])  # the 9 lies on padding
    found = _credit(term("grpo"), reward=reward, group=torch.zeros(2), loss_mask=mask)
    torch.testing.assert_close(found["advantage"], torch.tensor([1.0, -1.0]) / 2**0.5)


def test_rows_of_one_trajectory_count_once() -> None:
    # answers with rewards 4 and 0, the first of two rows: mean 2, not 8/3
    one = term("grpo", advantage={"name": "group", "std": "none"})
    fields = {"reward": torch.tensor([4.0, 4.0, 0.0]), "trajectory": torch.tensor([7, 7, 3]), "group": torch.zeros(3)}
    found = _credit(one, loss_mask=torch.ones(3, 1, dtype=torch.bool), **fields)
    torch.testing.assert_close(found["advantage"], torch.tensor([2.0, 2.0, -2.0]))


def test_a_probe_stays_out_of_the_mean() -> None:
    one = term("grpo", advantage="leave_one_out")
    fields = {"reward": torch.tensor([4.0, 0.0, 8.0]), "probe": torch.tensor([False, False, True])}
    found = _credit(one, loss_mask=torch.ones(3, 1, dtype=torch.bool), group=torch.zeros(3), **fields)
    torch.testing.assert_close(found["advantage"][:2], torch.tensor([4.0, -4.0]))


# --- where the KL enters ---

ONE = {  # two tokens, log-ratios of the sampling policy to the reference 1 and 2, reward 10 at the end
    "reward": torch.tensor([10.0]),
    "loss_mask": torch.tensor([[True, True, False]]),
    "old_logp": torch.tensor([[-1.0, -1.0, 5.0]]),
    "ref_logp": torch.tensor([[-2.0, -3.0, 9.0]]),
}


def test_the_kl_in_the_reward_is_taken_off_every_token_before_returns() -> None:
    # token rewards -0.1 * 1, 10 - 0.1 * 2 = 9.8: still to come 9.7 and 9.8
    one = term("grpo", advantage="monte_carlo", kl="k1", kl_weight=0.1, kl_place="reward")
    torch.testing.assert_close(_credit(one, **ONE)["advantage"], torch.tensor([[9.7, 9.8, 0.0]]))


def test_the_kl_in_the_advantage_is_each_tokens_own() -> None:
    # 10 to come at both, less 0.1 and 0.2
    one = term("grpo", advantage="monte_carlo", kl="k1", kl_weight=0.1, kl_place="advantage")
    torch.testing.assert_close(_credit(one, **ONE)["advantage"], torch.tensor([[9.9, 9.8, 0.0]]))


def test_the_reward_is_clipped_before_the_kl() -> None:
    # 3 instead of 10; the whole answer's KL is 0.1 * (1 + 2) = 0.3
    one = term("grpo", advantage="monte_carlo", kl="k1", kl_weight=0.1, kl_place="reward", reward_clip=3.0)
    torch.testing.assert_close(_credit(one, **ONE)["advantage"][0, 0], torch.tensor(2.7))


def test_the_kl_in_the_reward_is_in_what_a_group_compares() -> None:
    # rewards 1 and 1, less 0.1 * 2 for the first: leave-one-out -0.2 and 0.2
    one = term("grpo", advantage="leave_one_out", kl="k1", kl_weight=0.1, kl_place="reward")
    fields = {"old_logp": torch.tensor([[2.0], [0.0]]), "ref_logp": torch.zeros(2, 1), "group": torch.zeros(2)}
    found = _credit(one, reward=torch.ones(2), loss_mask=torch.ones(2, 1, dtype=torch.bool), **fields)
    torch.testing.assert_close(found["advantage"], torch.tensor([-0.2, 0.2]))


def test_the_kl_weight_follows_its_target() -> None:
    one = term("grpo", kl_weight=0.1, kl_target=0.05, kl_horizon=10)
    # 0.1 / 0.05 - 1 = 1, clipped to 0.2: 0.1 (1 + 0.2 / 10)
    state = one.call("update", totals={"kl": 0.1})
    assert state == {"kl_weight": pytest.approx(0.102)}
    fields = {**random_fields(), "advantage": torch.zeros(12, 7, dtype=torch.float64)}
    before = coefficients(one, Batch(fields))["logp"]
    one.state = state
    torch.testing.assert_close(coefficients(one, Batch(fields))["logp"], 1.02 * before)


def test_a_target_without_a_weight_is_refused() -> None:
    _, problems = parse(term("grpo").algorithm.settings, {"kl_weight": 0.0, "kl_target": 0.1}, owner="algorithm 'grpo'")
    assert len(problems) == 1
    assert "kl_target needs a kl_weight above 0" in problems[0].text()


# --- PPO ---


def test_ppo_has_the_gradient_of_the_papers_objectives() -> None:
    fields = random_fields()
    mask = fields["loss_mask"]
    leaf, value = fields["logp"].clone().requires_grad_(), fields["value"].clone().requires_grad_()
    ratio = (leaf - fields["old_logp"]).exp()
    policy = torch.minimum(ratio * fields["advantage"], ratio.clamp(0.8, 1.2) * fields["advantage"])
    near = fields["old_value"] + (value - fields["old_value"]).clamp(-0.2, 0.2)
    error = torch.maximum((value - fields["returns"]) ** 2, (near - fields["returns"]) ** 2)
    objective = ((policy - 0.5 * error) * mask).sum() / mask.sum()  # arXiv:1707.06347, eq. 9 with c1 = 0.5, c2 = 0
    objective.backward()
    found = pushed(term("ppo"), Batch(fields))
    torch.testing.assert_close(found["logp"], leaf.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["value"], value.grad, rtol=1e-9, atol=1e-9)
    assert loss(term("ppo"), Batch(fields)) == pytest.approx(-objective.item(), abs=1e-12)


def test_ppo_credit_whitens_the_advantage_and_not_the_returns() -> None:
    fields = random_fields()
    found = _credit(term("ppo"), **fields)
    among = found["advantage"][fields["loss_mask"]]
    assert float(among.mean()) == pytest.approx(0, abs=1e-9)
    assert float(among.std()) == pytest.approx(1, abs=1e-6)
    raw = _credit(term("ppo", advantage={"name": "gae", "gamma": 1.0, "lam": 0.95}), **fields)
    torch.testing.assert_close(found["returns"], raw["returns"])
    torch.testing.assert_close(raw["returns"], (raw["advantage"] + fields["old_value"]) * fields["loss_mask"])


def test_ppo_returns_are_the_reward_less_the_kl_where_lambda_is_one() -> None:
    # as monte_carlo above: whatever the critic says, 9.7 and 9.8
    one = term("ppo", advantage={"name": "gae", "lam": 1.0}, kl_weight=0.1)
    found = _credit(one, old_value=torch.tensor([[3.0, -4.0, 7.0]]), **ONE)
    torch.testing.assert_close(found["returns"], torch.tensor([[9.7, 9.8, 0.0]]))


def test_ppo_without_returns_is_refused() -> None:
    with pytest.raises(UserError, match="advantage 'group' gives no returns"):
        _credit(term("ppo", advantage="group", kl_weight=0.0), **random_fields())


def test_the_entropy_bonus_is_a_head_of_its_own_only_where_it_has_a_weight() -> None:
    assert set(term("ppo").aggregations) == {"logp", "value"}
    one = term("ppo", entropy_weight=0.01)
    assert one.aggregations == {"logp": "token", "value": "token", "entropy": "token"}
    batch = Batch(random_fields())
    torch.testing.assert_close(coefficients(one, batch)["entropy"], 0.01 * batch.loss_mask.double())


def test_metrics_tell_how_much_is_clipped_and_how_well_the_critic_explains() -> None:
    # ratios 1, 2 and (padding) 2; A = 1: one of two clipped. -log 2 / 2 nats to the old policy
    mask = torch.tensor([[True, True, False]])
    log_two = torch.tensor([[0.0, 2.0, 2.0]], dtype=torch.float64).clamp(min=1).log()
    ones, zeros = torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    value = torch.tensor([[0.0, 0.5, 9.0]], dtype=torch.float64)
    fields = {"logp": log_two, "old_logp": zeros, "ref_logp": zeros, "advantage": ones, "loss_mask": mask}
    fields |= {"value": value, "old_value": zeros, "returns": ones}
    wanted = {
        "zero_advantage": 0.0,
        "clip_ratio": 0.5,
        "policy_kl": -0.34657359,
        "kl": 0.34657359,
        "value_clip_ratio": 0.5,  # 0.5 ran ahead of 0.2 towards 1
        "value_error": 0.75,  # 1 and 0.5
        "value_error_square": 0.625,
        "returns": 1.0,
        "returns_square": 1.0,
    }
    assert mean_metrics(term("ppo"), Batch(fields)) == pytest.approx(wanted)
