"""Self-play: the answer of the row against one that the policy gives to the same prompt; `reward: self_play` judges.

The policy learns to tell its own answers from those of the data, until it cannot. In a sampling
stage the opponent is the policy of the round before, frozen.
Source: Chen et al. 2024, SPIN, arXiv:2401.01335, section 4.
"""

from collections.abc import Callable
from dataclasses import replace

from unified import Answer, DataSource, Field, PromptGroup, Sampling, Settings, UserError, hookimpl


class SelfPlaySettings(Settings):
    """How the opponent's answers are drawn."""

    group_size: int = Field(1, ge=1, description="answers sampled per prompt, the row's own not counted")
    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest tokens up to this mass; 1 keeps all")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="keep tokens of so many times the probability of the likeliest; 0 keeps all"
    )
    max_tokens: int = Field(256, ge=1, description="longest sampled answer, in tokens")
    stop: list[str] = Field([], description="texts that end an answer, which keeps them")
    mark: str | None = Field(
        None, description="column to write into the answers: 1 in the row's own, 0 in the sampled ones"
    )


def collect(
    prompts: list[PromptGroup],
    settings: SelfPlaySettings,
    sample: Callable[[list[PromptGroup], int, Sampling], list[list[Answer]]],
) -> list[PromptGroup]:
    """The row's best answer, then the sampled ones, all yet to be judged. UserError for a row without answers."""
    for group in prompts:
        if not group.answers:
            raise UserError(f"row {group.key} has no answer to play against", "source 'self_play' needs rows with one")
    sampling = Sampling(
        settings.temperature, settings.top_p, 0, settings.max_tokens, settings.min_p, tuple(settings.stop)
    )
    drawn = sample(prompts, settings.group_size, sampling)
    out = []
    for group, theirs in zip(prompts, drawn, strict=True):
        best = max(group.answers, key=lambda answer: answer.total_reward or 0.0)
        both = [replace(best, reward=None), *theirs]
        if settings.mark is not None:
            both = [replace(a, columns={**a.columns, settings.mark: float(i == 0)}) for i, a in enumerate(both)]
        out.append(replace(group, answers=both))
    return out


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer it as `source: {name: self_play, max_tokens: ...}`."""
    return [DataSource("self_play", SelfPlaySettings, collect=collect, online=True)]
