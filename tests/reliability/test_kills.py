"""Whoever pulls the plug, wherever: the run that goes on ends as the one that was left alone, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.kills import ALONE, OUTSIDE, PLACES, RESUMING, differences

ROOT = Path(__file__).resolve().parents[2]


def killed(points: int, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.reliability.kills", "--points", str(points), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_runs_that_are_killed_at_six_points_end_as_the_one_that_was_left_alone() -> None:
    found = killed(6, "--forks-only", "--seed", "1")
    assert (found["points"], found["equal"]) == (6, 6)
    assert {OUTSIDE, RESUMING} < found["by_place"].keys()


@pytest.mark.slow
def test_runs_that_are_killed_at_fifty_points_in_every_place_end_as_the_one_that_was_left_alone() -> None:
    found = killed(50)
    assert (found["points"], found["equal"]) == (50, 50)
    assert found["by_place"].keys() == {*PLACES, OUTSIDE, ALONE, RESUMING}
    assert found["by_place"][ALONE]["points"] >= 5


def test_the_comparison_sees_a_bit_a_missing_file_and_a_metric_and_not_a_clock(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"0123")
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 0.5, "seconds": {ord(name)}}}\n')
        manifest = {"started": name, "summary": {"last/tokens_per_second": ord(name), "last/loss": 0.5}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    assert list(differences(tmp_path / "a", tmp_path / "b")) == []
    (tmp_path / "b" / "model.safetensors").write_bytes(b"0122")
    (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.50000001, "seconds": 1}\n')
    (tmp_path / "b" / "left").touch()
    manifest = {"started": "b", "summary": {"last/loss": 0.6}}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    assert list(differences(tmp_path / "a", tmp_path / "b")) == [
        "left: only in one", "manifest.json: other content", "metrics.jsonl: other content",
        "model.safetensors: other content",
    ]  # fmt: skip
