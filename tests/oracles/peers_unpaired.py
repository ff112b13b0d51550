"""Entries for losses of single answers that are desirable or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.oracles.cases import Config, Inputs, NotMappedError
from tests.oracles.table import chosen, peer, step
from unified import Batch
from unified.coefficient import Term


@peer("huggingface/trl", "kto_trainer.py:KTOTrainer._compute_loss")
def trl_kto(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The mismatched answers are probes of the same prompts."""
    kind = config.take("loss_type")
    settings = {k: config.take(k) for k in ("beta", "desirable_weight", "undesirable_weight")}
    if kind not in ("kto", "apo_zero_unpaired"):
        raise NotMappedError(f"no loss_type {kind}")
    n = len(inputs.raw["label"])
    fields = {"logp": inputs["logp"], "ref_logp": inputs["ref_logp"], "loss_mask": inputs.mask}
    reward = inputs["label"]
    if kind == "apo_zero_unpaired":
        made = step(kind, settings, Batch({**fields, "reward": reward}))
        return {"loss": made.loss, "gc": made.push["logp"], "kl": 0.0}
    probes = {"logp": inputs["kl_logp"], "ref_logp": inputs["kl_ref_logp"], "loss_mask": inputs.mask}
    whole = {k: torch.cat([fields[k], probes[k]]) for k in fields}
    whole |= {"reward": torch.cat([reward, torch.zeros(n)]), "group": torch.arange(n).repeat(2)}
    batch = Batch({**whole, "probe": torch.arange(2 * n) >= n})
    made = step("kto", settings, batch)
    part = chosen("algorithm", "kto", **settings)
    kl = Term(part.part, part.settings).call("statistics", batch=batch)["kl"]
    return {"loss": made.loss, "gc": made.push["logp"][:n], "kl": kl}


@peer("huggingface/trl", "bco_trainer.py:BCOTrainer.get_batch_loss_metrics")
def trl_bco(config: Config, inputs: Inputs) -> Mapping[str, Any]:
    """The running mean of the rewards before the step is its state; the reference is given by sums."""
    mask = inputs.mask
    sums = inputs["ref_seq_logp"] / mask.sum(1).clamp(min=1)  # spread evenly, so that the sum is the given one
    fields = {"logp": inputs["logp"], "ref_logp": sums[:, None] * mask, "loss_mask": mask, "reward": inputs["label"]}
    batch = Batch(fields)
    prior = inputs.raw["running_prior"]
    state = {"mean": prior["mean"], "count": prior["count"]}
    settings = {"beta": config.take("beta")}
    made = step("bco", settings, batch, state=state)
    part = chosen("algorithm", "bco", **settings)
    term = Term(part.part, part.settings, state=dict(state))
    known = term.call("statistics", batch=batch)
    after = {k: float(x / n if n else x) for k, (x, n) in term.call("metrics", batch=batch, statistics=known).items()}
    count = term.call("update", totals=after)["count"]
    return {"loss": made.loss, "gc": made.push["logp"], "delta": known["delta"], "running_count": count}
