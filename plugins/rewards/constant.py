"""The same reward for every answer: imitation takes the data for good.

Source: the reward column of SFT in Shao et al. 2024, arXiv:2402.03300, table 10.
"""

from collections.abc import Sequence

from unified import Field, PromptGroup, Reward, Settings, hookimpl


class ConstantSettings(Settings):
    """What a recipe may set."""

    value: float = Field(1.0, description="the reward of every answer")


def judge(groups: Sequence[PromptGroup], settings: ConstantSettings) -> list[list[float]]:
    """`value` for every answer."""
    return [[settings.value] * len(group.answers) for group in groups]


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: constant`."""
    return [Reward("constant", ConstantSettings, judge=judge)]
