"""Entries for TRL's policy losses on sampled answers, and what the other libraries' entries share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.cases import Config, Inputs, NotMappedError
from tests.oracles.peers_advantages import trl_group
from tests.oracles.table import Step, chosen, peer, step
from unified import Batch
from unified.coefficient import Term


def policy_batch(inputs: Inputs, **fields: Any) -> Batch:
    """Where no old log-probs are given, the policy that sampled is the policy now."""
    own = {n: inputs[n] for n in ("logp", "ref_logp", "entropy") if n in inputs}
    own |= {"advantage": inputs["advantages"]} if "advantages" in inputs else {}
    own |= {"sampling_logp": inputs["rollout_logp"]} if "rollout_logp" in inputs else {}
    own["old_logp"] = inputs["old_logp"] if "old_logp" in inputs else inputs["logp"]
    return Batch({**own, "loss_mask": inputs.mask, **fields})


def clipping(low: float, high: float, cap: float | None) -> dict[str, Any]:
    return {"low": low, "high": high} | ({"name": "dual_clip", "cap": cap} if cap else {"name": "clip"})


def result(made: Step) -> dict[str, Any]:
    heads = {"logp": "gc", "entropy": "gc_entropy"}
    return {"loss": made.loss, **{heads[h]: x for h, x in made.push.items()}}


def mean_metrics(settings: Mapping[str, Any], batch: Batch) -> dict[str, float]:
    """The metrics of the family, as the log shows them."""
    part = chosen("algorithm", "grpo", **settings)
    term = Term(part.part, part.settings, aggregation="token")
    known = dict(term.call("statistics", batch=batch)) if term.scope == "step" else {}
    found = term.call("metrics", batch=batch, statistics=known)
    return {name: float(x / n) for name, (x, n) in found.items()}


def share(where: Tensor, mask: Tensor) -> float:
    return float((where & mask).sum() / mask.sum())


def product_of_factors(settings: Mapping[str, Any], batch: Batch) -> Tensor:
    """The product of the factors, [batch, time], as the family sees it: the push at ratio 1 and advantage 1."""
    ones = torch.ones_like(batch.old_logp)
    still = batch.plus(logp=batch.old_logp, advantage=ones)
    part = chosen("algorithm", "grpo", kl_weight=0.0, ratio="none", factors=settings["factors"])
    term = Term(part.part, part.settings, aggregation="token")
    known = dict(term.call("statistics", batch=still)) if term.scope == "step" else {}
    found: Tensor = term.call("coefficient", batch=still, statistics=known)["logp"]
    return found


def _trl_ratio(config: Config) -> dict[str, Any]:
    """The ratio rule of a loss and an importance level."""
    low, high, delta = (config.take(k) for k in ("epsilon_low", "epsilon_high", "delta"))
    level, kind = config.take("importance_sampling_level"), config.take("loss_type")
    if kind == "cispo":
        level = {"token": "token", "sequence": "mean"}[level]
        return {"name": "clipped_weight", "high": high - 1, "level": level}
    if kind == "sapo":
        # the peer holds the temperatures in float32
        hot, cold = (config.take(f"sapo_temperature_{k}") for k in ("pos", "neg"))
        return {"name": "soft_gate", "positive": hot, "negative": cold}
    if level == "token":
        return clipping(low, high, delta)
    if delta is not None:
        raise NotMappedError("delta at the level of answers")
    return {"name": "sequence_clip", "low": low, "high": high, "per_token": level == "sequence_token"}


def _trl_factors(config: Config) -> list[dict[str, Any]]:
    share, limit = config.take("top_entropy_quantile", 1.0), config.take("off_policy_mask_threshold")
    factors: list[dict[str, Any]] = [] if limit is None else [{"name": "off_policy", "limit": limit}]
    return factors + ([{"name": "top_entropy", "share": share}] if share < 1 else [])


TRL_HOW = {"grpo": "sequence", "sapo": "sequence", "dapo": "token", "bnpo": "token", "cispo": "token"}
TRL_HOW |= {"dr_grpo": "constant", "luspo": "sequence-sum"}


@peer(
    "huggingface/trl",
    "trl/trainer/grpo_trainer.py:GRPOTrainer._compute_loss",
    "trl/experimental/gspo_token/grpo_trainer.py:GRPOTrainer._compute_loss",
)
def trl_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """`loss_type` is the normaliser; answers without a token count. The KL may be weighted by the importance ratio."""
    config.expect(entropy_coef=0.0)
    config.take("epsilon")  # the low and high ones are given
    kind, accumulation = config.take("loss_type"), config.take("gradient_accumulation_steps", 1)
    rounds, length = config.take("steps_per_generation", 1), config.take("max_completion_length")
    counts: dict[str, float] = {"answers": inputs.mask.shape[0]}
    weight = 1.0 / accumulation
    if kind in ("dapo", "cispo") and "num_items_in_batch" in inputs:
        counts, weight = {"tokens": inputs.number("num_items_in_batch") * accumulation / rounds}, 1.0
    if kind not in TRL_HOW:
        raise NotMappedError(f"no loss_type {kind}")
    importance = "old_policy" if config.take("use_bias_correction_kl", False) else "none"
    settings = {
        "ratio": _trl_ratio(config),
        "factors": _trl_factors(config),
        "kl": {"name": "k3", "importance": importance},
        "kl_weight": config.take("beta", 0.0),
    }
    return result(
        step("grpo", settings, policy_batch(inputs), how=TRL_HOW[kind], counts=counts, length=length, weight=weight)
    )


@peer("huggingface/trl", "gmpo_trainer.py:GMPOTrainer._compute_loss")
def trl_geometric(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The mean over answers, whatever `loss_type` says."""
    config.expect(importance_sampling_level="token", top_entropy_quantile=1.0, entropy_coef=0.0, beta=0.0, delta=None)
    config.expect(off_policy_mask_threshold=None, gradient_accumulation_steps=1, steps_per_generation=1)
    for key in ("epsilon", "loss_type", "use_bias_correction_kl", "max_completion_length"):
        config.take(key)  # the bounds are given; the others are not used
    rule = {"name": "geometric_clip", "low": config.take("epsilon_low"), "high": config.take("epsilon_high")}
    counts = {"answers": float(inputs.mask.shape[0])}
    return result(step("grpo", {"ratio": rule, "kl_weight": 0.0}, policy_batch(inputs), how="sequence", counts=counts))


@peer("huggingface/trl", "rloo_trainer.py:RLOOTrainer._compute_loss")
def trl_whole_answers(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The clipped ratio of whole answers; those without a token count."""
    rule = {"name": "sequence_clip", "level": "product"}
    rule |= {"low": config.take("epsilon_low"), "high": config.take("epsilon_high")}
    counts = {"answers": float(inputs.mask.shape[0])}
    return result(
        step("grpo", {"ratio": rule, "kl_weight": 0.0}, policy_batch(inputs), how="sequence-sum", counts=counts)
    )


@peer("huggingface/trl", "GRPOTrainer._generate_and_score_completions, _compute_loss")
def trl_engine_correction(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The ratio to the rollout engine, of tokens or whole answers, truncated or masked."""
    length, kind = config.take("max_completion_length"), config.take("loss_type")
    level, how = config.take("vllm_importance_sampling_mode").rsplit("_", 1)
    level = {"token": "token", "sequence": "product"}[level]
    bounds = {"low": config.take("clip_min") or 0.0, "high": config.take("clip_max")}
    weigh = {"name": "importance", "level": level, **bounds}
    if how != "truncate":
        weigh = {"name": "importance", "level": level, "high": 1e300}
    factors = [weigh] if how == "truncate" else [weigh, {"name": "reject", "level": level, **bounds}]
    scale = Config({"num_generations": inputs.raw["num_generations"], "scale_rewards": config.take("scale_rewards")})
    rewards = Inputs({"rewards_per_func": inputs["rewards"][:, None].tolist()})
    advantage = trl_group(scale, rewards)["advantages"]
    batch = policy_batch(inputs, advantage=advantage)
    settings = {"ratio": clipping(config.take("epsilon_low"), config.take("epsilon_high"), None), "kl_weight": 0.0}
    settings["factors"] = factors
    counts = {"answers": float(inputs.mask.shape[0])}
    made = step("grpo", settings, batch, how=TRL_HOW[kind], counts=counts, length=length)
    weight = product_of_factors(settings, batch)
    return {
        **result(made),
        "advantages": advantage,
        "importance_sampling_ratio": weight[:, :1] if level == "product" else torch.where(inputs.mask, weight, 1.0),
    }
