"""`--json` of every command that a program may read: one value on the standard output, and nothing else there."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from unified import api
from unified.as_json import plain, print_json
from unified.cli import app
from unified.histogram import COEFFICIENTS
from unified.warned import WARNINGS

#: commands that give no numbers: they work until they are done, talk to a person, or print what is JSON already
WITHOUT = {"run", "train", "chat", "report", "watch", "schema", "plugin new", "plugin check"}
#: command -> what it is asked here; {run}, {model}, {out} and {here} are folders
ASKED = {
    "check": "{here}/r.yaml",
    "coefficients": "dpo --batch {here}/pair.json",
    "data": "random_walks --rows 1",
    "evaluate": "{run} --data '{walks}' --reward random_walks --rows 2 --max-tokens 2 -o {out}/e",
    "export": "{run} {out}/exported",
    "generate": "{run} --prompt e --max-tokens 2",
    "lens": "{run} --data random_walks --rows 1 --algorithm sft",
    "lineage": "{run}",
    "list": "rewards",
    "merge": "{run} {run} -o {out}/soup",
    "plan": "{here}/r.yaml --output {run}",
    "plugin list": "",
    "show": "dpo",
    "status": "{run}",
}
WALKS = "{name: random_walks, view: prompts}"
#: command -> keys of what it prints, of the first item where that is a list
KEYS = {
    "check": {"recipe", "problems", "not_yet_verified", "stages"},
    "evaluate": {"folder", "summary"},
    "export": {"folder", "files", "said"},
    "lineage": {"asked", "ancestors"},
    "list": {"reward"},
    "merge": {"model", "of", "summary"},
    "plan": {"stages"},
    "show": {"kind", "name", "summary", "plugin", "about", "facts", "settings"},
    "status": {"run", "running", "stages", "notes"},
}
RECIPE = """
name: told
model: {new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,
              num_attention_heads: 2, max_position_embeddings: 48}, tokenizer: random_walks}
stages:
  one: {algorithm: sft, data: random_walks, max_steps: 2}
  two: {algorithm: sft, model: stage:one, data: random_walks, max_steps: 1}
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("json")
    (here / "r.yaml").write_text(RECIPE)
    pair = {"logp": [[-1.0, -2.0], [-2.0, -3.0]], "ref_logp": [[-1.0, -2.0], [-2.0, -3.0]], "reward": [1, 0],
            "group": [0, 0], "loss_mask": [[1, 1], [1, 1]]}  # fmt: skip
    (here / "pair.json").write_text(json.dumps(pair))
    api.run(here / "r.yaml", output=here / "run")
    told = {"stage": "one", "step": 2, "kind": "no_spread", "message": "seen", "values": {}, "remedy": "do"}
    (here / "run" / "one" / WARNINGS).write_text(json.dumps(told) + "\n" + json.dumps({**told, "step": 5}) + "\n{")
    return {"here": here, "run": here / "run", "out": here / "out"}


def unified(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def commands(group: Any = None, before: str = "") -> dict[str, Any]:
    """Every command by its words."""
    group = typer.main.get_command(app) if group is None else group
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        words = f"{before}{name}"
        found |= commands(command, f"{words} ") if hasattr(command, "commands") else {words: command}
    return found


def answer(command: str, places: dict[str, Path]) -> Any:
    words = [part.format(**places, walks=WALKS) for part in shlex.split(ASKED[command])]
    result = unified(*command.split(), *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_every_command_has_json_or_is_known_to_need_none() -> None:
    assert len(commands()) >= 20
    with_json = {
        name for name, command in commands().items() if any("--json" in option.opts for option in command.params)
    }
    assert with_json == set(ASKED)
    assert set(commands()) - with_json == WITHOUT


@pytest.mark.parametrize("command", sorted(ASKED))
def test_what_a_command_prints_with_json_is_one_value(command: str, places: dict[str, Path]) -> None:
    value = answer(command, places)
    assert isinstance(value, (dict, list))
    assert value
    if command in KEYS:
        assert set(value) == KEYS[command]


def test_the_state_of_a_run_holds_its_stages_with_their_warnings_by_kind(places: dict[str, Path]) -> None:
    one, two = answer("status", places)["stages"]
    assert (one["state"], one["step"], one["steps"], one["summary"]["steps"]) == ("done", None, 2, 2)
    (told,) = one["warnings"]
    assert told == {"kind": "no_spread", "message": "seen", "remedy": "do", "times": 2, "first": 2, "last": 5}
    assert (two["warnings"], two["unreadable_warnings"]) == ([], 0)
    assert (places["run"] / "one" / COEFFICIENTS).is_file()


def test_the_lineage_of_a_model_is_a_graph_by_numbers(places: dict[str, Path]) -> None:
    told = answer("lineage", places)
    (two,) = told["asked"]
    names = [told["ancestors"][two]["name"]]
    while below := told["ancestors"][two]["from"]:
        two = below[0]["ancestor"]
        names.append(told["ancestors"][two]["name"])
    assert names == ["two", "one", "base"]
    assert told["ancestors"][0]["manifest"]["seed"] == 0
    assert told["ancestors"][two]["manifest"] is None


def test_the_settings_of_a_part_are_told_with_those_inside_them(places: dict[str, Path]) -> None:
    result = json.loads(unified("show", "train", "--kind", "stage", "--json").stdout)
    settings = {row["name"]: row for row in result["settings"]}
    assert settings["learning_rate"]["default"] == "1e-05"
    inner = {row["name"] for row in settings["adapter"]["settings"]}
    assert {"r", "lora_alpha"} <= inner


def test_mistakes_of_a_recipe_are_told_with_their_places_and_on_the_error_stream_as_ever(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("max_steps: 2", "max_stepz: 2").replace("stage:one", "stage:won"))
    result = unified("check", str(tmp_path / "r.yaml"), "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert [(p["file"], p["line"]) for p in told["problems"]] == [(str(tmp_path / "r.yaml"), line) for line in (6, 7)]
    assert "did you mean 'max_steps'?" in told["problems"][0]["hints"]
    assert told["stages"] == []
    assert "max_stepz" in result.stderr


@pytest.mark.parametrize("arguments", [["show", "nothing_of_this_name"], ["status", "nowhere"]])
def test_other_mistakes_leave_the_output_empty(arguments: list[str]) -> None:
    result = unified(*arguments, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_what_json_has_no_form_for_is_told_as_null_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": [math.inf, 1.5], ("x", "y"): {Path("p")}, "c": "\x1b[31m\n"})
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert json.loads(told) == {"a": None, "b": [None, 1.5], "x y": ["p"], "c": "\x1b[31m\n"}
    assert plain(True) is True


def test_the_page_of_a_run_shows_its_warnings_with_what_to_do(places: dict[str, Path]) -> None:
    said = unified("status", str(places["run"])).stdout.splitlines()
    at = said.index("warning: one, 2 times, steps 2 to 5: seen")
    assert said[at + 1].strip() == "do"
