"""SimPO: DPO without a reference, on mean log-probs, with a gap that the better answer must lead by.

GC = +-beta / length sigmoid(-m), m = beta (mean logp of the better - that of the worse) - gap;
loss = -log sigmoid(m). The gap is the paper's gamma itself; where a library states gamma / beta, multiply.
Use: pairs and no memory for a reference; answers differ in length.
Watch: `rewards/accuracies`, `rewards/chosen`: nothing holds the policy but a small learning rate.
Source: Meng et al. 2024, arXiv:2405.14734.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class SimPOSettings(PreferenceSettings):
    """What a recipe may set for SimPO: the family's settings with values in use with the paper."""

    beta: float = Field(2.5, gt=0, description="scale of the mean log-probs")
    margin: Chosen = choice("margin", {"name": "length_normalised", "reference": False}, description="what is compared")
    gap: float = Field(1.375, description="distance asked for, gamma of the paper")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer SimPO to recipes as `algorithm: simpo`."""
    return [preference("simpo", SimPOSettings)]
