"""IPO: move the log-ratio gap of a pair to 1 / (2 beta), from both sides, so that sure labels do not drive it away.

GC = +-2 (1 / (2 beta) - h) on every token of the better (+) and the worse (-) answer, h the difference of their
log-ratios to the reference; loss = (h - 1 / (2 beta))^2. Log-ratios are sums over tokens, as in the paper, in OpenRLHF
and in TRL's XPO; TRL's DPO trainer takes means: set `margin: length_normalised` for that.
Use: pairs whose labels are nearly certain, on which DPO would drive the margin without end.
Watch: `rewards/margins`: they settle at 1/2, which is beta times 1 / (2 beta).
Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class IPOSettings(PreferenceSettings):
    """What a recipe may set for IPO: the family's settings with the paper's defaults."""

    link: Chosen = choice("link", "squared", description="the loss of one comparison")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer IPO to recipes as `algorithm: ipo`."""
    return [preference("ipo", IPOSettings)]
