"""RPO: DPO, and imitation of the better answer per token, so that its probability does not fall with the worse one's.

GC = +-beta sigmoid(-m), + nll_weight / length on the better answer, m as in DPO;
loss = -log sigmoid(m) + nll_weight (mean over the better answer's tokens of -log p).
Use: pairs of reasoned answers, where the better one's probability falls under plain DPO.
Watch: `rewards/chosen` must not fall.
Source: Pang et al. 2024, arXiv:2404.19733, iterative reasoning preference optimisation (nll_weight 1).
"""

from __future__ import annotations

from unified import Algorithm, hookimpl
from unified_plugins.algorithms.preference_and_imitation import ImitatingSettings, preference_and_imitation


class RPOSettings(ImitatingSettings):
    """What a recipe may set for RPO: the family's settings with the paper's defaults."""


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer RPO to recipes as `algorithm: rpo`."""
    return [preference_and_imitation("rpo", RPOSettings)]
