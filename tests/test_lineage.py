"""`unified lineage`: a model is followed back through stages and runs, as long as these hold what it came from."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.workshop import Workshop, write_base
from unified import UserError
from unified.cli import app
from unified.console import RunConsole
from unified.lineage import Ancestor, lineage, render
from unified.manifest import fingerprint_of
from unified.recipe import load_recipe
from unified.registry import using
from unified.runner import run_recipe

RECIPE = """
name: {name}
model: {model}
seed: 3
stages:
  one: {{mark: a, data: rows.txt, algorithm: anneal}}
  two: {{mark: b, model: stage:one}}
  beside: {{mark: c}}
"""


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    write_base(tmp_path / "iron")
    (tmp_path / "rows.txt").write_text("rows")
    monkeypatch.chdir(tmp_path)
    made = Workshop()
    with using(made.catalogue()):
        yield made


def run(name: str = "first", model: str = "./iron", *sets: str) -> None:
    Path(f"{name}.yaml").write_text(RECIPE.format(name=name, model=model))
    recipe = load_recipe(Path(f"{name}.yaml"), sets)
    run_recipe(recipe, Path(name), console=RunConsole(Console(file=io.StringIO())))


def names(ancestor: Ancestor) -> list[str]:
    """The ancestors along the first input of each."""
    return [ancestor.name, *(names(ancestor.inputs[0][1]) if ancestor.inputs else [])]


@pytest.mark.parametrize("path", ["first/two/model", "first/two"])
def test_a_model_is_followed_to_the_start(path: str) -> None:
    run()
    [found] = lineage(Path(path))
    assert names(found) == ["two", "one", "./iron"]


def test_of_a_run_those_stages_are_shown_that_no_other_used() -> None:
    run()
    assert [a.name for a in lineage(Path("first"))] == ["two", "beside"]


def test_each_stage_tells_its_parts_data_seed_versions_and_hashes() -> None:
    run()
    text = "\n".join(render(lineage(Path("first/two/model"))))
    rows = hashlib.sha256(b"rows").hexdigest()
    config = hashlib.sha256(Path("first/one/model/config.json").read_bytes()).hexdigest()
    weights = hashlib.sha256(b"iron a").hexdigest()
    made = fingerprint_of(files={"config.json": config, "weights.safetensors": weights})
    for said in (
        "    algorithm: anneal\n",
        "    data: {name: files, path: rows.txt}\n",
        f"    file rows.txt: sha256 {rows[:12]}\n",
        "    seed 3; ",
        "    python 3.",
        f"    result sha256 {made[:12]}, fingerprint ",
    ):
        assert said in text
    assert text.splitlines()[0] == "two  train, makes policy  first/two"
    assert "  from stage:one  train, makes policy  first/one" in text


def test_a_model_of_another_run_is_followed_into_it() -> None:
    run()
    run("second", "first/two/model")
    [found] = lineage(Path("second/two/model"))
    assert names(found) == ["two", "one", "two", "one", "./iron"]


def test_a_run_that_was_moved_still_knows_its_own_stages() -> None:
    run()
    shutil.move("first", "elsewhere")
    [found] = lineage(Path("elsewhere/two/model"))
    assert names(found)[:2] == ["two", "one"]
    assert found.inputs[0][1].folder == Path("elsewhere/one")


def test_a_result_that_was_made_anew_since_is_not_taken_for_the_ancestor() -> None:
    run()
    run("second", "first/two/model")
    run("first", "./iron", "stages.one.mark=x")
    [found] = lineage(Path("second/two/model"))
    assert names(found) == ["two", "one", "first/two/model"]
    lost = found.inputs[0][1].inputs[0][1]
    assert (
        lost.about[1] == "first/two holds another result by now; this one is gone" or "first/two holds" in lost.about[1]
    )


def test_what_two_stages_share_is_shown_once() -> None:
    run()
    Path("first.yaml").write_text(RECIPE.format(name="first", model="./iron") + "  both: {model: stage:one}\n")
    run_recipe(load_recipe(Path("first.yaml")), Path("first"), console=RunConsole(Console(file=io.StringIO())))
    lines = render(lineage(Path("first")))
    assert [line.strip() for line in lines if "stage:one" in line and "from" in line] == [
        "from stage:one  train, makes policy  first/one",
        "from stage:one  (see above)",
    ]


def test_a_folder_without_a_manifest_is_refused() -> None:
    with pytest.raises(UserError, match="no manifest belongs to iron"):
        lineage(Path("iron"))


def test_the_command_prints_the_tree() -> None:
    run()
    result = CliRunner().invoke(app, ["lineage", "first/two/model"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == render(lineage(Path("first/two/model")))


def adapter(base: str, name: str = "adapter") -> None:
    Path(name).mkdir()
    Path(name, "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    Path(name, "weights.safetensors").write_text("turned ")


def test_a_folded_adapter_is_followed_to_the_model_that_it_adapts() -> None:
    run()
    adapter("../first/two/model")
    run("second", "./adapter")
    [found] = lineage(Path("second/two/model"))
    adapted = str(Path("first/two/model").resolve())
    assert names(found) == ["two", "one", "./adapter", "two", "one", "./iron"]
    assert [reference for reference, _ in found.inputs[0][1].inputs[0][1].inputs] == [adapted]
    assert f"      from {adapted}: two  train" in "\n".join(render(lineage(Path("second/two/model"))))


def test_an_adapter_of_a_model_that_no_stage_made_ends_at_that_model() -> None:
    adapter("../iron")
    run("second", "./adapter")
    [found] = lineage(Path("second/two/model"))
    start = found.inputs[0][1].inputs[0][1].inputs[0][1]
    assert (start.name, start.inputs) == (str(Path("iron").resolve()), [])
    assert start.about[1] == "where it came from is not written down"


def test_an_adapter_whose_model_was_made_anew_since_says_so() -> None:
    run()
    adapter("../first/two/model")
    run("second", "./adapter")
    run("first", "./iron", "stages.one.mark=x")
    [found] = lineage(Path("second/two/model"))
    lost = found.inputs[0][1].inputs[0][1].inputs[0][1]
    assert "holds another result by now; this one is gone" in lost.about[1]


def test_an_adapter_that_adapts_another_one_is_followed_through_both() -> None:
    adapter("../iron", "inner")
    adapter("../inner")
    run("second", "./adapter")
    [found] = lineage(Path("second/two/model"))
    assert [Path(name).name for name in names(found)] == ["two", "one", "adapter", "inner", "iron"]
