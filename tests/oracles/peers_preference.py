"""Entries for losses of pairs of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.oracles.cases import Config, Inputs, NotMappedError
from tests.oracles.table import Step, peer, step
from unified import Batch


def _batch(inputs: Inputs) -> Batch:
    """Rows 0..N-1 are the chosen answers, N..2N-1 the rejected ones of the same prompts."""
    n = len(inputs.raw["logp"]) // 2
    fields = {k: inputs[k] for k in ("logp", "ref_logp") if k in inputs}
    reward, group = torch.arange(2 * n).lt(n).double(), torch.arange(n).repeat(2)
    return Batch({**fields, "loss_mask": inputs.mask, "reward": reward, "group": group})


def _result(made: Step) -> dict[str, Any]:
    return {"loss": made.loss, "gc": made.push["logp"]}


@peer("huggingface/trl", "dpo_trainer.py:DPOTrainer._compute_loss")
def trl_dpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """A weighted sum of the losses that `loss_type` lists."""
    config.expect(f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False)
    config.take("f_alpha_divergence_coef")  # of another divergence
    config.take("discopop_tau")  # of another loss
    beta, smoothing = config.take("beta"), config.take("label_smoothing", 0.0)
    kinds = config.take("loss_type")
    weights = config.take("loss_weights") or [1.0] * len(kinds)
    made = Step()
    for kind, weight in zip(kinds, weights, strict=True):
        if smoothing and kind != "robust":
            raise NotMappedError(f"the peer ignores label_smoothing for {kind}")
        if kind == "sft":
            made = made + step("sft", {}, _batch(inputs), on="best", weight=weight)
            continue
        mean = {"name": "length_normalised"}
        settings = {
            "sigmoid": {},
            "hinge": {"link": "hinge"},
            "robust": {"link": {"name": "sigmoid", "label_smoothing": smoothing, "robust": True}},
            "ipo": {"link": "squared", "margin": mean},
            "sigmoid_norm": {"margin": mean},
        }
        if kind not in settings:
            raise NotMappedError(f"no loss_type {kind}")
        made = made + step("dpo", {"beta": beta, **settings[kind]}, _batch(inputs), weight=weight)
    return _result(made)


@peer("huggingface/trl", "CPOTrainer.get_batch_loss_metrics")
def trl_cpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Without a reference, plus imitation of the chosen answer."""
    config.expect(alpha=0.0)
    config.take("simpo_gamma")  # of another loss
    kind = config.take("loss_type")
    if kind not in ("sigmoid", "hinge"):
        raise NotMappedError(f"no loss_type {kind}")
    smoothing = config.take("label_smoothing", 0.0)
    link = {"name": "sigmoid", "label_smoothing": smoothing} if kind == "sigmoid" else {"name": kind}
    settings = {"beta": config.take("beta"), "margin": "reference_free", "link": link}
    imitation = step("sft", {}, _batch(inputs), on="best", weight=config.take("cpo_alpha"))
    return _result(step("dpo", settings, _batch(inputs)) + imitation)


@peer("OpenRLHF", "openrlhf/models/loss.py:DPOLoss")
def openrlhf_dpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The plain pair loss."""
    config.expect(ipo=False)
    link = {"name": "sigmoid", "label_smoothing": config.take("label_smoothing", 0.0)}
    return _result(step("dpo", {"beta": config.take("beta"), "link": link}, _batch(inputs)))


@peer("NeMo/RL", "loss_functions.py:DPOLossFn")
def nemo_dpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The plain pair loss, and imitation of the chosen answer by sums or means over its tokens."""
    config.expect(preference_average_log_probs=False)
    beta = config.take("reference_policy_kl_penalty")
    made = step("dpo", {"beta": beta}, _batch(inputs), weight=config.take("preference_loss_weight", 1.0))
    how = "sequence" if config.take("sft_average_log_probs", False) else "sequence-sum"
    weight = config.take("sft_loss_weight", 0.0)
    return _result(made + step("sft", {}, _batch(inputs), on="best", how=how, weight=weight))
