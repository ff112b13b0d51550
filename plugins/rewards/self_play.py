"""The answer of the data wins over those that the policy sampled: 1 and 0, for `source: self_play`.

Source: Chen et al. 2024, SPIN, arXiv:2401.01335, section 4.
"""

from collections.abc import Sequence

from unified import PromptGroup, Reward, hookimpl


def judge(groups: Sequence[PromptGroup]) -> list[list[float]]:
    """1 for an answer that nothing sampled (it has no sampling log-probs), 0 for the others."""
    return [[float(answer.sampling_logp is None) for answer in group.answers] for group in groups]


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: self_play`."""
    return [Reward("self_play", judge=judge)]
