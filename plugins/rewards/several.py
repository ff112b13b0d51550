"""Several rewards at once: their weighted sum, and each by itself as a column of its answer.

Advantages that normalise each reward before they are summed read the columns: `advantage: {name: per_reward, ...}`.
"""

from collections.abc import Callable
from typing import Any

from pydantic import model_validator

from unified import Chosen, Field, PromptGroup, Reward, Settings, choice, hookimpl
from unified_plugins.rewards._inner import Judged, inner_judge, inner_model


class OneReward(Settings):
    """One of several rewards."""

    reward: Chosen = choice("reward", description="what judges")
    weight: float = Field(1.0, description="factor on it in the sum")
    column: str | None = Field(None, description="where it is kept by itself; without, the name of the reward")

    @property
    def name(self) -> str:
        """The column."""
        return str(self.column or self.reward.name)


class SeveralSettings(Settings):
    """Which rewards."""

    rewards: list[OneReward] = Field(min_length=1, description="what judges, each with a weight and a column")

    @model_validator(mode="after")
    def _fit_together(self) -> "SeveralSettings":
        names = [one.name for one in self.rewards]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise ValueError(f"two rewards have the column '{twice}': give one of them another `column`")
        if sum(inner_model(one.reward) is not None for one in self.rewards) > 1:
            raise ValueError("only one of several rewards may be a model")
        return self


def judge(groups: list[PromptGroup], settings: SeveralSettings, score: Callable[..., Any]) -> Judged:
    """The weighted sum, missing where one of the rewards is; a reward per token counts by its sum.

    Writes each reward into the columns of its answer.
    """
    judged = {one.name: inner_judge(one.reward, groups, score) for one in settings.rewards}
    out: Judged = []
    for i, group in enumerate(groups):
        row: list[float | list[float] | None] = []
        for k, answer in enumerate(group.answers):
            found = {name: values[i][k] for name, values in judged.items()}
            each = {n: sum(v) if isinstance(v, list) else v for n, v in found.items() if v is not None}
            answer.columns |= {name: float(value) for name, value in each.items()}
            whole = len(each) == len(settings.rewards)
            row.append(sum(one.weight * each[one.name] for one in settings.rewards) if whole else None)
        out.append(row)
    return out


def model(settings: SeveralSettings) -> str | None:
    """The model of the one reward that has one."""
    return next((found for one in settings.rewards if (found := inner_model(one.reward)) is not None), None)


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: several, rewards: [{reward: NAME, weight: ...}, ...]}`."""
    return [Reward("several", SeveralSettings, judge=judge, model=model)]
