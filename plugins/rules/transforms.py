"""Transforms: the score of an answer as a function of its log-ratio h to what it is compared with.

DPO is derived with the reverse KL to the reference; another f-divergence puts the score f'(e^h) in the place of h.
A rule of kind "transform" may name h [batch] nats, the margin of one answer. Its value is the score [batch]; its
coefficient the derivative of that by h. Source: Wang et al. 2023, arXiv:2309.16240.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl


class AlphaSettings(Settings):
    """What may be set for the alpha divergence."""

    alpha: float = Field(0.5, description="0 is the reverse KL, 1 the forward KL")


def reverse_kl(h: Tensor) -> Tensor:
    """h itself: f(u) = u log u, up to a constant that no comparison sees.

    h: [batch] nats. Returns [batch] nats.
    """
    return h


def reverse_kl_slope(h: Tensor) -> Tensor:
    """1, [batch]."""
    return torch.ones_like(h)


def forward_kl(h: Tensor) -> Tensor:
    """-e^-h: f(u) = -log u. Answers that lost probability weigh exponentially more.

    h: [batch] nats. Returns [batch].
    """
    return -torch.exp(-h)


def forward_kl_slope(h: Tensor) -> Tensor:
    """e^-h, [batch]."""
    return torch.exp(-h)


def js(h: Tensor) -> Tensor:
    """log(2 e^h / (1 + e^h)) = log 2 + log sigmoid(h): the Jensen-Shannon divergence; log 2 at most.

    h: [batch] nats. Returns [batch] nats.
    """
    return math.log(2) + F.logsigmoid(h)


def js_slope(h: Tensor) -> Tensor:
    """sigmoid(-h), [batch]."""
    return torch.sigmoid(-h)


def alpha(h: Tensor, *, alpha: float = 0.5) -> Tensor:
    """(1 - e^(-alpha h)) / alpha, for alpha 0 its limit h.

    h: [batch] nats. Returns [batch]. With h the mean log-prob of the answer it is the reward of AlphaPO (Gupta et al.
    2025, arXiv:2501.03884). TRL's `f_alpha_divergence_coef` is 1 - alpha.
    """
    return -torch.expm1(-alpha * h) / alpha if alpha else h


def alpha_slope(h: Tensor, *, alpha: float = 0.5) -> Tensor:
    """e^(-alpha h), [batch]."""
    return torch.exp(-alpha * h)


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `transform: f_reverse_kl`, `f_forward_kl`, `f_js` and `f_alpha`."""
    return [
        Rule("f_reverse_kl", of="transform", value=reverse_kl, coefficient=reverse_kl_slope),
        Rule("f_forward_kl", of="transform", value=forward_kl, coefficient=forward_kl_slope),
        Rule("f_js", of="transform", value=js, coefficient=js_slope),
        Rule("f_alpha", AlphaSettings, of="transform", value=alpha, coefficient=alpha_slope),
    ]
