"""SLiC-HF: the better answer shall lead the worse by a gap in log-probability, and is imitated.

GC = +-1 while the lead is under 1 + gap, + nll_weight on the better answer; loss = max(0, 1 + gap - beta (logp of the
better - logp of the worse)) - nll_weight log p of the better, all sums over tokens. The same link against a reference
(RSO, arXiv:2309.06657) is `dpo` with `link: hinge`.
Use: pairs, where a pair that is right by the gap shall push no more.
Watch: `gc/abs`: it falls as pairs leave the hinge.
Source: Zhao et al. 2023, arXiv:2305.10425; the paper imitates the SFT target, here it is the better answer.
"""

from __future__ import annotations

from typing import Literal

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.preference_and_imitation import ImitatingSettings, preference_and_imitation


class SLiCSettings(ImitatingSettings):
    """What a recipe may set for SLiC-HF: the family's settings with its margin and link."""

    beta: float = Field(1.0, gt=0, description="scale of the log-probabilities")
    margin: Chosen = choice("margin", "reference_free", description="what is compared")
    link: Chosen = choice("link", "hinge", description="the loss of one comparison")
    nll_weight: float = Field(0.1, ge=0, description="factor on -log p of the better answer")
    nll: Literal["sum", "mean"] = Field("sum", description="over the tokens of that answer")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer SLiC-HF to recipes as `algorithm: slic`."""
    return [preference_and_imitation("slic", SLiCSettings)]
