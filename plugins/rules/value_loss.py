"""The critic's squared error, clipped around the value that it gave when the answers were sampled."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(value: Tensor, returns: Tensor, old_value: Tensor, *, clip: float | None) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2); without a clip the plain square.

    value, returns, old_value: [batch, time], units of reward. Returns [batch, time], units of reward squared.
    Source: the square is Schulman et al. 2017, arXiv:1707.06347, eq. 9; its clipping is OpenAI baselines' ppo2.
    """
    plain = (value - returns) ** 2
    if clip is None:
        return plain
    near = value.clamp(old_value - clip, old_value + clip)  # exactly value inside
    return torch.maximum(plain, (near - returns) ** 2)


def value_coefficient(value: Tensor, returns: Tensor, old_value: Tensor, *, clip: float | None) -> Tensor:
    """-d value_loss / d value: 2 (R - V), and 0 where the value left the region and is better than its clipped self.

    Shapes as in `value_loss`. Returns [batch, time], units of reward.
    """
    push = 2 * (returns - value)
    return push if clip is None else torch.where(value_clipped(value, returns, old_value, clip=clip), 0.0, push)


def value_clipped(value: Tensor, returns: Tensor, old_value: Tensor, *, clip: float) -> Tensor:
    """[batch, time] bool: tokens whose clipped error is the larger one, so that they are not pushed."""
    near = value.clamp(old_value - clip, old_value + clip)  # exactly value inside
    return (near - returns) ** 2 > (value - returns) ** 2
