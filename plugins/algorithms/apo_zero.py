"""APO-zero: raise the better answer over the reference and lower the worse below it, each on its own.

With a, b = beta (log-ratio to the reference) of the better and the worse: GC = beta sigmoid(a) sigmoid(-a) on the
better, -beta sigmoid(b) sigmoid(-b) on the worse; loss = 1 - sigmoid(a) + sigmoid(b). For policies that are worse than
the better answers.
Use: pairs whose better answers are better than what the policy writes by itself.
Watch: `rewards/chosen` rises over 0 and `rewards/rejected` falls below it; if chosen falls, apo_down describes the
data.
Source: D'Oosterlinck et al. 2024, arXiv:2408.06266.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class APOZeroSettings(PreferenceSettings):
    """What a recipe may set for APO-zero: the family's settings with its link."""

    link: Chosen = choice("link", "anchored_zero", description="the loss of one comparison")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer APO-zero to recipes as `algorithm: apo_zero`."""
    return [preference("apo_zero", APOZeroSettings)]
