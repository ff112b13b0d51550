"""The work of a training stage, from its settings and data. Answers to be sampled count as long as they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unified.errors import UserError
from unified.settings import choose
from unified.stage import TermSettings, TrainSettings
from unified.training import part_uses
from unified.work import Job, Measure, Rows, Work

#: bytes of optimiser state per trained parameter, in float32; two moments unless it is named here
OPTIMISER_BYTES: Mapping[str, int] = {"sgd": 0, "rmsprop": 4, "adagrad": 4}
#: answers sampled at once where the engine does not say
AT_ONCE = 128
#: what sharing a prompt must save, as in unified.layout (which loads torch): tokens of a family, share of all
CALLS, WORTH = 4, 0.05


def work_of_training(settings: TrainSettings, measure: Measure) -> Work | None:
    """Tokens of every model of the stage; None where its rows cannot be counted yet."""
    rows = measure(settings.data, "train")
    if rows is None:
        return None
    from unified.set_up import plan_steps  # loads torch

    total, steps = plan_steps(settings, rows.rows)
    collected = settings.collect_size or settings.batch_size
    per_collect = settings.inner_epochs * math.ceil(collected / settings.batch_size)
    drawn = min(total, math.ceil(steps / per_collect) * collected)
    pushed = min(drawn * settings.inner_epochs, steps * settings.batch_size)
    driver = _Stream(settings, _terms(settings, own=False), settings.source, settings.reward, rows)
    jobs = driver.jobs(drawn, pushed, several=per_collect > 1)
    longest, prompts = driver.longest, drawn
    for term in _terms(settings, own=True):
        beside = measure(term.data, "train")
        if beside is None:
            return None
        prompts_of_term = steps * (term.per_step or settings.batch_size)
        stream = _Stream(settings, [term], term.source, term.reward, beside)
        jobs += stream.jobs(prompts_of_term, prompts_of_term, several=False)
        prompts += prompts_of_term
        longest = max(longest, stream.longest)
    jobs += _evaluation(settings, measure, steps)
    samples = any(job.does == "generate" for job in jobs)
    engine = settings.engine.settings if settings.engine is not None else None
    roles: dict[str, float] = {}
    for job in jobs:
        roles[job.role] = roles.get(job.role, 0.0) + (job.computed if job.does == "train" else 0.0)
    step_tokens = max(roles.values()) / max(steps, 1)  # every forward passes through all roles that learn
    answers = round(collected * driver.answers)
    part = settings.engine.part if settings.engine is not None else None
    return Work(
        steps, prompts, jobs,
        micro_tokens=min(settings.tokens_per_micro_batch or 8192, step_tokens),
        at_once=min(int(getattr(engine, "max_batch", AT_ONCE)), answers) if samples else 0,
        step_tokens=step_tokens,
        collected=answers if samples else 0,
        collects=math.ceil(drawn / collected) if driver.online else 0,
        longest_row=driver.longest_row,
        remote=getattr(part, "push", None) is not None,
        max_staleness=int(getattr(settings, "max_staleness", 0)),
        longest=longest,
        optimiser_bytes=OPTIMISER_BYTES.get(settings.optim.lower(), 8),
        bf16=bool(settings.bf16),
        checkpointing=settings.gradient_checkpointing,
        adapter=settings.adapter,
    )  # fmt: skip


def _terms(settings: TrainSettings, *, own: bool) -> list[TermSettings]:
    """The terms with rows of their own, or those on the stage's rows (the one algorithm among them)."""
    written = settings.terms or [TermSettings(algorithm=settings.algorithm)]
    return [t for t in written if (t.data is not None) == own]


@dataclass
class _Stream:
    """Rows with the terms that learn from them."""

    settings: TrainSettings
    terms: list[TermSettings]
    source: Any
    reward: Any
    rows: Rows
    read: frozenset[str] = field(init=False)
    credited: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        algorithms = [(t.algorithm.part, t.algorithm.settings) for t in self.terms]
        self.credited = frozenset(n for a, s in algorithms for n in a.names_credited(s))
        self.read = self.credited.union(*(a.names_read(s) for a, s in algorithms))
        if self.source is None:
            self.source = choose("source", self.terms[0].algorithm.part.source)[0]

    @property
    def online(self) -> bool:
        return bool(self.source is not None and self.source.part.online)

    @property
    def answers(self) -> float:
        """Answers of one prompt."""
        fewest = max(t.algorithm.part.answers for t in self.terms)
        if self.online:
            return float(getattr(self.source.settings, "group_size", fewest))
        return max(self.rows.answers, 1.0)

    @property
    def longest(self) -> float:
        """Tokens of a prompt with one answer: sampled ones as long as they may be."""
        sampled = getattr(self.source.settings, "max_tokens", self.rows.answer_tokens) if self.online else None
        return self.rows.prompt_tokens + (self.rows.answer_tokens if sampled is None else sampled)

    @property
    def longest_row(self) -> float:
        """Tokens of the longest prompt with one answer."""
        if not self.online:
            return self.rows.longest
        sampled = getattr(self.source.settings, "max_tokens", self.rows.answer_tokens)
        return self.rows.longest_prompt + (sampled or 0) if self.rows.longest_prompt else 0.0

    @property
    def saved(self) -> float:
        """Tokens of a prompt's answers that need no forward of their own, because they share the prompt's.

        As the engine chooses the layout: not with dropout, and only where enough is saved.
        """
        if self.settings.layout not in ("auto", "prefix-shared") or self.settings.drops:
            return 0.0
        saved, whole = (self.answers - 1) * self.rows.prompt_tokens, self.answers * self.longest
        return saved if self.settings.layout == "prefix-shared" or saved - CALLS > WORTH * whole else 0.0

    @property
    def _lengths(self) -> tuple[float, float]:
        """Of the tokens of a prompt with its answers: those saved, and those that carry a gradient."""
        return self.saved, self.answers * (self.longest - self.rows.prompt_tokens)

    def jobs(self, drawn: int, pushed: int, *, several: bool) -> list[Job]:
        """The work on prompts drawn, `pushed` of which are learned from; several steps for one collected batch."""
        one = self.answers * self.longest
        model = self.settings.model
        made: list[Job] = []
        if self.online:
            new = drawn * self.answers * (self.longest - self.rows.prompt_tokens)
            again = drawn * (self.answers - 1) * self.rows.prompt_tokens  # a prompt is read once for its answers
            made.append(
                Job("policy", model, "generate", drawn * one, new, saved=again, read_out=new, length=self.longest)
            )
        saved, read = self._lengths
        scored = drawn * one if self.online else min(drawn, self.rows.rows) * one  # of fixed rows they are kept
        reference = (
            model if self.settings.own_reference or self.settings.reference == "input" else self.settings.reference
        )
        for name, role, of in (
            ("ref_logp", "policy" if self.settings.own_reference else "reference", reference),
            ("old_logp", "policy", model if several or "old_logp" in self.credited else None),
            ("teacher_logp", "teacher", self.settings.teacher),
            ("old_value", "critic", self.settings.critic.model or model),
        ):
            if name in self.read and of is not None:
                shared = role == "critic" and self.settings.critic.trunk == "shared"
                made.append(
                    Job(
                        "policy" if shared else role, of, "score", scored, scalar=role == "critic",
                        saved=scored / one * saved, read_out=scored / one * read, length=self.longest,
                    )
                )  # fmt: skip
        made += [
            Job("reward model", judge, "score", drawn * one, scalar=True, read_out=0.0, length=self.longest)
            for judge in _scalar_models(self.reward)
        ]
        return [*made, *self._training(pushed, several=several)]

    def _training(self, pushed: float, *, several: bool) -> list[Job]:
        """Forward and backward of every model that some term pushes; statistics of a whole step are a forward more."""
        made: list[Job] = []
        saved, read = self._lengths
        tokens = pushed * self.answers * self.longest
        whole: dict[str, Any] = {"saved": pushed * saved, "read_out": pushed * read, "length": self.longest}
        terms = [(t.algorithm.part, t.algorithm.settings) for t in self.terms]
        once = not several and "old_logp" not in self.credited
        again = not all(part.is_known_before(settings, once=once) for part, settings in terms)
        for term in self.terms:
            part, chosen = term.algorithm.part, term.algorithm.settings
            for head in part.aggregations(chosen):
                if head == "value" and self.settings.critic.trunk == "own":
                    critic = self.settings.critic.model or self.settings.model
                    made.append(Job("critic", critic, "train", tokens, scalar=True, **whole))
                else:
                    role, scalar = ("scorer", True) if head == "score" else ("policy", False)
                    more = {**whole, "scalar": scalar, "again": again and not scalar}
                    made.append(Job(role, self.settings.model, "train", tokens, **more))
                if head == "logits" and self.settings.teacher is not None and "teacher_logp" not in self.read:
                    made.append(Job("teacher", self.settings.teacher, "score", tokens, **whole))
            if part.scope_of(chosen) == "step":
                made.append(Job("policy", self.settings.model, "score", tokens, **whole))
        return list(dict.fromkeys(made))  # several heads of one model share its forward and backward


def _evaluation(settings: TrainSettings, measure: Measure, steps: int) -> list[Job]:
    """Losses on held-out rows, and answers to them where a reward judges some."""
    wanted = settings.evaluation
    if wanted is None:
        return []
    rows = measure(wanted.data or settings.data, "held_out")
    if rows is None:
        return []
    times = 1 + (steps - 1) // settings.eval_steps if settings.eval_steps else 1
    prompts = min(wanted.num_prompts, rows.rows) * (times + settings.eval_on_start)
    policy = "score" not in {h for t in _terms(settings, own=False) for h in _heads(t)}
    held = prompts * max(rows.answers, 1) * (rows.prompt_tokens + rows.answer_tokens)
    made = [Job("policy" if policy else "scorer", settings.model, "score", held, scalar=not policy)]
    if wanted.reward is not None:
        new = float(prompts * wanted.samples * wanted.max_tokens)
        made.append(Job("policy", settings.model, "generate", prompts * wanted.samples * rows.prompt_tokens + new, new))
        tokens = made[-1].tokens
        made += [Job("reward model", judge, "score", tokens, scalar=True) for judge in _scalar_models(wanted.reward)]
    return made


def _heads(term: TermSettings) -> set[str]:
    return set(term.algorithm.part.aggregations(term.algorithm.settings))


def _scalar_models(reward: Any) -> list[str]:
    """The scalar models that a reward asks, by their references."""
    try:
        return [reference for _, reference, kind in part_uses((), reward) if kind == "scalar"]
    except UserError:
        return []
