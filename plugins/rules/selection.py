"""Selections: which of a prompt's judged answers a sample stage keeps.

A rule of kind "selection" may name: groups, a list of PromptGroup with rewards, and draw, a random.Random that is
seeded by the stage. Its value is the list of groups with the answers that stay; a group without any is left out. One
that lists `reward` in its `reads` is refused in a stage without a reward.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

from unified import Answer, Field, PromptGroup, Rule, Settings, hookimpl


def _reward(answer: Answer) -> float:
    """The reward of a judged answer; a probe or one without a judgement never wins."""
    return -math.inf if answer.probe or answer.total_reward is None else float(answer.total_reward)


def _judged(group: PromptGroup) -> list[Answer]:
    return [a for a in group.answers if _reward(a) > -math.inf]


def _kept(group: PromptGroup, answers: list[Answer]) -> list[PromptGroup]:
    return [replace(group, answers=answers)] if answers else []


def keep_all(groups: list[PromptGroup]) -> list[PromptGroup]:
    """Keep every answer but probes."""
    return [kept for g in groups for kept in _kept(g, [a for a in g.answers if not a.probe])]


def by_variance(groups: list[PromptGroup]) -> list[PromptGroup]:
    """Keep every answer but probes; prompts by the variance of their rewards, highest first, equal ones as they came.

    The variance is that of the judged answers, divided by their number; 0 for fewer than two. A stage that trains in
    this order needs `shuffle: false`. Source: Qwen2.5, Qwen 2024, arXiv:2412.15115, section 4.3: queries whose answers
    vary more in reward come first. Variance and its divisor are open there.
    """
    return sorted(keep_all(groups), key=lambda g: _variance([_reward(a) for a in _judged(g)]), reverse=True)


def _variance(rewards: list[float]) -> float:
    """Exactly 0 where all are equal."""
    if len(set(rewards)) < 2:
        return 0.0
    return statistics.pvariance(rewards)


class BestSettings(Settings):
    """How many."""

    k: int = Field(1, ge=1, description="answers kept per prompt")


def best(groups: list[PromptGroup], k: int) -> list[PromptGroup]:
    """The k answers of the highest reward, best first; of equal ones those that came first.

    With k = 1 the argmax of rejection sampling: Llama 2, Touvron et al. 2023, arXiv:2307.09288, section 3.2.3; RAFT,
    Dong et al. 2023, arXiv:2304.06767, section 3.
    """
    return [kept for g in groups for kept in _kept(g, sorted(_judged(g), key=_reward, reverse=True)[:k])]


class ThresholdSettings(Settings):
    """How good."""

    at_least: float = Field(1.0, description="lowest reward of an answer that is kept")


def threshold(groups: list[PromptGroup], at_least: float) -> list[PromptGroup]:
    """Answers of a reward of at_least or more. With a verifier, RFT: Yuan et al. 2023, arXiv:2308.01825."""
    return [kept for g in groups for kept in _kept(g, [a for a in _judged(g) if _reward(a) >= at_least])]


class StatisticalSettings(Settings):
    """How sharp, and how many."""

    beta: float = Field(0.5, gt=0, description="unit of reward: towards 0 only the best is kept, far above it all are")
    number: int | None = Field(
        None, ge=1, description="answers kept per prompt, by as many rounds as it takes; none: one round"
    )


def statistical(
    groups: list[PromptGroup], draw: random.Random, beta: float, number: int | None = None
) -> list[PromptGroup]:
    """Accept an answer with probability exp((r − r_max) / beta), r_max the highest reward of its prompt's candidates.

    This is the p / (M q) of rejection sampling: q the policy that sampled, p ∝ q exp(r / beta) the optimum of the
    KL-regularised reward, and M = exp(r_max / beta) up to the constant that both share, estimated from the candidates.
    With a number, what was accepted leaves the candidates after each round and r_max is taken anew.
    Source: Liu et al. 2023, arXiv:2309.06657, section 3 and algorithm 1.
    """
    return [kept for g in groups for kept in _kept(g, _accepted(_judged(g), draw, beta, number))]


def _accepted(candidates: list[Answer], draw: random.Random, beta: float, number: int | None) -> list[Answer]:
    wanted = len(candidates) if number is None else min(number, len(candidates))
    out: list[Answer] = []
    while len(out) < wanted:
        highest = max(_reward(a) for a in candidates)
        rest: list[Answer] = []
        for answer in candidates:
            accepted = draw.random() < math.exp((_reward(answer) - highest) / beta)
            (out if accepted and len(out) < wanted else rest).append(answer)
        if number is None:
            break
        candidates = rest
    return out


class PairSettings(Settings):
    """What makes a pair."""

    drop_equal: bool = Field(True, description="leave out prompts whose two answers would have the same reward")


def best_worst(groups: list[PromptGroup], drop_equal: bool) -> list[PromptGroup]:
    """The answer of the highest reward and that of the lowest, in this order; of equal ones the first and the last.

    Source: self-rewarding pairs, Yuan et al. 2024, arXiv:2401.10020, section 2.
    """
    out = []
    for group in groups:
        ranked = sorted(_judged(group), key=_reward, reverse=True)
        if len(ranked) > 1 and not (drop_equal and _reward(ranked[0]) == _reward(ranked[-1])):
            out.append(replace(group, answers=[ranked[0], ranked[-1]]))
    return out


def best_random(groups: list[PromptGroup], draw: random.Random, drop_equal: bool) -> list[PromptGroup]:
    """The answer of the highest reward and one of the others, drawn at random (of lower reward, with drop_equal).

    Source: binarised UltraFeedback as used by Tunstall et al. 2023, arXiv:2310.16944.
    """
    out = []
    for group in groups:
        ranked = sorted(_judged(group), key=_reward, reverse=True)
        others = [a for a in ranked[1:] if not drop_equal or _reward(a) < _reward(ranked[0])]
        if others:
            out.append(replace(group, answers=[ranked[0], draw.choice(others)]))
    return out


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `select: all`, `by_variance`, `best`, `threshold`, `statistical`, `best_worst`, `best_random`."""
    judged = frozenset({"reward"})
    return [
        Rule("all", of="selection", value=keep_all),
        Rule("by_variance", of="selection", value=by_variance, reads=judged),
        Rule("best", BestSettings, of="selection", value=best, reads=judged),
        Rule("threshold", ThresholdSettings, of="selection", value=threshold, reads=judged),
        Rule("statistical", StatisticalSettings, of="selection", value=statistical, reads=judged),
        Rule("best_worst", PairSettings, of="selection", value=best_worst, reads=judged),
        Rule("best_random", PairSettings, of="selection", value=best_random, reads=judged),
    ]
