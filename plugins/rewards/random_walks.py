"""Verifier of the random-walks task: the optimality of the walk that an answer describes, in [0, 1].

The graph is the one of the row (its column `graph`); for rows that carry none, the one that the settings define.
"""

from unified import PromptGroup, Reward, hookimpl
from unified_plugins.datasets.random_walks import GraphSettings, graph


class RandomWalksRewardSettings(GraphSettings):
    """The graph of rows that do not carry their own."""


def judge(groups: list[PromptGroup], settings: RandomWalksRewardSettings) -> list[list[float]]:
    """Optimality of start and answer together; 0 for what is no walk to the goal."""
    rewards = []
    for group in groups:
        own = group.columns.get("graph")
        here = graph(GraphSettings(**(own if own is not None else settings.model_dump())))
        start = [str(group.columns.get("start", group.text.strip()))]
        rewards.append([here.optimality(start + answer.text.split()) for answer in group.answers])
    return rewards


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the verifier as `reward: random_walks`."""
    return [Reward("random_walks", RandomWalksRewardSettings, judge=judge)]
