"""Entries for policy losses on sampled answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.oracles.cases import Config, Inputs, NotMappedError
from tests.oracles.peers_kl import VERL
from tests.oracles.table import Step, chosen, peer, step
from unified import Batch
from unified.coefficient import Term

VERL_HOW = {"token-mean": "token", "seq-mean-token-mean": "sequence", "seq-mean-token-sum": "sequence-sum"}


def _batch(inputs: Inputs, **fields: Any) -> Batch:
    """Where no old log-probs are given, the policy that sampled is the policy now."""
    if "rollout_is_weights" in inputs:
        raise NotMappedError("weights that correct for the rollout engine")
    own = {n: inputs[n] for n in ("logp", "ref_logp", "entropy") if n in inputs}
    own |= {"advantage": inputs["advantages"], "loss_mask": inputs.mask}
    own["old_logp"] = inputs["old_logp"] if "old_logp" in inputs else inputs["logp"]
    return Batch({**own, **fields})


def _ratio(low: float, high: float, cap: float | None) -> dict[str, Any]:
    return {"low": low, "high": high} | ({"name": "dual_clip", "cap": cap} if cap else {"name": "clip"})


def _result(made: Step) -> dict[str, Any]:
    heads = {"logp": "gc", "entropy": "gc_entropy"}
    return {"loss": made.loss, **{heads[h]: x for h, x in made.push.items()}}


@peer("huggingface/trl", "GRPOTrainer._compute_loss")
def trl_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """`loss_type` is the normaliser; answers without a token count. The KL may be weighted by the importance ratio."""
    config.expect(importance_sampling_level="token", top_entropy_quantile=1.0, entropy_coef=0.0)
    config.expect(off_policy_mask_threshold=None)
    config.take("epsilon")  # the low and high ones are given
    kind, accumulation = config.take("loss_type"), config.take("gradient_accumulation_steps")
    rounds, length = config.take("steps_per_generation"), config.take("max_completion_length")
    counts: dict[str, float] = {"answers": inputs.mask.shape[0]}
    weight = 1.0 / accumulation
    if kind == "dapo" and "num_items_in_batch" in inputs:
        counts, weight = {"tokens": inputs.number("num_items_in_batch") * accumulation / rounds}, 1.0
    hows = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant", "luspo": "sequence-sum"}
    if kind not in hows:
        raise NotMappedError(f"no loss_type {kind}")
    low, high, delta = (config.take(k) for k in ("epsilon_low", "epsilon_high", "delta"))
    importance = "old_policy" if config.take("use_bias_correction_kl") else "none"
    settings = {
        "ratio": _ratio(low, high, delta),
        "kl": {"name": "k3", "importance": importance},
        "kl_weight": config.take("beta"),
    }
    return _result(step("grpo", settings, _batch(inputs), how=hows[kind], counts=counts, length=length, weight=weight))


def _verl_ratio(config: Config) -> dict[str, Any]:
    clip = config.take("clip_ratio")
    low, high = config.take("clip_ratio_low", clip), config.take("clip_ratio_high", clip)
    return _ratio(low, high, config.take("clip_ratio_c", 3.0))


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['vanilla']")
def verl_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The clip is always dual; normalisers may be those of a larger step."""
    config.expect(loss_mode="vanilla")
    how, settings = VERL_HOW[config.take("loss_agg_mode")], {"ratio": _verl_ratio(config), "kl_weight": 0.0}
    counts = {"tokens": "batch_num_tokens", "answers": "global_batch_size"}
    given = {k: inputs.number(name) for k, name in counts.items() if name in inputs}
    batch = _batch(inputs)
    made = step("grpo", settings, batch, how=how, counts=given, weight=inputs.number("dp_size"))
    return {**_result(made), "metrics": _verl_metrics(settings, batch)}


def _verl_metrics(settings: Mapping[str, Any], batch: Batch) -> dict[str, float]:
    """verl tells tokens stopped by the clip from those stopped by the cap."""
    means = []
    for cap in (settings["ratio"]["cap"], 1e9):
        part = chosen("algorithm", "grpo", **{**settings, "ratio": {**settings["ratio"], "cap": cap}})
        found = Term(part.part, part.settings).call("metrics", batch=batch)
        means.append({name: float(x / n) for name, (x, n) in found.items()})
    lower = means[0]["clip_ratio"] - means[1]["clip_ratio"]
    own = {"actor/pg_clipfrac": means[1]["clip_ratio"], "actor/pg_clipfrac_lower": lower}
    return {**own, "actor/ppo_kl": means[0]["policy_kl"]}


@peer("volcengine/verl", "POLICY_LOSS_REGISTRY['gpg']")
def verl_plain(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """No ratio at all."""
    config.expect(loss_mode="gpg")
    config.take("clip_ratio")  # not used
    settings = {"ratio": "none", "kl_weight": 0.0}
    made = step("grpo", settings, _batch(inputs), how=VERL_HOW[config.take("loss_agg_mode")])
    return {**_result(made), "metrics": {}}


@peer("volcengine/verl", "workers/utils/losses.py:ppo_loss")
def verl_actor(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The clipped objective, entropy and KL, all weighed the same way."""
    config.expect(loss_mode="vanilla")
    settings: dict[str, Any] = {"ratio": _verl_ratio(config), "entropy_weight": config.take("entropy_coeff", 0.0)}
    kind, weight = config.take("kl_loss_type", "low_var_kl"), config.take("kl_loss_coef", 0.0)
    settings |= {"kl": VERL[kind], "kl_weight": weight if config.take("use_kl_loss", False) else 0.0}
    return _result(step("grpo", settings, _batch(inputs), how=VERL_HOW[config.take("loss_agg_mode")]))


@peer("volcengine/verl", "core_algos.py:compute_policy_loss_bypass_mode")
def verl_bypass(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Without weights or rejection it is the clipped objective against the rollout's log-probs."""
    if config.take("rollout_correction") != {"loss_type": "ppo_clip", "rollout_is": None}:
        raise NotMappedError("rollout correction")
    settings = {"ratio": _verl_ratio(config), "kl_weight": 0.0}
    made = step("grpo", settings, _batch(inputs), how=VERL_HOW[config.take("loss_agg_mode")])
    return {**_result(made), "kept_mask": inputs.mask.double()}


@peer("NeMo/RL", "loss_functions.py:ClippedPGLossFn", skip=frozenset({"metrics"}))
def nemo_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Clip and KL are two terms: the KL has a weight of its own, of policy over itself or over the rollout engine."""
    low, high = config.take("ratio_clip_min", 0.2), config.take("ratio_clip_max", 0.2)
    ratio: Any = _ratio(low, high, config.take("ratio_clip_c"))
    weight, kind = config.take("reference_policy_kl_penalty"), config.take("reference_policy_kl_type", "k3")
    approximate = config.take("use_on_policy_kl_approximation", False)
    if config.take("disable_ppo_ratio", False):
        ratio = "none"
    batch = _batch(inputs)
    if config.take("force_on_policy_ratio", False):
        batch = batch.plus(old_logp=inputs["logp"])
    counts = {"tokens": inputs.number("global_valid_toks"), "answers": inputs.number("global_valid_seqs")}
    made = step("grpo", {"ratio": ratio, "kl_weight": 0.0}, batch, how="token", counts=counts)
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
    return _result(made)


@peer("OpenRLHF", "openrlhf/models/loss.py:PolicyLoss")
def openrlhf_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Asymmetric and dual clip; its metrics are token means."""
    ratio = _ratio(config.take("clip_eps_low", 0.2), config.take("clip_eps_high", 0.2), config.take("dual_clip"))
    how = "token" if config.take("token_level_loss", True) else "sequence"
    counts = {"tokens": "batch_num_tokens", "answers": "global_batch_size"}
    given = {k: inputs.number(name) for k, name in counts.items() if name in inputs}
    settings, batch = {"ratio": ratio, "kl_weight": 0.0}, _batch(inputs)
    made = step("grpo", settings, batch, how=how, counts=given, weight=inputs.number("dp_size"))
    plain = chosen("algorithm", "grpo", **{**settings, "ratio": _ratio(ratio["low"], ratio["high"], None)})
    found = Term(plain.part, plain.settings).call("metrics", batch=batch)
    means = {name: float(x / n) for name, (x, n) in found.items()}
    return {**_result(made), "clip_ratio": means["clip_ratio"], "ppo_kl": means["policy_kl"]}


@peer("open-instruct", "compute_grpo_loss, compute_rho_correction; rl_utils.py:masked_mean")
def open_instruct_policy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Asymmetric clip; the log-ratio to the reference is clamped to +-40."""
    config.expect(loss_fn="dapo", use_rho_correction=False, loss_denominator="token")
    for key in ("rho_clamp_lower_bound", "rho_clamp_upper_bound", "rho_mask_lower_bound", "rho_mask_upper_bound"):
        config.take(key)  # of the correction
    config.take("rho_mask_sequence_level"), config.take("rho_mask_tv_divergence")
    kinds = [{"name": "k1"}, {"name": "k2"}, {"name": "k3"}, {"name": "k1", "importance": "old_policy"}]
    kl = {**kinds[config.take("kl_estimator")], "log_ratio_limit": 40.0}
    ratio = _ratio(config.take("clip_lower"), config.take("clip_higher"), None)
    return _result(
        step("grpo", {"ratio": ratio, "kl": kl, "kl_weight": config.take("beta")}, _batch(inputs), how="token")
    )
