"""`unified status` and what `unified plan` says of the stages: done, cut off, stale, new, and why."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.workshop import Workshop, write_base
from unified import StageContext, UserError
from unified.check import check_recipe
from unified.cli import app
from unified.console import RunConsole
from unified.recipe import load_recipe
from unified.registry import using
from unified.runner import StoppedError, run_recipe
from unified.status import Status, status_of
from unified.survey import survey

RECIPE = """
name: demo
model: ./iron
stages:
  one: {mark: a, data: rows.txt, hammers: [{weight: 1}]}
  two: {mark: b, model: stage:one}
  three: {mark: c, model: stage:two}
  beside: {mark: d}
"""
NAMES = ("one", "two", "three", "beside")


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    write_base(tmp_path / "iron")
    (tmp_path / "rows.txt").write_text("rows")
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    made = Workshop()
    with using(made.catalogue()):
        yield made


def run(*sets: str) -> None:
    run_recipe(load_recipe(Path("r.yaml"), sets), Path("out"), console=RunConsole(Console(file=io.StringIO())))


def foreseen(*sets: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """State and reasons of every stage, as `plan` sees them."""
    plan = check_recipe(load_recipe(Path("r.yaml"), sets))
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(".").rglob("*"))
    found = {f.stage.name: (f.state, f.why) for f in survey(plan, Path("out"), check_recipe)}
    assert sorted((p, p.stat().st_mtime_ns) for p in Path(".").rglob("*")) == before, "it wrote something"
    return {name: (str(state), why) for name, (state, why) in found.items()}


def words(status: Status) -> dict[str, str]:
    return {f.stage.name: status.word(f) for f in status.findings}


def unified(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_before_a_run_every_stage_is_new_and_after_it_done(workshop: Workshop) -> None:
    assert foreseen() == dict.fromkeys(NAMES, ("new", ("not run yet",)))
    run()
    assert foreseen() == dict.fromkeys(NAMES, ("done", ()))


@pytest.mark.parametrize(
    ("change", "stage", "why"),
    [
        ("stages.one.mark=x", "one", "mark: a → x"),
        ("stages.one.hammers.0.weight=2", "one", "hammers.0.weight: 1 → 2"),
        ("stages.one.learning_rate=1", "one", "learning_rate: 0.1 → 1.0"),
        ("seed=7", "beside", "seed: 0 → 7"),
    ],
)
def test_a_changed_setting_is_named_with_both_values(workshop: Workshop, change: str, stage: str, why: str) -> None:
    run()
    state, reasons = foreseen(change)[stage]
    assert (state, reasons) == ("changed", (why,))


def test_a_part_that_was_chosen_since_is_named_with_its_settings(workshop: Workshop) -> None:
    run()
    state, reasons = foreseen("stages.three.algorithm=anneal")["three"]
    assert (state, reasons) == ("changed", ("algorithm.degrees: none → 20.0", "algorithm.name: none → anneal"))


def test_what_depends_on_a_changed_stage_is_told_to_depend_on_its_result(workshop: Workshop) -> None:
    run()
    found = foreseen("stages.one.mark=x")
    assert found["two"] == ("depends", ("only if stage 'one' makes something else",))
    assert found["three"] == ("depends", ("only if stage 'two' makes something else",))
    assert found["beside"] == ("done", ())


def test_changed_data_and_a_changed_base_model_are_named(workshop: Workshop, tmp_path: Path) -> None:
    run()
    (tmp_path / "rows.txt").write_text("other")
    assert foreseen()["one"] == ("changed", ("file rows.txt: other content",))
    write_base(tmp_path / "iron", text="tin ")
    assert foreseen()["beside"] == ("changed", ("input base: other content",))


def test_a_result_that_was_tampered_with_is_found(workshop: Workshop, tmp_path: Path) -> None:
    run()
    (tmp_path / "out" / "three" / "model" / "weights.safetensors").write_text("rust")
    assert foreseen()["three"] == ("changed", ("its result was changed or is incomplete",))


def test_the_survey_foresees_exactly_what_then_runs(workshop: Workshop) -> None:
    run()
    for change in ("stages.two.mark=x", "stages.beside.mark=y", "seed=4"):
        expected = {name for name, (state, _) in foreseen(change).items() if state == "changed"}
        may = {name for name, (state, _) in foreseen(change).items() if state == "depends"}
        workshop.ran.clear()
        run(change)
        assert expected <= set(workshop.ran) <= expected | may
        run()


def cut_off(name: str, *, checkpoint: bool) -> Any:
    def during(stage: StageContext) -> None:
        if stage.name == name:
            (stage.folder / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"st')
            if checkpoint:
                (stage.folder / "checkpoint").mkdir()
            raise KeyboardInterrupt

    return during


@pytest.mark.parametrize(
    ("checkpoint", "why"),
    [(True, "goes on from its checkpoint"), (False, "no checkpoint yet; starts over")],
)
def test_a_stage_that_was_cut_off_is_told_with_its_last_step(workshop: Workshop, checkpoint: bool, why: str) -> None:
    workshop.during = cut_off("two", checkpoint=checkpoint)
    with pytest.raises(StoppedError):
        run()
    status = status_of(Path("out"))
    assert words(status) == {"one": "done", "two": "interrupted", "three": "to do", "beside": "to do"}
    two = status.findings[1]
    assert (two.step, two.why) == (4, (why,))
    assert foreseen("stages.two.mark=x")["two"] == (
        "interrupted",
        ("begun with other settings or inputs; starts over",),
    )


def test_while_a_run_goes_on_its_stage_is_running_and_its_process_is_named(workshop: Workshop) -> None:
    seen: list[Status] = []

    def look(stage: StageContext) -> None:
        if stage.name == "two":
            seen.append(status_of(Path("out")))

    workshop.during = look
    run()
    assert words(seen[0]) == {"one": "done", "two": "running", "three": "to do", "beside": "to do"}
    assert seen[0].holder is not None
    assert status_of(Path("out")).holder is None


def test_a_recipe_that_was_edited_since_makes_stages_stale(workshop: Workshop, tmp_path: Path) -> None:
    run("stages.beside.mark=z")  # what was given on the command line still counts
    (tmp_path / "r.yaml").write_text(RECIPE.replace("mark: b", "mark: q"))
    status = status_of(Path("out"))
    assert words(status) == {"one": "done", "two": "stale", "three": "done, may be stale", "beside": "done"}
    result = unified("status", "out")
    assert result.exit_code == 0
    assert "demo: not running" in result.stdout
    assert "mark: b → q" in result.stdout


def test_without_its_recipe_file_a_run_is_compared_with_the_recipe_as_it_was_run(
    workshop: Workshop, tmp_path: Path
) -> None:
    run()
    (tmp_path / "r.yaml").unlink()
    status = status_of(Path("out"))
    assert set(words(status).values()) == {"done"}
    assert status.notes == [f"compared with the recipe as it was run: there is no recipe {tmp_path / 'r.yaml'}"]


def test_a_block_that_ended_early_has_no_more_rounds_to_do(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "name: demo\nmodel: ./iron\nstages:\n  loop:\n    repeat: 5\n"
        "    until: {metric: eval/reward, at_least: 0.5}\n    stages: {a: {mark: x}}\n  end: {model: stage:a}\n"
    )
    run()
    assert words(status_of(Path("out"))) == {"loop.1.a": "done", "end": "done"}
    assert foreseen() == {"loop.1.a": ("done", ()), "end": ("done", ())}


def test_a_folder_without_a_run_is_a_mistake_that_names_the_runs_in_it(workshop: Workshop) -> None:
    run()
    with pytest.raises(UserError, match=r"\. holds no run\n    runs in it: out"):
        status_of(Path("."))
    assert unified("status", "nowhere").exit_code == 2


def test_plan_prints_what_would_run_and_why_and_writes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    run()
    result = unified("plan", "r.yaml", "--output", "out", "--set", "stages.two.mark=x")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["two", "run", "mark:", "b", "→", "x"] in rows
    assert ["one", "skip", "nothing", "that", "it", "depends", "on", "has", "changed"] in rows
    [heading] = [row for row in rows if "steps" in row]
    assert heading[-1] == "FLOPs"  # no time: no hardware was named, and none is guessed
    assert not (tmp_path / "runs").exists()
    assert json.loads((tmp_path / "out" / "two" / "manifest.json").read_text())["settings"]["mark"] == "b"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "give a recipe, or ask a question with --scaling"),
        (["plan", "r.yaml", "--scaling", "data"], "--scaling asks about pretraining, not about a recipe"),
        (["plan", "r.yaml", "--tokens", "1B"], "--tokens means something only with --scaling"),
        (["plan", "r.yaml", "--hardware", "8xH10"], "--hardware 8xH10: no device 'H10'\n    did you mean 'H100'?"),
        (["plan", "r.yaml", "--set", "stages.one.mrak=1"], "--set stages.one.mrak: stage 'one': no setting 'mrak'"),
        (["lineage", "iron"], "no manifest belongs to iron"),
    ],
)
def test_a_mistake_ends_with_code_2(workshop: Workshop, arguments: list[str], said: str) -> None:
    result = unified(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(said)
