"""A stranger's plugin: everything that the engine needs to run, with none of the built-in parts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unified import (
    Algorithm,
    Answer,
    Batch,
    Dataset,
    DataSource,
    Example,
    Field,
    PromptGroup,
    Reward,
    RolloutEngine,
    Rule,
    Sampling,
    Settings,
    StageKind,
    TrainSettings,
    hookimpl,
    pairs,
    training,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Strength(Settings):
    """One number."""

    strength: float = Field(0.5, description="factor inside the algorithm")


def imitate(batch: Batch) -> Tensor:
    """Every token up by one."""
    return batch.loss_mask.double()


def imitate_loss(batch: Batch) -> Tensor:
    """Negative log-likelihood."""
    return -batch.logp


def prefer_loss(batch: Batch, settings: Strength) -> Tensor:
    """[groups]: −log σ of the gap of the answers' log-ratios to the reference; no closed form is given."""
    ratio = (batch.logp - batch.ref_logp).sum(1)
    found = pairs(batch)
    gap = settings.strength * (ratio[found.better] - ratio[found.worse])
    return found.per_group(-F.logsigmoid(gap), batch.groups)


def above_mean(batch: Batch) -> dict[str, Tensor]:
    """The reward above the mean reward of all answers of all processes."""
    ones = batch.counts.to(batch.reward.dtype)
    return {"advantage": batch.total_reward - batch.total(batch.total_reward * ones) / batch.total(ones)}


def clipped(batch: Batch, settings: Strength) -> Tensor:
    """The ratio times the advantage, 0 once the ratio has left the region."""
    ratio = (batch.logp - batch.old_logp).exp()
    outside = torch.where(batch.advantage > 0, ratio > 1 + settings.strength, ratio < 1 - settings.strength)
    return ratio * batch.advantage * ~outside


def valued(batch: Batch) -> dict[str, Tensor]:
    """REINFORCE with a critic that is drawn to the reward."""
    return {"logp": batch.advantage, "value": batch.expand(batch.total_reward.to(batch.value.dtype)) - batch.value}


def value_credit(batch: Batch) -> dict[str, Tensor]:
    """Reward minus the value that the critic gave before the update."""
    return {"advantage": batch.expand(batch.total_reward.to(batch.old_value.dtype)) - batch.old_value}


def scored_loss(batch: Batch) -> Tensor:
    """[groups]: −log σ of the gap of the scores after the last tokens."""
    score = (batch.score * batch.last).sum(1)
    found = pairs(batch)
    return found.per_group(-F.logsigmoid(score[found.better] - score[found.worse]), batch.groups)


def mean_log_ratio(batch: Batch) -> dict[str, Tensor]:
    """The mean log-ratio of all answers of the step."""
    ones = batch.counts.to(batch.logp.dtype)
    ratio = ((batch.logp - batch.ref_logp) * batch.loss_mask).sum(1)
    return {"mean": batch.total(ratio * ones) / batch.total(ones)}


def centred(batch: Batch, statistics: dict[str, Tensor], settings: Strength) -> Tensor:
    """Pushes answers harder the lower their log-ratio lies below the mean of the whole step."""
    ratio = ((batch.logp - batch.ref_logp) * batch.loss_mask).sum(1)
    return torch.sigmoid(settings.strength * (statistics["mean"] - ratio))


def count_updates(state: dict[str, float], totals: dict[str, float]) -> dict[str, float]:
    """State that changes with every collected batch."""
    return {"updates": state["updates"] + 1, "depth": totals.get("depth", 0.0)}


def depth(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean log-prob of a token."""
    return {"depth": (batch.logp.sum(), batch.loss_mask.sum())}


def letters(split: str, seed: int) -> list[Example]:
    """Three letters, answered by the same letters again; a worse answer is backwards."""
    r = random.Random(f"{split}{seed}")
    rows = []
    for _ in range(24):
        word = "".join(r.choice(LETTERS) for _ in range(3))
        rows.append(Example(word, [word, word[::-1]], [1.0, 0.0], {"length": 3.0}))
    return rows


def as_they_stand(prompts: list[PromptGroup]) -> list[PromptGroup]:
    """No sampling."""
    return prompts


class Samples(Settings):
    """How the stranger's source samples."""

    group_size: int = Field(4, description="answers per prompt")
    temperature: float = Field(1.0, description="of sampling")
    max_tokens: int = Field(5, description="longest answer")


def sampled(prompts: list[PromptGroup], settings: Samples, sample: Any) -> list[PromptGroup]:
    """Answers of the policy."""
    how = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
    answers = sample(prompts, settings.group_size, how)
    return [PromptGroup(p.prompt, a, p.text, p.columns, p.key) for p, a in zip(prompts, answers, strict=True)]


def vowels(groups: Sequence[PromptGroup]) -> list[list[float]]:
    """Share of vowels in the answer."""
    return [[sum(c in "aeiou" for c in a.text) / max(len(a.ids), 1) for a in g.answers] for g in groups]


def with_spread(groups: list[PromptGroup]) -> list[PromptGroup]:
    """Groups whose rewards differ."""
    return [g for g in groups if len({a.reward for a in g.answers}) > 1]


def in_the_data(groups: Sequence[PromptGroup]) -> list[list[Any]]:
    """The rewards that stand in the rows."""
    return [[a.reward for a in g.answers] for g in groups]


@torch.no_grad()
def one_by_one(
    model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Sampling, seeds: list[list[int]]
) -> list[list[Answer]]:
    """The plainest sampler there is: a whole forward for every token."""
    return [
        [_one(model, tokenizer, prompt, sampling, seed) for seed in own]
        for prompt, own in zip(prompts, seeds, strict=True)
    ]


def _one(model: Any, tokenizer: Any, prompt: list[int], sampling: Sampling, seed: int) -> Answer:
    noise = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    logps: list[float] = []
    while len(ids) < sampling.max_tokens and tokenizer.eos_token_id not in ids:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].float() / (sampling.temperature or 1.0)
        token = (
            int(torch.multinomial(logits.softmax(-1), 1, generator=noise))
            if sampling.temperature
            else int(logits.argmax())
        )
        ids.append(token)
        logps.append(float(logits.log_softmax(-1)[token]))
    ended = ids[-1] == tokenizer.eos_token_id
    return Answer(
        ids, tokenizer.decode(ids, skip_special_tokens=True), sampling_logp=logps, finish="stop" if ended else "length"
    )


class Plugin:
    """Hook implementations on an object, as a plugin may have them."""

    @hookimpl
    def unified_algorithms(self) -> list[Algorithm]:
        """One algorithm for each corner of the contract."""
        return [
            Algorithm("imitate", coefficient=imitate, loss=imitate_loss, aggregation="token"),
            Algorithm(
                "prefer",
                Strength,
                loss=prefer_loss,
                reads=frozenset({"logp", "ref_logp"}),
                aggregation="group",
                scope="group",
                answers=2,
            ),
            Algorithm(
                "clipped",
                Strength,
                coefficient=clipped,
                credit=above_mean,
                reads=frozenset({"logp", "old_logp"}),
                aggregation="sequence",
                source="sampled",
                reward="required",
            ),
            Algorithm(
                "valued",
                coefficient=valued,
                credit=value_credit,
                reads=frozenset({"value"}),
                credit_reads=frozenset({"old_value"}),
                aggregation={"logp": "sequence-sum", "value": "token"},
                source="sampled",
                reward="required",
            ),
            Algorithm(
                "scored",
                loss=scored_loss,
                reads=frozenset({"score"}),
                aggregation={"score": "group"},
                scope="group",
                answers=2,
            ),
            Algorithm(
                "centred",
                Strength,
                coefficient=centred,
                statistics=mean_log_ratio,
                reads=frozenset({"logp", "ref_logp"}),
                aggregation="sequence-sum",
                scope="step",
                initial_state=lambda: {"updates": 0.0},
                metrics=depth,
                update=count_updates,
            ),
        ]

    @hookimpl
    def unified_rules(self) -> list[Rule]:
        """A filter."""
        return [Rule("spread", of="filter", value=with_spread)]

    @hookimpl
    def unified_datasets(self) -> list[Dataset]:
        """Letters."""
        return [Dataset("letters", open=letters)]

    @hookimpl
    def unified_sources(self) -> list[DataSource]:
        """Rows as they stand, and samples."""
        return [DataSource("rows", collect=as_they_stand), DataSource("sampled", Samples, collect=sampled, online=True)]

    @hookimpl
    def unified_rewards(self) -> list[Reward]:
        """A rule, and what stands in the data."""
        return [Reward("vowels", judge=vowels), Reward("given", judge=in_the_data)]

    @hookimpl
    def unified_engines(self) -> list[RolloutEngine]:
        """In process."""
        return [RolloutEngine("transformers", generate=one_by_one)]

    @hookimpl
    def unified_stages(self) -> list[StageKind]:
        """Training, made of the engine's own functions."""
        return [
            StageKind(
                "train",
                TrainSettings,
                run=training.train_stage,
                uses=training.uses,
                makes=training.makes,
                check=training.check,
            )
        ]
