"""Entries for estimates of the KL to the reference, as such and inside the reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.oracles.cases import Config, Inputs, NotMappedError, tensor
from tests.oracles.table import chosen, credited, peer
from unified import Batch
from unified_plugins.rules import apply
from unified_plugins.rules.kl import adapt_weight

#: verl's names; its k3 clamps the log-ratio and the value
VERL = {
    "kl": {"name": "k1"},
    "abs": {"name": "abs"},
    "mse": {"name": "k2"},
    "low_var_kl": {"name": "k3", "log_ratio_limit": 20.0, "limit": 10.0},
}


def _estimate(inputs: Inputs, settings: Mapping[str, Any]) -> dict[str, Any]:
    rule = chosen("kl", **settings)
    ratio = inputs["logp"] - inputs["ref_logp"]
    return {
        "kl": apply.value(rule, {"log_ratio": ratio}),
        "gc_of_sum": apply.coefficient(rule, lambda x: {"log_ratio": x}, ratio, ascend=False),
    }


@peer("volcengine/verl", "core_algos.py:kl_penalty")
def verl_kl(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """One estimate per token."""
    return _estimate(inputs, VERL[config.take("kl_penalty")])


@peer("NeMo/RL", "utils.py:calculate_kl")
def nemo_kl(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """All three estimates are clamped."""
    limits = {"log_ratio_limit": config.take("input_clamp"), "limit": config.take("output_clamp")}
    return _estimate(inputs, {"name": config.take("kl_type"), **limits})


@peer("open-instruct", "model_utils.py:estimate_kl")
def open_instruct_kl(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """k1, k2, k3, and k1 weighted by the importance ratio, with the log-ratio clamped to +-40."""
    offered = {
        "log_ratio": inputs["logp"] - inputs["ref_logp"],
        "old_ratio": (inputs["logp"] - inputs["old_logp"]).exp(),
    }
    rules = [{"name": "k1"}, {"name": "k2"}, {"name": "k3"}, {"name": "k1", "importance": "old_policy"}]
    return {"kl_0123": torch.stack([apply.value(chosen("kl", **r, log_ratio_limit=40.0), offered) for r in rules])}


@peer("volcengine/verl", "core_algos.py:AdaptiveKLController")
def verl_adaptive(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """verl counts the horizon in answers, we in collected batches."""
    weight, after = inputs.number("init_kl_coef"), []
    for kl, answers in zip(inputs["current_kl"].tolist(), inputs["n_steps"].tolist(), strict=True):
        horizon = inputs.number("horizon") / answers
        weight = adapt_weight(weight, kl, target=inputs.number("target_kl"), horizon=horizon)
        after.append(weight)
    return {"kl_coef_after": tensor(after)}


@peer("volcengine/verl", "ray_trainer.py:apply_kl_penalty")
def verl_reward_kl(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The token rewards, and the adaptive weight that saw the mean over sequences of their token means."""
    weight, kl = config.take("kl_coef"), VERL[config.take("kl_penalty")]
    fields = {"old_logp": inputs["old_logp"], "ref_logp": inputs["ref_logp"], "loss_mask": inputs.mask}
    settings = {"kl": kl, "kl_weight": weight, "kl_place": "reward", "advantage": {"name": "monte_carlo", "gamma": 0.0}}
    rewards = credited(settings, Batch({**fields, "reward": inputs["token_level_scores"]}))["returns"]
    estimate = apply.value(chosen("kl", **kl), {"log_ratio": inputs["old_logp"] - inputs["ref_logp"]})
    mean = float(((estimate * inputs.mask).sum(1) / inputs.mask.sum(1)).mean())
    horizon = config.take("horizon") / len(inputs.raw["mask"])
    after = adapt_weight(weight, mean, target=config.take("target_kl"), horizon=horizon)
    return {"token_level_rewards": rewards, "mean_kl": mean, "kl_coef_used": weight, "kl_coef_after": after}


@peer("OpenRLHF", "models/utils.py:compute_reward")
def openrlhf_reward_kl(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The clipped reward at the last token, and the KL on every one."""
    low, high = config.take("reward_clip_range")
    if low != -high:
        raise NotMappedError("reward_clip is symmetric")
    fields = {"old_logp": inputs["old_logp"], "ref_logp": inputs["ref_logp"], "loss_mask": inputs.mask}
    settings = {"kl": config.take("kl_estimator"), "kl_weight": config.take("kl_coef"), "kl_place": "reward"}
    settings |= {"reward_clip": high, "advantage": {"name": "monte_carlo", "gamma": 0.0}}
    return {
        "token_rewards": credited(settings, Batch({**fields, "reward": inputs["rewards"]}))["returns"],
        "where": inputs.mask,
    }
