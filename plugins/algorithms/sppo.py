"""SPPO: self-play; the log-ratio of a won answer is moved to 1 / (2 beta), that of a lost one to -1 / (2 beta).

GC = 2 (1 / (2 beta) - h) on the better, -2 (h + 1 / (2 beta)) on the worse answer, h its log-ratio to the reference;
loss = (h+ - 1 / (2 beta))^2 + (h- + 1 / (2 beta))^2. beta is 1 / eta of the paper; the judge is taken to be sure.
Use: rounds of own answers, judged, each round against the policy before it.
Watch: `rewards/chosen` towards 1/2, `rewards/rejected` towards -1/2 (beta times 1 / (2 beta)).
Source: Wu et al. 2024, arXiv:2405.00675.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class SPPOSettings(PreferenceSettings):
    """What a recipe may set for SPPO: the family's settings with its link."""

    link: Chosen = choice("link", "squared_targets", description="the loss of one comparison")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer SPPO to recipes as `algorithm: sppo`."""
    return [preference("sppo", SPPOSettings)]
