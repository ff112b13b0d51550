"""Models at rest: what several processes answered stands in the order of the rows again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unified import bench
from unified.bench import Bench
from unified.processes import Processes


def on(rank: int, count: int) -> Any:
    """A bench that knows nothing but its place among the processes."""
    made: Any = object.__new__(Bench)
    processes: Any = object.__new__(Processes)
    processes.rank, processes.count = rank, count
    made.run = SimpleNamespace(processes=processes)
    return made


@pytest.mark.parametrize("rows", [0, 1, 5, 6])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shares_of_all_processes_make_the_rows_again(
    rows: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches = [on(rank, count) for rank in range(count)]
    shares = [b.run.processes.mine(range(rows)) for b in benches]
    monkeypatch.setattr(bench, "gather_object", lambda mine: list(enumerate(shares)))
    assert [b.together(s) for b, s in zip(benches, shares, strict=True)] == [list(range(rows))] * count
