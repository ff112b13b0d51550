"""LD-DPO: DPO whose tokens beyond the length of the shorter answer weigh alpha, against its taste for length.

GC = +-beta weight sigmoid(-m), weight 1 up to the length of the prompt's shortest answer and alpha beyond;
m = beta (weighted log-ratio of the better - that of the worse); loss = -log sigmoid(m). At alpha 1 it is DPO.
Use: pairs whose preference is in part one for length.
Watch: the length of answers (`eval/length`), `rewards/accuracies`.
Source: Liu et al. 2024, arXiv:2409.06411.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class LDDPOSettings(PreferenceSettings):
    """What a recipe may set for LD-DPO: the family's settings with its margin."""

    margin: Chosen = choice("margin", {"name": "length_desensitised", "alpha": 0.5}, description="what is compared")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer LD-DPO to recipes as `algorithm: ld_dpo`."""
    return [preference("ld_dpo", LDDPOSettings)]
