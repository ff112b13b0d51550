"""The order of the groups of all processes, where a source makes several groups of one prompt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unified.collected import _parts
from unified.data import PromptGroup
from unified.dealt import places, share_of

#: draws of the groups of a batch: two, three and one of a prompt; and of a source that leaves draws out
DRAWS = [[4, 4, 5, 5, 5, 6], [6, 7], [-1, -1, -1, -1]]


def batch(draws: list[int]) -> list[PromptGroup]:
    return [PromptGroup([1], [], key=number, draw=draw) for number, draw in enumerate(draws)]


def together(shares: list[list[PromptGroup]]) -> list[int]:
    """The keys in the order that processes with these shares agree on."""
    sent = [[[g.draw, i, rank] for i, g in enumerate(own)] for rank, own in enumerate(shares)]
    everyone = torch.tensor([row for own in sent for row in own])
    found: dict[int, int] = {}
    for rank, own in enumerate(shares):
        reach: Any = SimpleNamespace(
            count=len(shares), rank=rank, gather=lambda _: everyone, accelerator=SimpleNamespace(device="cpu")
        )
        where, number = places(reach, own)
        assert number == len(everyone)
        found |= dict(zip(where, (g.key for g in own), strict=True))
    return [found[place] for place in sorted(found)]


def dealt(groups: list[PromptGroup], count: int) -> list[list[PromptGroup]]:
    return [share_of(SimpleNamespace(count=count, rank=rank), groups) for rank in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("draws", DRAWS)
def test_every_group_has_one_process_and_the_order_is_that_of_one(draws: list[int], count: int) -> None:
    groups = batch(draws)
    assert together(dealt(groups, count)) == [g.key for g in groups]


@pytest.mark.parametrize("count", [2, 3])
def test_what_a_filter_drops_does_not_change_the_order_of_the_others(count: int) -> None:
    # dealt out one by one, without group 0 the second of draw 4 would be taken for a later one than the third
    groups = batch([4, 4, 4, 5, 5, 5])
    for dropped in range(6):
        kept = [[g for g in own if g.key != dropped] for own in dealt(groups, count)]
        assert together(kept) == [g.key for g in groups if g.key != dropped]


def test_prompts_of_one_group_each_are_dealt_out_in_turn() -> None:
    assert [[g.key for g in own] for own in dealt(batch([3, 4, 5, 6, 7]), 2)] == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("draws", DRAWS)
def test_a_batch_that_was_put_away_comes_back_in_the_same_order(draws: list[int], count: int) -> None:
    groups = batch(draws)
    kept: dict[str, list[list[PromptGroup]]] = {"shares": dealt(groups, count)}
    kept["in turn"] = [groups[rank::count] for rank in range(count)]  # as it is after one more restart
    for shares in kept.values():
        states = [{"groups": [{"key": g.key, "draw": g.draw, "answers": []} for g in own]} for own in shares]
        order = sorted(_parts(states), key=lambda part: part.place)
        assert [part.group["key"] for part in order] == [g.key for g in groups]
