"""DPO: raise the better of two answers over the worse, measured against the reference.

GC = +-beta sigmoid(-m) on every token of the better (+) and the worse (-) answer, with m = beta (log-ratio to the
reference of the better - that of the worse), both summed over tokens; loss = -log sigmoid(m).
Use: pairs of answers, best written by a policy near the one that is trained; no sampling, no reward model.
Watch: `rewards/chosen`: if it falls far with `rewards/rejected`, add imitation (rpo, or a term sft with `on: best`).
Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
"""

from __future__ import annotations

from unified import Algorithm, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class DPOSettings(PreferenceSettings):
    """What a recipe may set for DPO: the family's settings with the paper's defaults."""


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer DPO to recipes as `algorithm: dpo`."""
    return [preference("dpo", DPOSettings)]
