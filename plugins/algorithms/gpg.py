"""GPG: the policy gradient with the group's mean as baseline, and nothing else.

GC = r - mean over the prompt's answers. All tokens of a step weigh the same.
Use: one optimiser step for each collected batch, so that neither ratio nor clip is needed.
Watch: `frac_reward_zero_std`: the effective batch is what remains; `grad_norm`.
Source: Chu et al. 2025, arXiv:2504.02546; its factor for groups without spread is `filters: [no_spread]` with refill.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class GPGSettings(PolicyGradientSettings):
    """What a recipe may set for GPG: the family's settings with the paper's defaults."""

    advantage: Chosen = choice(
        "advantage", {"name": "group", "std": "none"}, description="reward less the mean of its prompt"
    )
    ratio: Chosen = choice("ratio", "none", description="none: answers are of the policy as it is now")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer GPG to recipes as `algorithm: gpg`."""
    return [policy_gradient("gpg", GPGSettings, how="token", answers=2)]
