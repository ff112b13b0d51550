"""The check of a recipe: every mistake at once, each with its place, before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workshop import Workshop, write_base
from unified import PluginError, StageKind, UserError, hookimpl
from unified.check import check_recipe
from unified.recipe import load_recipe
from unified.registry import Catalogue, using


@pytest.fixture(autouse=True)
def _workshop() -> Iterator[None]:
    with using(Workshop().catalogue()):
        yield


def problems(folder: Path, text: str, *sets: str) -> str:
    """What the check says of a recipe; "" when it is fine. The file is called r.yaml."""
    write_base(folder / "iron")
    (folder / "r.yaml").write_text(text)
    before = sorted(folder.rglob("*"))
    try:
        check_recipe(load_recipe(folder / "r.yaml", sets))
    except UserError as error:
        return str(error).replace(f"{folder}/", "")
    finally:
        assert sorted(folder.rglob("*")) == before, "the check wrote something"
    return ""


def stages(*lines: str) -> str:
    return "\n".join(["name: a", "model: ./iron", "stages:", *(f"  {line}" for line in lines)])


def test_a_sound_recipe_has_a_plan_that_tells_each_stage_in_a_line(tmp_path: Path) -> None:
    write_base(tmp_path / "iron")
    (tmp_path / "r.yaml").write_text(
        stages("one: {algorithm: anneal, data: ore}", "two: {model: stage:one, data: x.csv}")
    )
    plan = check_recipe(load_recipe(tmp_path / "r.yaml"))
    assert [stage.describe() for stage in plan.stages] == [
        "one: train from base with algorithm anneal, data ore",
        "two: train from stage:one with data files",
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["s: {mrak: x}"],
            ["4: stage 's': no setting 'mrak' in stage kind 'train'", "did you mean 'mark'?", "known: algorithm, "],
        ),
        (
            ["s:", "  algorithm:", "    name: anneal", "    degres: 3"],
            [
                "7: stage 's': no setting 'degres' in algorithm 'anneal'",
                "did you mean 'degrees'?",
                "known: degrees  (plugin workshop)",
            ],
        ),
        (["s: {algorithm: aneal}"], ["4: stage 's': no algorithm 'aneal'", "did you mean 'anneal'?", "known: anneal"]),
        (["s: {data: oar}"], ["4: stage 's': no dataset 'oar'", "did you mean 'ore'?", "known: files, ore"]),
        (["s: {kind: trian}"], ["4: stage 's': no stage kind 'trian'", "did you mean 'train'?", "known: melt, train"]),
        (
            ["s:", "  learning_rate: x"],
            ["5: stage 's': 'learning_rate' of stage kind 'train': input should be a valid number"],
        ),
        (
            ["s:", "  hammers:", "    - {weight: 1}", "    - {wieght: 2}"],
            ["7: stage 's': no setting 'wieght' in hammers[1]"],
        ),
        (["s: {model: stage:t}"], ["4: stage 's': no stage 't'", "known: none"]),
        (
            ["one: {}", "two: {model: stage:oen}"],
            ["5: stage 'two': no stage 'oen'", "did you mean 'one'?", "known: one"],
        ),
        (["s: {model: stage:t}", "t: {}"], ["4: stage 's': stage 't' comes later, so 'stage:t' is not there yet"]),
        (["s: {model: stage:s}"], ["4: stage 's': 'stage:s' is this stage itself"]),
        (["s: {model: ./iorn}"], ["4: stage 's': there is no folder ./iorn", "did you mean './iron'?"]),
        (["s: {model: iron/deep}"], ["4: stage 's': there is no folder iron/deep"]),
        (["one: {}", "two: {model: one}"], ["5: stage 'two': there is no model one", "did you mean 'stage:one'?"]),
        (["s: {shape: nothing}", "t: {model: stage:s}"], ["5: stage 't': stage 's' makes no model"]),
        (["s: {shape: scalar}", "t: {model: stage:s, wants: policy}"], ["5: stage 't': 'stage:s' is a scalar model"]),
        (["s: {wants: scalar}"], ["4: stage 's': 'base' is a policy (a causal language model), but a scalar"]),
        (["m: {kind: melt, mark: bad}"], ["4: stage 'm': the mark may not be 'bad'", "use another"]),
        (["base: {}"], ["4: a stage cannot be called 'base'"]),
    ],
)
def test_a_mistake_is_told_with_its_line_and_a_remedy(tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    assert problems(tmp_path, stages(*lines)).startswith("r.yaml:" + "\n    ".join(expected))


def test_a_mistake_on_the_command_line_is_told_as_such(tmp_path: Path) -> None:
    said = problems(tmp_path, stages("s: {}"), "stages.s.mrak=1")
    assert said.startswith(
        "--set stages.s.mrak: stage 's': no setting 'mrak' in stage kind 'train'\n    did you mean 'mark'?"
    )


def test_all_problems_are_told_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = stages(
        "one: {mrak: x, model: stage:two}",
        "two: {algorithm: aneal}",
        "one: {}",
        "three: {kind: trian}",
        "four: {model: stage:four}",
    )
    said = problems(tmp_path, text, "sed=3")
    heads = [line for line in said.splitlines() if not line.startswith("    ")]
    assert [head.partition(" ")[0] for head in heads[:-1]] == [
        "r.yaml:4:", "r.yaml:4:", "r.yaml:5:", "r.yaml:6:", "r.yaml:7:", "r.yaml:8:", "--set"
    ]  # fmt: skip
    assert heads[-1] == "7 problems in r.yaml; nothing was run"


def test_a_wrong_default_is_told_once_and_not_for_every_stage(tmp_path: Path) -> None:
    text = "name: a\nmodel: ./iron\ndefaults:\n  learning_rate: fast\nstages: {s: {}, t: {}}\n"
    said = problems(tmp_path, text)
    assert said.startswith("r.yaml:4: stage 's': 'learning_rate'")
    assert said.endswith("1 problem in r.yaml; nothing was run")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, "r.yaml:1: the recipe needs `model`: stage 's' starts from it"),
        ("./iorn", "r.yaml:2: there is no folder ./iorn\n    did you mean './iron'?"),
        ("./r.yaml", "r.yaml:2: ./r.yaml is a file; a model is a folder"),
        ("./empty", "r.yaml:2: no model in ./empty"),
        ("{path: iron, new: {model_type: llama}}", "r.yaml:2: model needs either `path` or `new`"),
        ("{new: {hidden_size: 3}, tokenizer: ore}", "r.yaml:2: a new model needs `model_type`"),
        (
            "{new: {model_type: lama}, tokenizer: ore}",
            "r.yaml:2: transformers knows no model_type 'lama'\n    did you mean 'llama'?",
        ),
        (
            "{new: {model_type: llama, hidden_sise: 3}, tokenizer: ore}",
            "r.yaml:2: no key 'hidden_sise' in the configuration of a llama\n    did you mean 'hidden_size'?",
        ),
        ("{new: {model_type: llama}}", "r.yaml:2: a new model needs `tokenizer`"),
    ],
)
def test_a_wrong_base_model_is_told_with_its_line(tmp_path: Path, model: str | None, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    line = [f"model: {model}"] if model else []
    assert problems(tmp_path, "\n".join(["name: a", *line, "stages: {s: {}}"])).startswith(expected)


def test_a_base_model_that_no_stage_uses_may_be_missing(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: a\nstages: {m: {kind: melt}}\n") == ""


def test_a_hub_id_is_not_looked_for_on_the_disk(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: a\nmodel: someone/some-model\nstages: {s: {}}\n") == ""


def test_a_stage_kind_whose_own_check_raises_is_named(tmp_path: Path) -> None:
    def bad(settings: object) -> list[object]:
        raise ZeroDivisionError("oops")

    class Plugin:
        @hookimpl
        def unified_stages(self) -> list[StageKind]:
            return [StageKind("train", run=lambda stage: None, check=bad)]

    with (
        using(Catalogue({"clumsy": Plugin()}, installed=False)),
        pytest.raises(
            PluginError, match=r"plugin clumsy: bad of stage kind 'train' raised ZeroDivisionError: oops \(stage 's'\)"
        ),
    ):
        problems(tmp_path, "name: a\nstages: {s: {}}\n")
