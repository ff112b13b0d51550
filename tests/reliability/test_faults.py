"""A part that breaks is named with its plugin, stage, step and sample; mended, the run ends as if nothing had been."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.reliability.faults import FAULTS, ONLINE, Fault, inject, mended, straight_run

#: of every part the first fault, and all of the reward; the rest is slow
QUICK = [f for i, f in enumerate(FAULTS) if f.part == "reward" or f.part not in {g.part for g in FAULTS[:i]}]
SLOW = [f for f in FAULTS if f not in QUICK]


def test_the_table_has_every_part_and_every_way_to_break() -> None:
    parts = {"reward", "engine", "source", "filter", "coefficient", "loss", "credit", "statistics", "metrics", "update",
             "dataset", "event", "stage"}  # fmt: skip
    assert {f.part for f in FAULTS} == parts == {f.part for f in QUICK}
    assert {"raises", "hangs on one prompt", "wrong shape", "wrong type", "NaN", "wrong device"} <= {
        f.kind for f in FAULTS
    }
    assert max(Counter(f.name for f in FAULTS).values()) == 1


@pytest.mark.parametrize("fault", QUICK, ids=[f.name for f in QUICK])
def test_a_fault_is_named_and_stops_the_run_or_is_counted_and_left_out(fault: Fault, tmp_path: Path) -> None:
    became = inject(fault, tmp_path)
    assert became.wrong == (), became.said


@pytest.mark.slow
@pytest.mark.parametrize("fault", SLOW, ids=[f.name for f in SLOW])
def test_a_fault_of_the_other_kinds_is_named_too_and_the_run_goes_on_after_the_fix(
    fault: Fault, tmp_path: Path
) -> None:
    straight = straight_run(tmp_path / "straight", fault)
    (tmp_path / "broken").mkdir()
    became = inject(fault, tmp_path / "broken")
    assert became.wrong == (), became.said
    assert became.code == 0 or mended(fault, tmp_path / "broken", straight) == ()


def test_a_reward_that_broke_in_step_3_and_was_mended_ends_with_the_weights_of_a_run_that_never_broke(
    tmp_path: Path,
) -> None:
    fault = FAULTS[0]
    assert (fault.name, fault.recipe) == ("reward: raises", ONLINE)
    straight = straight_run(tmp_path / "straight", fault)
    assert straight
    assert all(torch.isfinite(value).all() for value in straight.values())
    (tmp_path / "broken").mkdir()
    assert inject(fault, tmp_path / "broken").code == 1
    assert sorted(p.name for p in (tmp_path / "broken" / "run" / "rl" / "checkpoint").iterdir())[-1] == "step-2"
    assert mended(fault, tmp_path / "broken", straight) == ()
