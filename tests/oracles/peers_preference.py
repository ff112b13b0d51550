"""Entries for losses of pairs of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.cases import Config, Inputs, NotMappedError
from tests.oracles.table import Step, peer, step
from unified import Batch

#: margins of means over tokens
MEAN = {"name": "length_normalised"}
FREE_MEAN = {"name": "length_normalised", "reference": False}


def batch_of(inputs: Inputs, *, blocks: int = 2, **columns: Tensor) -> Batch:
    """Blocks of N rows: the chosen answers, then the rejected ones of the same prompts (with three: then the gold)."""
    n = len(inputs.raw["logp"]) // blocks
    fields = {k: inputs[k] for k in ("logp", "ref_logp") if k in inputs}
    if "log_sum_sq_probs" in inputs:
        fields["collision_logp"] = inputs["log_sum_sq_probs"]
    reward = torch.tensor([1.0, 0.0, 2.0])[:blocks].repeat_interleave(n)
    group = torch.arange(n).repeat(blocks)
    return Batch({**fields, "loss_mask": inputs.mask, "reward": reward, "group": group}, columns)


def result(made: Step) -> dict[str, Any]:
    """What most entries are compared in."""
    return {"loss": made.loss, "gc": made.push["logp"]}


def _divergence(config: Config) -> dict[str, Any] | None:
    """The peer's alpha is 1 - ours."""
    kind, alpha = config.take("f_divergence_type"), config.take("f_alpha_divergence_coef", 0.5)
    known = {
        "reverse_kl": None,
        "forward_kl": {"name": "f_forward_kl"},
        "js_divergence": {"name": "f_js"},
        "alpha_divergence": {"name": "f_alpha", "alpha": 1 - alpha},
    }
    if kind not in known:
        raise NotMappedError(f"no f_divergence_type {kind}")
    return known[kind]


def _trl_losses(smoothing: float, tau: float) -> dict[str, tuple[str, dict[str, Any]]]:
    """loss_type -> our algorithm and settings. Those that do not name the smoothing ignore it, as the peer does."""
    plain = {"name": "sigmoid", "label_smoothing": smoothing}
    return {
        "sigmoid": ("dpo", {}),
        "hinge": ("dpo", {"link": "hinge"}),
        "robust": ("robust_dpo", {"link": {**plain, "robust": True}}),
        "ipo": ("ipo", {"margin": MEAN}),
        "sigmoid_norm": ("dpo_norm", {}),
        "exo_pair": ("exo", {"link": {"name": "label_kl", "label_smoothing": smoothing or 1e-3}}),
        "nca_pair": ("nca", {}),
        "bco_pair": ("dpo", {"link": "binary"}),
        "sppo_hard": ("sppo", {}),
        "aot": ("aot", {"link": plain}),
        "aot_unpaired": ("aot_unpaired", {"link": plain}),
        "apo_zero": ("apo_zero", {}),
        "apo_down": ("apo_down", {}),
        "discopop": ("discopop", {"link": {"name": "modulated", "tau": tau}}),
    }


def _trl_settings(kind: str, own: dict[str, Any], shape: Any, ld_alpha: float | None) -> dict[str, Any]:
    """The loss's settings with the divergence and the length-desensitised margin, where the peer combines them so."""
    if shape is not None:
        if kind not in ("sigmoid", "hinge", "robust", "exo_pair", "discopop"):
            raise NotMappedError(f"{kind} of scores that are no log-ratios")
        own = {**own, "transform": shape}
    if ld_alpha is not None:
        if kind in ("aot", "aot_unpaired") or "margin" in own or kind == "sigmoid_norm":
            raise NotMappedError(f"{kind} with ld_alpha")
        own = {**own, "margin": {"name": "length_desensitised", "alpha": ld_alpha}}
    return own


@peer("huggingface/trl", "dpo_trainer.py:DPOTrainer._compute_loss")
def trl_dpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """A weighted sum of the losses that `loss_type` lists."""
    shape, ld_alpha, weighting = _divergence(config), config.take("ld_alpha"), config.take("use_weighting", False)
    beta, kinds = config.take("beta"), config.take("loss_type")
    known = _trl_losses(config.take("label_smoothing", 0.0), config.take("discopop_tau", 0.05))
    weights = config.take("loss_weights") or [1.0] * len(kinds)
    made = Step()
    for kind, weight in zip(kinds, weights, strict=True):
        if kind == "sft" and not weighting:
            made = made + step("sft", {}, batch_of(inputs), on="best", weight=weight)
            continue
        if kind not in known:
            raise NotMappedError(f"no loss_type {kind}{' with weighting' if weighting else ''}")
        name, own = known[kind]
        settings = {"beta": beta, **_trl_settings(kind, own, shape, ld_alpha)}
        if weighting:
            if kind in ("aot", "aot_unpaired"):
                raise NotMappedError(f"{kind} with weighting")
            links = {"ipo": "squared", "nca_pair": "noise_contrastive", "sppo_hard": "squared_targets"}
            links |= {"apo_zero": "anchored_zero", "apo_down": "anchored_down"}
            margin = {"margin": MEAN} if kind == "sigmoid_norm" else {}
            name, settings = "wpo", {"link": links.get(kind, "sigmoid"), **margin, **settings}
        made = made + step(name, settings, batch_of(inputs), weight=weight)
    return result(made)


@peer("huggingface/trl", "CPOTrainer.get_batch_loss_metrics")
def trl_cpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Without a reference, plus imitation of the chosen answer, a mean over all its tokens of the batch."""
    kind, alpha, gamma = config.take("loss_type"), config.take("alpha", 0.0), config.take("simpo_gamma", 0.5)
    plain = {"name": "sigmoid", "label_smoothing": config.take("label_smoothing", 0.0)}
    known: dict[str, dict[str, Any]] = {
        "sigmoid": {"link": plain},
        "hinge": {"link": "hinge"},
        "ipo": {"link": "squared", "margin": FREE_MEAN},
        "simpo": {"link": plain, "margin": FREE_MEAN, "gap": gamma},
    }
    if kind not in known:
        raise NotMappedError(f"no loss_type {kind}")
    settings = {"beta": config.take("beta"), "nll_weight": 0.0, **known[kind]}
    if alpha:
        settings["transform"] = {"name": "f_alpha", "alpha": alpha}
    made = step("cpo", settings, batch_of(inputs))
    return result(made + step("sft", {}, batch_of(inputs), on="best", weight=config.take("cpo_alpha", 1.0)))


@peer("huggingface/trl", "tpo_trainer.py:TPOTrainer._compute_loss")
def trl_tpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """Without a reference, plus imitation of the gold answer, a mean over all its tokens of the batch."""
    kind = config.take("loss_type")
    plain = {"name": "sigmoid", "label_smoothing": config.take("label_smoothing", 0.0)}
    known: dict[str, dict[str, Any]] = {
        "sigmoid": {"link": plain},
        "hinge": {"link": "hinge"},
        "ipo": {"link": "squared", "margin": FREE_MEAN},
        "tpo-l": {"link": plain, "margin": FREE_MEAN, "gap": config.take("tpo_l_gamma", 0.5)},
    }
    if kind not in known:
        raise NotMappedError(f"no loss_type {kind}")
    batch = batch_of(inputs, blocks=3)
    made = step("tpo", {"beta": config.take("beta"), "nll_weight": 0.0, **known[kind]}, batch)
    return result(made + step("sft", {}, batch, on="best", weight=config.take("tpo_alpha", 1.0)))


@peer("huggingface/trl", "ORPOTrainer.get_batch_loss_metrics")
def trl_orpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The odds ratio, and imitation of the chosen row with its prompt, a mean over all these tokens of the batch."""
    odds = step("orpo", {"comparison_weight": config.take("beta"), "nll_weight": 0.0}, batch_of(inputs))
    whole = Inputs({**inputs.raw, "mask": inputs.raw["nll_mask"]})
    return result(odds + step("sft", {}, batch_of(whole), on="best"))


@peer("huggingface/trl", "xpo_trainer.py:XPOTrainer._compute_losses")
def trl_xpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The policy's own answers, then those of the reference; which of the two is chosen is told."""
    links = {"sigmoid": "sigmoid", "ipo": "squared"}
    kind = config.take("loss_type")
    if kind not in links:
        raise NotMappedError(f"no loss_type {kind}")
    fields = {n: torch.cat([inputs[f"{n}_own"], inputs[f"{n}_refsample"]]) for n in ("logp", "ref_logp", "mask")}
    own = inputs["own_is_chosen"]
    n = own.numel()
    batch = Batch(
        {
            "loss_mask": fields.pop("mask"),
            **fields,
            "reward": torch.cat([own, 1 - own]),
            "group": torch.arange(n).repeat(2),
        },
        {"from_reference": torch.arange(2 * n).ge(n).double()},
    )
    settings = {"beta": config.take("beta"), "alpha": config.take("alpha"), "link": links[kind]}
    made = step("xpo", settings, batch)
    gc_own, gc_refsample = made.push["logp"].split(n)
    return {"loss": made.loss, "gc_own": gc_own, "gc_refsample": gc_refsample}


@peer("huggingface/trl", "nash_md_trainer.py:NashMDTrainer._compute_losses")
def trl_nash_md(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The KL of a token has its own log-ratio alone."""
    fields = {"logp": inputs["logp"], "ref_logp": inputs["ref_logp"], "reward": inputs["probability"]}
    settings = {"beta": config.take("beta"), "kl": "token"}
    return result(step("nash_md", settings, Batch({**fields, "loss_mask": inputs.mask})))


@peer("OpenRLHF", "openrlhf/models/loss.py:DPOLoss")
def openrlhf_dpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The plain pair loss, or IPO of sums."""
    settings: dict[str, Any] = {"beta": config.take("beta")}
    smoothing = config.take("label_smoothing", 0.0)
    if config.take("ipo", False):
        return result(step("ipo", settings, batch_of(inputs)))
    link = {"name": "sigmoid", "label_smoothing": smoothing}
    return result(step("dpo", {**settings, "link": link}, batch_of(inputs)))


@peer("NeMo/RL", "loss_functions.py:DPOLossFn")
def nemo_dpo(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The plain pair loss of sums or means, and imitation of the chosen answer by sums or means over its tokens."""
    settings: dict[str, Any] = {"beta": config.take("reference_policy_kl_penalty")}
    if config.take("preference_average_log_probs", False):
        settings["margin"] = MEAN
    made = step("dpo", settings, batch_of(inputs), weight=config.take("preference_loss_weight", 1.0))
    how = "sequence" if config.take("sft_average_log_probs", False) else "sequence-sum"
    weight = config.take("sft_loss_weight", 0.0)
    return result(made + step("sft", {}, batch_of(inputs), on="best", how=how, weight=weight))
