"""NCA: noise-contrastive alignment; the better answer goes up on its own account, both are kept from going far.

With a, b = beta (log-ratio to the reference) of the better and the worse, summed over tokens:
GC = beta (sigmoid(-a) - sigmoid(a) / 2) on the better, -beta sigmoid(b) / 2 on the worse;
loss = -log sigmoid(a) - (log sigmoid(-a) + log sigmoid(-b)) / 2.
Use: pairs or lists with scores, where the better answer's probability must not fall.
Watch: `rewards/chosen` stays near or above 0.
Source: Chen et al. 2024, arXiv:2402.05369.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class NCASettings(PreferenceSettings):
    """What a recipe may set for NCA: the family's settings with its link."""

    link: Chosen = choice("link", "noise_contrastive", description="the loss of one comparison")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer NCA to recipes as `algorithm: nca`."""
    return [preference("nca", NCASettings)]
