"""Recipe files: how YAML is read, where each value was written, and how profiles, defaults and --set lie over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workshop import Workshop
from unified.errors import Problem, UserError
from unified.recipe import Recipe, load_recipe, one_stage_recipe
from unified.registry import using
from unified.tree import Place, located, merge, parse_override, read_yaml


@pytest.fixture(autouse=True)
def _workshop() -> Iterator[None]:
    with using(Workshop().catalogue()):
        yield


def load(folder: Path, text: str, *sets: str, profile: str | None = None) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(text)
    return load_recipe(path, sets, profile)


def plain(text: str) -> Any:
    problems: list[tuple[Place, Problem]] = []
    value = read_yaml(text, "r.yaml", problems).plain()
    assert not problems
    return value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5), ("1E3", 1000.0), (".5", 0.5), ("-2.", -2.0), ("7", 7), ("-7", -7),
        ("true", True), ("False", False),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("012", "012"), ("1:30", "1:30"), ("0x1f", "0x1f"),
        ("2020-01-01", "2020-01-01"), ("1_000", "1_000"), ("~", None), ("null", None), ("'1e-5'", "1e-5"), ("", None),
    ],
)  # fmt: skip
def test_a_scalar_is_read_by_the_rules_of_yaml_1_2(written: str, value: Any) -> None:
    read = plain(f"x: {written}")["x"]
    assert read == value
    assert type(read) is type(value)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert plain("{on: 1, no: 2, 3: 4, true: 5}") == {"on": 1, "no": 2, "3": 4, "true": 5}


def test_each_value_knows_the_line_of_its_key_and_an_absent_one_that_of_its_mapping() -> None:
    root = read_yaml("a: 1\nb:\n  c:\n    - d: 1\n    - e: 2\n", "f.yaml", [])
    assert str(root.place_of(("a",))) == "f.yaml:1"
    assert str(root.place_of(("b", "c", 1, "e"))) == "f.yaml:5"
    assert str(root.place_of(("b", "c", "missing"))) == "f.yaml:3"


def test_a_duplicate_key_is_a_problem_that_tells_both_lines(tmp_path: Path) -> None:
    recipe = load(tmp_path, "name: a\nstages:\n  s: {mark: x}\nname: b\n")
    assert f"{tmp_path}/r.yaml:4: the key 'name' stands twice in one mapping, first in line 1" in recipe.problem_texts()


def test_an_alias_inside_its_own_mapping_is_refused() -> None:
    with pytest.raises(UserError, match=r"r\.yaml:2: an alias may not stand inside"):
        read_yaml("a: &x\n  b: *x\n", "r.yaml", [])


@pytest.mark.parametrize(("text", "line"), [("a: [1\nb: 2\n", 2), ("a: 1\n  b: 2\n", 2), ("a: '\n", 2)])
def test_text_that_is_no_yaml_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"r\.yaml:{line}: this is no YAML"):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"r\.yaml:1: a recipe is a mapping"):
        load(tmp_path, text)


def test_a_missing_recipe_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("")
    with pytest.raises(UserError, match=r"there is no recipe .*quik\.yaml\n    did you mean '.*quick\.yaml'"):
        load_recipe(tmp_path / "quik.yaml")


def test_a_folder_in_place_of_a_recipe_is_refused_with_the_recipes_in_it(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("")
    with pytest.raises(UserError, match=r"is a folder, not a recipe\n    recipes in it: quick\.yaml"):
        load_recipe(tmp_path)


def test_mappings_merge_and_a_choice_of_another_part_replaces_the_old_one_whole() -> None:
    at = Place("x")
    base = located({"a": {"name": "clip", "low": 1}, "b": {"low": 1, "high": 2}, "c": [1, 2]}, at)
    over = located({"a": {"name": "none"}, "b": {"high": 3}, "c": {"1": 5}}, at)
    assert merge(base, over).plain() == {"a": {"name": "none"}, "b": {"low": 1, "high": 3}, "c": [1, 5]}
    assert merge(base, located({"a": {"name": "clip", "high": 2}}, at)).plain()["a"] == {
        "name": "clip",
        "low": 1,
        "high": 2,
    }


def test_settings_laid_on_the_bare_name_of_a_part_keep_the_name() -> None:
    at = Place("x")
    merged = merge(located({"algorithm": "anneal", "model": "folder"}, at), located({"algorithm": {"degrees": 3}}, at))
    assert merged.plain()["algorithm"] == {"name": "anneal", "degrees": 3}
    # a word that names no part is simply replaced
    assert merge(located("folder", at), located({"new": {}}, at)).plain() == {"new": {}}


def test_an_override_is_yaml_at_a_dotted_path() -> None:
    assert parse_override("stages.s.learning_rate=1e-5", []).plain() == {"stages": {"s": {"learning_rate": 1e-5}}}
    assert parse_override("a.b={name: x, n: [1, 2]}", []).plain() == {"a": {"b": {"name": "x", "n": [1, 2]}}}
    assert parse_override("a=x=y", []).plain() == {"a": "x=y"}


@pytest.mark.parametrize("text", ["a.b", "=1", "a..b=1", ".a=1"])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write it as KEY=VALUE"):
        parse_override(text, [])


RECIPE = """
name: demo
model: base-model
seed: 3
defaults: {mark: d, algorithm: {name: anneal, degrees: 5}}
stages:
  one: {mark: own}
  two: {model: stage:one, hammers: [{weight: 1}, {weight: 2}]}
profiles:
  mini: {seed: 4, defaults: {mark: m}, stages: {two: {learning_rate: 9}}}
"""


def test_defaults_lie_under_every_stage(tmp_path: Path) -> None:
    stages = load(tmp_path, RECIPE).stages
    assert stages["one"].plain() == {"mark": "own", "algorithm": {"name": "anneal", "degrees": 5}}
    assert stages["two"].plain()["mark"] == "d"


def test_a_profile_lies_over_the_recipe_and_set_over_the_profile(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE, "seed=5", "stages.two.hammers.1.weight=7", profile="mini")
    two = recipe.stages["two"].plain()
    assert (recipe.seed, two["mark"], two["learning_rate"]) == (5, "m", 9)
    assert two["hammers"] == [{"weight": 1}, {"weight": 7}]
    assert recipe.run_name == "demo-mini"
    assert not recipe.problems


def test_a_default_reaches_only_stages_whose_kind_knows_it(tmp_path: Path) -> None:
    text = "name: a\ndefaults: {learning_rate: 2, mark: x}\nstages:\n  s: {}\n  m: {kind: melt}\n"
    recipe = load(tmp_path, text)
    assert recipe.stages["s"].plain() == {"learning_rate": 2, "mark": "x"}
    assert recipe.stages["m"].plain() == {"mark": "x", "kind": "melt"}
    assert not recipe.problems


def test_a_default_that_no_stage_knows_is_one_problem_at_its_line(tmp_path: Path) -> None:
    recipe = load(tmp_path, "name: a\ndefaults:\n  lerning_rate: 2\nstages:\n  s: {}\n  t: {}\n")
    [text] = recipe.problem_texts()
    assert text.startswith(f"{tmp_path}/r.yaml:3: no setting 'lerning_rate' in any stage kind of this recipe")
    assert "did you mean 'learning_rate'?" in text


@pytest.mark.parametrize(
    ("sets", "profile", "expected"),
    [
        (["stages.tow.mark=x"], None, "--set stages.tow.mark: no stage 'tow' in the recipe"),
        (["profiles.mini.seed=1"], None, "--set profiles.mini.seed: profiles cannot be changed here"),
        ([], "mni", "--profile mni: no profile 'mni'\n    did you mean 'mini'?"),
        (["sed=1"], None, "--set sed: no setting 'sed' in the recipe\n    did you mean 'seed'?"),
    ],
)
def test_a_change_that_reaches_nothing_is_a_problem(
    tmp_path: Path, sets: list[str], profile: str, expected: str
) -> None:
    texts = load(tmp_path, RECIPE, *sets, profile=profile).problem_texts()
    assert any(text.startswith(expected) for text in texts), texts


def test_a_profile_may_not_name_a_stage_that_the_recipe_has_not(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE.replace("{two: {learning_rate: 9}}", "{tow: {learning_rate: 9}}"))
    [text] = recipe.problem_texts()
    assert ":10: profile 'mini': no stage 'tow' in the recipe" in text
    assert "did you mean 'two'?" in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("name: a/b", "'a/b' cannot be the name of a run"),
        ("stages: {base: {}}", "a stage cannot be called 'base'"),
        ("stages: {a.b: {}}", "'a.b' cannot be the name of a stage"),
        ("stages: {}", "the recipe has no stages"),
        ("stages: {a: 3}", "'stages.a' of the recipe: input should be a valid dictionary, got 3"),
        ("seed: x", "'seed' of the recipe: input should be a valid integer"),
        ("modle: x", "no setting 'modle' in the recipe"),
        ("model: {pth: x}", "no setting 'pth' in 'model' of the recipe"),
    ],
)
def test_a_wrong_head_of_the_file_is_a_problem_with_its_line(tmp_path: Path, line: str, expected: str) -> None:
    key = line.partition(":")[0]
    kept = {"name": "name: a", "model": "model: x", "stages": "stages: {s: {}}"}
    text = "\n".join([*(v for k, v in kept.items() if k != key), line])
    texts = load(tmp_path, text).problem_texts()
    assert any(found.startswith(f"{tmp_path}/r.yaml:") and expected in found for found in texts), texts


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("ore", "ore"),
        ("rows.jsonl", {"name": "files", "path": "rows.jsonl"}),
        ("folder/rows", {"name": "files", "path": "folder/rows"}),
        ("here", {"name": "files", "path": "here"}),
        ("oar", "oar"),
        ("{name: ore, path: x.csv}", {"name": "ore", "path": "x.csv"}),
    ],
)
def test_data_that_looks_like_a_path_is_files(tmp_path: Path, written: str, read: Any) -> None:
    (tmp_path / "here").mkdir()
    recipe = load(tmp_path, f"name: a\nstages:\n  s: {{data: {written}}}\n")
    assert recipe.stages["s"].plain()["data"] == read


def test_training_without_a_file_routes_settings_to_the_stage_and_to_the_algorithm() -> None:
    recipe = one_stage_recipe("anneal", "folder", "ore", ["learning_rate=1e-2", "degrees=7", "seed=2"])
    stage = recipe.stages["anneal"].plain()
    assert stage["algorithm"] == {"name": "anneal", "degrees": 7}
    assert (stage["learning_rate"], stage["data"], recipe.seed) == (1e-2, "ore", 2)
    assert recipe.model is not None
    assert recipe.model.path == "folder"
