"""APO-down: lower both answers, the worse one further; for policies that are better than the better answers.

With a = beta (log-ratio to the reference) of the better, m as in DPO, s'(x) = sigmoid(x) sigmoid(-x):
GC = beta (s'(m) - s'(a)) on the better, -beta s'(m) on the worse; loss = sigmoid(a) + 1 - sigmoid(m).
Use: pairs whose better answers are worse than what the policy writes by itself.
Watch: `rewards/chosen` falls, as it should; `rewards/margins` must grow nevertheless.
Source: D'Oosterlinck et al. 2024, arXiv:2408.06266.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class APODownSettings(PreferenceSettings):
    """What a recipe may set for APO-down: the family's settings with its link."""

    link: Chosen = choice("link", "anchored_down", description="the loss of one comparison")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer APO-down to recipes as `algorithm: apo_down`."""
    return [preference("apo_down", APODownSettings)]
