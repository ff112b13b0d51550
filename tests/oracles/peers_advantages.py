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
    fields = {"old_value": inputs["values"]} if "values" in inputs else {}
    fields |= {n: inputs[n] for n in ("old_logp", "ref_logp") if n in inputs}
    found = credited({"advantage": advantage, **settings}, Batch({**fields, "reward": reward, "loss_mask": keep}))
    return {"advantages": found["advantage"], "returns": found["returns"], "where": keep}


@peer("volcengine/verl", "core_algos.py:compute_gae_advantage_return")
def verl_gae(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Values and advantages are carried over holes; whitened with the sample deviation."""
    names = {name: config.take(name) for name in ("gamma", "lam", "whiten")}
    return _along(inputs, {"name": "gae", **names})


@peer("NeMo/RL", "advantage_estimator.py:GeneralizedAdvantageEstimator")
def nemo_gae(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The same, with the reward at the last token."""
    config.expect(gae_lambda_value=None, gae_lambda_policy=None, length_adaptive_alpha=0.0, use_kl_in_reward=False)
    config.take("kl_coef"), config.take("kl_type")  # of a KL that is not in the reward
    gamma, lam, white = (config.take(k) for k in ("gae_gamma", "gae_lambda", "normalize_advantages"))
    return _along(inputs, {"name": "gae", "gamma": gamma, "lam": lam, "whiten": white})


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
    """GAE with the KL in the reward, whitened with the population's deviation."""
    config.expect(estimator="gae", reward_clip_range=None)
    std = "none" if config.take("no_std_norm", False) else "population"
    advantage = {"name": "gae", "gamma": config.take("gamma"), "lam": config.take("lambd")}
    settings = {"kl": config.take("kl_estimator"), "kl_weight": config.take("kl_coef"), "kl_place": "reward"}
    return _along(inputs, {**advantage, "whiten": True, "whiten_std": std}, **settings)


@peer("huggingface/trl", "ppo_trainer.py:masked_whiten")
def trl_whiten(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Whitening by itself, with or without the mean."""
    x, mask = inputs["values"], inputs.mask
    mean = 0.0 if config.take("shift_mean") else x[mask].mean()
    return {"whitened": whiten(x, mask, lambda y: y.sum(0)) + mean, "where": mask}


def _within(reward: Tensor, group: Tensor, advantage: Mapping[str, Any], **fields: Any) -> Tensor:
    """One advantage per answer, from its prompt; answers of one token unless fields say otherwise."""
    settings = fields.pop("settings", {})
    mask = fields.pop("mask", torch.ones(reward.numel(), 1, dtype=torch.bool))
    return credited(
        {"advantage": advantage, **settings}, Batch({"reward": reward, "group": group, "loss_mask": mask, **fields})
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
    """The KL of the whole answer is in its reward before it is compared."""
    config.expect(normalize_advantages=False, reward_clip_range=None)
    k, reward = config.take("num_generations"), inputs["rewards"]
    settings = {"kl": "k1", "kl_weight": config.take("beta"), "kl_place": "reward"}
    fields = {"old_logp": inputs["old_logp"], "ref_logp": inputs["ref_logp"], "mask": inputs.mask, "settings": settings}
    found = _within(reward, torch.arange(reward.numel()) // k, {"name": "leave_one_out"}, **fields)
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
