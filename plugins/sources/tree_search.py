"""Monte-Carlo tree search over steps: where the reward has been high, the search looks closer.

A simulation goes down from the prompt, at every node to the child of the highest Q + c √(ln N / n) (N visits of the
node, n of the child), continues the leaf it reaches `expand` times by one step, judges the new nodes, and adds their
values to all nodes above; Q is the mean. A node is worth what the reward says of the answer as written so far
(`judge: step`, for a process reward model), or of a whole answer that goes on from it (`judge: rollout`, for an outcome
reward). `steps` of each answer holds Q at the end of every step: labels for a process reward model.
Source: Kocsis and Szepesvari 2006 (UCT); over steps of language models Feng et al. 2023, arXiv:2309.17179, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from unified import DataSource, Field, PromptGroup, hookimpl
from unified_plugins.sources._search import UNJUDGED, Partial, Search, StepSettings, models


class TreeSearchSettings(StepSettings):
    """How far and how wide the search looks."""

    simulations: int = Field(16, ge=1, description="leaves that are continued, per prompt")
    expand: int = Field(4, ge=1, description="continuations sampled of each of them")
    exploration: float = Field(1.4, ge=0, description="c: weight of what has been looked at little")
    judge: Literal["step", "rollout"] = Field("step", description="what is judged: the node, or an answer from it on")


@dataclass
class Node:
    """A partial answer in the tree: visits and sum of values of itself and of all below it."""

    partial: Partial
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Q, 0 before the first visit."""
        return self.total / self.visits if self.visits else 0.0

    @property
    def known(self) -> float:
        """What the node itself is worth; where it could not be judged, what is known of the one above it."""
        return self.parent.mean if self.partial.value == UNJUDGED and self.parent else self.partial.value

    def leaf(self, exploration: float) -> Node:
        """Where the next simulation goes: a node below without children."""
        if not self.children:
            return self
        seen = math.log(max(self.visits, 1))

        def bound(child: Node) -> float:
            return child.mean + exploration * math.sqrt(seen / child.visits) if child.visits else math.inf

        return max(self.children, key=bound).leaf(exploration)

    def back_up(self, value: float) -> None:
        """Add a value to the node and all above it."""
        node: Node | None = self
        while node is not None:
            node.visits += 1
            node.total += value
            node = node.parent

    def path(self) -> Iterator[Node]:
        """From the first step down to this node."""
        if self.parent is not None:
            yield from self.parent.path()
            yield self


def collect(
    prompts: list[PromptGroup],
    settings: TreeSearchSettings,
    sample: Any,
    models: Mapping[str, Any],
    folder: Path | None = None,
) -> list[PromptGroup]:
    """The best `keep` whole answers that were met, the best first, each with `steps` and `search_tokens`."""
    search = Search(prompts, settings, sample, models, folder)
    roots = [Node(Partial()) for _ in prompts]
    met: list[dict[tuple[int, ...], tuple[Partial, Node]]] = [{} for _ in prompts]
    for _ in range(settings.simulations):
        leaves = [(i, root.leaf(settings.exploration)) for i, root in enumerate(roots)]
        for _, leaf in leaves:
            if leaf.partial.done:  # nothing goes on from it: it is looked at once more, so that others get their turn
                leaf.back_up(leaf.known)
        open_ = [(i, leaf) for i, leaf in leaves if not leaf.partial.done]
        grown = search.step([(i, leaf.partial) for i, leaf in open_], settings.expand)
        for (_, leaf), partials in zip(open_, grown, strict=True):
            leaf.children = [Node(p, leaf) for p in partials]
        _judge(search, [(i, child) for i, leaf in open_ for child in leaf.children], met, settings)
    return _groups(search, met)


def _judge(
    search: Search,
    new: Sequence[tuple[int, Node]],
    met: list[dict[tuple[int, ...], tuple[Partial, Node]]],
    settings: TreeSearchSettings,
) -> None:
    """Value the new nodes, back the values up, and note the whole answers that were met."""
    rolled = [(i, child) for i, child in new if settings.judge == "rollout" and not child.partial.done]
    whole = {id(child): p for (_, child), (p,) in zip(
        rolled, search.whole([(i, child.partial) for i, child in rolled], 1), strict=True)}  # fmt: skip
    asked: list[list[tuple[Node, Partial]]] = [[] for _ in search.prompts]
    for i, child in new:
        asked[i].append((child, whole.get(id(child), child.partial)))
    judged = search.judged([[p for _, p in pairs] for pairs in asked])
    for i, (pairs, values) in enumerate(zip(asked, judged, strict=True)):
        for (child, _), partial in zip(pairs, values, strict=True):
            if partial.value == UNJUDGED:  # it is a leaf without a value, never gone to again while others are there
                child.partial = replace(child.partial, done=True)
                continue
            if child.partial.ids == partial.ids:
                child.partial = partial
            child.back_up(partial.value)
            if partial.done:
                met[i].setdefault(partial.ids, (partial, child))


def _groups(search: Search, met: list[dict[tuple[int, ...], tuple[Partial, Node]]]) -> list[PromptGroup]:
    """The best answers that were met, with the values of the nodes on their way."""
    groups = search.groups([[partial for partial, _ in found.values()] for found in met])
    for group, found in zip(groups, met, strict=True):
        for answer in group.answers:
            node = found[tuple(answer.ids)][1]
            answer.steps = [(len(step.partial.ids), step.mean) for step in node.path()]
            if node.partial.ids != tuple(answer.ids):  # a rollout went on from the node: its end is judged as well
                answer.steps.append((len(answer.ids), answer.total_reward or 0.0))
    return groups


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer it as `source: {name: tree_search, simulations: 16, reward: ...}`."""
    return [DataSource("tree_search", TreeSearchSettings, collect=collect, models=models, online=True)]
