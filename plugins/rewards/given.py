"""The rewards that stand in the data: the label of a preference, the rank of an answer; missing where there is none."""

from unified import PromptGroup, Reward, Settings, hookimpl


class GivenSettings(Settings):
    """Nothing to set."""


def judge(groups: list[PromptGroup]) -> list[list[float | list[float] | None]]:
    """Each answer's own reward."""
    return [[answer.reward for answer in group.answers] for group in groups]


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the labels as `reward: given`."""
    return [Reward("given", GivenSettings, judge=judge)]
