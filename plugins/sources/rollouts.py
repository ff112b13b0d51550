"""Answers sampled from the policy as it is now: `group_size` for each prompt. Answers of the rows are set aside.

With a greedy answer beside them, as a probe: judged and compared with, never pushed.
"""

from collections.abc import Callable
from dataclasses import replace

from unified import Answer, DataSource, Field, PromptGroup, Sampling, Settings, hookimpl, number_columns


class RolloutsSettings(Settings):
    """How answers are drawn."""

    group_size: int = Field(8, ge=1, description="answers sampled per prompt")
    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest tokens up to this mass; 1 keeps all")
    top_k: int = Field(0, ge=0, description="keep so many likeliest tokens; 0 keeps all")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="keep tokens of so many times the probability of the likeliest; 0 keeps all"
    )
    max_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    stop: list[str] = Field([], description="texts that end an answer, which keeps them")


class GreedySettings(RolloutsSettings):
    """How answers are drawn beside the greedy one."""

    group_size: int = Field(1, ge=1, description="answers sampled per prompt, the greedy one not counted")


def collect(
    prompts: list[PromptGroup],
    settings: RolloutsSettings,
    sample: Callable[[list[PromptGroup], int, Sampling], list[list[Answer]]],
) -> list[PromptGroup]:
    """New groups with the sampled answers, not yet judged; all else is that of the rows."""
    sampling = Sampling(
        settings.temperature, settings.top_p, settings.top_k, settings.max_tokens, settings.min_p, tuple(settings.stop)
    )
    sampled = sample(prompts, settings.group_size, sampling)
    groups = []
    for group, answers in zip(prompts, sampled, strict=True):
        numbers = number_columns(group.columns)
        own = [replace(answer, columns={**numbers, **answer.columns}) for answer in answers]
        groups.append(replace(group, prompt=list(group.prompt), answers=own, columns=dict(group.columns)))
    return groups


def collect_with_greedy(
    prompts: list[PromptGroup],
    settings: GreedySettings,
    sample: Callable[[list[PromptGroup], int, Sampling], list[list[Answer]]],
) -> list[PromptGroup]:
    """The same, and behind the sampled answers of each prompt its greedy one."""
    groups = collect(prompts, settings, sample)
    greedy = Sampling(temperature=0.0, max_tokens=settings.max_tokens, stop=tuple(settings.stop))
    likeliest = sample(prompts, 1, greedy)
    for group, (answer,) in zip(groups, likeliest, strict=True):
        group.answers.append(replace(answer, probe=True, columns={**number_columns(group.columns), **answer.columns}))
    return groups


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer sampling as `source: {name: rollouts, group_size: 8}`, and `rollouts_and_greedy`."""
    return [
        DataSource("rollouts", RolloutsSettings, collect=collect, online=True),
        DataSource("rollouts_and_greedy", GreedySettings, collect=collect_with_greedy, online=True),
    ]
