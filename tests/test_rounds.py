"""Rounds: a block of stages runs N times, references lead to the newest result, and a metric may end it early."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.workshop import Workshop, write_base
from unified import StageContext, UserError
from unified.check import check_recipe
from unified.console import RunConsole
from unified.manifest import read_manifest, stage_folder
from unified.recipe import Recipe, load_recipe
from unified.registry import using
from unified.runner import Outcome, StoppedError, run_recipe

HEAD = "name: demo\nmodel: ./iron\nstages:\n"
LOOP = """\
  start: {mark: s}
  loop:
    repeat: 3
    stages:
      heat: {mark: h, model: {first: stage:start, then: stage:bend}}
      bend: {mark: {by_round: [x, y, z]}, model: stage:heat}
  end: {mark: e, model: stage:bend}
"""


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    write_base(tmp_path / "iron")
    made = Workshop()
    with using(made.catalogue()):
        yield made


def load(folder: Path, text: str, *sets: str) -> Recipe:
    (folder / "r.yaml").write_text(HEAD + text)
    return load_recipe(folder / "r.yaml", sets)


def run(folder: Path, text: str, *sets: str, said: io.StringIO | None = None) -> list[Outcome]:
    console = RunConsole(Console(file=said or io.StringIO(), width=200))
    return run_recipe(load(folder, text, *sets), folder / "out", console=console)


def settings_of(recipe: Recipe, key: str) -> dict[str, Any]:
    return {name: node.plain()[key] for name, node in recipe.stages.items() if key in node.plain()}


def weights(folder: Path, stage: str) -> str:
    return (stage_folder(folder / "out", stage) / "model" / "weights.safetensors").read_text()


def said_of(folder: Path, text: str, *sets: str) -> str:
    with pytest.raises(UserError) as caught:
        check_recipe(load(folder, text, *sets))
    return str(caught.value).replace(f"{folder}/", "")


def test_a_reference_leads_to_the_newest_result_of_that_name(tmp_path: Path) -> None:
    recipe = load(tmp_path, LOOP)
    assert settings_of(recipe, "model") == {
        "loop.1.heat": "stage:start",  # `first`
        "loop.1.bend": "stage:loop.1.heat",  # earlier in the same round
        "loop.2.heat": "stage:loop.1.bend",  # later in the block, so of the round before
        "loop.2.bend": "stage:loop.2.heat",
        "loop.3.heat": "stage:loop.2.bend",
        "loop.3.bend": "stage:loop.3.heat",
        "end": "stage:loop.3.bend",  # behind the block: of the last round
    }
    assert not recipe.problems


def test_a_stage_before_the_block_lends_its_name_until_the_block_has_a_result_of_its_own(tmp_path: Path) -> None:
    text = "  bend: {}\n  loop: {repeat: 2, stages: {bend: {model: stage:bend}}}\n  end: {model: stage:bend}\n"
    assert settings_of(load(tmp_path, text), "model") == {
        "loop.1.bend": "stage:bend",
        "loop.2.bend": "stage:loop.1.bend",
        "end": "stage:loop.2.bend",
    }


def test_the_result_of_one_round_can_be_named(tmp_path: Path) -> None:
    text = LOOP.replace("end: {mark: e, model: stage:bend}", "end: {mark: e, model: stage:loop.2.bend}")
    run(tmp_path, text)
    assert weights(tmp_path, "end") == "iron shxhye"


def test_a_value_by_round_is_that_of_the_round_at_any_depth(tmp_path: Path) -> None:
    text = "  loop: {repeat: 2, stages: {a: {hammers: [{weight: {by_round: [3, 4, 5]}}]}}}\n"
    found = settings_of(load(tmp_path, text), "hammers")
    assert found == {"loop.1.a": [{"weight": 3}], "loop.2.a": [{"weight": 4}]}  # a value over is not used


def test_a_value_by_round_replaces_the_default_of_the_recipe(tmp_path: Path) -> None:
    text = "  loop: {repeat: 2, stages: {a: {mark: {by_round: [x, y]}}, b: {}}}\ndefaults: {mark: d}\n"
    found = settings_of(load(tmp_path, text), "mark")
    assert found == {"loop.1.a": "x", "loop.1.b": "d", "loop.2.a": "y", "loop.2.b": "d"}


def test_each_round_has_a_folder_and_goes_on_from_the_one_before(workshop: Workshop, tmp_path: Path) -> None:
    run(tmp_path, LOOP)
    assert workshop.ran == ["start", *(f"loop.{n}.{s}" for n in (1, 2, 3) for s in ("heat", "bend")), "end"]
    assert (tmp_path / "out" / "loop" / "2" / "bend" / "manifest.json").is_file()
    assert weights(tmp_path, "end") == "iron shxhyhze"


@pytest.mark.parametrize(
    ("change", "reruns"),
    [
        ("stages.loop.stages.bend.mark.by_round.2=q", ["loop.3.bend", "end"]),
        ("stages.loop.stages.bend.mark.by_round.1=q", ["loop.2.bend", "loop.3.heat", "loop.3.bend", "end"]),
        ("stages.end.mark=q", ["end"]),
        ("stages.loop.repeat=2", ["end"]),  # what follows the block now starts from round 2
        ("stages.loop.stages.bend.learning_rate=7", [*(f"loop.{n}.bend" for n in (1, 2, 3))]),  # the same bytes
    ],
)
def test_a_change_in_a_round_reruns_it_and_what_depends_on_it(
    workshop: Workshop, tmp_path: Path, change: str, reruns: list[str]
) -> None:
    run(tmp_path, LOOP)
    workshop.ran.clear()
    run(tmp_path, LOOP, change)
    assert workshop.ran == reruns


def test_a_run_cut_off_in_round_2_ends_with_the_weights_of_one_that_was_not(workshop: Workshop, tmp_path: Path) -> None:
    def stop(stage: StageContext) -> None:
        if stage.name == "loop.2.bend":
            raise KeyboardInterrupt

    workshop.during = stop
    with pytest.raises(StoppedError, match=r"^loop\.2\.bend$"):
        run(tmp_path, LOOP)
    workshop.during = lambda stage: None
    workshop.ran.clear()
    run(tmp_path, LOOP)
    assert workshop.ran == ["loop.2.bend", "loop.3.heat", "loop.3.bend", "end"]
    assert weights(tmp_path, "end") == "iron shxhyhze"


# --- ending early: every stage of the workshop measures eval/reward 0.75 ---


def until(text: str) -> str:
    return LOOP.replace("    repeat: 3\n", f"    repeat: 3\n    until: {text}\n")


def test_a_block_ends_once_its_metric_is_reached_and_what_follows_uses_the_last_round(
    workshop: Workshop, tmp_path: Path
) -> None:
    said = io.StringIO()
    run(tmp_path, until("{metric: eval/reward, at_least: 0.75}"), said=said)
    assert workshop.ran == ["start", "loop.1.heat", "loop.1.bend", "end"]
    assert weights(tmp_path, "end") == "iron shxe"
    assert "loop: its `until` holds after round 1 of 3; no more rounds" in said.getvalue()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["stages"] == workshop.ran
    workshop.ran.clear()
    outcomes = run(tmp_path, until("{metric: eval/reward, at_least: 0.75}"))
    assert workshop.ran == []
    assert [o.manifest.name for o in outcomes] == ["start", "loop.1.heat", "loop.1.bend", "end"]


@pytest.mark.parametrize("bound", ["at_least: 0.76", "at_most: 0.74"])
def test_a_block_whose_metric_is_not_reached_runs_all_its_rounds(
    workshop: Workshop, tmp_path: Path, bound: str
) -> None:
    run(tmp_path, until(f"{{metric: eval/reward, stage: heat, {bound}}}"))
    assert len(workshop.ran) == 8


def test_more_rounds_than_are_run_change_nothing_for_what_follows(workshop: Workshop, tmp_path: Path) -> None:
    run(tmp_path, until("{metric: eval/reward, at_least: 0.5}"))
    workshop.ran.clear()
    run(tmp_path, until("{metric: eval/reward, at_least: 0.5}"), "stages.loop.repeat=2")
    assert workshop.ran == []


def test_a_metric_that_the_stage_does_not_measure_is_told_with_those_it_does(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"block 'loop': stage 'loop\.1\.bend' measured no metric 'eval/rewrad'"
    ) as said:
        run(tmp_path, until("{metric: eval/rewrad, at_least: 0.5}"))
    assert "did you mean 'eval/reward'?" in str(said.value)
    assert read_manifest(tmp_path / "out" / "loop" / "1" / "bend") is not None  # nothing is lost by it


# --- mistakes, before any work ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  b: {repeat: 0, stages: {a: {}}}", "4: 'repeat' of block 'b': input should be greater than or equal to 1"),
        ("  b: {repeat: 2}", "4: block 'b' needs 'stages'"),
        ("  b: {stages: {a: {}}}", "4: block 'b' needs 'repeat'"),
        ("  b: {repeat: 2, stages: {}}", "4: block 'b' has no stages"),
        ("  b: {repaet: 2, stages: {a: {}}}", "4: no setting 'repaet' in block 'b'\n    did you mean 'repeat'?"),
        ("  b:\n    repeat: 2\n    stages:\n      a.b: {}", "7: 'a.b' cannot be the name of a stage"),
        ("  b:\n    repeat: 2\n    stages:\n      c: {repeat: 2, stages: {}}", "6: block 'b' has no stages"),
        (
            "  b:\n    repeat: 2\n    stages:\n      a: {}\n      c: {repeat: 2, stages: {d: {}}}",
            "8: block 'b': 'c' is a block; a block may not stand in another one",
        ),
        (
            "  b:\n    repeat: 2\n    stages:\n      a:\n        mrak: x",
            "8: stage 'b.1.a': no setting 'mrak' in stage kind 'train'\n    did you mean 'mark'?",
        ),
        (
            "  b:\n    repeat: 2\n    stages:\n      a:\n        model: stage:c\n      c: {}",
            "8: stage 'b.1.a': in the first round there is no result of stage 'c' yet\n"
            "    say what the first round uses: {first: stage:NAME, then: stage:c}",
        ),
        (
            "  a: {model: stage:c}\n  b: {repeat: 2, stages: {c: {}}}",
            "4: stage 'a': stage 'c' of block 'b' comes later, so 'stage:c' is not there yet",
        ),
        (
            "  b: {repeat: 2, stages: {c: {}}}\n  a: {model: stage:b}",
            "5: stage 'a': 'b' is a block of stages\n    name what one of its stages made: stage:c",
        ),
        (
            "  b: {repeat: 2, stages: {c: {}}}\n  a: {model: stage:b.3.c}",
            "5: stage 'a': no stage 'b.3.c'\n    did you mean 'b.2.c'?",
        ),
        (
            "  b: {repeat: 2, stages: {c: {mark: {by_round: [x]}}}}",
            "4: stage 'b.1.c': `by_round` has 1 values for 2 rounds\n    give one a round; more are not used",
        ),
        ("  b: {repeat: 2, stages: {c: {mark: {by_round: x}}}}", "4: stage 'b.1.c': write a value by round as"),
        ("  c: {mark: {by_round: [x]}}", "4: stage 'c': `by_round` means something only in a block with `repeat`"),
        (
            "  b:\n    repeat: 2\n    stages: {c: {}}\n    until:\n      metric: x\n      stage: d\n      at_least: 1",
            "9: block 'b': no stage 'd' in it\n    known: c",
        ),
        (
            "  b:\n    repeat: 2\n    stages: {c: {}}\n    until: {metric: x}",
            "7: 'until' of block 'b': give either `at_least` or `at_most`",
        ),
    ],
)
def test_a_mistake_in_a_block_is_told_once_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    said = said_of(tmp_path, text + "\n")
    assert said.startswith(f"r.yaml:{expected}"), said
    assert said.count(expected.partition("'")[2][:20] or expected) == 1


def test_a_wrong_value_of_one_round_is_told_at_its_own_line(tmp_path: Path) -> None:
    text = "  b:\n    repeat: 2\n    stages:\n      a:\n        learning_rate:\n          by_round:\n"
    text += "          - 1\n          - x\n"
    assert said_of(tmp_path, text).startswith("r.yaml:11: stage 'b.2.a': 'learning_rate' of stage kind 'train'")


def test_a_change_to_a_stage_that_a_block_has_not_is_a_mistake(tmp_path: Path) -> None:
    said = said_of(tmp_path, LOOP, "stages.loop.stages.haet.mark=x")
    assert said.startswith(
        "--set stages.loop.stages.haet.mark: no stage 'haet' in block 'loop'\n    did you mean 'heat'?"
    )
