"""Several rewards at once, combined into one; each by itself stays as a column of its answer.

- `combine: sum`: Σ weight · reward.
- `combine: product`: Π reward. With rewards of 0 and 1 all must hold.
- `combine: gate`: rewards in their order; the first that is closed (below its `closed_below`, or named by the row's
  column `closed_by`) stands alone, and where none is, the last one. Llama 2's safety reward before helpfulness: Touvron
  et al. 2023, arXiv:2307.09288, section 3.2.3.
- `combine: lexicographic`: by the first reward, equal ones by the second, and so on: the share of the other answers of
  the prompt that an answer beats, a draw counting half.

Rewards that ask no model run side by side. Advantages that normalise each reward before they are summed read the
columns: `advantage: {name: per_reward, ...}`.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from unified import Chosen, Field, Problem, PromptGroup, Reward, Settings, choice, hookimpl
from unified_plugins.rewards._columns import lacking
from unified_plugins.rewards._inner import Judged, inner_judges, inner_models

Each = dict[str, float]


class OneReward(Settings):
    """One of several rewards."""

    reward: Chosen = choice("reward", description="what judges")
    weight: float = Field(1.0, description="factor on it in the sum")
    column: str | None = Field(None, description="where it is kept by itself; without, the name of the reward")
    closed_below: float | None = Field(None, description="combine: gate: below this it stands alone")
    closed_by: str | None = Field(None, description="combine: gate: a column of the row that is true where it does")

    @property
    def name(self) -> str:
        """The column."""
        return str(self.column or self.reward.name)


class SeveralSettings(Settings):
    """Which rewards."""

    rewards: list[OneReward] = Field(min_length=1, description="what judges, each with a weight and a column")
    combine: Literal["sum", "product", "gate", "lexicographic"] = Field("sum", description="how they become one number")

    @model_validator(mode="after")
    def _fit_together(self) -> "SeveralSettings":
        names = [one.name for one in self.rewards]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise ValueError(f"two rewards have the column '{twice}': give one of them another `column`")
        inner_models(*(one.reward for one in self.rewards))
        for one in self.rewards:
            if one.weight != 1.0 and self.combine != "sum":
                raise ValueError(f"`weight` of '{one.name}' has no meaning with combine: {self.combine}")
            if (one.closed_below is not None or one.closed_by) and self.combine != "gate":
                raise ValueError(f"`closed_below` and `closed_by` of '{one.name}' need combine: gate")
        if self.combine == "gate" and any(r.closed_below is None and not r.closed_by for r in self.rewards[:-1]):
            raise ValueError("combine: gate: every reward but the last needs `closed_below` or `closed_by`")
        return self


def check(settings: SeveralSettings, columns: frozenset[str] | None) -> list[Problem]:
    """A column that no row has, so that its gate never closes."""
    only = [(i, one.closed_by) for i, one in enumerate(settings.rewards) if one.closed_below is None]
    named = [(i, name) for i, name in only if name]
    return [p.under("rewards", i) for i, name in named for p in lacking(name, columns, key="closed_by")]


def judge(
    groups: list[PromptGroup], settings: SeveralSettings, models: Mapping[str, Any], folder: Path | None = None
) -> Judged:
    """The combination, missing where one of the rewards is; a reward per token counts by its sum.

    Writes each reward into the columns of its answer.
    """
    judged = inner_judges([one.reward for one in settings.rewards], groups, models, folder)
    out: Judged = []
    for i, group in enumerate(groups):
        of_group: list[Each | None] = []
        for k, answer in enumerate(group.answers):
            found = {one.name: values[i][k] for one, values in zip(settings.rewards, judged, strict=True)}
            each = {n: float(sum(v) if isinstance(v, list) else v) for n, v in found.items() if v is not None}
            answer.columns |= each
            of_group.append(each if len(each) == len(settings.rewards) else None)
        out.append(_combined(of_group, group, settings))
    return out


def _combined(
    of_group: list[Each | None], group: PromptGroup, settings: SeveralSettings
) -> list[float | list[float] | None]:
    """One number for each answer of a prompt."""
    if settings.combine == "lexicographic":
        return _ranked([None if each is None else tuple(each.values()) for each in of_group])
    return [None if each is None else _one(each, group, settings) for each in of_group]


def _one(each: Each, group: PromptGroup, settings: SeveralSettings) -> float:
    if settings.combine == "product":
        return prod(each.values())
    if settings.combine == "sum":
        return sum(one.weight * each[one.name] for one in settings.rewards)
    for one in settings.rewards[:-1]:
        low = one.closed_below is not None and each[one.name] < one.closed_below
        if low or (one.closed_by and group.columns.get(one.closed_by)):
            return each[one.name]
    return each[settings.rewards[-1].name]


def _ranked(keys: list[tuple[float, ...] | None]) -> list[float | list[float] | None]:
    """For each key the share of the others that it beats, a draw counting half; 0.5 for one without others."""
    there = [key for key in keys if key is not None]
    others = len(there) - 1

    def share(key: tuple[float, ...]) -> float:
        beaten = sum(key > other for other in there) + (sum(key == other for other in there) - 1) / 2
        return beaten / others if others else 0.5

    return [None if key is None else share(key) for key in keys]


def models(settings: SeveralSettings) -> dict[str, str]:
    """The models of all of them."""
    return inner_models(*(one.reward for one in settings.rewards))


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: several, rewards: [{reward: NAME, weight: ...}, ...]}`."""
    return [Reward("several", SeveralSettings, judge=judge, models=models, check=check)]
