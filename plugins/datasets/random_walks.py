"""Random walks: find a short way to the goal of a directed graph, having seen only random walks.

The graph has 21 nodes, named by letters; "a" is the goal and has no edge out. A prompt is the node to start from
("h"), an answer the nodes that follow ("d f a"), at most 10 steps. Its reward is its *optimality*: 1 for a shortest
way, falling with each further step to 0 at 10 steps; 0 for a walk that uses an edge that is not there, or does not end
at the goal.

The rows are walks that take every edge out of a node equally often and reach the goal in time (others are thrown away),
from starts that are equally frequent. The graph is drawn, edge by edge with probability 0.1, until every node reaches
the goal, at least three quarters of the walks from each in time, and the optimality expected of the walks that are kept
is 0.75 (computed exactly, kept to 0.005; a plain draw gives 0.65 on average, from 0.55 to 0.8). Imitation ends there, 1
is best.

In preference rows half of the walks are spoiled by a mistake, worth 0 mostly: who learns from them what is good must
also learn what is no walk at all, or the policy finds the ways that were never judged. Judged rows teach a policy to
judge: the prompt is a walk, its start in front and </s> behind ("h d f a </s>"), the answer its optimality as a letter,
"a" for 0 to "f" for 1 in fifths.

Source: the shortest-path example of Chen et al. 2021, arXiv:2106.01345, introduction, with the optimality score of
CarperAI trlx, examples/randomwalks. An answer must end at the goal: what a walk does behind it has no edge to stand on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from unified import Dataset, Example, Field, Settings, UserError, hookimpl

GOAL = 0
_TRIES = 20_000  # graphs drawn before giving up
_TOLERANCE = 0.005  # of the expected optimality
_RAREST = 0.75  # share of the walks from any start that reach the goal in time


class GraphSettings(Settings):
    """What defines the graph; a dataset and its verifier must agree on it."""

    graph_seed: int = Field(0, description="draws the graph; all splits and stages share it")
    nodes: int = Field(21, ge=3, le=26, description="nodes, named a, b, c, ...; a is the goal")
    max_steps: int = Field(10, ge=2, description="longest walk, in steps")
    edge_probability: float = Field(0.1, gt=0, lt=1, description="of each directed edge")
    walk_optimality: float = Field(
        0.75, gt=0, lt=1, description="expected optimality of the random walks, kept to 0.005"
    )


class RandomWalksSettings(GraphSettings):
    """Which rows are made from walks."""

    view: Literal["walks", "pairs", "ranked", "judged", "prompts"] = Field(
        "walks",
        description="walks: one answer; pairs: a better and a worse; ranked: `answers`, best first; judged: walks as "
        "prompts, a letter for their worth as the answer; prompts: starts",
    )
    rows: int = Field(1000, ge=1, description="training rows of all views but prompts")
    held_out_rows: int = Field(200, ge=1, description="held-out rows of all views but prompts")
    answers: int = Field(4, ge=2, description="answers of a ranked row")
    mistakes: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the walks of pairs, ranked and judged rows that are spoiled by one mistake",
    )
    repeat: int = Field(1, ge=1, description="how often each start stands among the training prompts")


@dataclass(frozen=True)
class Graph:
    """Edges out of each node, and its distance to the goal, in steps (absent where it cannot reach it)."""

    edges: tuple[tuple[int, ...], ...]
    distance: dict[int, int]
    max_steps: int

    def optimality(self, walk: list[str]) -> float:
        """(longest - steps) / (longest - fewest), in [0, 1], of a walk with its first node; 0 if it is not valid."""
        nodes = [ord(name) - ord("a") if len(name) == 1 else -1 for name in walk]
        steps = len(nodes) - 1
        if steps < 1 or steps > self.max_steps or nodes[-1] != GOAL:
            return 0.0
        if not all(0 <= here < len(self.edges) and there in self.edges[here] for here, there in pairwise(nodes)):
            return 0.0
        return self._score(nodes[0], steps)

    def _score(self, start: int, steps: int) -> float:
        fewest = self.distance[start]
        return 1.0 if steps == fewest else (self.max_steps - steps) / (self.max_steps - fewest)

    def walk(self, start: int, draw: random.Random) -> list[str]:
        """A random walk that reaches the goal in time, by its letters, the start included."""
        while True:
            nodes = [start]
            while nodes[-1] != GOAL and len(nodes) <= self.max_steps:
                nodes.append(draw.choice(self.edges[nodes[-1]]))
            if nodes[-1] == GOAL:
                return [chr(ord("a") + node) for node in nodes]

    def expected(self) -> tuple[float, float]:
        """(optimality of `walk`, averaged over the starts; share of walks in time from the worst start), both exact."""
        arrives = [[0.0] * len(self.edges)]  # by steps, then by start: chance to arrive with that step
        arrives[0][GOAL] = 1.0
        for _ in range(self.max_steps):
            last = arrives[-1]
            arrives.append([sum(last[n] for n in out) / len(out) if out else 0.0 for out in self.edges])
        total, rarest = 0.0, 1.0
        for start in range(1, len(self.edges)):
            chance = [arrives[steps][start] for steps in range(1, self.max_steps + 1)]
            in_time = sum(chance)
            rarest = min(rarest, in_time)
            if in_time == 0:
                return 0.0, 0.0
            total += sum(p * self._score(start, steps) for steps, p in enumerate(chance, start=1) if p) / in_time
        return total / (len(self.edges) - 1), rarest


@lru_cache(maxsize=16)
def graph(settings: GraphSettings) -> Graph:
    """The graph that these settings define. UserError where no graph has the optimality that is asked for."""
    draw = random.Random(settings.graph_seed).random
    nodes, probability = range(settings.nodes), settings.edge_probability
    for _ in range(_TRIES):
        edges = [tuple([there for there in nodes if there != here and draw() < probability]) for here in nodes]
        edges[GOAL] = ()
        found = Graph(tuple(edges), _distances(edges), settings.max_steps)
        if len(found.distance) == settings.nodes and max(found.distance.values()) < settings.max_steps:
            optimality, rarest = found.expected()
            if abs(optimality - settings.walk_optimality) <= _TOLERANCE and rarest >= _RAREST:
                return found
    raise UserError(
        f"no graph of {_TRIES} drawn has walks of optimality {settings.walk_optimality}",
        "set another walk_optimality or edge_probability, or larger max_steps",
    )


def _distances(edges: list[tuple[int, ...]]) -> dict[int, int]:
    """Fewest steps to the goal, breadth first and backwards."""
    distance, border = {GOAL: 0}, [GOAL]
    for there in border:
        for here, out in enumerate(edges):
            if there in out and here not in distance:
                distance[here] = distance[there] + 1
                border.append(here)
    return distance


def graph_settings(settings: GraphSettings) -> GraphSettings:
    """Only what defines the graph."""
    return GraphSettings(**{name: getattr(settings, name) for name in GraphSettings.model_fields})


def open_walks(settings: RandomWalksSettings, split: str, seed: int) -> list[Example]:
    """Rows of one split; both share the graph. The column `graph` holds its settings, `start` the prompt."""
    key = graph_settings(settings)
    here = graph(key)
    columns: dict[str, Any] = {"graph": key.model_dump()}
    if settings.view == "prompts":
        starts = [chr(ord("a") + n) for n in range(1, settings.nodes)] * (settings.repeat if split == "train" else 1)
        return [Example(start, columns={**columns, "start": start}) for start in starts]
    draw = random.Random(f"{split} {seed}")
    number = settings.rows if split == "train" else settings.held_out_rows
    if settings.view == "judged":
        return [_judged(here, draw, settings, columns) for _ in range(number)]
    answers = {"walks": 1, "pairs": 2, "ranked": settings.answers}[settings.view]
    rows: list[Example] = []
    dull = 0  # draws in a row that gave no row: the same start may know one way only
    while len(rows) < number:
        start = draw.randrange(1, settings.nodes)
        walks = _distinct(here, start, answers, draw, settings.mistakes if answers > 1 else 0.0)
        row = _row(walks, [here.optimality(walk) for walk in walks]) if len(walks) == answers else None
        dull = 0 if row else dull + 1
        if dull > _TRIES:
            raise UserError(f"no walks of this graph make a row of view '{settings.view}'", "set another graph_seed")
        if row:
            row.columns.update(columns, start=walks[0][0])
            rows.append(row)
    return rows


def _judged(here: Graph, draw: random.Random, settings: RandomWalksSettings, columns: dict[str, Any]) -> Example:
    """A walk as the prompt, its worth as the answer."""
    walk = here.walk(draw.randrange(1, settings.nodes), draw)
    if draw.random() < settings.mistakes:
        walk = _spoiled(walk, settings.nodes, draw)
    worth = here.optimality(walk)
    return Example(" ".join([*walk, "</s>"]), [chr(ord("a") + round(5 * worth))], [1.0], {**columns, "worth": worth})


def _distinct(here: Graph, start: int, number: int, draw: random.Random, mistakes: float) -> list[list[str]]:
    """So many different walks from one start; fewer where the start hardly has so many."""
    walks: list[list[str]] = []
    for _ in range(20 * number):
        walk = here.walk(start, draw)
        if mistakes and draw.random() < mistakes:
            walk = _spoiled(walk, len(here.edges), draw)
        if walk not in walks:
            walks.append(walk)
        if len(walks) == number:
            break
    return walks


def _spoiled(walk: list[str], nodes: int, draw: random.Random) -> list[str]:
    """A walk with one mistake: a node in another's place, a stretch left out, a jump to the goal, or no end."""
    at = draw.randrange(1, len(walk))
    mistake = draw.choice(("another", "left out", "jump", "cut"))
    if mistake == "left out":
        return [*walk[:at], *walk[draw.randrange(at, len(walk)) + 1 :]] if len(walk) > 2 else walk
    if mistake == "jump":
        return [*walk[:at], walk[-1]]
    if mistake == "cut":
        return walk[: max(at, 2)]
    return [*walk[:at], chr(ord("a") + draw.randrange(nodes)), *walk[at + 1 :]]


def _row(walks: list[list[str]], optimality: list[float]) -> Example | None:
    """One row, best first; None where nothing can be compared. The reward of one walk is its optimality, of several the
    number of walks that it beats: 1 and 0 for a pair, K-1 ... 0 for K distinct ones, equal for equally good ones."""
    order = sorted(range(len(walks)), key=lambda i: -optimality[i])
    best = optimality[order[0]]
    if len(walks) > 1 and best == optimality[order[-1]]:
        return None
    beaten = [float(sum(other < optimality[i] for other in optimality)) for i in order]
    rewards = beaten if len(walks) > 1 else optimality
    return Example(walks[0][0], [" ".join(walks[i][1:]) for i in order], rewards, {"optimality": best})


def node_tokenizer(settings: GraphSettings) -> Any:
    """One token per node, and <pad>, <unk>, </s> as 0, 1, 2. Text is letters with spaces between them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "</s>", *(chr(ord("a") + n) for n in range(settings.nodes))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


@hookimpl
def unified_datasets() -> list[Dataset]:
    """Offer the task as `data: random_walks`."""
    return [Dataset("random_walks", RandomWalksSettings, open=open_walks, tokenizer=node_tokenizer)]
