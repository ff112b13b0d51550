"""Entries for the policy losses of NeMo RL, OpenRLHF, open-instruct and prime-rl on sampled answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.cases import Config, Inputs
from tests.oracles.peers_policy import clipping, mean_metrics, policy_batch, result
from tests.oracles.table import peer, step
from unified import Batch


def _nemo_factors(config: Config) -> list[dict[str, Any]]:
    """The correction against the rollout engine: untruncated, truncated, masked by token or by answer."""
    on = config.take("use_importance_sampling_correction", False)
    kind = config.take("truncated_importance_sampling_type")
    high = config.take("truncated_importance_sampling_ratio")
    low = config.take("truncated_importance_sampling_ratio_min") or 0.0
    if not on:
        return []
    raw = {"name": "importance", "high": 1e300}
    if kind is None:
        return [raw]
    if kind == "tis":
        return [{"name": "importance", "low": low, "high": high}]
    level = {"icepop": "token", "seq-mask-tis": "mean"}[kind]
    return [raw, {"name": "reject", "level": level, "low": low, "high": high}]


@peer("NeMo/RL", "loss_functions.py:ClippedPGLossFn", skip=frozenset({"metrics"}))
def nemo_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Clip, KL and imitation of good answers are terms; the KL's weight is of policy over itself or the rollouts."""
    low, high = config.take("ratio_clip_min", 0.2), config.take("ratio_clip_max", 0.2)
    ratio: Any = clipping(low, high, config.take("ratio_clip_c"))
    weight, kind = config.take("reference_policy_kl_penalty"), config.take("reference_policy_kl_type", "k3")
    approximate = config.take("use_on_policy_kl_approximation", False)
    if config.take("use_cispo", False):
        ratio = {"name": "clipped_weight", "low": low, "high": high}
    if config.take("disable_ppo_ratio", False):
        ratio = "none"
    batch = policy_batch(inputs)
    if config.take("force_on_policy_ratio", False):
        batch = batch.plus(old_logp=inputs["logp"])
    counts = {"tokens": inputs.number("global_valid_toks"), "answers": inputs.number("global_valid_seqs")}
    settings = {"ratio": ratio, "kl_weight": 0.0, "factors": _nemo_factors(config)}
    made = step("grpo", settings, batch, how="token", counts=counts)
    if weight:
        kl = {
            "name": kind,
            "importance": "old_policy" if approximate else "on_policy",
            "log_ratio_limit": 20.0,
            "limit": 10.0,
        }
        alone = batch.plus(advantage=torch.zeros_like(inputs["logp"]))
        if approximate:
            alone = alone.plus(old_logp=inputs["rollout_logp"])
        made = made + step("grpo", {"kl": kl, "kl_weight": weight}, alone, how="token", counts=counts)
    good = config.take("positive_example_nll_weight", 0.0)
    if good:  # its normaliser is its own: the tokens of the good answers
        told = Batch(batch.fields, {"good": (inputs["rewards"] > 0).double()})
        made = made + step("sft", {}, told, on="good", weight=good)
    return result(made)


@peer("OpenRLHF", "openrlhf/models/loss.py:PolicyLoss")
def openrlhf_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Asymmetric and dual clip; its metrics are token means. GSPO with the correction has the ratio to the rollouts."""
    low, high = config.take("clip_eps_low", 0.2), config.take("clip_eps_high", 0.2)
    ratio, corrected = clipping(low, high, config.take("dual_clip")), config.take("enable_vllm_is_correction", False)
    how = "token" if config.take("token_level_loss", True) else "sequence"
    settings: dict[str, Any] = {"ratio": ratio, "kl_weight": 0.0}
    batch = policy_batch(inputs)
    if config.take("policy_loss_type", "ppo") == "gspo":
        settings["ratio"], how = {"name": "sequence_clip", "low": low, "high": high}, "sequence"
        batch = batch.plus(old_logp=inputs["rollout_logp"]) if corrected else batch
    elif corrected:
        below, above = config.take("vllm_is_truncated_threshold")
        level = {"icepop": "token", "seq-mask-tis": "mean"}.get(config.take("vllm_is_correction_type", "tis"))
        rejected = [
            {"name": "importance", "high": 1e300},
            {"name": "reject", "level": level, "low": below, "high": above},
        ]
        settings["factors"] = rejected if level else [{"name": "importance", "low": below, "high": above}]
    counts = {"tokens": "batch_num_tokens", "answers": "global_batch_size"}
    given = {k: inputs.number(name) for k, name in counts.items() if name in inputs}
    made = step("grpo", settings, batch, how=how, counts=given, weight=inputs.number("dp_size"))
    plain: dict[str, Any] = clipping(low, high, None)
    if settings["ratio"]["name"] == "sequence_clip":
        plain = {**settings["ratio"], "per_token": True}
    means = mean_metrics({"ratio": plain, "kl_weight": 0.0}, batch)
    kl = mean_metrics({"kl_weight": 0.0}, policy_batch(inputs))["policy_kl"]
    return {**result(made), "clip_ratio": means["clip_ratio"], "ppo_kl": kl}


@peer("open-instruct", "compute_grpo_loss, compute_rho_correction; rl_utils.py:masked_mean")
def open_instruct_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Asymmetric clip or capped weight; the log-ratio to the reference is clamped to +-40, to the rollouts to +-10."""
    config.expect(loss_denominator="token")
    loss, low, high = config.take("loss_fn"), config.take("clip_lower"), config.take("clip_higher")
    ratio = {"name": "clipped_weight", "high": high} if loss == "cispo" else clipping(low, high, None)
    kinds = [{"name": "k1"}, {"name": "k2"}, {"name": "k3"}, {"name": "k1", "importance": "old_policy"}]
    kl = {**kinds[config.take("kl_estimator")], "log_ratio_limit": 40.0}
    factors = _rho(config)
    batch = policy_batch(inputs)
    settings = {"ratio": ratio, "kl": kl, "kl_weight": config.take("beta"), "factors": factors}
    made = result(step("grpo", settings, batch, how="token"))
    return {**made, "rho_weights": _factor_at(settings, batch)} if factors else made


def _rho(config: Config) -> list[dict[str, Any]]:
    """Clamped weights, and which tokens are dropped; a bound of 0 is no bound."""
    on = config.take("use_rho_correction")
    low, high = config.take("rho_clamp_lower_bound"), config.take("rho_clamp_upper_bound")
    below, above = config.take("rho_mask_lower_bound"), config.take("rho_mask_upper_bound")
    whole, variation = config.take("rho_mask_sequence_level"), config.take("rho_mask_tv_divergence")
    if not on:
        return []
    factors: list[dict[str, Any]] = [{"name": "importance", "low": low, "high": high or 1e300}]
    if variation:
        factors.append({"name": "variation", "limit": above})
    elif below or above:
        level = "mean" if whole else "token"
        factors.append({"name": "reject", "level": level, "low": below, "high": above or 1e300})
    return factors


def _factor_at(settings: Mapping[str, Any], batch: Batch) -> Tensor:
    """The factors where they look at the advantage: the push without a ratio, over the advantage; 0 off the mask."""
    push = step("grpo", {"ratio": "none", "kl_weight": 0.0, "factors": settings["factors"]}, batch, how="sequence-sum")
    weight = push.push["logp"] * batch.counts.sum() / batch.advantage
    return torch.where(batch.loss_mask, weight, 0.0)


@peer("prime-rl", "loss.py:compute_loss")
def prime_rl_loss(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Three components: the bounded policy gradient, the pull to a teacher, and with no settings the cross-entropy.

    The old log-probs are the rollout engine's.
    """
    if "ref_logp" not in inputs and not (config.has("dppo_mask_low") or config.has("ipo_threshold")):
        made = step("sft", {}, Batch({"logp": inputs["logp"], "loss_mask": inputs.mask}))
        return {"loss": made.loss, "gc": made.push["logp"]}
    batch = policy_batch(inputs)
    rule: dict[str, Any] = {"name": "probability_clip", "pull": config.take("kl_tau", 1e-3)}
    config.expect(adv_tau=1.0)
    if "ref_logp" in inputs:  # the teacher's gain is the advantage; a fall by more than 0.2 is stopped
        batch = batch.plus(advantage=inputs["ref_logp"] - inputs["logp"])
        rule |= {"symmetric": True, "low": 0.2, "high": 1.0}
    elif config.has("ipo_threshold"):
        limit = config.take("ipo_threshold")
        rule |= {"symmetric": True, "low": limit, "high": limit}
    else:
        rule |= {"low": config.take("dppo_mask_low"), "high": config.take("dppo_mask_high")}
    return result(step("grpo", {"ratio": rule, "kl_weight": 0.0}, batch, how="token"))
