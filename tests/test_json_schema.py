"""`unified schema`: a sound JSON schema that takes every recipe of the repository and refuses what `check` refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.docs.snippets import ROOT, all_snippets
from unified import TrainSettings, catalogue, load_recipe
from unified.check import check_recipe
from unified.cli import app
from unified.errors import UserError
from unified.json_schema import recipe_schema
from unified.recipe import RecipeFile
from unified.tree import read_yaml

jsonschema = pytest.importorskip("jsonschema")
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return recipe_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Any:
    return jsonschema.Draft202012Validator(schema)


def read(path: Path) -> Any:
    return read_yaml(path.read_text(), str(path), []).plain()


def test_the_schema_is_sound_and_every_reference_in_it_leads_somewhere(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    found = set(_references(schema))
    assert {r.removeprefix("#/$defs/") for r in found} <= schema["$defs"].keys()
    assert len(found) > len(catalogue().names("algorithm"))


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_the_command_prints_the_schema_and_nothing_else(schema: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, ["schema"], catch_exceptions=False)
    assert json.loads(result.stdout) == json.loads(json.dumps(schema))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_repository_fits(path: Path, validator: Any) -> None:
    assert [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(read(path))] == []


@pytest.mark.parametrize("block", [s for s in all_snippets("yaml") if "broken" not in s.name], ids=lambda s: s.label)
def test_every_recipe_of_the_docs_fits(block: Any, validator: Any) -> None:
    if block.page.name == "plugins.md" or "environment" in block.recipe:
        pytest.skip("names parts of its page, which are not installed")
    data = read_yaml(block.recipe, block.label, []).plain()
    assert [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(data)] == []


def test_there_are_recipes_to_be_held_against_the_schema() -> None:
    assert len(RECIPES) > 15


Change = Callable[[Any], Any]
#: what is done to the quickstart -> the place of the mistake
MISTAKES: dict[str, tuple[Change, list[str]]] = {
    "an unknown key of the recipe": (lambda r: r.update(modle="x"), []),
    "an unknown key of a stage": (lambda r: r["stages"]["sft"].update(batch_sise=3), ["stages", "sft"]),
    "a text for a number": (lambda r: r["stages"]["sft"].update(batch_size="many"), ["stages", "sft", "batch_size"]),
    "a number below its bound": (lambda r: r["stages"]["sft"].update(batch_size=0), ["stages", "sft", "batch_size"]),
    "a share above 1": (lambda r: r["stages"]["sft"].update(max_missing=1.5), ["stages", "sft", "max_missing"]),
    "an algorithm that is not there": (lambda r: r["stages"]["dpo"].update(algorithm="dop"), ["stages", "dpo"]),
    "an unknown setting of an algorithm": (
        lambda r: r["stages"]["ppo"].update(algorithm={"name": "ppo", "kl_wieght": 1}), ["stages", "ppo", "algorithm"],
    ),
    "a setting of an algorithm below its bound": (
        lambda r: r["stages"]["ppo"].update(algorithm={"name": "ppo", "kl_weight": -1}), ["stages", "ppo", "algorithm"],
    ),
    "an unknown setting of nested settings": (
        lambda r: r["stages"]["sft"].update(evaluation={"sampels": 1}), ["stages", "sft", "evaluation"],
    ),
    "an unknown setting of a dataset": (
        lambda r: r["stages"]["dpo"].update(data={"name": "random_walks", "rwos": 1}), ["stages", "dpo", "data"],
    ),
    "a kind of stage that is not there": (lambda r: r["stages"]["sft"].update(kind="trian"), ["stages", "sft"]),
    "an unknown key of the defaults": (lambda r: r["defaults"].update(batch_sise=1), ["defaults"]),
    "stages that are a list": (lambda r: r.update(stages=[]), ["stages"]),
    "no stages": (lambda r: r.pop("stages"), []),
    "a seed with a fraction": (lambda r: r.update(seed=0.5), ["seed"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_recipe_with_a_mistake_does_not_fit_and_check_refuses_it_too(
    name: str, validator: Any, tmp_path: Path
) -> None:
    change, place = MISTAKES[name]
    recipe = copy.deepcopy(read(QUICKSTART))
    change(recipe)
    found = [list(e.absolute_path) for e in validator.iter_errors(recipe)]
    assert found
    assert all(at[: len(place)] == place[: len(at)] for at in found), found
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    with pytest.raises(UserError):
        check_recipe(load_recipe(tmp_path / "r.yaml"))


def test_a_setting_has_its_type_bounds_default_and_description(schema: dict[str, Any]) -> None:
    own = schema["$defs"]["stage.train"]["properties"]
    said = TrainSettings.model_fields["batch_size"].description
    assert own["batch_size"] == {"type": "integer", "minimum": 1, "default": 16, "description": said}
    assert own["adam_beta1"]["exclusiveMaximum"] == 1
    assert own["layout"]["enum"] == ["auto", "padded", "packed", "prefix-shared"]
    assert schema["properties"].keys() == RecipeFile.model_fields.keys()
    assert all(own[key]["description"] for key in TrainSettings.model_fields)


def test_every_part_that_is_installed_can_be_chosen(schema: dict[str, Any]) -> None:
    for kind in set(catalogue().kinds()) - {"stage"}:
        for name in catalogue().names(kind):
            assert schema["$defs"][f"{kind}.{name}"]["properties"]["name"]["const"] == name
    assert schema["$defs"]["algorithm"]["anyOf"][0]["enum"] == catalogue().names("algorithm")


def test_a_dataset_may_be_a_path_and_an_algorithm_may_not(validator: Any) -> None:
    recipe = read(QUICKSTART)
    recipe["stages"]["sft"]["data"] = "rows/train.jsonl"
    assert validator.is_valid(recipe)
    recipe["stages"]["sft"]["algorithm"] = "rows/train.jsonl"
    assert not validator.is_valid(recipe)


def test_values_of_a_round_may_be_written_by_round(validator: Any) -> None:
    stage = {"algorithm": "sft", "data": "random_walks", "learning_rate": {"by_round": [1e-3, 1e-4]}}
    recipe = {"name": "x", "model": "m", "stages": {"loop": {"repeat": 2, "stages": {"a": stage}}}}
    assert validator.is_valid(recipe)
    stage["batch_size"] = "many"
    assert not validator.is_valid(recipe)
