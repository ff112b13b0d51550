"""What the work of a stage costs: operations, memory by part, and where its time goes. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unified.devices import Hardware
from unified.memory import Memory, memory_of
from unified.pace import Pace, Servers, operations, pace_of
from unified.sizes import Size
from unified.spread import Spread
from unified.work import Work


@dataclass(frozen=True)
class Cost:
    """Operations, memory of one device, and where time goes on the hardware that was asked for (None: none was).

    sizes: of the models, by role and reference.
    """

    flops: float
    memory: Memory
    pace: Pace | None
    sizes: dict[tuple[str, str], Size]

    @property
    def seconds(self) -> float | None:
        """Of the whole stage."""
        return self.pace.total if self.pace is not None else None


def cost_of(
    work: Work,
    size: Callable[[str, bool], Size | None],
    on: Hardware | None,
    spread: Spread | None = None,
    servers: Servers | None = None,
) -> Cost | None:
    """The cost of a stage; `size(reference, is_scalar)` gives the size of a model. None where one is not known.

    spread: how state lies on the devices; without, every device has a whole copy. servers: what samples, where the
    stage's answers are sampled elsewhere.
    """
    sizes: dict[tuple[str, str], Size] = {}
    for job in work.jobs:
        found = size(job.model, job.scalar)
        if found is None:
            return None
        sizes[job.role, job.model] = found
    spread = spread or Spread("gpus", on.count if on else 1)
    flops = sum(operations(job, sizes[job.role, job.model], work) for job in work.jobs)
    pace = pace_of(work, sizes, on, spread, servers) if on is not None else None
    return Cost(flops, memory_of(work, sizes, spread), pace, sizes)
