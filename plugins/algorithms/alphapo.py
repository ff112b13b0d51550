"""AlphaPO: SimPO with another shape of reward, (1 - p^-alpha) / alpha of the mean probability p in the place of log p.

GC = +-beta / length p^-alpha sigmoid(-m), p = exp(mean logp); m = beta (reward of better - that of worse) - gap;
loss = -log sigmoid(m). At alpha near 0 it is SimPO.
Use: pairs and no memory for a reference, where the shape of the reward shall be tuned beside SimPO's gap.
Watch: `rewards/accuracies`, and `rewards/chosen`: nothing holds it, so it may fall together with `rewards/rejected`.
Source: Gupta et al. 2025, arXiv:2501.03884.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class AlphaPOSettings(PreferenceSettings):
    """What a recipe may set for AlphaPO: the family's settings with alpha 0.25 and those of SimPO."""

    beta: float = Field(2.5, gt=0, description="scale of the rewards")
    margin: Chosen = choice("margin", {"name": "length_normalised", "reference": False}, description="what is compared")
    transform: Chosen = choice("transform", {"name": "f_alpha", "alpha": 0.25}, description="shape of the reward")
    gap: float = Field(1.375, description="distance asked for, gamma of the paper")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer AlphaPO to recipes as `algorithm: alphapo`."""
    return [preference("alphapo", AlphaPOSettings)]
