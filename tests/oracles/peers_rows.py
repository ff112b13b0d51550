"""Entries for losses of answers as they stand: imitation, reward models, critics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.cases import Config, Inputs, NotMappedError
from tests.oracles.table import peer, step
from unified import Batch


def _imitation(inputs: Inputs, **keywords: Any) -> dict[str, Any]:
    made = step("sft", {}, Batch({"logp": inputs["logp"], "loss_mask": inputs.mask}), **keywords)
    return {"loss": made.loss, "gc": made.push["logp"]}


def _accumulated(inputs: Inputs, *, how: str = "token") -> dict[str, Any]:
    """Micro-batches of one step, each of its own width: here one batch, taken apart again at the end."""
    parts = [Inputs(p) for p in inputs.raw["micro_batches"]]
    sizes = [p.mask.shape for p in parts]
    time = max(t for _, t in sizes)
    whole = {n: torch.cat([F.pad(p[n], (0, time - p.mask.shape[1])) for p in parts]).tolist() for n in ("logp", "mask")}
    made = _imitation(Inputs(whole), how=how)
    split = made["gc"].split([b for b, _ in sizes])
    return {"loss": made["loss"], "gc": [x[:, :t] for x, (_, t) in zip(split, sizes, strict=True)]}


@peer("huggingface/trl", "SFTTrainer.compute_loss")
def trl_sft(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Token mean of the negative log-likelihood."""
    config.expect(loss_type="nll", gradient_accumulation_steps=1)
    return _imitation(inputs)


@peer(
    "huggingface/trl",
    "transformers Trainer._get_num_items_in_batch",
    skip=frozenset({"losses", "num_items_in_batch"}),
)
def trl_sft_accumulated(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The same over several micro-batches of one step."""
    config.expect(loss_type="nll")
    config.take("gradient_accumulation_steps")
    return _accumulated(inputs)


@peer(
    "OpenRLHF",
    "iter_grad_accum_global_norm, models/loss.py:SFTLoss",
    skip=frozenset({"losses", "batch_num_tokens", "global_batch_size"}),
)
def openrlhf_sft_accumulated(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Normalisers are totals of the step."""
    config.take("gradient_accumulation_steps")
    return _accumulated(inputs, how="token" if config.take("token_level_loss", True) else "sequence")


@peer("OpenRLHF", "openrlhf/models/loss.py:SFTLoss")
def openrlhf_sft(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Token mean, or mean over sequences of token means."""
    return _imitation(inputs, how="token" if config.take("token_level_loss", True) else "sequence")


@peer("prime-rl", "loss.py:compute_loss")
def prime_rl_loss(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """With an empty configuration and no reference the cross-entropy component."""
    if "ref_logp" in inputs:
        raise NotMappedError("the component of distillation")
    return _imitation(inputs)


@peer("volcengine/verl", "losses.py:sft_loss")
def verl_sft(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Divided by the tokens of all ranks; times their number, which undoes the mean over them."""
    tokens = {"tokens": inputs.number("batch_num_tokens")}
    return _imitation(inputs, counts=tokens, weight=inputs.number("dp_size"))


def _ranked(score: Tensor, reward: Tensor, group: Tensor, mask: Tensor, **columns: Tensor) -> Batch:
    """Answers of one token, whose score is read there."""
    return Batch({"score": score[:, None], "loss_mask": mask[:, None], "reward": reward, "group": group}, columns)


def _pairs(inputs: Inputs, settings: Mapping[str, Any], **columns: Tensor) -> dict[str, Any]:
    """Chosen and rejected scores [pairs] each."""
    score = torch.cat([inputs["chosen_rewards"], inputs["rejected_rewards"]])
    n = score.numel() // 2
    kept = inputs["pair_mask"].bool() if "pair_mask" in inputs else torch.ones(n, dtype=torch.bool)
    reward, group = torch.arange(2 * n).lt(n).double(), torch.arange(n).repeat(2)
    batch = _ranked(score, reward, group, kept.repeat(2), **{k: v.repeat(2) for k, v in columns.items()})
    made = step("reward_model", settings, batch)
    chosen, rejected = made.push["score"][:, 0].split(n)
    return {"loss": made.loss, "gcr_chosen": chosen, "gcr_rejected": rejected}


@peer("huggingface/trl", "RewardTrainer.compute_loss")
def trl_reward(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Bradley-Terry with an optional margin and centring."""
    settings = {"centring": config.take("center_rewards_coefficient")}
    if config.take("margin", False):
        return _pairs(inputs, {**settings, "margin": "margin"}, margin=inputs["margin"])
    return _pairs(inputs, settings)


@peer("NeMo/RL", "PreferenceLossFn")
def nemo_reward(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Bradley-Terry over the pairs that a mask keeps."""
    return _pairs(inputs, {})


@peer("OpenRLHF", "PairWiseLoss, called on every pair of a ranking")
def openrlhf_ranking(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """All pairs of a ranking [prompts, K], best first."""
    score = inputs["rewards"]
    prompts, k = score.shape
    config.expect(K=k)
    reward = torch.arange(k).flip(0).double().repeat(prompts)
    group = torch.arange(prompts).repeat_interleave(k)
    made = step("reward_model", {}, _ranked(score.flatten(), reward, group, torch.ones(prompts * k, dtype=torch.bool)))
    return {"loss": made.loss, "gcr": made.push["score"].reshape(prompts, k)}


def _critic(inputs: Inputs, *, clip: float | None, how: str, scale: float = 1.0) -> dict[str, Any]:
    """The critic alone: the policy has advantage 0."""
    nothing = torch.zeros_like(inputs["values"])
    fields = dict.fromkeys(("logp", "old_logp", "advantage"), nothing)
    fields |= {"value": inputs["values"], "old_value": inputs["old_values"], "returns": inputs["returns"]}
    batch = Batch({**fields, "loss_mask": inputs.mask})
    settings: dict[str, Any] = {"kl_weight": 0.0, "value_weight": 0.5 * scale}
    # a clip of None means no clip; `chosen` leaves None at our default
    settings["value_clip"] = 1e9 if clip is None else clip
    made = step("ppo", settings, batch, how=how)
    loss, count = _share_clipped(inputs, clip)
    return {"loss": made.loss, "gcv": made.push["value"], "clipfrac": loss / count}


def _share_clipped(inputs: Inputs, clip: float | None) -> tuple[float, float]:
    from unified_plugins.rules.value_loss import value_clipped

    if clip is None:
        return 0.0, 1.0
    clipped = value_clipped(inputs["values"], inputs["returns"], inputs["old_values"], clip=clip)
    return float((clipped & inputs.mask).sum()), float(inputs.mask.sum())


@peer("volcengine/verl", "core_algos.py:compute_value_loss")
def verl_value(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Half the larger of two squares."""
    how = {"token-mean": "token", "seq-mean-token-mean": "sequence", "seq-mean-token-sum": "sequence-sum"}
    return _critic(inputs, clip=config.take("cliprange_value"), how=how[config.take("loss_agg_mode")])


@peer("OpenRLHF", "openrlhf/models/loss.py:ValueLoss")
def openrlhf_value(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Half the larger of two squares."""
    how = "token" if config.take("token_level_loss", True) else "sequence"
    return _critic(inputs, clip=config.take("clip_eps"), how=how)


@peer("NeMo/RL", "MseValueLossFn")
def nemo_value(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Half the larger of two squares, times a scale."""
    return _critic(inputs, clip=config.take("cliprange"), how="token", scale=config.take("scale", 1.0))
