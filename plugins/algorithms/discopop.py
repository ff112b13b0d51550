"""DiscoPOP: the loss that a language model found; logistic while a pair is wrong, exponential once it is right.

GC = +-beta ((1 - s) sigmoid(-m) + s e^-m - s (1 - s) / tau (e^-m + log sigmoid(m))), s = sigmoid(m / tau), m as in DPO;
loss = (1 - s) (-log sigmoid(m)) + s e^-m.
Use: pairs, as an alternative to DPO found by search rather than derived.
Watch: `rewards/margins`: near 0, where training begins, the push goes the wrong way; pairs must be carried past it by
others, so small data and small steps may stay there.
Source: Lu et al. 2024, arXiv:2406.08414 (tau 0.05).
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class DiscoPOPSettings(PreferenceSettings):
    """What a recipe may set for DiscoPOP: the family's settings with its link."""

    link: Chosen = choice("link", {"name": "modulated", "tau": 0.05}, description="the loss of one comparison")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer DiscoPOP to recipes as `algorithm: discopop`."""
    return [preference("discopop", DiscoPOPSettings)]
