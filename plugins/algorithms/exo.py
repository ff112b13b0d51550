"""EXO: the reverse KL of the policy's preference to the label, as RL minimises it, in the place of DPO's forward KL.

GC = +-beta sigmoid(m) sigmoid(-m) (log((1 - e) / e) - m), m as in DPO, e the doubt in a label;
loss = KL of (sigmoid(m), sigmoid(-m)) from (1 - e, e).
Use: pairs with labels that are in doubt by a known share.
Watch: `rewards/margins`: they settle at log((1 - e) / e), and grow no further.
Source: Ji et al. 2024, arXiv:2402.00856, EXO-pref, eq. 16.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class EXOSettings(PreferenceSettings):
    """What a recipe may set for EXO: the family's settings with its link."""

    link: Chosen = choice("link", "label_kl", description="the loss of one comparison")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer EXO to recipes as `algorithm: exo`."""
    return [preference("exo", EXOSettings)]
