"""SFT: imitate the answers in the data. Every token of theirs is pushed equally hard.

GC = 1; loss = -log p. All tokens of a step weigh the same.
Use: demonstrations. The first stage of nearly every chain.
Watch: `logp` on held-out rows (its perplexity is exp(-logp)): where it falls, the rows are learned by heart.
Source: maximum likelihood; as a row of the unified equation Shao et al. 2024, arXiv:2402.03300, appendix A.1.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified import Algorithm, Batch, Settings, hookimpl


class SFTSettings(Settings):
    """SFT has nothing to set."""


def coefficient(batch: Batch) -> Tensor:
    """1 for every token, [batch]; no head is read, so it is known before the forward."""
    return torch.ones(batch.size, dtype=torch.float64, device=batch.loss_mask.device)


def loss(batch: Batch) -> Tensor:
    """The negative log-likelihood of each token, [batch, time] nats."""
    return -batch.logp


def metrics(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over tokens of the log-probability, "logp" in nats; the perplexity is exp(-logp)."""
    mask = batch.loss_mask & ~batch.probe[:, None]
    return {"logp": (torch.where(mask, batch.logp, 0.0).sum(), mask.sum())}


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer SFT to recipes as `algorithm: sft`."""
    return [
        Algorithm(
            "sft",
            SFTSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=metrics,
            aggregation="token",
            reward="constant",
        )
    ]
