"""Robust DPO: unbiased where a known share of the labels is the wrong way round.

GC = +-beta ((1 - e) sigmoid(-m) + e sigmoid(m)) / (1 - 2 e), m as in DPO, e the share of flipped labels;
loss = ((1 - e) l(m) - e l(-m)) / (1 - 2 e) with l = -log sigmoid. Conservative DPO is `dpo` with
`link: {name: sigmoid, label_smoothing: e}`.
Use: pairs with a known share of flipped labels.
Watch: `rewards/accuracies` on held-out pairs whose labels are right; too large a share makes the loss unstable near
1/2.
Source: Chowdhury et al. 2024, arXiv:2403.00409.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.preference import PreferenceSettings, preference


class RobustDPOSettings(PreferenceSettings):
    """What a recipe may set for robust DPO: the family's settings with a tenth of the labels taken for flipped."""

    link: Chosen = choice(
        "link",
        {"name": "sigmoid", "label_smoothing": 0.1, "robust": True},
        description="the loss of one comparison",
    )


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer robust DPO to recipes as `algorithm: robust_dpo`."""
    return [preference("robust_dpo", RobustDPOSettings)]
