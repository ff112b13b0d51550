"""The work of stages that answer prompts: for `unified plan`."""

from collections.abc import Sequence
from typing import Any

from unified import Chosen, Job, Rows, training

#: answers sampled at once where the engine does not say
AT_ONCE = 128


def answering(rows: Rows, prompts: int, source: Chosen, model: str, rewards: Sequence[Chosen | None]) -> list[Job]:
    """Sampling (where the source does) and judging of answers to so many prompts, each as long as it may be."""
    answers, longest = float(getattr(source.settings, "group_size", 1)), longest_of(rows, source)
    jobs = []
    if source.part.online:
        new = prompts * answers * (longest - rows.prompt_tokens)
        jobs.append(Job("policy", model, "generate", prompts * answers * longest, new))
    else:
        answers = rows.answers
    for reward in rewards:
        for _, judge, kind in training.part_uses((), reward):
            if kind == "scalar":
                jobs.append(Job("reward model", judge, "score", prompts * answers * longest, scalar=True))
    return jobs


def longest_of(rows: Rows, source: Chosen) -> float:
    """Tokens of a prompt with its answer."""
    sampled = getattr(source.settings, "max_tokens", 0) if source.part.online else rows.answer_tokens
    return rows.prompt_tokens + float(sampled)


def at_once(engine: Chosen | None, source: Chosen) -> int:
    """Answers sampled at the same time; 0 where none is sampled."""
    settings: Any = engine.settings if engine is not None else None
    return int(getattr(settings, "max_batch", AT_ONCE)) if source.part.online else 0
