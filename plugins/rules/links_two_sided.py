"""Links that look at the two answers of a comparison one by one, not only at how far they are apart.

As in `links.py`; better and worse [pairs] are the scaled scores beta h. A coefficient here is [2, pairs]: the negative
derivatives by better and by worse. `gap` does not reach these links, but for the margin inside `anchored_down`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unified import Rule, hookimpl


def noise_contrastive(better: Tensor, worse: Tensor) -> Tensor:
    """-log sigmoid(a) - (log sigmoid(-a) + log sigmoid(-b)) / 2, with a the better score and b the worse.

    better, worse: [pairs]. Returns [pairs] nats. Source: Chen et al. 2024, arXiv:2402.05369, NCA for K = 2.
    """
    return -F.logsigmoid(better) - 0.5 * (F.logsigmoid(-better) + F.logsigmoid(-worse))


def noise_contrastive_coefficient(better: Tensor, worse: Tensor) -> Tensor:
    """sigmoid(-a) - sigmoid(a) / 2 and -sigmoid(b) / 2, [2, pairs]."""
    return torch.stack([torch.sigmoid(-better) - 0.5 * torch.sigmoid(better), -0.5 * torch.sigmoid(worse)])


def binary(better: Tensor, worse: Tensor) -> Tensor:
    """-log sigmoid(a) - log sigmoid(-b): each answer classified as good or bad on its own.

    better, worse: [pairs]. Returns [pairs] nats. Source: Jung et al. 2024, arXiv:2404.04656, BCO without reward shift.
    """
    return -F.logsigmoid(better) - F.logsigmoid(-worse)


def binary_coefficient(better: Tensor, worse: Tensor) -> Tensor:
    """sigmoid(-a) and -sigmoid(b), [2, pairs]."""
    return torch.stack([torch.sigmoid(-better), -torch.sigmoid(worse)])


def squared_targets(better: Tensor, worse: Tensor, beta: float = 1.0) -> Tensor:
    """(h+ - 1 / (2 beta))^2 + (h- + 1 / (2 beta))^2, with h the unscaled scores: each answer has a goal of its own.

    better, worse: [pairs]; beta: their scale. Returns [pairs]. Source: Wu et al. 2024, arXiv:2405.00675, SPPO,
    with eta = 1 / beta and a judge that is sure (win probabilities 1 and 0).
    """
    return ((better - 0.5) / beta) ** 2 + ((worse + 0.5) / beta) ** 2


def squared_targets_coefficient(better: Tensor, worse: Tensor, beta: float = 1.0) -> Tensor:
    """(1 - 2 a) / beta^2 and -(1 + 2 b) / beta^2, [2, pairs]."""
    return torch.stack([1 - 2 * better, -1 - 2 * worse]) / beta**2


def anchored_zero(better: Tensor, worse: Tensor) -> Tensor:
    """1 - sigmoid(a) + sigmoid(b): the better answer goes up, the worse goes down, each from the reference.

    better, worse: [pairs]. Returns [pairs]. Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, APO-zero, plus 1.
    """
    return torch.sigmoid(-better) + torch.sigmoid(worse)


def anchored_zero_coefficient(better: Tensor, worse: Tensor) -> Tensor:
    """sigmoid(a) sigmoid(-a) and -sigmoid(b) sigmoid(-b), [2, pairs]."""
    return torch.stack([_bell(better), -_bell(worse)])


def anchored_down(better: Tensor, margin: Tensor) -> Tensor:
    """sigmoid(a) + 1 - sigmoid(m): both answers go down, the worse one further.

    better, margin: [pairs]. Returns [pairs]. Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, APO-down, plus 1.
    """
    return torch.sigmoid(better) + torch.sigmoid(-margin)


def anchored_down_coefficient(better: Tensor, margin: Tensor) -> Tensor:
    """s'(m) - s'(a) and -s'(m), with s'(x) = sigmoid(x) sigmoid(-x), [2, pairs]."""
    return torch.stack([_bell(margin) - _bell(better), -_bell(margin)])


def _bell(x: Tensor) -> Tensor:
    """Derivative of the sigmoid."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `noise_contrastive`, `binary`, `squared_targets`, `anchored_zero` and `anchored_down` as `link`."""
    return [
        Rule("noise_contrastive", of="link", value=noise_contrastive, coefficient=noise_contrastive_coefficient),
        Rule("binary", of="link", value=binary, coefficient=binary_coefficient),
        Rule("squared_targets", of="link", value=squared_targets, coefficient=squared_targets_coefficient),
        Rule("anchored_zero", of="link", value=anchored_zero, coefficient=anchored_zero_coefficient),
        Rule("anchored_down", of="link", value=anchored_down, coefficient=anchored_down_coefficient),
    ]
