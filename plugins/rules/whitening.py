"""Whitening: subtract the mean over the collected batch, and divide by the standard deviation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def whiten(
    x: Tensor,
    mask: Tensor,
    total: Callable[[Tensor], Tensor],
    *,
    among: Tensor | None = None,
    std: str = "sample",
    epsilon: float = 1e-8,
) -> Tensor:
    """Whiten over the tokens of `mask`, on all processes together.

    Args:
        x: [batch, time] float, any unit.
        mask: [batch, time] bool, tokens that are whitened.
        among: [batch, time] bool, those over which mean and deviation are taken; without, those of `mask`.
        total: sum over the first dimension and over all processes.
        std: "sample" (divide by n - 1), "population" (by n) or "none" (subtract the mean only).
        epsilon: added to the variance.
    Returns:
        [batch, time] like x, in standard deviations; 0 outside the mask. Values that are all equal become 0.
    Source:
        verl and TRL whiten with n - 1 and epsilon 1e-8 inside the root; OpenRLHF with n.
    """
    among = mask if among is None else among
    wide = torch.where(mask | among, x.double(), 0.0)  # [batch, time]
    count, added = total(torch.stack([among.sum(1).double(), torch.where(among, wide, 0.0).sum(1)], 1))
    centred = torch.where(mask | among, wide - added / count.clamp(min=1), 0.0)
    if std != "none":
        square = total(torch.where(among, centred**2, 0.0).sum(1))
        variance = square / (count - int(std == "sample")).clamp(min=1)
        centred = torch.where(variance + epsilon > 0, centred * (variance + epsilon).rsqrt(), 0.0)
    return torch.where(mask, centred, 0.0).to(x.dtype)
