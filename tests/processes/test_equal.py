"""Two processes do what one does: gradient, metrics, samples, weights; and what one has begun the other finishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes.cases import CASES, CUT, CUT_AFTER, CUT_OFF, WHOLE, go_on, run_all
from tests.tools import relative
from unified.checkpoint import steps_in

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FIVE = list(CASES)[:5]
CUT_AT = {name: [f"step-{CUT_AFTER}" + ("-within" if "within" in name else "")] for name in CUT}
#: metrics that tell of the clock
TIMED = ("seconds", "tokens_per_second")
WHAT = [*CASES, *(f"{name} in float32" for name in FIVE)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `1` and `2`: all cases by so many processes; what was cut off in each was finished by the others."""
    folder = tmp_path_factory.mktemp("processes")
    run_all(folder / "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m",
              "tests.processes.cases", str(folder / "2"), str(folder / "1")]  # fmt: skip
    assert cut_off_at(folder / "1") == CUT_AT  # before the others go on there
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert cut_off_at(folder / "2") == CUT_AT
    go_on(folder / "2")
    return folder


def cut_off_at(folder: Path) -> dict[str, list[str]]:
    """The checkpoints of the runs that were cut off."""
    return {name: steps_in(folder / CUT_OFF / name / "checkpoint") for name in CUT}


def lines(file: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def differences(one: list[dict[str, Any]], two: list[dict[str, Any]], bound: float) -> list[str]:
    """What differs between two files of metrics by more than `bound`, of each number or absolutely below 1."""
    out = [] if len(one) == len(two) else [f"{len(one)} and {len(two)} lines"]
    for number, (a, b) in enumerate(zip(one, two, strict=False), 1):
        for key in sorted({*a, *b} - set(TIMED)):
            x, y = a.get(key), b.get(key)
            if x is None or y is None or not abs(x - y) <= bound * max(1.0, abs(x)):
                out.append(f"line {number}: {key} is {x} and {y}")
    return out


def bound_of(name: str) -> float:
    """float64 leaves nothing of the order of sums; float32 what the issue of several processes allows."""
    return 1e-5 if name.endswith("float32") else 1e-9


@pytest.mark.parametrize("name", WHAT)
def test_gradient_of_the_first_step_and_final_weights_are_those_of_one_process(runs: Path, name: str) -> None:
    one, two = (load_file(runs / number / name / "found.safetensors") for number in "12")
    assert one["gradient"].norm() > 1e-4
    assert relative(two["gradient"], one["gradient"]) < bound_of(name)
    assert relative(two["weights"], one["weights"]) < bound_of(name)


@pytest.mark.parametrize("name", WHAT)
def test_every_line_of_the_metrics_is_that_of_one_process(runs: Path, name: str) -> None:
    one, two = (lines(runs / number / name / "metrics.jsonl") for number in "12")
    assert len(one) >= 2
    assert differences(one, two, 1e-3 if name.endswith("float32") else 1e-6) == []


@pytest.mark.parametrize("name", WHAT)
def test_the_summary_is_that_of_one_process(runs: Path, name: str) -> None:
    one, two = (json.loads((runs / number / name / "summary.json").read_text()) for number in "12")
    for summary in (one, two):
        for key in TIMED:
            summary.pop(f"last/{key}", None)
    numbers = {key for key, value in one.items() if isinstance(value, float)}
    assert {k: v for k, v in one.items() if k not in numbers} == {k: v for k, v in two.items() if k not in numbers}
    wanted = {key: pytest.approx(one[key], rel=1e-3, abs=1e-4) for key in numbers}
    assert {key: two[key] for key in numbers} == wanted


@pytest.mark.parametrize("name", CASES)
def test_samples_are_the_first_of_the_batch_whoever_has_made_them(runs: Path, name: str) -> None:
    one, two = (lines(runs / number / name / "samples.jsonl") for number in "12")
    assert len(one) >= 4
    assert one == two


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("begun_by", ["1", "2"])
def test_a_run_that_some_processes_began_others_finish_to_the_same_weights(
    runs: Path, name: str, begun_by: str
) -> None:
    whole = load_file(runs / "1" / WHOLE / name / "found.safetensors")["weights"]
    ended = load_file(runs / begun_by / CUT_OFF / name / "found.safetensors")["weights"]
    assert relative(ended, whole) < 1e-9
    steps = [row["step"] for row in lines(runs / begun_by / CUT_OFF / name / "metrics.jsonl")]
    assert steps == [row["step"] for row in lines(runs / "1" / WHOLE / name / "metrics.jsonl")]
    assert max(steps) > CUT_AFTER


def test_the_best_weights_are_neither_the_first_nor_the_last(runs: Path) -> None:
    summary = json.loads((runs / "1" / "evaluated, the best kept" / "summary.json").read_text())
    assert 0 < summary["best_step"] <= summary["steps"]


def test_something_was_dropped_and_refilled(runs: Path) -> None:
    rows = lines(runs / "1" / "dropped and refilled" / "metrics.jsonl")
    assert sum(row.get("refilled", 0.0) for row in rows) > 0
    assert torch.isfinite(torch.tensor([row["loss"] for row in rows])).all()
