"""ORPO: imitation of the better answer and, beside it, an odds ratio over the worse; no reference.

GC = (1 + w d / (1 - p)) / length on the better, -w d / (1 - p) / length on the worse answer, with p = exp(mean logp) of
the answer, d = sigmoid(-log odds ratio) and w = comparison_weight, the paper's lambda;
loss = mean -log p of the better + w (-log sigmoid(log odds of the better - log odds of the worse)), odds = p / (1 - p).
Use: imitation and preference in one stage from a base model, without a reference.
Watch: `rewards/accuracies`, and the log-probability of the better answer, which must rise.
Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7 (lambda 0.1). TRL's imitation has the prompt's tokens in it.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.preference_and_imitation import ImitatingSettings, preference_and_imitation


class ORPOSettings(ImitatingSettings):
    """What a recipe may set for ORPO: the family's settings with the paper's defaults."""

    beta: float = Field(1.0, gt=0, description="scale of the log odds ratio")
    margin: Chosen = choice("margin", "log_odds", description="what is compared")
    comparison_weight: float = Field(0.1, ge=0, description="factor on the odds ratio, lambda of the paper")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer ORPO to recipes as `algorithm: orpo`."""
    return [preference_and_imitation("orpo", ORPOSettings)]
