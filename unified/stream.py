"""Where the groups of a stage's terms come from: rows in seeded order, a source, a reward, and terms."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from unified.coefficient import Term
from unified.data import Answer, PromptGroup, Sampling
from unified.errors import PluginError, UserError
from unified.lazy import LazyRows
from unified.registry import call_named, catalogue
from unified.settings import Chosen

#: what samples answers where a stage names no engine
DEFAULT_ENGINE = "transformers"


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts, the same on every machine and in every run."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class Stream:
    """Rows that one or more terms learn from.

    rows: all prompt groups of the dataset, as tokens, or rows that become tokens when they are drawn; left_out: what
    was done to these then, by name. source, reward: how they get answers (None: as they stand), and how these are
    judged.
    terms: those that act on these rows. per_step: prompts per optimiser step; None for the one that drives.
    position: rows drawn so far; with the seed it says everything about the order. shuffle: whether that is random.
    stage: for messages. label: its own name in the stage. folder: of the recipe. judges: gives the models that a source
    or reward names.
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
        groups = self._call(
            self.source, "collect", prompts=prompts, settings=self.source.settings, sample=sample, seed=seed,
            models=self._models(self.source), folder=self.folder,
        )  # fmt: skip
        return list(groups)

    def judge(self, groups: list[PromptGroup]) -> dict[str, tuple[float, float]]:
        """Write the reward of every answer; None where the judgement failed. Probes are judged as well.

        Returns what the reward consists of: (sum, count) of each column that it wrote into the answers.
        """
        if self.reward is None:
            return {}
        before = [set(answer.columns) for group in groups for answer in group.answers]
        about = {"models": self._models(self.reward), "folder": self.folder}
        given = self._call(self.reward, "judge", groups=groups, settings=self.reward.settings, **about)
        wanted = [len(g.answers) for g in groups]
        lists = isinstance(given, (list, tuple)) and all(isinstance(r, (list, tuple)) for r in given)
        if not lists or [len(r) for r in given] != wanted:
            what = (
                [len(r) for r in given]
                if lists
                else type(given).__name__
                if not isinstance(given, list)
                else "no lists"
            )
            raise PluginError(
                f"stage '{self.stage}': reward '{self.reward.name}' gave {what} judgements for {wanted} answers; "
                "it must give a list for every group, with an entry for every answer"
            )
        for rewards, group in zip(given, groups, strict=True):
            for reward, answer in zip(rewards, group.answers, strict=True):
                if answer.failed:
                    answer.reward = None
                    continue
                _check_reward(self, reward, answer)
                answer.reward = list(reward) if isinstance(reward, (list, tuple)) else reward
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
            kept = self._call(rule, "value", groups=kept, **rule.settings.model_dump())
            counts["filtered"] += before - len(kept)
        return kept, counts

    def _models(self, part: Chosen) -> Mapping[str, Any]:
        """The models that a part names, by their references."""
        return self.judges(part) if self.judges is not None else {}

    def _call(self, chosen: Chosen, function: str, **arguments: Any) -> Any:
        """Call a part; what it raises is attributed to it and to the stage."""
        try:
            return call_named(getattr(chosen.part, function), **arguments)
        except (UserError, PluginError):
            raise
        except Exception as error:
            what = (
                f"{function} of {getattr(chosen.part, 'of', chosen.part.kind)} '{chosen.name}'"  # a rule's kind is `of`
            )
            raise PluginError(f"stage '{self.stage}': {what} raised {type(error).__name__}: {error}") from error


def _copy(group: PromptGroup) -> PromptGroup:
    """A row that may be judged without a trace in the data."""
    return replace(group, answers=[replace(a, columns=dict(a.columns)) for a in group.answers], reasons=[])


def _check_reward(stream: Stream, reward: Any, answer: Answer) -> None:
    numbers = reward if isinstance(reward, (list, tuple)) else [0.0 if reward is None else reward]
    name = stream.reward.name if stream.reward else ""
    if isinstance(reward, (list, tuple)) and len(reward) != len(answer.ids):
        raise PluginError(
            f"stage '{stream.stage}': reward '{name}' gave {len(reward)} numbers for {len(answer.ids)} tokens"
        )
    for number in numbers:
        if not isinstance(number, (int, float)) or number != number or abs(number) == float("inf"):
            raise PluginError(
                f"stage '{stream.stage}': reward '{name}' gave {number!r} for the answer {answer.text[:60]!r}; "
                "a reward is a finite number, or None where the judgement failed"
            )


@dataclass(frozen=True)
class Sampler:
    """What a source calls to sample answers: the stage's rollout engine with the policy as it is now.

    place: what the seeds of all answers start from: the run's seed, and where in the run this is. bf16: matrix products
    in bfloat16, as in training. asked: how often each draw (or, if it was not drawn, each prompt) has been asked for.

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

    def __call__(self, prompts: list[PromptGroup], n: int, sampling: Sampling) -> list[list[Answer]]:
        """n answers to each prompt."""
        engine = self.engine or Chosen(
            catalogue().get("engine", DEFAULT_ENGINE), catalogue().get("engine", DEFAULT_ENGINE).settings()
        )
        seeds = [self._seeds(group, n) for group in prompts]
        with torch.autocast(_device_type(self.model), torch.bfloat16, enabled=self.bf16):
            answers: list[list[Answer]] = call_named(
                engine.part.generate, model=self.model, tokenizer=self.tokenizer, prompts=[p.prompt for p in prompts],
                n=n, sampling=sampling, settings=engine.settings, seeds=seeds,
            )  # fmt: skip
        for group in answers:
            for answer in group:
                answer.version = self.version
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
