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


def _imitation(inputs: Inputs, algorithm: str = "sft", **keywords: Any) -> dict[str, Any]:
    made = step(algorithm, {}, Batch({"logp": inputs["logp"], "loss_mask": inputs.mask}), **keywords)
    return {"loss": made.loss, "gc": made.push["logp"]}


def _accumulated(inputs: Inputs, algorithm: str = "sft", *, how: str = "token") -> dict[str, Any]:
    """Micro-batches of one step, each of its own width: here one batch, taken apart again at the end."""
    parts = [Inputs(p) for p in inputs.raw["micro_batches"]]
    sizes = [p.mask.shape for p in parts]
    time = max(t for _, t in sizes)
    whole = {n: torch.cat([F.pad(p[n], (0, time - p.mask.shape[1])) for p in parts]).tolist() for n in ("logp", "mask")}
    made = _imitation(Inputs(whole), algorithm, how=how)
    split = made["gc"].split([b for b, _ in sizes])
    return {"loss": made["loss"], "gc": [x[:, :t] for x, (_, t) in zip(split, sizes, strict=True)]}


def _trl_imitation(config: Config) -> str:
    known = {"nll": "sft", "dft": "dft"}
    kind = config.take("loss_type", "nll")
    if kind not in known:
        raise NotMappedError(f"no loss_type {kind}")
    return known[kind]


@peer("huggingface/trl", "SFTTrainer.compute_loss")
def trl_sft(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Token mean of the negative log-likelihood, for DFT weighted."""
    config.expect(gradient_accumulation_steps=1)
    return _imitation(inputs, _trl_imitation(config))


@peer(
    "huggingface/trl",
    "transformers Trainer._get_num_items_in_batch",
    skip=frozenset({"losses", "num_items_in_batch"}),
)
def trl_sft_accumulated(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The same over several micro-batches of one step."""
    config.take("gradient_accumulation_steps")
    return _accumulated(inputs, _trl_imitation(config))


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


@peer("DeepSpeedExamples", "reward_model.py:RewardModel.forward")
def deepspeed_reward(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Compared at every place from the first differing token to the end of the longer answer."""
    score, ids, pad = inputs["token_rewards"], inputs["ids"], inputs.number("pad_id", 0.0)
    n, time = score.shape[0] // 2, score.shape[1]
    chosen, rejected = ids.split(n)
    place = torch.arange(time)
    differ = torch.where(chosen != rejected, place, time).amin(1)
    length = torch.stack([_length(chosen, pad), _length(rejected, pad)]).amax(0)
    mask = (place >= differ[:, None]) & (place < length[:, None])
    reward, group = torch.arange(2 * n).lt(n).double(), torch.arange(n).repeat(2)
    fields = {"score": score, "loss_mask": mask.repeat(2, 1), "reward": reward, "group": group}
    made = step("token_reward_model", {}, Batch(fields))
    return {"loss": made.loss, "gcr": made.push["score"]}


def _length(ids: Tensor, pad: float) -> Tensor:
    """[batch]: the place of the first padding token, or the width."""
    return torch.where(ids == pad, torch.arange(ids.shape[1]), ids.shape[1]).amin(1)


def _process(logits: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Two classes are one score, the difference of their logits; -100 stands where no step ends."""
    ends = labels >= 0
    fields = {"score": logits[..., 1] - logits[..., 0], "loss_mask": ends, "reward": torch.where(ends, labels, 0.0)}
    made = step("prm", {}, Batch(fields))
    return made.loss, torch.stack([-made.push["score"], made.push["score"]], -1)


@peer("huggingface/trl", "PRMTrainer.compute_loss (transformers token-classification loss)")
def trl_process_reward(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Cross-entropy at the ends of steps."""
    config.expect(num_labels=2)
    if "micro_batches" in inputs:
        raise NotMappedError("the peer adds up means of micro-batches; here all ends of a step weigh the same")
    loss, push = _process(inputs["logits"], inputs["labels"])
    return {"loss": loss, "neg_dloss_dlogits": push}


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
