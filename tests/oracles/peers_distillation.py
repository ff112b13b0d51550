"""Entries for distillation from whole distributions, its advantages on sampled tokens, and the entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.oracles.cases import Config, Inputs, NotMappedError, compare
from tests.oracles.table import chosen, credited, peer
from unified import Batch
from unified.aggregation import Counts, normaliser
from unified.batch import Here
from unified.coefficient import Term, coefficients, named_loss
from unified.distribution import Divergence, divergence
from unified.logprob import read_distribution


def _stored(teacher: Tensor, ids: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The teacher's k likeliest tokens, or those that the case names, as a score pass stores them."""
    ids = teacher.topk(k, -1).indices if ids is None else ids
    return ids, teacher.log_softmax(-1).gather(-1, ids)


def distilled(settings: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """One term through the engine on the student's logits [batch, time, vocab]; closed form and autograd must agree."""
    student = inputs["student_logits"].requires_grad_()
    batch, time, vocab = student.shape
    mask = inputs.mask if "mask" in inputs else torch.ones(batch, time, dtype=torch.bool)
    part = chosen("algorithm", "distill_forward", **settings)
    term = Term(part.part, part.settings)
    teacher = inputs["teacher_logits"].flatten(0, 1)
    function = Divergence(part.part, part.settings)
    if function.top_k:
        ids = inputs["topk_indices"].long().flatten(0, 1) if "topk_indices" in inputs else None
        function = function.with_stored(*_stored(teacher, ids, function.top_k))
    chunks = function.stored_chunk if function.top_k else lambda s: teacher[s].log_softmax(-1)
    flat, eye = student.flatten(0, 1), torch.eye(vocab, dtype=torch.float64)
    compare(
        "closed form and loss",
        function.coefficient(flat.detach(), chunks(slice(None))),
        function.slope(flat.detach(), chunks(slice(None))).tolist(),
        (1e-9, 1e-9),
    )
    head = divergence(flat, eye, None, function, chunks, chunk_numbers=5 * vocab).unflatten(0, (batch, time))
    seen = Batch({"logits": torch.where(mask, head.detach(), 0.0), "loss_mask": mask})
    rows = term.rows(seen)
    tokens = inputs.number("num_items_in_batch", float(mask.sum()))
    number = replace(Counts.of(seen, rows, Here()), tokens=tokens)
    w = {"logits": normaliser(seen, rows, "token", number)}
    push = coefficients(term, seen)["logits"] * w["logits"][:, None]
    (slope,) = torch.autograd.grad((push * head).sum(), student)
    return {"loss": named_loss(term, seen, w), "neg_dloss_dlogits": slope, "per_token": -head.detach()}


def _summed(settings: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """The sum over tokens in place of their mean."""
    found = distilled(settings, inputs)
    tokens = found["per_token"].numel()
    return {**found, "loss": found["loss"] * tokens, "neg_dloss_dlogits": found["neg_dloss_dlogits"] * tokens}


@peer("huggingface/trl", "GKDTrainer.generalized_jsd_loss")
def trl_gkd(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Mean over tokens, of a larger step where their number is given; the same β and temperature."""
    beta, temperature = config.take("beta"), config.take("temperature")
    return distilled({"divergence": {"name": "jsd", "beta": beta}, "temperature": temperature}, inputs)


@peer("huggingface/trl", "MiniLLMTrainer._single_step_decomposition_loss")
def trl_minillm_single_step(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Reverse KL, mean over tokens."""
    return distilled({"divergence": "reverse_kl"}, inputs)


@peer("huggingface/trl", "loss_utils.py:compute_full_logit_self_distillation_loss")
def trl_full_logits(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """alpha is the β of the Jensen-Shannon divergence; a sum over tokens."""
    return _summed({"divergence": {"name": "jsd", "beta": config.take("alpha")}}, inputs)


@peer("huggingface/trl", "loss_utils.py:compute_topk_self_distillation_loss")
def trl_top_k(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The student's likeliest tokens and a bucket, or renormalised; a sum over tokens."""
    tail = "bucket" if config.take("add_tail") else "drop"
    settings = {"support": "student", "top_k": config.take("topk"), "tail": tail}
    return _summed({**settings, "divergence": {"name": "jsd", "beta": config.take("alpha")}}, inputs)


@peer("torchtune", "kd_losses.py:ForwardKLLoss")
def torchtune_forward(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The teacher's entropy, a constant, is left out of the value."""
    found, teacher = distilled({"divergence": "forward_kl"}, inputs), inputs["teacher_logits"].log_softmax(-1)
    entropy = -(teacher.exp() * teacher).sum(-1)[inputs.mask].mean()
    return {**found, "loss": found["loss"] + float(entropy)}


@peer("NeMo/RL", "loss_functions.py:DistillationLossFn")
def nemo_distillation(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Renormalised over the teacher's likeliest tokens; on the others it has log-prob -100, or there are none."""
    kind, weight, k = config.take("kl_type"), config.take("mixed_kl_weight"), config.take("topk")
    outside = config.take("zero_outside_topk")
    if not outside and k != inputs["student_logits"].shape[-1]:
        raise NotMappedError("the student's whole distribution on the teacher's likeliest tokens alone")
    rules = {"forward": "forward_kl", "reverse": "reverse_kl", "mixed": {"name": "mixed_kl", "forward": weight}}
    support = {"support": "teacher", "top_k": k, "tail": "floor"} if outside else {"support": "all"}
    return distilled({**support, "divergence": rules[kind]}, inputs)


@peer("huggingface/trl", "MiniLLMTrainer._compute_advantage")
def trl_minillm_advantage(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The peer weighs by gamma^position where the sum is not normalised, and counts padding as 1e-4 where it is."""
    gamma, mask = config.take("gamma"), inputs.mask
    normalise = config.take("length_normalization")
    rule = {"name": "teacher", "gamma": gamma, "normalise": normalise}
    fields = {"teacher_logp": inputs["teacher_logp"], "old_logp": inputs["student_logp"], "loss_mask": mask}
    found = credited({"advantage": rule}, Batch(fields))["advantage"]
    weight = gamma ** torch.arange(mask.shape[1], dtype=torch.float64)
    if normalise:
        own, padded = (_after(m * weight) for m in (mask.double(), mask.double().clamp(min=1e-4)))
        found = found * own / padded
    else:
        found = found * weight
    return {"advantages": found, "where": mask}


def _after(x: Tensor) -> Tensor:
    """[batch, time]: the sum of x from each token on."""
    return x.flip(1).cumsum(1).flip(1)


@peer("huggingface/trl", "loss_utils.py:compute_sampled_token_self_distillation_loss")
def trl_sampled_token(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The advantage from the teacher on sampled tokens, of the policy as it is; loss A log p, a sum over tokens."""
    config.expect(alpha=1.0)
    student = inputs["student_logits"].requires_grad_()
    ids = inputs["ids"].long()
    logp = student.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    teacher = inputs["teacher_logits"].log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    fields = {"loss_mask": torch.ones_like(ids, dtype=torch.bool), "logp": logp.detach(), "old_logp": logp.detach()}
    batch = Batch({**fields, "teacher_logp": teacher})
    part = chosen("algorithm", "on_policy_distillation")
    term = Term(part.part, part.settings, aggregation="sequence-sum")
    batch = batch.plus(**term.call("credit", batch=batch))
    push = coefficients(term, batch)["logp"]
    (slope,) = torch.autograd.grad((push * logp).sum(), student)
    rows = ids.shape[0]
    loss = rows * named_loss(term, batch, term.normalisers(batch, term.rows(batch), Here()))
    return {"per_token": -push * logp.detach(), "loss": loss, "neg_dloss_dlogits": slope}


@peer("huggingface/trl", "selective_log_softmax, entropy_from_logits")
def trl_entropy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The chunked log-probs and entropies of the engine, with the logits in the place of hidden states."""
    logits = inputs["logits"].requires_grad_()
    logp, entropy = _read(logits, inputs["ids"].long())
    (slope,) = torch.autograd.grad((inputs["gc"] * logp).sum(), logits)
    return {"logp": logp, "entropy": entropy, "dlogits": slope}


@peer("volcengine/verl", "core_algos.py:compute_entropy_loss")
def verl_entropy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The entropy bonus alone, of which the peer's trainer subtracts the mean: the sign is turned."""
    config.expect(loss_agg_mode="token-mean")
    logits = inputs["logits"].requires_grad_()
    logp, entropy = _read(logits, torch.zeros(logits.shape[:2], dtype=torch.long))
    part = chosen("algorithm", "grpo", ratio="none", kl_weight=0.0, entropy_weight=1.0)
    term = Term(part.part, part.settings, aggregation="token")
    fields = {"logp": logp.detach(), "entropy": entropy.detach(), "advantage": torch.zeros_like(logp).detach()}
    batch = Batch({**fields, "loss_mask": inputs.mask})
    number = Counts.of(batch, term.rows(batch), Here())
    w = {h: normaliser(batch, term.rows(batch), "token", number) for h in term.aggregations}
    push = coefficients(term, batch)["entropy"] * w["entropy"][:, None]
    (slope,) = torch.autograd.grad((push * entropy).sum(), logits)
    loss = -named_loss(term, batch, w)
    return {"entropy": entropy, "loss": loss, "neg_dloss_dlogits": -slope}


def _read(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probs of ids, entropies), [batch, time], by the engine's chunks of one token each."""
    eye = torch.eye(logits.shape[-1], dtype=torch.float64)
    read = read_distribution(logits.flatten(0, 1), eye, None, ids.flatten(), entropy=True, chunk_numbers=1)
    return read.logp.unflatten(0, ids.shape), read.entropy.unflatten(0, ids.shape)
