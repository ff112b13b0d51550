"""Links: the loss of one comparison as a function of its margin.

A rule of kind "link" may name: margin [pairs] (scaled by beta, better minus worse, less the gap that is asked for),
better and worse [pairs] (the two scaled scores themselves), and beta, the scale that is already inside. Its value is
the loss, to be minimised. Its coefficient is the negative derivative: by the margin, [pairs]; or, for the links of
`links_two_sided.py`, by better and by worse, [2, pairs].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl


class SigmoidSettings(Settings):
    """What may be set for the logistic link."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of comparisons taken to be the wrong way round"
    )
    robust: bool = Field(False, description="correct for that share without bias, in place of smoothing towards it")


def sigmoid(margin: Tensor, *, label_smoothing: float = 0.0, robust: bool = False) -> Tensor:
    """-log sigmoid(m): the Bradley-Terry likelihood. Smoothed by e: -(1 - e) log sigmoid(m) - e log sigmoid(-m).

    margin: [pairs]. Returns [pairs] nats. Robust: ((1 - e) l(m) - e l(-m)) / (1 - 2 e) with l = -log sigmoid.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023, conservative DPO; robust: Chowdhury et al.
    2024, arXiv:2403.00409.
    """
    right, wrong, share = _shares(label_smoothing, robust)
    return -(right * F.logsigmoid(margin) + wrong * F.logsigmoid(-margin)) / share


def sigmoid_coefficient(margin: Tensor, *, label_smoothing: float = 0.0, robust: bool = False) -> Tensor:
    """Negative derivative of `sigmoid`: sigmoid(-m), smoothed (1 - e) sigmoid(-m) - e sigmoid(m)."""
    right, wrong, share = _shares(label_smoothing, robust)
    return (right * torch.sigmoid(-margin) - wrong * torch.sigmoid(margin)) / share


def hinge(margin: Tensor) -> Tensor:
    """max(0, 1 - m): no push once the margin is 1.

    margin: [pairs]. Returns [pairs]. Source: Zhao et al. 2023, arXiv:2305.10425, SLiC-HF.
    """
    return torch.relu(1 - margin)


def hinge_coefficient(margin: Tensor) -> Tensor:
    """Negative derivative of `hinge`: 1 below a margin of 1, else 0."""
    return (margin < 1).to(margin.dtype)


def squared(margin: Tensor, beta: float = 1.0) -> Tensor:
    """(h - 1 / (2 beta))^2 with h = m / beta, the unscaled margin: pulls it to 1 / (2 beta) from both sides.

    margin: [pairs]; beta: its scale. Returns [pairs]. Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """
    return ((margin - 0.5) / beta) ** 2


def squared_coefficient(margin: Tensor, beta: float = 1.0) -> Tensor:
    """Negative derivative of `squared` by the scaled margin: (1 - 2 m) / beta^2."""
    return (1 - 2 * margin) / beta**2


class LabelKLSettings(Settings):
    """What may be set for the KL to the labels."""

    label_smoothing: float = Field(0.001, gt=0, lt=0.5, description="share of labels taken to be the wrong way round")


class ModulatedSettings(Settings):
    """What may be set for the modulated link."""

    tau: float = Field(0.05, gt=0, description="width of the step from the logistic to the exponential loss")


def probability(margin: Tensor) -> Tensor:
    """1 - sigmoid(m) = sigmoid(-m): the probability of the wrong order; no push at either end.

    margin: [pairs]. Returns [pairs], in [0, 1]. Source: the value function of Ethayarajh et al. 2024, arXiv:2402.01306.
    """
    return torch.sigmoid(-margin)


def probability_coefficient(margin: Tensor) -> Tensor:
    """Negative derivative of `probability`: sigmoid(m) sigmoid(-m)."""
    return torch.sigmoid(margin) * torch.sigmoid(-margin)


def label_kl(margin: Tensor, *, label_smoothing: float = 0.001) -> Tensor:
    """KL(q, p) of the policy's preference q = (sigmoid(m), sigmoid(-m)) from the label p = (1 - e, e).

    margin: [pairs]. Returns [pairs] nats. Source: Ji et al. 2024, arXiv:2402.00856, EXO-pref, eq. 16.
    """
    right = torch.sigmoid(margin) * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    return right + torch.sigmoid(-margin) * (F.logsigmoid(-margin) - math.log(label_smoothing))


def label_kl_coefficient(margin: Tensor, *, label_smoothing: float = 0.001) -> Tensor:
    """Negative derivative of `label_kl`: sigmoid(m) sigmoid(-m) (log((1 - e) / e) - m)."""
    goal = math.log1p(-label_smoothing) - math.log(label_smoothing)
    return torch.sigmoid(margin) * torch.sigmoid(-margin) * (goal - margin)


def modulated(margin: Tensor, *, tau: float = 0.05) -> Tensor:
    """(1 - s) (-log sigmoid(m)) + s exp(-m) with s = sigmoid(m / tau): logistic below 0, exponential above.

    margin: [pairs]. Returns [pairs]. Source: Lu et al. 2024, arXiv:2406.08414, DiscoPOP (log-ratio modulated loss).
    """
    share = torch.sigmoid(margin / tau)
    return (1 - share) * -F.logsigmoid(margin) + share * torch.exp(-margin)


def modulated_coefficient(margin: Tensor, *, tau: float = 0.05) -> Tensor:
    """Negative derivative of `modulated`: (1 - s) sigmoid(-m) + s e^-m - s (1 - s) / tau (e^-m + log sigmoid(m))."""
    share = torch.sigmoid(margin / tau)
    apart = torch.exp(-margin) + F.logsigmoid(margin)
    own = (1 - share) * torch.sigmoid(-margin) + share * torch.exp(-margin)
    return own - share * (1 - share) / tau * apart


def _shares(label_smoothing: float, robust: bool) -> tuple[float, float, float]:
    """Weights of the right and the wrong direction, and what both are divided by."""
    if robust:
        return 1 - label_smoothing, -label_smoothing, 1 - 2 * label_smoothing
    return 1 - label_smoothing, label_smoothing, 1.0


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `link: sigmoid`, `hinge`, `squared`, `probability`, `label_kl` and `modulated`."""
    return [
        Rule("sigmoid", SigmoidSettings, of="link", value=sigmoid, coefficient=sigmoid_coefficient),
        Rule("hinge", of="link", value=hinge, coefficient=hinge_coefficient),
        Rule("squared", of="link", value=squared, coefficient=squared_coefficient),
        Rule("probability", of="link", value=probability, coefficient=probability_coefficient),
        Rule("label_kl", LabelKLSettings, of="link", value=label_kl, coefficient=label_kl_coefficient),
        Rule("modulated", ModulatedSettings, of="link", value=modulated, coefficient=modulated_coefficient),
    ]
