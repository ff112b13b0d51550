"""Whitening: subtract the mean over all tokens of the collected batch, and divide by their standard deviation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def whiten(
    x: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor], *, std: str = "sample", epsilon: float = 1e-8
) -> Tensor:
    """Whiten over the tokens of `mask`, on all processes together.

    Args:
        x: [batch, time] float, any unit.
        mask: [batch, time] bool, tokens that count.
        total: sum over the first dimension and over all processes.
        std: "sample" (divide by n - 1), "population" (by n) or "none" (subtract the mean only).
        epsilon: added to the variance.
    Returns:
        [batch, time] like x, in standard deviations; 0 outside the mask. Values that are all equal become 0.
    Source:
        verl and TRL whiten with n - 1 and epsilon 1e-8 inside the root; OpenRLHF with n.
    """
    wide = torch.where(mask, x.double(), 0.0)  # [batch, time]
    count, added = total(torch.stack([mask.sum(1).double(), wide.sum(1)], 1))
    centred = torch.where(mask, wide - added / count.clamp(min=1), 0.0)
    if std != "none":
        square = total((centred**2).sum(1))
        variance = square / (count - int(std == "sample")).clamp(min=1)
        centred = centred * (variance + epsilon).rsqrt()
    return centred.to(x.dtype)
