"""Weighted SFT: imitation in which an answer weighs by its reward, or by a column of the data.

GC = the answer's reward or the column's number, the same on all its tokens; loss = -GC log p. The mean is over all
tokens of the step, whatever they weigh. Negative weights push down.
Use: answers with a weight each: a rating, a filter's confidence.
Watch: `gc/abs`: the mean is over all tokens, so small weights make small steps.
Source: reward-weighted regression, Peters and Schaal 2007 (ICML).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from unified import Algorithm, Batch, Field, Settings, UserError, hookimpl
from unified_plugins.algorithms import sft


class WeightedSFTSettings(Settings):
    """What a recipe may set for weighted SFT."""

    by: str = Field("reward", description="reward, or a column of the data (then with `reward: constant`)")


def coefficient(batch: Batch, settings: WeightedSFTSettings) -> Tensor:
    """The weight of every answer, [batch]; no head is read, so it is known before the forward."""
    if settings.by == "reward":
        return batch.total_reward
    if settings.by not in batch.columns:
        raise UserError(f"`by: {settings.by}` names no column of the data", f"columns: {sorted(batch.columns)}")
    return batch.columns[settings.by]


def loss(batch: Batch, settings: WeightedSFTSettings) -> Tensor:
    """The weighted negative log-likelihood of each token, [batch, time] nats."""
    return -batch.expand(coefficient(batch, settings)) * batch.logp


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: weighted_sft`."""
    (plain,) = sft.unified_algorithms()
    own = replace(plain, name="weighted_sft", settings=WeightedSFTSettings, coefficient=coefficient, loss=loss)
    return [replace(own, reward="given")]
