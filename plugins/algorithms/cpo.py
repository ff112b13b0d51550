"""CPO: DPO without a reference, and imitation of the better answer.

GC = +-beta sigmoid(-m), + nll_weight on the better answer, m = beta (logp of the better - that of the worse), summed
over tokens; loss = -log sigmoid(m) - nll_weight log p of the better answer, a sum over its tokens.
Use: pairs and no memory for a reference; the better answer is worth imitating.
Watch: `rewards/accuracies`; the imitation is a sum over tokens, so long answers move the model more.
Source: Xu et al. 2024, arXiv:2401.08417. TRL averages the imitation over all tokens of the batch: for that write two
terms, `cpo` with nll_weight 0 and `sft` with `on: best`.
"""

from __future__ import annotations

from typing import Literal

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.preference_and_imitation import ImitatingSettings, preference_and_imitation


class CPOSettings(ImitatingSettings):
    """What a recipe may set for CPO: the family's settings with the paper's defaults."""

    margin: Chosen = choice("margin", "reference_free", description="what is compared")
    nll: Literal["sum", "mean"] = Field("sum", description="over the tokens of that answer")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer CPO to recipes as `algorithm: cpo`."""
    return [preference_and_imitation("cpo", CPOSettings)]
