"""XPO: online DPO, one answer of each pair sampled from the reference, whose log-probability is paid for.

GC = that of DPO, - alpha on every token of the answer that `column` marks; loss = that of DPO + alpha log p of that
answer, a sum over its tokens. Pushing down what the reference writes makes the policy explore. IPO in the place of DPO
is `link: squared`.
Use: pairs of an answer of the policy, which `source: {name: self_play, mark: from_reference}` samples, and one of the
reference, which a sample stage has drawn.
Watch: `rewards/margins`, and that answers of the reference become rarer without the text falling apart.
Source: Xie et al. 2024, arXiv:2405.21046.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unified import Algorithm, Batch, Field, UserError, hookimpl
from unified_plugins.algorithms import preference as family


class XPOSettings(family.PreferenceSettings):
    """What a recipe may set for XPO: the family's settings, and the price of the reference's answers."""

    alpha: float = Field(1e-5, ge=0, description="price of log p of the reference's answers")
    column: str = Field("from_reference", description="column that is not 0 on answers sampled from the reference")


def coefficient(batch: Batch, settings: XPOSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    return family.coefficient(batch, settings) - settings.alpha * batch.expand(_marked(batch, settings))


def loss(batch: Batch, settings: XPOSettings) -> Tensor:
    """The loss of each prompt, [groups]."""
    paid = _marked(batch, settings) * torch.where(batch.loss_mask, batch.logp, 0.0).sum(1)
    compared = family.loss(batch, settings)
    return compared.index_add(0, batch.group, (settings.alpha * paid).to(compared.dtype))


def _marked(batch: Batch, settings: XPOSettings) -> Tensor:
    """[batch]: 1 on answers sampled from the reference."""
    if settings.column not in batch.columns:
        raise UserError(f"`column: {settings.column}` names no column of the data", f"columns: {sorted(batch.columns)}")
    return ((batch.columns[settings.column] != 0) & batch.counts).double()


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer XPO to recipes as `algorithm: xpo`."""
    return [replace(family.preference("xpo", XPOSettings), coefficient=coefficient, loss=loss)]
