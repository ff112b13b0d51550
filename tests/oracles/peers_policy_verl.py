"""Entries for verl's policy losses on sampled answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.cases import Config, DiffersError, Inputs, NotMappedError
from tests.oracles.peers_kl import VERL
from tests.oracles.peers_policy import clipping, mean_metrics, policy_batch, product_of_factors, result, share
from tests.oracles.table import peer, step
from unified import Batch

VERL_HOW = {"token-mean": "token", "seq-mean-token-mean": "sequence", "seq-mean-token-sum": "sequence-sum"}


def _verl_ratio(config: Config, cap: float | None = 3.0) -> dict[str, Any]:
    clip = config.take("clip_ratio")
    low, high = config.take("clip_ratio_low", clip), config.take("clip_ratio_high", clip)
    return clipping(low, high, config.take("clip_ratio_c", cap))


def _verl_correction(config: Config, inputs: Inputs) -> list[dict[str, Any]]:
    """What made the weights that the case gives."""
    if "rollout_is_weights" not in inputs:
        return []
    mask, mismatch = inputs.mask, torch.where(inputs.mask, inputs["old_logp"] - inputs["rollout_logp"], 0.0)
    given = inputs["rollout_is_weights"]
    flat = torch.allclose(given[mask], given[:, :1].expand(given.shape)[mask]) and bool((mask.sum(1) > 1).any())
    rule = {"name": "importance", "level": "product" if flat else "token", "high": 2.0}
    plain = (mismatch.sum(1, keepdim=True).expand(mask.shape) if flat else mismatch).exp().clamp(max=2.0)
    return [{**rule, "mean_one": not torch.allclose(plain[mask], given[mask])}]


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['vanilla']")
def verl_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The clip is always dual; normalisers may be those of a larger step.

    The peer is handed weights against the rollout engine; they are recomputed here, and must be the same.
    """
    config.expect(loss_mode="vanilla")
    how = VERL_HOW[config.take("loss_agg_mode")]
    settings: dict[str, Any] = {"ratio": _verl_ratio(config), "kl_weight": 0.0}
    settings["factors"] = _verl_correction(config, inputs)
    counts = {"tokens": "batch_num_tokens", "answers": "global_batch_size"}
    given = {k: inputs.number(name) for k, name in counts.items() if name in inputs}
    batch = policy_batch(inputs)
    if settings["factors"]:
        wanted, ours = inputs["rollout_is_weights"][inputs.mask], product_of_factors(settings, batch)[inputs.mask]
        if not torch.allclose(ours, wanted, rtol=1e-7, atol=1e-9):
            raise DiffersError(f"weights: largest difference {float((ours - wanted).abs().max()):.3g}")
    made = step("grpo", settings, batch, how=how, counts=given, weight=inputs.number("dp_size"))
    return {**result(made), "metrics": _verl_metrics({**settings, "factors": []}, batch)}


def _verl_metrics(settings: Mapping[str, Any], batch: Batch) -> dict[str, float]:
    """verl tells tokens stopped by the clip from those stopped by the cap."""
    means = [
        mean_metrics({**settings, "ratio": {**settings["ratio"], "cap": c}}, batch)
        for c in (settings["ratio"]["cap"], 1e9)
    ]
    lower = means[0]["clip_ratio"] - means[1]["clip_ratio"]
    own = {"actor/pg_clipfrac": means[1]["clip_ratio"], "actor/pg_clipfrac_lower": lower}
    return {**own, "actor/ppo_kl": means[0]["policy_kl"]}


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['gpg']")
def verl_plain(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """No ratio at all."""
    config.expect(loss_mode="gpg")
    config.take("clip_ratio")  # not used
    settings = {"ratio": "none", "kl_weight": 0.0}
    made = step("grpo", settings, policy_batch(inputs), how=VERL_HOW[config.take("loss_agg_mode")])
    return {**result(made), "metrics": {}}


def _verl_other(inputs: Inputs, rule: Mapping[str, Any], how: str, clipped: Tensor | None = None) -> dict[str, Any]:
    """A loss with another ratio rule; `clipped` is what the peer calls so, without it what is not pushed."""
    settings, batch = {"ratio": rule, "kl_weight": 0.0}, policy_batch(inputs)
    means = mean_metrics(settings, batch)
    part = means["clip_ratio"] if clipped is None else share(clipped, inputs.mask)
    found = {"actor/pg_clipfrac": part, "actor/ppo_kl": means["policy_kl"], "actor/pg_clipfrac_lower": 0.0}
    return {**result(step("grpo", settings, batch, how=how)), "metrics": found}


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['cispo']")
def verl_clipped_weight(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The weight is clipped on both sides; a lower bound beyond 1 bounds nothing."""
    config.expect(loss_mode="cispo")
    given = _verl_ratio(config)
    rule = {"name": "clipped_weight", "low": min(given["low"], 1.0), "high": given["high"]}
    ratio = (inputs["logp"] - inputs["old_logp"]).exp()
    outside = (ratio > 1 + given["high"]) | (ratio < 1 - given["low"])
    return _verl_other(inputs, rule, VERL_HOW[config.take("loss_agg_mode")], outside)


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['sapo']")
def verl_soft_gate(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Always the mean over answers of token means."""
    config.expect(loss_mode="sapo")
    config.take("clip_ratio"), config.take("loss_agg_mode")  # not used
    rule = {"name": "soft_gate", "positive": config.take("tau_pos"), "negative": config.take("tau_neg")}
    return _verl_other(inputs, rule, "sequence", torch.zeros_like(inputs.mask))


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['gspo']")
def verl_sequence(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The token form, always the mean over answers of token means."""
    config.expect(loss_mode="gspo")
    config.take("loss_agg_mode")  # not used
    given = _verl_ratio(config)
    rule = {"name": "sequence_clip", "low": given["low"], "high": given["high"], "per_token": True}
    return _verl_other(inputs, rule, "sequence")


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['clip_cov']")
def verl_clip_covariance(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Mapped where every token between the bounds is left out, and none is drawn."""
    config.expect(loss_mode="clip_cov")
    own = Config(config.take("policy_loss"))
    if own.take("clip_cov_ratio") != 1.0:
        raise NotMappedError("the peer draws tokens at random")
    rule: dict[str, Any] = {"name": "clip_cov", "share": 1.0, "floor": own.take("clip_cov_lb")}
    rule["ceiling"] = own.take("clip_cov_ub")
    own.finish()
    given = _verl_ratio(config)
    found = _verl_other(
        inputs, {**rule, "low": given["low"], "high": given["high"]}, VERL_HOW[config.take("loss_agg_mode")]
    )
    # the peer's share is of what it leaves out by covariance, not of what it clips
    plain = {"ratio": clipping(given["low"], given["high"], None), "kl_weight": 0.0}
    found["metrics"]["actor/pg_clipfrac"] -= mean_metrics(plain, policy_batch(inputs))["clip_ratio"]
    return found


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['kl_cov']")
def verl_kl_covariance(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """No clip; its `ppo_kl` is the mean of |log-ratio|."""
    config.expect(loss_mode="kl_cov")
    config.take("clip_ratio")  # not used
    own = Config(config.take("policy_loss"))
    rule = {"name": "kl_cov", "share": own.take("kl_cov_ratio"), "weight": own.take("ppo_kl_coef")}
    own.finish()
    found = _verl_other(inputs, rule, VERL_HOW[config.take("loss_agg_mode")])
    mask = inputs.mask
    found["metrics"]["actor/ppo_kl"] = float((inputs["logp"] - inputs["old_logp"]).abs()[mask].mean())
    return found


@peer("volcengine/verl", "workers/utils/losses.py:ppo_loss")
def verl_actor(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The clipped objective, entropy and KL, all weighed the same way."""
    config.expect(loss_mode="vanilla")
    settings: dict[str, Any] = {"ratio": _verl_ratio(config), "entropy_weight": config.take("entropy_coeff", 0.0)}
    kind, weight = config.take("kl_loss_type", "low_var_kl"), config.take("kl_loss_coef", 0.0)
    settings |= {"kl": VERL[kind], "kl_weight": weight if config.take("use_kl_loss", False) else 0.0}
    return result(step("grpo", settings, policy_batch(inputs), how=VERL_HOW[config.take("loss_agg_mode")]))


@peer("volcengine/verl", "core_algos.py:compute_policy_loss_bypass_mode")
def verl_bypass(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The old log-probs are the rollout's; "reinforce" weighs log p by the truncated ratio to them."""
    own = Config(config.take("rollout_correction"))
    kind, level = own.take("loss_type"), own.take("rollout_is")
    cap = own.take("rollout_is_threshold")
    own.finish()
    ratio = _verl_ratio(config)
    if kind == "reinforce":
        ratio = {"name": "clipped_weight", "high": cap - 1, "level": {"token": "token", "sequence": "product"}[level]}
    elif level is not None:
        raise NotMappedError(f"rollout_is {level} with loss_type {kind}")
    batch = policy_batch(inputs)
    how = VERL_HOW[config.take("loss_agg_mode")]
    made = step("grpo", {"ratio": ratio, "kl_weight": 0.0}, batch, how=how)
    still = batch.plus(advantage=torch.ones_like(inputs["logp"]))
    weight = step("grpo", {"ratio": ratio, "kl_weight": 0.0}, still, how="sequence-sum").push["logp"] * batch.size
    return {**result(made), "kept_mask": inputs.mask.double(), "rollout_is_weights": weight}
