"""Entries for advantages and returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.cases import Config, Inputs, NotMappedError
from tests.oracles.table import credited, peer, rows
from unified import Batch
from unified_plugins.rules.whitening import whiten


def _along(inputs: Inputs, advantage: Mapping[str, Any], mask: Tensor | None = None, **settings: Any) -> dict[str, Any]:
    """Advantages along each answer; the reward is per token, or of the whole answer."""
    reward = inputs["token_rewards"] if "token_rewards" in inputs else inputs["rewards"]
    keep = inputs.mask if "mask" in inputs else torch.ones_like(inputs["values"], dtype=torch.bool)
    group = {"group": torch.arange(len(reward)) // int(inputs.number("num_generations"))}
    fields = {"old_value": inputs["values"]} if "values" in inputs else {}
    fields |= {n: inputs[n] for n in ("old_logp", "ref_logp") if n in inputs}
    batch = Batch({**fields, **group, "reward": reward, "loss_mask": keep})
    found = credited({"advantage": advantage, **settings}, batch)
    return {"advantages": found["advantage"], "returns": found["returns"], "where": keep}


@peer("volcengine/verl", "core_algos.py:compute_gae_advantage_return")
def verl_gae(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Values and advantages are carried over holes; whitened with the sample deviation."""
    names = {name: config.take(name) for name in ("gamma", "lam", "whiten")}
    return _along(inputs, {"name": "gae", **names})


@peer("NeMo/RL", "advantage_estimator.py:GeneralizedAdvantageEstimator")
def nemo_gae(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The same, with the reward at the last token."""
    config.expect(gae_lambda_policy=None, use_kl_in_reward=False)
    config.take("kl_coef"), config.take("kl_type")  # of a KL that is not in the reward
    gamma, lam, white = (config.take(k) for k in ("gae_gamma", "gae_lambda", "normalize_advantages"))
    apart = {"value_lam": config.take("gae_lambda_value"), "length_alpha": config.take("length_adaptive_alpha") or None}
    return _along(inputs, {"name": "gae", "gamma": gamma, "lam": lam, "whiten": white, **apart})


@peer("open-instruct", "rl_utils.py:calculate_advantages")
def open_instruct_gae(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """No mask, no whitening."""
    return _along(inputs, {"name": "gae", "gamma": config.take("gamma"), "lam": config.take("lam")})


@peer("OpenRLHF", "RemoteExperienceMaker.get_advantages_and_returns")
def openrlhf_gae(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """A masked token is a step of time, with value and reward 0: here a batch without a mask."""
    zeroed = Inputs({n: (inputs[n] * inputs.mask).tolist() for n in ("token_rewards", "values")})
    found = _along(zeroed, {"name": "gae", "gamma": config.take("gamma"), "lam": config.take("lam")})
    return {**found, "where": inputs.mask}


@peer("torchtune", "rewards.py:estimate_advantages")
def torchtune_gae(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Right padding with zeros. The peer holds n / (n - 1) in float32, and adds the mean back after scaling."""
    found = _along(inputs, {"name": "gae", "gamma": config.take("gamma"), "lam": config.take("lam"), "whiten": True})
    mean = (found["returns"] - inputs["values"])[inputs.mask].mean()
    n = inputs.mask.sum()  # an integer, so that the peer's quotient is float32
    rounding = ((n.double() / (n - 1)) / (n / (n - 1)).double()).sqrt()
    return {**found, "advantages": (found["advantages"] * rounding + mean) * inputs.mask}


@peer("OpenRLHF", "RemoteExperienceMaker.compute_advantages_and_returns", skip=frozenset({"kl"}))
def openrlhf_experience(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Outcomes are compared, then the KL is taken off each token; some are whitened by the population's deviation."""
    config.expect(reward_clip_range=None)
    estimator, gamma = config.take("estimator"), config.take("gamma")
    std = "none" if config.take("no_std_norm", False) else "population"
    baselines: dict[str, Any] = {
        "gae": None,
        "reinforce": None,
        "reinforce_baseline": {"name": "group", "std": "none"},
        "rloo": {"name": "leave_one_out"},
        "group_norm": {"name": "group", "epsilon": 1e-9},
        "dr_grpo": {"name": "group", "std": "none"},
    }
    advantage: dict[str, Any] = {"name": "monte_carlo", "gamma": gamma, "baseline": baselines[estimator]}
    if estimator == "gae":
        advantage = {"name": "gae", "gamma": gamma, "lam": config.take("lambd")}
    if estimator in ("gae", "reinforce", "reinforce_baseline"):
        advantage |= {"whiten": True, "whiten_std": std}
    settings = {"kl": config.take("kl_estimator") or "k1", "kl_weight": config.take("kl_coef"), "kl_place": "reward"}
    return _along(inputs, advantage, **settings)


@peer("huggingface/trl", "ppo_trainer.py:masked_whiten")
def trl_whiten(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Whitening by itself, with or without the mean."""
    x, mask = inputs["values"], inputs.mask
    mean = 0.0 if config.take("shift_mean") else x[mask].mean()
    return {"whitened": whiten(x, mask, lambda y: y.sum(0)) + mean, "where": mask}


def _within(reward: Tensor, group: Tensor, advantage: Mapping[str, Any], **fields: Any) -> Tensor:
    """One advantage per answer, from its prompt; answers of one token unless fields say otherwise."""
    settings, columns = fields.pop("settings", {}), fields.pop("columns", {})
    mask = fields.pop("mask", torch.ones(reward.numel(), 1, dtype=torch.bool))
    return credited(
        {"advantage": advantage, **settings},
        Batch({"reward": reward, "group": group, "loss_mask": mask, **fields}, columns),
    )["advantage"]


@peer("huggingface/trl", "GRPOTrainer._generate_and_score_completions")
def trl_group(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """1e-4 is added to the sample deviation; answers of a prompt are adjacent."""
    k = config.take("num_generations")
    scale = config.take("scale_rewards")
    if scale not in ("group", "none"):
        raise NotMappedError(f"no scale_rewards {scale}")
    rule = {"name": "group", "std": "sample", "epsilon": 1e-4} if scale == "group" else {"name": "group", "std": "none"}
    reward = inputs["rewards_per_func"].sum(1)
    return {"advantages": rows(_within(reward, torch.arange(reward.numel()) // k, rule))}


@peer("huggingface/trl", "RLOOTrainer._generate_and_score_completions")
def trl_leave_one_out(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The KL of the whole answer is in its clipped reward before it is compared; 1e-4 is added to a deviation."""
    k, reward = config.take("num_generations"), inputs["rewards"]
    low, high = config.take("reward_clip_range") or (None, None)
    reward = reward.clamp(low, high) if high is not None else reward
    settings = {"kl": "k1", "kl_weight": config.take("beta"), "kl_place": "reward"}
    fields = {"old_logp": inputs["old_logp"], "ref_logp": inputs["ref_logp"], "mask": inputs.mask, "settings": settings}
    found = _within(reward, torch.arange(reward.numel()) // k, {"name": "leave_one_out"}, **fields)
    if config.take("normalize_advantages"):
        plain, white = rows(found).std(), {"name": "whitened", "of": "leave_one_out", "epsilon": 0.0}
        found = _within(reward, torch.arange(reward.numel()) // k, white, **fields) * plain / (plain + 1e-4)
    return {"advantages": rows(found), "old_seq_logp": (inputs["old_logp"] * inputs.mask).sum(1)}


def _verl(inputs: Inputs, rule: Mapping[str, Any]) -> dict[str, Any]:
    found = _within(inputs["rewards"], inputs["index"].long(), rule, mask=inputs.mask)
    return {"advantages": found, "returns": found}


@peer("volcengine/verl", "ADV_ESTIMATOR_REGISTRY['grpo']", "ADV_ESTIMATOR_REGISTRY['grpo_vectorized']")
def verl_group(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """epsilon is added to the sample deviation."""
    std = "sample" if config.take("norm_adv_by_std_in_grpo", True) else "none"
    return _verl(inputs, {"name": "group", "std": std, "epsilon": config.take("epsilon", 1e-6)})


@peer("volcengine/verl", "ADV_ESTIMATOR_REGISTRY['rloo']")
def verl_leave_one_out(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """r minus the mean of the others; of an answer without others the peer keeps the reward, where ours is 0."""
    index = inputs["index"].long()
    alone = (index[:, None] == index).sum(1) == 1
    kept = torch.where(alone[:, None] & inputs.mask, inputs["rewards"][:, None], 0.0)
    return {name: x + kept for name, x in _verl(inputs, {"name": "leave_one_out"}).items()}


@peer("volcengine/verl", "ADV_ESTIMATOR_REGISTRY['rloo_vectorized']")
def verl_leave_one_out_vectorized(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The same, but 0 for an answer without others."""
    return _verl(inputs, {"name": "leave_one_out"})


@peer("NeMo/RL", "advantage_estimator.py:GRPOAdvantageEstimator")
def nemo_group(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """1e-6 is added to the sample deviation."""
    config.expect(use_leave_one_out_baseline=False)
    std = "sample" if config.take("normalize_rewards", True) else "none"
    rule = {"name": "group", "std": std, "epsilon": 1e-6}
    return {"advantages": rows(_within(inputs["rewards"], inputs["prompt_ids"].long(), rule, mask=inputs.mask))}


@peer("NeMo/RL", "advantage_estimator.py:GDPOAdvantageEstimator")
def nemo_decoupled(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Each reward is compared by itself; their weighted sum is whitened over the answers."""
    config.expect(use_leave_one_out_baseline=False)
    inner = {"name": "group", "std": "sample" if config.take("normalize_rewards", True) else "none", "epsilon": 1e-6}
    weights = dict(zip(("reward_a", "reward_b"), config.take("reward_weights"), strict=True))
    rule = {"name": "whitened", "of": {"name": "per_reward", "of": inner, "rewards": weights}, "epsilon": 0.0}
    columns = {name: inputs[name] for name in weights}
    nothing = torch.zeros_like(inputs["reward_a"])
    return {"advantages": rows(_within(nothing, inputs["prompt_ids"].long(), rule, mask=inputs.mask, columns=columns))}


@peer("NeMo/RL", "advantage_estimator.py:RawRewardAdvantageEstimator")
def nemo_raw(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The reward is the advantage of every token."""
    config.expect(normalize_advantages=False)
    return {**_along(inputs, {"name": "monte_carlo"}), "where": inputs.mask}


@peer("NeMo/RL", "advantage_estimator.py:ReinforcePlusPlusAdvantageEstimator")
def nemo_plus_plus(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Outcomes, compared or not, whitened over all tokens by the population's deviation."""
    config.expect(use_kl_in_reward=False)
    config.take("kl_coef"), config.take("kl_type")  # of a KL that is not in the reward
    of = {"name": "group", "std": "none"} if config.take("minus_baseline", True) else {"name": "monte_carlo"}
    rule = {"name": "whitened", "of": of, "over": "tokens", "std": "population"}
    found = _within(inputs["rewards"], inputs["prompt_ids"].long(), rule, mask=inputs.mask)
    return {"advantages": found, "where": inputs.mask}


@peer("volcengine/verl", "ADV_ESTIMATOR_REGISTRY['grpo_passk']")
def verl_best_alone(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """epsilon is added to the sample deviation."""
    std = "sample" if config.take("norm_adv_by_std_in_grpo", True) else "none"
    return _verl(inputs, {"name": "pass_at_k", "std": std, "epsilon": config.take("epsilon", 1e-6)})


@peer("volcengine/verl", "ADV_ESTIMATOR_REGISTRY['opo']")
def verl_length_weighted(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """r minus the mean by length."""
    return _verl(inputs, {"name": "length_weighted"})


@peer("volcengine/verl", "ADV_ESTIMATOR_REGISTRY['reinforce_plus_plus_baseline']")
def verl_plus_plus_baseline(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """r minus the group's mean, whitened over all tokens; a prompt's single answer keeps its reward there."""
    return _verl(inputs, {"name": "whitened", "of": {"name": "group", "std": "none"}, "over": "tokens"})


@peer("volcengine/verl", "ADV_ESTIMATOR_REGISTRY['reinforce_plus_plus']")
def verl_plus_plus(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """A hole cuts the peer's return off: here what lies before and after it are answers of their own."""
    reward, mask = inputs["token_rewards"], inputs.mask
    part = (mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)).cumsum(1)  # [batch, time]
    pieces = [mask & (part == n) for n in range(1, int(part.max()) + 1)]
    batch = Batch({"reward": reward.repeat(len(pieces), 1), "loss_mask": torch.cat(pieces)})
    rule = {"name": "monte_carlo", "gamma": config.take("gamma"), "whiten": True}
    found = credited({"advantage": rule}, batch)
    whole = {n: x.view(len(pieces), *reward.shape).sum(0) for n, x in found.items()}
    return {"advantages": whole["advantage"], "returns": whole["returns"], "where": mask}


@peer("volcengine/verl", "ADV_ESTIMATOR_REGISTRY['tir_optimal_token_baseline']")
def verl_optimal_token(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """`handle_zero_tail`: no baseline where one answer alone is that long. epsilon only guards a division."""
    rule = {"name": "optimal_token", "push_tail": config.take("handle_zero_tail")}
    config.take("epsilon")
    fields = {"old_logp": inputs["old_logp"], "old_collision_logp": inputs["sum_pi_squared"].log(), "mask": inputs.mask}
    found = _within(inputs["token_rewards"], inputs["index"].long(), rule, **fields)
    to_go = _along(inputs, {"name": "monte_carlo"})
    return {"advantages": found, "returns": to_go["returns"], "where": inputs.mask}
