"""Where the groups of a stage's terms come from: rows in seeded order, a source, a reward, and terms."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from unified.blame import blaming, excerpt, named, named_stage
from unified.coefficient import Term
from unified.data import Answer, PromptGroup, Sampling
from unified.errors import PluginError, UserError
from unified.guard import Finding
from unified.judging import judge_groups
from unified.lazy import LazyRows
from unified.registry import call_named, catalogue
from unified.render import number_columns
from unified.settings import Chosen

#: what samples answers where a stage names no engine
DEFAULT_ENGINE = "transformers"


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts, the same on every machine and in every run."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_all(*parts: object) -> None:
    """Seed the global generators of Python, numpy and torch, which rewards and sources may draw from."""
    seed = seed_of(*parts)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass
class Stream:
    """Rows that one or more terms learn from.

    rows: all prompt groups of the dataset, as tokens, or rows that become tokens when they are drawn; left_out: what
    was done to these then, by name. source, reward: how they get answers (None: as they stand), and how these are
    judged.
    terms: those that act on these rows. per_step: prompts per optimiser step; None for the one that drives.
    position: rows drawn so far; with the seed it says everything about the order. shuffle: whether that is random.
    stage: for messages. label: its own name in the stage. folder: of the recipe. time_limit: seconds for the judgement
    of all groups at once, None without end. judges: gives the models that a source or reward names.
    """

    stage: str
    rows: list[PromptGroup] | LazyRows
    source: Chosen | None
    reward: Chosen | None
    terms: list[Term]
    seed: int
    per_step: int | None = None
    filters: list[Chosen] = field(default_factory=list)
    position: int = 0
    label: str = "train"
    shuffle: bool = True
    folder: Path | None = None
    time_limit: float | None = None
    judges: Callable[[Chosen], Mapping[str, Any]] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    _order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    @property
    def online(self) -> bool:
        """Whether answers are sampled from the policy as it is."""
        return self.source is not None and bool(self.source.part.online)

    @property
    def temperature(self) -> float:
        """T of the distribution that log-probs speak of: that of sampling, 1 for rows of data."""
        return float(getattr(self.source.settings, "temperature", 1.0)) if self.source and self.online else 1.0

    def draw(self, n: int) -> list[tuple[int, PromptGroup]]:
        """The next n rows with their running number: of each pass in a new random order, or as the data have them.

        Of rows that become tokens only now, those that are too long are left out of the n and counted in `left_out`;
        the position moves over them.
        """
        numbers = range(self.position, self.position + n)
        places = [self._place(number) for number in numbers]
        self.position += n
        if not isinstance(self.rows, LazyRows):
            return [(number, self.rows[place]) for number, place in zip(numbers, places, strict=True)]
        groups, counts = self.rows.take(places)
        self.left_out = dict(Counter(self.left_out) + Counter(counts))
        return [(number, group) for number, group in zip(numbers, groups, strict=True) if group is not None]

    def _place(self, number: int) -> int:
        """The row that a running number means."""
        epoch, place = divmod(number, len(self.rows))
        if not self.shuffle:
            return place
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator))
        return int(self._order[1][place])

    def collect(
        self, prompts: list[PromptGroup], sample: Callable[..., list[list[Answer]]], seed: int
    ) -> list[PromptGroup]:
        """Ask the source for answers to these prompts."""
        if not self.online:  # the rows stay as they are: whoever judges them anew must find what the data say
            prompts = [_copy(group) for group in prompts]
        if self.source is None:
            return prompts
        given = self.call(
            self.source, "collect", prompts=prompts, settings=self.source.settings, sample=sample, seed=seed,
            models=self.models_of(self.source), folder=self.folder,
        )  # fmt: skip
        return self._groups(self.source, given)

    def judge(
        self, groups: list[PromptGroup], found: Callable[[Finding], None] | None = None
    ) -> dict[str, tuple[float, float]]:
        """Write the reward of every answer; None where the judgement failed. Probes are judged as well.

        found: told of rewards that are NaN or infinite, which are missing then; without, UserError.
        Returns what the reward consists of: (sum, count) of each column that it wrote into the answers, and of those
        that a source wrote which samples (an environment's metrics).
        """
        if self.reward is None:
            return {}
        before = [set(number_columns(g.columns)) if self.online else set(a.columns) for g in groups for a in g.answers]
        judge_groups(self, self.reward, groups, found)
        parts: dict[str, tuple[float, float]] = {}
        for known, answer in zip(before, (a for g in groups for a in g.answers), strict=True):
            for name in () if answer.probe else answer.columns.keys() - known:
                total, count = parts.get(name, (0.0, 0.0))
                parts[name] = (total + answer.columns[name], count + 1)
        return parts

    def select(self, groups: list[PromptGroup]) -> tuple[list[PromptGroup], dict[str, int]]:
        """Drop answers without a judgement, groups with too few answers, and what the filters drop; all counted."""
        needed = max((t.algorithm.answers for t in self.terms), default=1)
        counts = {"missing": 0, "too_few": 0, "filtered": 0}
        kept = []
        for group in groups:
            answers = [a for a in group.answers if a.reward is not None or self.reward is None]
            counts["missing"] += len(group.answers) - len(answers)
            if len({a.trajectory or i for i, a in enumerate(answers) if not a.probe}) < needed:
                counts["too_few"] += 1
                continue
            kept.append(replace(group, answers=answers))
        for rule in self.filters:
            before = len(kept)
            kept = self._groups(rule, self.call(rule, "value", groups=kept, **rule.settings.model_dump()))
            counts["filtered"] += before - len(kept)
        return kept, counts

    def models_of(self, part: Chosen) -> Mapping[str, Any]:
        """The models that a part names, by their references."""
        return self.judges(part) if self.judges is not None else {}

    def call(self, chosen: Chosen, function: str, **arguments: Any) -> Any:
        """Call a part; what it raises is attributed to it and to the stage."""
        with named_stage(self.stage), blaming(chosen.part, function):
            return call_named(getattr(chosen.part, function), **arguments)

    def _groups(self, chosen: Chosen, given: Any) -> list[PromptGroup]:
        """What a source or a filter gave, if it is a list of groups."""
        if not isinstance(given, (list, tuple)) or not all(isinstance(g, PromptGroup) for g in given):
            kinds = sorted({type(g).__name__ for g in given}) if isinstance(given, (list, tuple)) else ""
            raise PluginError(
                f"stage '{self.stage}': {named(chosen.part)} gave {type(given).__name__}"
                f"{' of ' + ', '.join(kinds) if kinds else ''}; it must give a list of PromptGroups"
            )
        return list(given)


def _copy(group: PromptGroup) -> PromptGroup:
    """A row that may be judged without a trace in the data."""
    return replace(group, answers=[replace(a, columns=dict(a.columns)) for a in group.answers], reasons=[])


def engine_or_default(engine: Chosen | None) -> Chosen:
    """What samples: the engine that was chosen, or the one that a stage without one has."""
    if engine is not None:
        return engine
    part = catalogue().get("engine", DEFAULT_ENGINE)
    return Chosen(part, part.settings())


def pushes(engine: Chosen | None) -> bool:
    """Whether answers come from an engine with weights of its own, which it is given."""
    return getattr(engine_or_default(engine).part, "push", None) is not None


def in_process(engine: Chosen | None) -> Chosen | None:
    """The engine for models that are pushed nowhere: the chosen one where it samples here, else the default."""
    return None if pushes(engine) else engine


def _answers(
    engine: Chosen, given: Any, prompts: list[PromptGroup], n: int, vocabulary: int | None
) -> list[list[Answer]]:
    """What an engine gave, if it is n answers of known tokens to every prompt; PluginError else."""
    who = named(engine.part)
    lists = isinstance(given, (list, tuple)) and all(isinstance(of, (list, tuple)) for of in given)
    if not lists or [len(of) for of in given] != [n] * len(prompts):
        what = f"{[len(of) for of in given]} answers" if lists else type(given).__name__
        raise PluginError(f"{who} gave {what} for {len(prompts)} prompts; it must give {n} answers to each")
    for answers, group in zip(given, prompts, strict=True):
        for i, answer in enumerate(answers):
            where = f"{who} gave, for prompt {group.key} ({excerpt(group.text)}), answer {i},"
            if not isinstance(answer, Answer):
                raise PluginError(f"{where} a {type(answer).__name__}; it must be an Answer")
            if not all(isinstance(token, int) for token in answer.ids):
                kind = next(type(token).__name__ for token in answer.ids if not isinstance(token, int))
                raise PluginError(f"{where} a token id of type {kind}; ids are whole numbers")
            if answer.ids and (min(answer.ids) < 0 or (vocabulary is not None and max(answer.ids) >= vocabulary)):
                raise PluginError(f"{where} a token id outside 0 to {(vocabulary or 0) - 1}: {max(answer.ids)}")
    return [list(answers) for answers in given]


def _vocabulary(model: Any) -> int | None:
    """Token ids that a model knows; None for models of another kind."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return getattr(embeddings, "num_embeddings", None)


@dataclass(frozen=True)
class Sampler:
    """What a source calls to sample answers: the stage's rollout engine with the policy as it is now.

    place: what the seeds of all answers start from: the run's seed, and where in the run this is. bf16: matrix products
    in bfloat16, as in training. asked: how often each draw (or, if it was not drawn, each prompt) has been asked for.
    receipt: what an engine with weights of its own gave for them. told: see RolloutEngine; not every engine calls it.

    The seed of an answer follows from the place, the draw, how many times the draw was asked for before, and the number
    of the answer: neither other prompts nor the process have a part in it.
    """

    engine: Chosen | None
    model: Any
    tokenizer: Any
    version: int
    place: tuple[object, ...] = ()
    bf16: bool = False
    asked: Counter[object] = field(default_factory=Counter)
    receipt: Any = None
    told: Callable[[int, int, int], None] | None = None

    def __call__(self, prompts: list[PromptGroup], n: int, sampling: Sampling) -> list[list[Answer]]:
        """n answers to each prompt."""
        engine = engine_or_default(self.engine)
        if self.receipt is None and pushes(engine):
            raise UserError(
                f"engine '{engine.name}' has weights of its own, and nothing gives it those of this model",
                "leave out `engine` here: `transformers` samples in process",
            )
        seeds = [self._seeds(group, n) for group in prompts]
        with (
            blaming(engine.part, "generate"),
            torch.autocast(_device_type(self.model), torch.bfloat16, enabled=self.bf16),
        ):
            given = call_named(
                engine.part.generate, model=self.model, tokenizer=self.tokenizer, prompts=[p.prompt for p in prompts],
                n=n, sampling=sampling, settings=engine.settings, seeds=seeds, receipt=self.receipt,
                told=self.told,
            )  # fmt: skip
        answers = _answers(engine, given, prompts, n, _vocabulary(self.model))
        for group in answers:
            for answer in group:
                answer.version = self.version if answer.version is None else answer.version
        return answers

    def _seeds(self, group: PromptGroup, n: int) -> list[int]:
        """One for each of n answers."""
        draw: object = group.draw if group.draw >= 0 else tuple(group.prompt)
        time = self.asked[draw]
        self.asked[draw] += 1
        return [seed_of("answer", *self.place, draw, time, k) for k in range(n)]

    def decode(self, ids: list[int]) -> str:
        """Token ids as text, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _device_type(model: Any) -> str:
    """Of a model's weights; engines may have models of another kind."""
    parameters = getattr(model, "parameters", None)
    return str(next(parameters()).device.type) if parameters is not None else "cpu"


@dataclass(frozen=True)
class NoSampler:
    """What stands in the place of a Sampler for a source that takes answers as they are: its tokenizer, no answers."""

    tokenizer: Any

    def __call__(self, *_: Any) -> list[list[Answer]]:
        """Refuse to sample."""
        raise PluginError("a source that samples must say `online=True`")
