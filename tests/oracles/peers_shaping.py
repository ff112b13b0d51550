"""Entries for shaped rewards, and for the entropy of a distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.oracles.cases import Config, Inputs, tensor
from tests.oracles.table import chosen, peer
from unified import Answer, PromptGroup, call_named
from unified.logprob import token_logprobs


def _judged(reward: Mapping[str, Any], answers: list[Answer]) -> Any:
    """The rewards of answers to one prompt, shaped."""
    rule = chosen("reward", **reward)
    given = call_named(rule.part.judge, groups=[PromptGroup([0], answers)], settings=rule.settings, models={})
    return tensor(given[0])


@peer("OpenRLHF", "length_penalty.py:apply_overlong_penalty")
def openrlhf_overlong(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Added to the reward, as in the paper."""
    lengths = inputs["lengths"].long().tolist()
    answers = [Answer([0] * n, reward=r) for n, r in zip(lengths, inputs["rewards"].tolist(), strict=True)]
    limits = {"max_tokens": config.take("max_new_tokens"), "buffer": config.take("overlong_buffer_len")}
    factor = config.take("overlong_penalty_factor")
    return {"rewards": _judged({"name": "overlong", "of": "given", **limits, "factor": factor}, answers)}


@peer("OpenRLHF", "length_penalty.py:apply_stop_properly_penalty")
def openrlhf_cut_off(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """A coefficient from 0 on is a factor, one below 0 stands in the place of the reward."""
    coefficient = config.take("stop_properly_penalty_coef")
    cut = inputs["truncated"].bool().tolist()
    answers = [
        Answer([0], reward=r, finish="length" if c else "stop")
        for r, c in zip(inputs["rewards"].tolist(), cut, strict=True)
    ]
    how = {"factor": coefficient} if coefficient >= 0 else {"value": coefficient}
    return {"rewards": _judged({"name": "cut_off", "of": "given", **how}, answers)}


@peer("volcengine/verl", "core_algos.py:compute_entropy_loss")
def verl_entropy(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The engine's entropy head, with the logits in the place of hidden states; its token mean is minimised there."""
    config.expect(loss_agg_mode="token-mean")
    logits, mask = inputs["logits"].requires_grad_(), inputs.mask
    flat = logits.flatten(0, 1)  # [tokens, vocab]
    target = torch.zeros(len(flat), dtype=torch.long)
    _, entropy = token_logprobs(flat, torch.eye(flat.shape[1], dtype=flat.dtype), None, target, entropy=True)
    assert entropy is not None
    each = entropy.view(mask.shape)
    loss = each[mask].mean()
    (slope,) = torch.autograd.grad(loss, logits)
    return {"entropy": each, "loss": loss, "neg_dloss_dlogits": -slope}
