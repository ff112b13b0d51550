"""Length-normalised DPO: the log-ratio of an answer is the mean over its tokens, not the sum.

GC = +-beta / length sigmoid(-m), m = beta (mean log-ratio to the reference of the better - that of the worse);
loss = -log sigmoid(m).
Use: pairs whose answers differ in length, where plain DPO would grow or shrink the length.
Watch: the length of answers (`eval/length`); beta is larger than DPO's, because the margin is a mean.
Source: Lambert et al. 2024, arXiv:2411.15124, TULU 3 (beta 5 from table 20).
"""

from __future__ import annotations

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class DPONormSettings(PreferenceSettings):
    """What a recipe may set for length-normalised DPO: the family's settings with the paper's defaults."""

    beta: float = Field(5.0, gt=0, description="scale of the margin, per token")
    margin: Chosen = choice("margin", "length_normalised", description="what is compared")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer length-normalised DPO to recipes as `algorithm: dpo_norm`."""
    return [preference("dpo_norm", DPONormSettings)]
