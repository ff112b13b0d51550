"""Weights shared out among processes, by FSDP2 and by ZeRO-3, are trained, saved, resumed and written as in one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.processes.cases import CUT, CUT_AFTER, CUT_OFF
from tests.processes.sharded import ONLY, SHARDED, cases_of
from tests.processes.test_equal import differences, lines
from tests.tools import relative
from unified.checkpoint import steps_in

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
#: kind of launch -> its environment, and how many processes
KINDS = {
    "fsdp2": ({"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, 2),
    "zero3-1": ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 1),
    "zero3-2": ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 2),
    "zero2-2": ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, 2),
}
#: who goes on with what was cut off: one process with what ZeRO-2 began, FSDP2 with what one process began, ...
CHAIN = ("plain", *KINDS)
#: weights in bfloat16 differ by its rounding: another cast of the same float32 weight
BOUNDS = {"bf16": 2e-2}


def launch(kind: str, python: Path | str, folder: Path | str, cut: Path) -> None:
    """One launch: all cases into `folder`, then what was cut off in `cut`."""
    extra, number = KINDS.get(kind, ({"ACCELERATE_USE_CPU": "true"}, 1))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}
    if "deepspeed" in str(python):
        environment |= {"DS_ACCELERATOR": "cpu"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    many = torchrun if kind in KINDS else []
    command = [str(python), *many, "-m", "tests.processes.sharded", str(folder), str(cut)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{kind}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, deepspeed: Path) -> Iterator[Path]:
    """KIND/CASE of every launch; what KIND had cut off went on in the next of CHAIN, and lies in KIND-went-on."""
    folder = tmp_path_factory.mktemp("sharded")
    whole = folder / "whole"
    launch("plain", sys.executable, folder / "plain", whole)  # nothing was cut off there: it runs from the beginning
    for before, kind in zip(CHAIN, (*KINDS, "plain"), strict=True):
        went_on = shutil.copytree(folder / before, folder / f"{before}-went-on")
        assert all(steps_in(went_on / CUT_OFF / name / "checkpoint") for name in CUT), before
        python = deepspeed if kind.startswith("zero") else sys.executable
        launch(kind, python, folder / kind if kind != "plain" else "-", went_on)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in cases_of(kind)])
def test_gradient_metrics_and_the_written_models_are_those_of_one_process(runs: Path, kind: str, name: str) -> None:
    one, many, bound = runs / "plain" / name, runs / kind / name, BOUNDS.get(name, 1e-5)
    gradients = [load_file(folder / "found.safetensors")["gradient"] for folder in (one, many)]
    assert gradients[0].norm() > 1e-4
    assert relative(gradients[1], gradients[0]) < bound
    written = sorted(path.relative_to(one) for path in one.glob("*/*model.safetensors"))
    assert Path("model") in {path.parent for path in written}
    for path in written:
        first, second = load_file(one / path), load_file(many / path)
        assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
        assert max(relative(second[k], first[k]) for k in first) < 10 * bound, path  # of single tensors
    assert differences(lines(one / "metrics.jsonl"), lines(many / "metrics.jsonl"), max(bound, 1e-4)) == []


def test_every_case_is_one_that_some_kind_runs_and_the_broken_row_costs_a_step_in_each_pass(runs: Path) -> None:
    assert {name for names in ONLY.values() for name in names} <= SHARDED.keys()
    rows = lines(runs / "plain" / "a step left out" / "metrics.jsonl")
    assert [row.get("steps_skipped", 0.0) for row in rows].count(1.0) == 2
    assert sum("grad_norm" in row for row in rows) == 2
    assert all(row["nonfinite/coefficient"] == 1.0 for row in rows if "grad_norm" not in row)


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("before", CHAIN)
def test_what_one_launch_began_another_ends_as_if_it_had_not_been_cut_off(runs: Path, before: str, name: str) -> None:
    whole, went_on = (runs / folder / CUT_OFF / name for folder in ("whole", f"{before}-went-on"))
    models = [load_file(folder / "model" / "model.safetensors") for folder in (whole, went_on)]
    assert max(relative(models[1][k], models[0][k]) for k in models[0]) < 1e-4
    assert differences(lines(whole / "metrics.jsonl"), lines(went_on / "metrics.jsonl"), 1e-4) == []


@pytest.mark.parametrize("kind", [k for k, (_, number) in KINDS.items() if number == 2])
def test_each_process_writes_its_half_of_a_checkpoint(runs: Path, kind: str) -> None:
    folder = runs / kind / CUT_OFF / next(iter(CUT)) / "checkpoint" / f"step-{CUT_AFTER}"
    numbers = []
    for rank in (0, 1):
        with safe_open(folder / f"tensors-{rank}.safetensors", framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("optimizer/")]  # noqa: SIM118
            numbers.append(sum(file.get_slice(name).get_shape()[0] for name in names))
    assert min(numbers) > 0.4 * sum(numbers)
