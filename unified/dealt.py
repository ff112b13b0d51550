"""The groups of all processes in one order, so that what is taken of them does not depend on who has which."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unified.data import PromptGroup
from unified.processes import Processes


def share_of(processes: Processes, groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    """This process's share of groups that all processes have: the prompts in turn.

    A source may make several groups of one prompt. They stay together, so that their order is known in one process
    whatever is dropped of them.
    """
    turns: dict[tuple[int, int], int] = {}
    keys = [(group.draw, -1) if group.draw >= 0 else (-1, i) for i, group in enumerate(groups)]
    numbers = [turns.setdefault(key, len(turns)) for key in keys]
    return [g for number, g in zip(numbers, groups, strict=True) if number % processes.count == processes.rank]


def places(processes: Processes, groups: Sequence[PromptGroup]) -> tuple[list[int], int]:
    """Where this process's groups stand among those of all processes, and how many these are. All must ask.

    The order is that of one process: as the prompts were drawn. Groups of one draw are in one process (`share_of`), or
    follow each other as they were dealt out, in turn.
    """
    if processes.count == 1:
        return list(range(len(groups))), len(groups)
    own = [[group.draw, i, processes.rank] for i, group in enumerate(groups)]
    device = processes.accelerator.device
    everyone = processes.gather(torch.tensor(own, dtype=torch.long, device=device).reshape(-1, 3)).tolist()
    place = {(i, rank): number for number, (_, i, rank) in enumerate(sorted(everyone))}
    return [place[i, processes.rank] for i in range(len(groups))], len(everyone)


def first_of(processes: Processes, groups: Sequence[PromptGroup], number: int) -> list[PromptGroup]:
    """This process's groups among the first `number` of all. All must ask."""
    own, _ = places(processes, groups)
    return [group for place, group in zip(own, groups, strict=True) if place < number]
