"""Runs: a stage that is done leaves a manifest and is skipped; what was cut off or changed runs again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.workshop import Workshop, write_base
from unified import PluginError, StageContext, UserError, hookimpl
from unified.console import RunConsole, duration, held_out, shown
from unified.manifest import Manifest, fingerprint_of, read_manifest, write_whole
from unified.recipe import load_recipe
from unified.registry import Catalogue, using
from unified.runner import Outcome, StoppedError, run_recipe

RECIPE = """
name: demo
model: ./iron
seed: 3
stages:
  one: {mark: a, data: rows.txt}
  two: {mark: b, model: stage:one}
  beside: {mark: c}
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    write_base(tmp_path / "iron")
    (tmp_path / "rows.txt").write_text("rows")
    (tmp_path / "r.yaml").write_text(RECIPE)
    made = Workshop()
    with using(made.catalogue()):
        yield made


def run(folder: Path, *sets: str, force: bool = False) -> list[Outcome]:
    quiet = RunConsole(Console(file=io.StringIO()), silent=True)
    return run_recipe(load_recipe(folder / "r.yaml", sets), folder / "out", force=force, console=quiet)


def manifest(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / stage / "manifest.json").read_text())
    return found


def test_each_stage_starts_from_what_its_reference_made(workshop: Workshop, tmp_path: Path) -> None:
    run(tmp_path)
    texts = {name: (tmp_path / "out" / name / "model" / "weights.safetensors").read_text() for name in workshop.ran}
    assert texts == {"one": "iron a", "two": "iron ab", "beside": "iron c"}


def test_the_manifest_tells_what_went_in_and_what_came_out_by_hash(workshop: Workshop, tmp_path: Path) -> None:
    run(tmp_path)
    one, two = manifest(tmp_path, "one"), manifest(tmp_path, "two")
    made = hashlib.sha256(b"iron a").hexdigest()
    assert one["inputs"]["base"]["sha256"]["weights.safetensors"] == hashlib.sha256(b"iron ").hexdigest()
    assert one["outputs"]["model/weights.safetensors"] == made
    assert two["inputs"]["stage:one"]["sha256"]["weights.safetensors"] == made
    assert one["files"] == {"rows.txt": hashlib.sha256(b"rows").hexdigest()}
    assert one["settings"]["learning_rate"] == 0.1  # a default, written out
    assert (one["name"], one["kind"], one["seed"], one["model"], one["model_kind"]) == (
        "one",
        "train",
        3,
        "model",
        "policy",
    )
    assert one["summary"] == {"eval/reward": 0.75, "eval/kl": 0.5}
    assert {"python", "torch", "transformers", "accelerate", "unified"} <= set(one["versions"])
    assert one["started"] <= one["finished"]
    assert one["seconds"] >= 0


def test_running_again_skips_everything_and_reuses_the_summaries(workshop: Workshop, tmp_path: Path) -> None:
    first = run(tmp_path)
    workshop.ran.clear()
    again = run(tmp_path)
    assert workshop.ran == []
    assert [(o.fresh, o.manifest) for o in again] == [(False, o.manifest) for o in first]


@pytest.mark.parametrize(
    ("change", "reruns"),
    [
        ("stages.one.mark=x", ["one", "two"]),
        ("stages.two.mark=x", ["two"]),
        ("stages.one.learning_rate=0.5", ["one"]),  # another setting, the same bytes: what depends on it stays
        ("seed=4", ["one", "two", "beside"]),
        ("description=words", []),
    ],
)
def test_a_change_reruns_its_stage_and_what_then_has_other_inputs(
    workshop: Workshop, tmp_path: Path, change: str, reruns: list[str]
) -> None:
    run(tmp_path)
    workshop.ran.clear()
    run(tmp_path, change)
    assert workshop.ran == reruns


FORK = """
name: fork
model: ./iron
stages:
  one: {mark: a}
  two: {mark: b, model: stage:one}
  three: {mark: c, model: stage:two}
  side: {mark: d, model: stage:one}
  four: {mark: e, model: stage:three}
  far: {mark: f, model: stage:side}
  beside: {mark: g}
"""


@pytest.mark.parametrize(
    ("changed", "reruns"),
    [
        ("one", ["one", "two", "three", "side", "four", "far"]),
        ("two", ["two", "three", "four"]),
        ("three", ["three", "four"]),
        ("side", ["side", "far"]),
        ("four", ["four"]),
        ("far", ["far"]),
        ("beside", ["beside"]),
    ],
)
def test_of_a_chain_with_a_side_branch_exactly_the_changed_stage_and_what_depends_on_it_run_again(
    workshop: Workshop, tmp_path: Path, changed: str, reruns: list[str]
) -> None:
    (tmp_path / "r.yaml").write_text(FORK)
    run(tmp_path)
    everything = list(workshop.ran)
    assert everything == ["one", "two", "three", "side", "four", "far", "beside"]
    workshop.ran.clear()
    outcomes = run(tmp_path, f"stages.{changed}.mark=x")
    assert workshop.ran == reruns
    assert [o.manifest.name for o in outcomes if o.fresh] == reruns
    assert [o.manifest.name for o in outcomes] == everything


def test_changed_data_or_another_base_model_reruns_what_used_it(workshop: Workshop, tmp_path: Path) -> None:
    run(tmp_path)
    workshop.ran.clear()
    (tmp_path / "rows.txt").write_text("other rows")
    run(tmp_path)
    assert workshop.ran == ["one"]
    workshop.ran.clear()
    write_base(tmp_path / "iron", text="tin ")
    run(tmp_path)
    assert workshop.ran == ["one", "two", "beside"]


@pytest.mark.parametrize("damage", ["edit", "delete"])
def test_a_result_that_was_changed_or_deleted_is_made_again(workshop: Workshop, tmp_path: Path, damage: str) -> None:
    run(tmp_path)
    workshop.ran.clear()
    weights = tmp_path / "out" / "one" / "model" / "weights.safetensors"
    weights.write_text("rust") if damage == "edit" else weights.unlink()
    run(tmp_path)
    assert workshop.ran == ["one"]  # the same bytes as before, so nothing else has other inputs
    assert weights.read_text() == "iron a"


def stop_in(name: str) -> Any:
    def during(stage: StageContext) -> None:
        if stage.name == name:
            (stage.folder / "checkpoint").mkdir(exist_ok=True)
            (stage.folder / "checkpoint" / "state").write_text("half way")
            raise KeyboardInterrupt

    return during


def test_ctrl_c_leaves_no_manifest_and_the_next_run_finds_the_unfinished_folder(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.during = stop_in("two")
    with pytest.raises(StoppedError, match=r"^two$"):
        run(tmp_path)
    assert read_manifest(tmp_path / "out" / "one") is not None
    assert read_manifest(tmp_path / "out" / "two") is None
    seen: list[str] = []
    workshop.ran.clear()
    workshop.during = lambda stage: seen.append((stage.folder / "checkpoint" / "state").read_text())
    with pytest.raises(PluginError):  # the third stage finds no checkpoint of its own
        run(tmp_path)
    assert workshop.ran == ["two", "beside"]
    assert seen == ["half way"]


def test_a_checkpoint_to_resume_from_is_dropped_once_the_stage_is_done(workshop: Workshop, tmp_path: Path) -> None:
    workshop.during = stop_in("one")
    with pytest.raises(StoppedError):
        run(tmp_path)
    workshop.during = lambda stage: None
    run(tmp_path)
    assert not (tmp_path / "out" / "one" / "checkpoint").exists()


def test_an_unfinished_folder_of_other_settings_is_cleared(workshop: Workshop, tmp_path: Path) -> None:
    workshop.during = stop_in("one")
    with pytest.raises(StoppedError):
        run(tmp_path)
    seen: list[list[str]] = []
    workshop.during = lambda stage: seen.append(sorted(p.name for p in stage.folder.iterdir()))
    run(tmp_path, "stages.one.mark=x")
    assert seen[0] == ["fingerprint", "metrics.jsonl"]
    assert (tmp_path / "out" / "one" / "metrics.jsonl").read_text() == "{}\n"  # not behind the line of the first run


def test_files_of_unknown_origin_are_not_deleted_unless_forced(workshop: Workshop, tmp_path: Path) -> None:
    run(tmp_path)
    notes = tmp_path / "out" / "one" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(
        UserError, match=r"out/one holds files that no earlier run is known to have written: notes\.txt"
    ):
        run(tmp_path, "stages.one.mark=x")
    assert notes.read_text() == "mine"
    run(tmp_path, "stages.one.mark=x", force=True)
    assert not notes.exists()


def test_a_folder_with_the_run_of_another_recipe_is_refused_unless_forced(workshop: Workshop, tmp_path: Path) -> None:
    run(tmp_path)
    workshop.ran.clear()
    with pytest.raises(UserError, match="holds the run of recipe 'demo', this is 'other'"):
        run(tmp_path, "name=other")
    assert workshop.ran == []
    run(tmp_path, "name=other", force=True)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["run"] == "other"


def test_a_run_folder_that_cannot_be_made_is_a_mistake_of_the_user(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recipe = load_recipe(tmp_path / "r.yaml")
    for output, said in (
        (tmp_path / "file", "is a file; a run needs a folder"),
        (tmp_path / "file" / "x", "cannot be made"),
    ):
        with pytest.raises(UserError, match=said):
            run_recipe(recipe, output)


def test_a_mistake_leaves_no_run_folder(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no stage 'tow' in the recipe"):
        run(tmp_path, "stages.tow.mark=x")
    assert not (tmp_path / "out").exists()


def test_events_come_in_order_with_stage_and_step(workshop: Workshop, tmp_path: Path) -> None:
    run(tmp_path, "stages.one.algorithm=anneal")
    assert workshop.heard[:3] == [
        ("stage_started", ("one", "train", ["anneal"])),
        ("step_finished", ("one", 2)),
        ("stage_finished", ("one", 0.75)),
    ]


def test_a_plugin_that_raises_in_an_event_is_named_with_hook_stage_and_step(workshop: Workshop, tmp_path: Path) -> None:
    class Listener:
        @hookimpl
        def step_finished(self, step: int) -> None:
            raise RuntimeError("deaf")

    expected = r"plugin 'listener' raised in step_finished \(stage 'one', step 2\): RuntimeError: deaf"
    both = Catalogue({"workshop": workshop, "listener": Listener()}, installed=False)
    with using(both), pytest.raises(PluginError, match=expected):
        run(tmp_path)


def test_a_stage_kind_that_raises_is_named_and_its_traceback_is_kept(workshop: Workshop, tmp_path: Path) -> None:
    def fail(stage: StageContext) -> None:
        raise ZeroDivisionError("cold")

    workshop.during = fail
    with pytest.raises(PluginError, match="stage 'one', after step 1: plugin workshop raised ZeroDivisionError: cold"):
        run(tmp_path)
    assert "in fail" in (tmp_path / "out" / "one" / "error.log").read_text()
    assert read_manifest(tmp_path / "out" / "one") is None


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "f", "old")

    def no_disk(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", no_disk)
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"


def test_the_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint_of(a=1, b={"c": 2, "d": 3}) == fingerprint_of(b={"d": 3, "c": 2}, a=1)
    assert fingerprint_of(a=1) != fingerprint_of(a=2)


def lines_of_progress(*steps: tuple[float, int]) -> list[str]:
    out, times = io.StringIO(), [0.0]
    console = RunConsole(Console(file=out, width=200))
    console.clock = lambda: times[0]
    console.stage_begins("s", 1, 1, "s: words", resumes=False)
    for seconds, step in steps:
        times[0] = seconds
        console.progress(step, 10, {"reward": 0.25, "tokens_per_second": 1234.5, "loss": 1.0})
    return out.getvalue().splitlines()[1:]


def test_without_a_terminal_a_line_comes_after_the_first_step_then_every_few_seconds_and_at_the_end() -> None:
    # at 6 s step 3 is two steps and 5 s after the first one: 2.5 s a step, 7 steps are left
    assert lines_of_progress((1.0, 1), (2.0, 2), (6.0, 3), (7.0, 4), (8.0, 10)) == [
        "s 1/10  reward 0.250  tokens/s 1234",
        "s 3/10  reward 0.250  tokens/s 1234  17.5 s left",
        "s 10/10  reward 0.250  tokens/s 1234",
    ]


def test_the_first_step_of_each_stage_has_its_line_at_once() -> None:
    out = io.StringIO()
    console = RunConsole(Console(file=out, width=200))
    console.clock = lambda: 0.0  # no time passes at all
    for name in ("a", "b"):
        console.stage_begins(name, 1, 2, f"{name}: words", resumes=False)
        console.progress(1, 3, {"loss": 1.0})
        console.progress(2, 3, {"loss": 1.0})
    assert out.getvalue().splitlines() == [
        "[1/2] a: words", "a 1/3  loss 1.0000", "[1/2] b: words", "b 1/3  loss 1.0000",
    ]  # fmt: skip


def test_warnings_are_counted_behind_the_table_with_where_their_texts_are(tmp_path: Path) -> None:
    out = io.StringIO()
    told = Manifest("one", "train", {}, "f", 0, summary={"warnings": {"no_spread": 3, "repetition": 1}})
    calm = Manifest("two", "train", {}, "f", 0)
    outcomes = [Outcome(manifest, tmp_path / manifest.name, fresh=True) for manifest in (told, calm)]
    RunConsole(Console(file=out, width=200)).table(outcomes, Path("out"))
    said = [line for line in out.getvalue().splitlines() if "warnings" in line]
    assert said == ["one: warnings: no_spread 3, repetition 1; their texts are in `unified status` out"]


def test_a_progress_line_shows_what_there_is() -> None:
    assert shown({"loss": 1.5}) == "loss 1.5000"
    assert (
        shown({"reward": 0.5, "kl": 0.01, "completions/mean_length": 12.25}) == "reward 0.500  kl 0.0100  length 12.2"
    )
    assert shown({"other": 1.0}) == ""


def test_the_table_prefers_reward_to_accuracy_to_loss() -> None:
    assert held_out({"eval/loss": 2.0, "eval/reward": 0.5, "last/reward": 9.0}) == "reward 0.500"
    assert held_out({"eval/loss": 2.0, "eval/rewards/accuracies": 0.75}) == "accuracy 0.750"
    assert held_out({"eval/loss": 2.0}) == "loss 2.000"
    assert held_out({"last/loss": 2.0}) == "-"
    assert held_out({"eval/loss": 2.0, "best_step": 3, "steps": 5}) == "loss 2.000 (step 3)"
    assert held_out({"eval/loss": 2.0, "best_step": 5, "steps": 5}) == "loss 2.000"


@pytest.mark.parametrize(("seconds", "text"), [(4.21, "4.2 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_times_read_as_a_person_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


SCRIPT = """
from tests.workshop import Workshop
from unified.cli import main
from unified.registry import using

with using(Workshop().catalogue()):
    main(["run", "r.yaml", "--output", "out"])
"""


@pytest.mark.slow
def test_of_two_processes_one_writes_and_speaks(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text(SCRIPT)
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "go.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one: done in") == done.stdout.count("The last model is in") == 1
    assert [manifest(tmp_path, name)["name"] for name in ("one", "two", "beside")] == ["one", "two", "beside"]
    assert run(tmp_path)[0].fresh is False  # one process finds the same fingerprints
