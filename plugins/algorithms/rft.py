"""RFT: rejection-sampling fine-tuning; right answers are imitated, wrong ones ignored.

GC = 1 on answers whose reward is over `threshold`, else 0; loss = -GC log p. Each answer, right or wrong, weighs
1 / answers, each of its tokens 1 / length. Rows of data make it RFT; with `source: rollouts` it is online RFT.
Use: samples that a rule has marked, learned offline, or online with `source: rollouts`.
Watch: `gc/positive`, the share of tokens that are imitated; on easy prompts alone nothing new is learned.
Source: Yuan et al. 2023, arXiv:2308.01825; the form of Shao et al. 2024, arXiv:2402.03300, eq. 10.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from unified import Algorithm, Batch, Field, Settings, hookimpl
from unified_plugins.algorithms import sft


class RFTSettings(Settings):
    """What a recipe may set for RFT."""

    threshold: float = Field(0.5, description="an answer is right where its reward is over this")


def coefficient(batch: Batch, settings: RFTSettings) -> Tensor:
    """1 on right answers, [batch]; no head is read, so it is known before the forward."""
    return (batch.total_reward > settings.threshold).double()


def loss(batch: Batch, settings: RFTSettings) -> Tensor:
    """The negative log-likelihood of each token of a right answer, [batch, time] nats."""
    return -batch.expand(coefficient(batch, settings)) * batch.logp


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer RFT to recipes as `algorithm: rft`."""
    (plain,) = sft.unified_algorithms()
    own = replace(plain, name="rft", settings=RFTSettings, coefficient=coefficient, loss=loss)
    return [replace(own, aggregation="sequence", reward="given")]
