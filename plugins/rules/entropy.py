"""How an adaptive entropy bonus follows the entropy of the policy."""

from __future__ import annotations


def adapt_entropy(weight: float, entropy: float, *, target: float, rate: float) -> float:
    """The next weight of the bonus: `rate` more where the entropy is below its target, `rate` less above it, never < 0.

    weight: of the bonus where it is on. entropy, target: nats per token. rate: per collected batch.
    Source: He et al. 2025, arXiv:2505.22312, Skywork Open Reasoner 1, adaptive entropy control, whose weight may also
    fall below 0 while the bonus is off.
    """
    return max(0.0, weight + (rate if entropy < target else -rate if entropy > target else 0.0))
