"""Another reward for every kind of row: each prompt is judged by the reward that its column names.

For mixtures: `{name: by_column, column: source, rewards: {math: final_answer, chat: {name: model, ...}}}`. What each
gives is logged by the column and its value, `reward/source/math`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from unified import Chosen, Field, Problem, PromptGroup, Reward, Settings, UserError, choice, hookimpl
from unified_plugins.rewards._columns import lacking
from unified_plugins.rewards._inner import Judged, inner_judges_of, inner_models


class OfValue(Settings):
    """The reward of one value of the column."""

    value: str = Field(description="what stands in the column")
    reward: Chosen = choice("reward", description="what judges the rows that have it")


class ByColumnSettings(Settings):
    """Which reward judges which rows."""

    column: str = Field("source", min_length=1, description="the column that decides; a mixture writes `source`")
    rewards: list[OfValue] = Field(min_length=1, description="{VALUE: REWARD, ...}: what judges rows with that value")
    otherwise: Chosen | None = choice(
        "reward", None, description="what judges rows with another value or none; without, such a row is an error"
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`{math: REWARD}` is short for `[{value: math, reward: REWARD}]`."""
        rewards = data.get("rewards")
        if isinstance(rewards, Mapping):
            rewards = [{"value": _text(value), "reward": reward} for value, reward in rewards.items()]
        return {**data, "rewards": rewards} if "rewards" in data else data

    @model_validator(mode="after")
    def _fit_together(self) -> "ByColumnSettings":
        values = [one.value for one in self.rewards]
        twice = next((v for v in values if values.count(v) > 1), None)
        if twice is not None:
            raise ValueError(f"two rewards are for '{twice}'")
        inner_models(*self.each)
        return self

    @property
    def each(self) -> list[Chosen]:
        """All rewards; the last one is that for all other values, where there is one."""
        return [*(one.reward for one in self.rewards), *([self.otherwise] if self.otherwise is not None else [])]


def check(settings: ByColumnSettings, columns: frozenset[str] | None) -> list[Problem]:
    """A column that no row has, where nothing judges such rows."""
    return lacking(settings.column, columns) if settings.otherwise is None else []


def judge(
    groups: list[PromptGroup], settings: ByColumnSettings, models: Mapping[str, Any], folder: Path | None = None
) -> Judged:
    """What the reward of each prompt's value gives; it is handed all prompts of its value together.

    A reward that asks a model is asked also where there is none, with an empty list, so that every process asks it
    equally often. UserError for a value that no reward is for.
    """
    chosen = [_reward_of(group, settings) for group in groups]
    apart = [(of, [g for g, i in zip(groups, chosen, strict=True) if i == k]) for k, of in enumerate(settings.each)]
    found = [iter(judged) for judged in inner_judges_of(apart, models, folder)]
    out = [next(found[i]) for i in chosen]
    names = [*(one.value for one in settings.rewards), "otherwise"]
    for group, i, rewards in zip(groups, chosen, out, strict=True):
        for answer, reward in zip(group.answers, rewards, strict=True):
            if reward is not None:
                total = sum(reward) if isinstance(reward, list) else reward
                answer.columns[f"{settings.column}/{names[i]}"] = float(total)
    return out


def _reward_of(group: PromptGroup, settings: ByColumnSettings) -> int:
    """The number of the reward that judges a prompt."""
    written = group.columns.get(settings.column)
    values = [one.value for one in settings.rewards]
    if written is not None and _text(written) in values:
        return values.index(_text(written))
    if settings.otherwise is not None:
        return len(values)
    said = f"'{_text(written)}' in column '{settings.column}'" if written is not None else "nothing in that column"
    raise UserError(
        f"reward 'by_column' is for column '{settings.column}', and a prompt has {said}, which no reward is for",
        f"there are rewards for: {', '.join(values)}",
        "`otherwise: REWARD` judges all other rows",
    )


def _text(value: Any) -> str:
    """A value as YAML writes it: true, 3, math. A whole number reads without its fraction."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def models(settings: ByColumnSettings) -> dict[str, str]:
    """The models of all of them."""
    return inner_models(*settings.each)


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: by_column, column: source, rewards: {VALUE: REWARD, ...}}`."""
    return [Reward("by_column", ByColumnSettings, judge=judge, models=models, check=check)]
