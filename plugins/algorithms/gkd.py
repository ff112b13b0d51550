"""GKD: a generalised Jensen-Shannon divergence to the teacher, on answers of the policy's own.

Per token β KL(t, m) + (1 − β) KL(p, m) with m = β t + (1 − β) p; 0 is forward, 1 reverse KL. `source: rows` takes the
answers of the data instead; the paper's share λ of own answers is two terms with a source each.
Use: a teacher with the same vocabulary, and a choice between covering it (beta 0) and keeping to its mode (beta 1).
Watch: `loss`, in nats per token, and the reward on held-out prompts: the loss alone hides answers that drift.
Source: Agarwal et al. 2023, arXiv:2306.13649, algorithm 1; β 0.5 is TRL's default, the paper compares 0.1, 0.5, 0.9.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.distillation import DistillationSettings, distillation


class GKDSettings(DistillationSettings):
    """What a recipe may set for GKD: the family's settings with the paper's divergence."""

    divergence: Chosen = choice("divergence", {"name": "jsd", "beta": 0.5}, description="what is made small")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer GKD to recipes as `algorithm: gkd`."""
    return [distillation("gkd", GKDSettings, source="rollouts")]
