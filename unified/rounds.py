"""Rounds: a block of stages that runs N times. Every round becomes stages of its own, NAME.1.stage, NAME.2.stage, ...

loop:
  repeat: 3
  until: {metric: eval/reward, stage: tune, at_least: 0.9}
  stages:
    gather: {model: {first: stage:start, then: stage:tune}}
    tune: {model: stage:gather, learning_rate: {by_round: [1e-3, 5e-4, 2e-4]}}

`stage:NAME` is the newest result of that name: of this round, of the round before, of a stage before the block; behind
the block it is that of the last round. `stage:loop.2.tune` is that of one round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import model_validator

from unified.errors import Problem, UserError, unknown_name
from unified.made import STAGE
from unified.settings import Field, Settings, parse
from unified.tree import Node, Place

MOST_ROUNDS = 1000
_BY_ROUND, _FIRST_THEN = "by_round", {"first", "then"}
Problems = list[tuple[Place, Problem]]


class UntilSettings(Settings):
    """When a block ends before its last round."""

    metric: str = Field(description="a number of the stage's summary, for example eval/reward")
    stage: str | None = Field(None, description="the stage of the block that measures it; without, the last one")
    at_least: float | None = Field(None, description="no more rounds once the metric is this or more")
    at_most: float | None = Field(None, description="no more rounds once the metric is this or less")

    @model_validator(mode="after")
    def _one_bound(self) -> UntilSettings:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either `at_least` or `at_most`")
        return self


class BlockSettings(Settings):
    """A block of stages that runs several times."""

    repeat: int = Field(ge=1, le=MOST_ROUNDS, description="rounds")
    stages: dict[str, dict[str, Any]] = Field(description="stages of one round by name, in order")
    until: UntilSettings | None = Field(None, description="ends the block before its last round")


@dataclass(frozen=True)
class Block:
    """A block as read: its name, rounds, the names of its stages, and when it ends early."""

    name: str
    repeat: int
    stages: tuple[str, ...]
    until: UntilSettings | None = None

    def full(self, number: int, stage: str) -> str:
        """The name of a stage in a round, from 1."""
        return f"{self.name}.{number}.{stage}"

    def round_ended_by(self, name: str) -> int | None:
        """The round whose last stage has this full name; None for any other stage."""
        rounds = range(1, self.repeat + 1)
        return next((n for n in rounds if self.stages and name == self.full(n, self.stages[-1])), None)

    def is_met(self, number: int, summaries: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether `until` holds after a round; `summaries` by full name. UserError for a metric that is not there."""
        if self.until is None:
            return False
        stage = self.full(number, self.until.stage or self.stages[-1])
        if stage not in summaries:
            return False
        known = {k: v for k, v in summaries[stage].items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        value = known.get(self.until.metric)
        if value is None:
            problem = unknown_name("metric", self.until.metric, known)
            raise UserError(f"block '{self.name}': stage '{stage}' measured {problem.message}", *problem.hints)
        if self.until.at_least is not None:
            return value >= self.until.at_least
        return self.until.at_most is not None and value <= self.until.at_most


def is_block(node: Node) -> bool:
    """Whether an entry of `stages` is a block of stages and not a stage."""
    inner = node.get("stages")
    return node.get("repeat") is not None or (inner is not None and isinstance(inner.value, dict))


def expand(stages: Node | None, problems: Problems) -> tuple[dict[str, Node], dict[str, Block]]:
    """Every stage of every round by its full name, in the order in which they run; and the blocks by name.

    References to stages are written out, and of values by round that of the round is taken. What is wrong with a block
    is added to `problems`; entries that are no mappings are left out, because reading the file refuses them.
    """
    out: dict[str, Node] = {}
    blocks: dict[str, Block] = {}
    newest: dict[str, str] = {}
    for name, node in stages.items() if stages else ():
        if not isinstance(node.value, dict):
            continue
        if not is_block(node):
            out[name] = _Rewriter(name, newest, problems).rewrite(node)
            newest[name] = name
            continue
        blocks[name] = block = _read(name, node, problems)
        inner = node.get("stages")
        for number in range(1, block.repeat + 1):
            for stage in block.stages:
                full = block.full(number, stage)
                written = inner.get(stage) if inner else None
                if written is not None:
                    out[full] = _Rewriter(full, newest, problems, number, block.repeat).rewrite(written)
                    newest[stage] = full
    return out, blocks


def _read(name: str, node: Node, problems: Problems) -> Block:
    """A block; where its settings are wrong it has one round, so that its stages can be checked all the same."""
    made, found = parse(BlockSettings, node.plain(), owner=f"block '{name}'")
    problems += [(node.place_of(p.at), p) for p in found]
    inner = node.get("stages")
    stages = []
    for key, child in inner.items() if inner else ():
        if is_block(child):
            what = Problem(f"block '{name}': '{key}' is a block; a block may not stand in another one")
            problems.append((child.place, what))
        elif isinstance(child.value, dict):
            stages.append(key)
    if not stages:
        problems.append(((inner or node).place, Problem(f"block '{name}' has no stages")))
    if made is None:
        return Block(name, 1, tuple(stages))
    if made.until is not None and made.until.stage is not None and made.until.stage not in stages:
        wrong = unknown_name("stage", made.until.stage, stages)
        said = Problem(f"block '{name}': {wrong.message} in it", (), wrong.hints)
        problems.append((node.place_of(("until", "stage")), said))
    return Block(name, made.repeat, tuple(stages), made.until)


@dataclass
class _Rewriter:
    """Writes out what depends on the place in the run, in the settings of one stage of one round (None: no round)."""

    stage: str
    newest: Mapping[str, str]
    problems: Problems
    number: int | None = None
    repeat: int = 1

    def rewrite(self, node: Node) -> Node:
        value = node.value
        if isinstance(value, dict):
            if _BY_ROUND in value:
                return self._by_round(node)
            if self.number is not None and set(value) == _FIRST_THEN:
                return self.rewrite(value["first" if self.number == 1 else "then"])
            return replace(node, value={key: self.rewrite(child) for key, child in value.items()})
        if isinstance(value, list):
            return replace(node, value=[self.rewrite(child) for child in value])
        if isinstance(value, str) and value.startswith(STAGE):
            target = value.removeprefix(STAGE)
            return replace(node, value=f"{STAGE}{self.newest.get(target, target)}")
        return node

    def _by_round(self, node: Node) -> Node:
        values = node.value[_BY_ROUND]
        if self.number is None:
            return self._wrong(node, "`by_round` means something only in a block with `repeat`")
        if len(node.value) > 1 or not isinstance(values.value, list):
            return self._wrong(node, "write a value by round as {by_round: [first, second, ...]} and nothing beside it")
        if len(values.value) < self.repeat:
            given = f"{len(values.value)} values for {self.repeat} rounds"
            return self._wrong(node, f"`by_round` has {given}", "give one a round; more are not used")
        return self.rewrite(values.value[self.number - 1])

    def _wrong(self, node: Node, message: str, *hints: str) -> Node:
        self.problems.append((node.place, Problem(f"stage '{self.stage}': {message}", (), hints)))
        return node


def missing_in_rounds(
    blocks: Mapping[str, Block], stage: str, target: str, at: tuple[str | int, ...]
) -> Problem | None:
    """What is wrong with a reference that names a block, or a stage of one that has no result yet; None otherwise."""
    if target in blocks:
        inner = ", ".join(f"{STAGE}{name}" for name in blocks[target].stages)
        return Problem(f"'{target}' is a block of stages", at, (f"name what one of its stages made: {inner}",))
    block = next((b for b in blocks.values() if target in b.stages), None)
    if block is None:
        return None
    if stage.startswith(f"{block.name}."):
        hint = f"say what the first round uses: {{first: stage:NAME, then: {STAGE}{target}}}"
        return Problem(f"in the first round there is no result of stage '{target}' yet", at, (hint,))
    return Problem(f"stage '{target}' of block '{block.name}' comes later, so '{STAGE}{target}' is not there yet", at)
