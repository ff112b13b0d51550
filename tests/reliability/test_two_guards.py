"""What one of two processes meets, both stop for, or both leave out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def both(folder: Path, policy: str, where: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0",
              "--standalone", "-m", "tests.reliability.two_guards", str(folder), policy, where]  # fmt: skip
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["reward", "coefficient"])
def test_both_processes_stop_with_the_sentence_of_the_one_that_met_it(tmp_path: Path, where: str) -> None:
    first, second = both(tmp_path, "stop", where)
    assert first["error"] == second["error"]
    name = "reward 'vowels'" if where == "reward" else "algorithm 'clipped'"
    assert first["error"].startswith("stage 'test', step 2: ")
    assert name in first["error"].splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["reward", "coefficient"])
def test_both_processes_leave_it_out_warn_alike_and_end_with_the_same_weights(tmp_path: Path, where: str) -> None:
    first, second = both(tmp_path, "skip", where)
    assert first == second
    assert (first["step"], first["in_a_row"]) == (4, 0)
    assert len(first["warnings"]) == 1
    rows = [json.loads(line) for line in (tmp_path / "shared" / "metrics.jsonl").read_text().splitlines()]
    assert [r.get(f"nonfinite/{where}", 0.0) for r in rows] == [0.0, 1.0, 0.0, 0.0]
    assert [r.get("steps_skipped", 0.0) for r in rows] == [0.0, float(where == "coefficient"), 0.0, 0.0]
