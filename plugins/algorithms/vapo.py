"""VAPO: PPO for long answers: the critic learns from whole returns, the policy's lambda grows with the answer.

GC of logp = ratio A inside the clip [0.8, 1.28], else 0; A from GAE with lambda 1 - 1 / (0.05 length), not whitened.
GC of value = 2 value_weight (R - V) with R of lambda 1. All tokens of a step weigh the same; no reference.
Its imitation of right answers is a second term: `{algorithm: sft, weight: 0.1, on: COLUMN}`.
Use: PPO on answers of thousands of tokens.
Watch: `value_error_square`, `completions/clipped_ratio`; the length-dependent lambda needs long answers.
Source: Yue et al. 2025, arXiv:2504.05118, section 4; lambda of the critic: Yuan et al. 2025, arXiv:2503.01491.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.ppo import PPOSettings, with_critic


class VAPOSettings(PPOSettings):
    """What a recipe may set for VAPO: those of PPO with the paper's defaults."""

    advantage: Chosen = choice(
        "advantage",
        {"name": "gae", "gamma": 1.0, "value_lam": 1.0, "length_alpha": 0.05},
        description="how much better a token was than the critic expected; the rule must give returns",
    )
    ratio: Chosen = choice("ratio", {"name": "clip", "low": 0.2, "high": 0.28}, description="clip-higher")
    kl_weight: float = Field(0.0, ge=0, description="weight of the KL estimate; 0: no reference is needed")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer VAPO to recipes as `algorithm: vapo`."""
    return [with_critic("vapo", VAPOSettings)]
