"""Margins: what a preference compares, as one number per answer; the margin of a pair is better minus worse.

A rule of kind "margin" may name: logp [batch, time] nats, loss_mask [batch, time] bool, group [batch] (equal for the
answers of a prompt), counts [batch] bool (answers that count), and the fields in its `reads`. Its value is [batch]; its
coefficient the derivative of that by the answer's own logp, [batch] or [batch, time].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl


class NormalisedSettings(Settings):
    """What may be set for the length-normalised margin."""

    reference: bool = Field(True, description="mean of logp - ref_logp; without it the mean of logp alone")


class DesensitisedSettings(Settings):
    """What may be set for the length-desensitised margin."""

    alpha: float = Field(0.5, ge=0, le=1, description="weight of tokens beyond the prompt's shortest answer")


def reference(logp: Tensor, ref_logp: Tensor, loss_mask: Tensor) -> Tensor:
    """The answer's log-ratio to the reference: the sum over its tokens of logp - ref_logp.

    logp, ref_logp: [batch, time] nats. Returns [batch] nats.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """
    return torch.where(loss_mask, logp - ref_logp, 0.0).sum(1)


def reference_free(logp: Tensor, loss_mask: Tensor) -> Tensor:
    """The answer's log-probability: the sum over its tokens of logp.

    logp: [batch, time] nats. Returns [batch] nats.
    Source: Xu et al. 2024, arXiv:2401.08417, CPO.
    """
    return torch.where(loss_mask, logp, 0.0).sum(1)


def sum_coefficient(loss_mask: Tensor) -> Tensor:
    """Derivative of a sum over tokens: 1 for each, [batch]."""
    return torch.ones(loss_mask.shape[0], dtype=torch.float64, device=loss_mask.device)


def length_normalised(
    logp: Tensor, loss_mask: Tensor, ref_logp: Tensor | None = None, *, reference: bool = True
) -> Tensor:
    """The mean over the answer's tokens of logp - ref_logp, or of logp alone.

    logp, ref_logp: [batch, time] nats. Returns [batch] nats per token; 0 for an answer without a loss token.
    Source: without reference Meng et al. 2024, arXiv:2405.14734, SimPO; with it the "norm" variant of TRL and Tulu 3.
    """
    if reference and ref_logp is None:
        raise ValueError("the length-normalised margin against the reference needs ref_logp")
    gain = logp - ref_logp if reference and ref_logp is not None else logp
    return torch.where(loss_mask, gain, 0.0).sum(1) / loss_mask.sum(1).clamp(min=1)


def mean_coefficient(loss_mask: Tensor) -> Tensor:
    """Derivative of a mean over tokens: 1 / length for each, [batch]."""
    return 1.0 / loss_mask.sum(1).double().clamp(min=1)


def length_desensitised(
    logp: Tensor, ref_logp: Tensor, loss_mask: Tensor, group: Tensor, counts: Tensor, *, alpha: float = 0.5
) -> Tensor:
    """The sum of logp - ref_logp, where tokens beyond the length of the prompt's shortest answer weigh alpha.

    logp, ref_logp: [batch, time] nats. Returns [batch] nats. Lengths are in tokens that count; of a list of more than
    two answers the shortest is taken for all its pairs.
    Source: Liu et al. 2024, arXiv:2409.06411, LD-DPO; the paper has pairs.
    """
    weight = desensitised_coefficient(loss_mask, group, counts, alpha=alpha).to(logp.dtype)
    return torch.where(loss_mask, (logp - ref_logp) * weight, 0.0).sum(1)


def desensitised_coefficient(loss_mask: Tensor, group: Tensor, counts: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Derivative of `length_desensitised`: 1 up to the length of the prompt's shortest answer, alpha beyond."""
    length = torch.where(counts, loss_mask.sum(1), loss_mask.shape[1])
    shortest = torch.full((int(group.max()) + 1 if group.numel() else 0,), loss_mask.shape[1], device=group.device)
    shortest = shortest.scatter_reduce(0, group, length, "amin")[group]  # [batch]
    inside = loss_mask.cumsum(1) <= shortest[:, None]  # [batch, time]
    return torch.where(inside, 1.0, alpha)


def log_odds(logp: Tensor, loss_mask: Tensor) -> Tensor:
    """log(P / (1 - P)) with P = exp(mean over the answer's tokens of logp).

    logp: [batch, time] nats. Returns [batch] nats; -inf and +inf where P is 0 and 1.
    Source: Hong et al. 2024, arXiv:2403.07691, ORPO, eq. 4.
    """
    mean = length_normalised(logp, loss_mask, reference=False)
    return mean - torch.log(-torch.expm1(mean))


def log_odds_coefficient(logp: Tensor, loss_mask: Tensor) -> Tensor:
    """Derivative of `log_odds`: 1 / (length (1 - P)), [batch]."""
    mean = length_normalised(logp, loss_mask, reference=False)
    return mean_coefficient(loss_mask) / -torch.expm1(mean).to(torch.float64)


def _normalised_reads(settings: Any) -> frozenset[str]:
    return frozenset({"logp", "ref_logp"} if settings.reference else {"logp"})


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `margin: reference`, `reference_free`, `length_normalised`, `length_desensitised` and `log_odds`."""
    return [
        Rule(
            "reference",
            of="margin",
            value=reference,
            coefficient=sum_coefficient,
            reads=frozenset({"logp", "ref_logp"}),
        ),
        Rule(
            "reference_free", of="margin", value=reference_free, coefficient=sum_coefficient, reads=frozenset({"logp"})
        ),
        Rule(
            "length_normalised",
            NormalisedSettings,
            of="margin",
            value=length_normalised,
            coefficient=mean_coefficient,
            reads=_normalised_reads,
        ),
        Rule(
            "length_desensitised",
            DesensitisedSettings,
            of="margin",
            value=length_desensitised,
            coefficient=desensitised_coefficient,
            reads=frozenset({"logp", "ref_logp"}),
        ),
        Rule("log_odds", of="margin", value=log_odds, coefficient=log_odds_coefficient, reads=frozenset({"logp"})),
    ]
