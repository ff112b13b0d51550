"""KL-Cov: no clip; the tokens on which log p and advantage go together most are held to the policy that sampled.

GC = ratio A, less sign(log ratio) on a share of the tokens with the highest (A - mean A)(log p - mean log p), means
over all tokens of the optimiser step; A as in GRPO. All tokens of a step weigh the same.
Use: long runs with a verifier whose entropy falls too soon, held by a penalty in place of a clip.
Watch: `completions/nats`, `policy_kl`.
Source: Cui et al. 2025, arXiv:2505.22617.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class KLCovAlgorithmSettings(PolicyGradientSettings):
    """What a recipe may set for KL-Cov: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", "kl_cov", description="penalty on tokens of high covariance")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer KL-Cov to recipes as `algorithm: kl_cov`."""
    return [policy_gradient("kl_cov", KLCovAlgorithmSettings, how="token", answers=2)]
