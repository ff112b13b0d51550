"""How a batch reaches the other processes, and how they keep in step, through accelerate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

T = TypeVar("T")


class Processes:
    """A `Reach` over all processes of an accelerator."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count = accelerator.num_processes
        self.rank = accelerator.process_index

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over processes."""
        return x if self.count == 1 else self.accelerator.reduce(x.clone(), "sum")

    def gather(self, x: Tensor) -> Tensor:
        """Concatenation over processes, in rank order; each may bring another number of rows."""
        if self.count == 1:
            return x
        rows = self.most(len(x))
        sizes = self.accelerator.gather(torch.tensor([len(x)], device=x.device)).tolist()
        filled = torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))])
        together = self.accelerator.gather(filled).view(self.count, rows, *x.shape[1:])
        return torch.cat([part[:size] for part, size in zip(together, sizes, strict=True)])

    def most(self, n: int) -> int:
        """The largest n of any process."""
        if self.count == 1:
            return n
        numbers = self.accelerator.gather(torch.tensor([n], device=self.accelerator.device))
        return int(numbers.max())

    def mine(self, items: Sequence[T]) -> list[T]:
        """This process's share of what all were given: every count-th item."""
        return list(items[self.rank :: self.count])

    def lists(self, items: list[T]) -> list[T]:
        """The items of all processes, in rank order."""
        if self.count == 1:
            return items
        together: list[T] = gather_object(items)
        return together

    def totals(self, sums: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """{name: (sum, count)} added up over processes; names may differ between them."""
        if self.count == 1:
            return sums
        out: dict[str, tuple[float, float]] = {}
        everyone: list[Any] = gather_object([sums])
        for part in everyone:
            for name, (value, number) in part.items():
                before = out.get(name, (0.0, 0.0))
                out[name] = (before[0] + value, before[1] + number)
        return out


def lost_another(error: BaseException) -> bool:
    """Whether an error is of a process whose companion has gone while they talked: a consequence, not a cause."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.distributed.DistError):
            return True
        if isinstance(seen, RuntimeError) and "gloo/transport" in str(seen):  # gloo raises no class of its own
            return True
        seen = seen.__cause__ or seen.__context__
    return False
