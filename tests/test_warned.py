"""Warnings stand in the stage's folder with what to do, and are told at the terminal once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.reliability.test_signs import TROUBLE, shows, watch_after
from unified.guard import MEND, warn
from unified.signs import PATIENCE, SIGNS, Watch
from unified.warned import WARNINGS, parted, read_warnings, write_warning


def run_in(folder: Path, *, main: bool = True) -> Any:
    """As much of a run as `warn` looks at; what is told to the person and to plugins is in `said` and `heard`."""
    said: list[str] = []
    heard: list[dict[str, Any]] = []

    def notify(event: str, **about: Any) -> None:
        heard.append({"event": event, **about})

    stage = SimpleNamespace(name="one", folder=folder, say=said.append, notify=notify)
    accelerator = SimpleNamespace(is_main_process=main)
    return SimpleNamespace(stage=stage, accelerator=accelerator, watch=Watch(), step=7, said=said, heard=heard)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / WARNINGS).read_text().splitlines()]


@pytest.mark.parametrize("kind", sorted(SIGNS))
def test_every_sign_says_what_is_seen_and_then_what_to_do(kind: str) -> None:
    (sign,) = shows(watch_after(), *[TROUBLE[kind][0]] * PATIENCE)[-1]
    seen, remedy = parted(sign.message)
    assert 20 < len(seen) < 200
    assert len(remedy) > 40
    assert "arXiv" not in seen, "the source belongs to what is done about it"


def test_a_kind_is_told_at_the_terminal_once_and_each_time_in_the_log(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    for time in (1, 2):
        run.watch.told["no_spread"] = time
        warn(run, "no_spread", "all the same. Take others", {"share": 1.0})
    assert run.said == ["warning: one, step 7: all the same. Take others"]
    assert [about["kind"] for about in run.heard] == ["no_spread"] * 2
    row = {"stage": "one", "step": 7, "kind": "no_spread", "message": "all the same", "values": {"share": 1.0}}
    assert lines(tmp_path) == [{**row, "remedy": "Take others"}] * 2


def test_what_is_not_finite_is_another_thing_each_time_and_told_each_time_as_a_whole(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    warn(run, "nonfinite", "reward of judge is nan for prompt 'A. B'", {"reward": 1.0})
    warn(run, "nonfinite", "logp of the policy is nan", {"logp": 2.0})
    assert len(run.said) == 2
    first, second = lines(tmp_path)
    assert (first["message"], first["remedy"]) == ("reward of judge is nan for prompt 'A. B'", MEND)
    assert second["step"] == 8  # of the step that was under way


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    warn(run_in(tmp_path, main=False), "no_spread", "all the same. Take others", {})
    assert not (tmp_path / WARNINGS).exists()


def test_the_log_is_read_by_kind_in_order_without_half_a_line(tmp_path: Path) -> None:
    assert read_warnings(tmp_path) == ([], 0)
    for step, kind in ((3, "b"), (4, "a"), (9, "b")):
        write_warning(tmp_path, stage="one", step=step, kind=kind, message=f"m{step}", values={}, remedy="r")
    with (tmp_path / WARNINGS).open("a") as file:
        file.write('{"kind": "b"}\nnot json\n{"kind": "b", "st')
    told, unreadable = read_warnings(tmp_path)
    assert [(t.kind, t.message, t.times, t.first, t.last) for t in told] == [("b", "m3", 2, 3, 9), ("a", "m4", 1, 4, 4)]
    assert unreadable == 2
