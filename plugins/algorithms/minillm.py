"""MiniLLM: reverse KL of whole answers, split into the exact part of each token and a clipped policy gradient after it.

GC of logits = 1 before −KL(policy, teacher) of each token; GC of logp = ratio A inside the clip, else 0, with A_t the
mean of log teacher − log policy over the tokens after t. The paper's sampling from a mixture with the teacher is not
part of it: answers are the policy's own; its pretraining text is a second term, `sft` with rows of its own.
Use: a teacher with the same vocabulary and a small student that learns on answers of its own.
Watch: `loss`, `clip_ratio`, `completions/mean_length`: a student may find short answers that the teacher likes.
Source: Gu et al. 2023, arXiv:2306.08543, section 2.2 (single-step decomposition, length normalisation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from unified import Algorithm, Batch, Chosen, choice, hookimpl
from unified_plugins.algorithms import distillation, policy_gradient


class MiniLLMSettings(policy_gradient.PolicyGradientSettings, distillation.DistillationSettings):
    """What a recipe may set for MiniLLM: the settings of both families."""

    advantage: Chosen = choice(
        "advantage",
        {"name": "teacher", "gamma": 1.0, "normalise": True, "own": False},
        description="how much likelier the teacher finds what follows a token",
    )
    divergence: Chosen = choice("divergence", "reverse_kl", description="of each token")


def coefficient(
    batch: Batch, settings: MiniLLMSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """GC of logp (and entropy) by the policy-gradient family, and 1 before the head of the divergence, [batch]."""
    own = torch.ones(batch.size, dtype=torch.float64, device=batch.loss_mask.device)
    return {**policy_gradient.coefficient(batch, settings, state, statistics), "logits": own}


def loss(
    batch: Batch, settings: MiniLLMSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The clipped objective with its sign turned, and the divergence of each token, [batch, time] each."""
    return {**policy_gradient.loss(batch, settings, state, statistics), "logits": -batch.logits}


def metrics(
    batch: Batch, settings: MiniLLMSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Those of both families."""
    return {**policy_gradient.metrics(batch, settings, state, statistics), **distillation.metrics(batch)}


def aggregation(settings: MiniLLMSettings) -> dict[str, str]:
    """All heads are weighed by token."""
    return {**policy_gradient.aggregation("token")(settings), "logits": "token"}


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer MiniLLM to recipes as `algorithm: minillm`."""
    preset = policy_gradient.policy_gradient("minillm", MiniLLMSettings, how="token", answers=1)
    return [
        replace(
            preset,
            distribution=distillation.distribution,
            top_k=distillation.top_k,
            coefficient=coefficient,
            loss=loss,
            metrics=metrics,
            aggregation=aggregation,
            reward="constant",
        )
    ]
