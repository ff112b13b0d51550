"""`unified lens`: what is written, what is printed, and what a person who asks for something else is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.lens.pictures import data_of
from unified.cli import app

RECIPE = """\
name: lensed
model:
  new: {model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
  tokenizer: random_walks
stages:
  first: {algorithm: sft, data: random_walks, max_steps: 2, batch_size: 4, learning_rate: 1e-2}
  second:
    algorithm: dpo
    model: stage:first
    data: {name: random_walks, view: pairs}
    max_steps: 4
    batch_size: 4
    learning_rate: 1e-2
    lens_steps: 2
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def unified(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_the_example_needs_no_data_and_no_model() -> None:
    result = unified("lens", "--example", "credit", "--algorithm", "sft", "--algorithm", "dpo")
    assert result.exit_code == 0
    assert "The-0.05 capital-0.05 is-0.05 Nanjing-0.05 .-0.05 </s>-0.05" in result.stdout
    assert result.stdout.splitlines()[-1] == "lens.html"
    columns = data_of(Path("lens.html").read_text(encoding="utf-8"))["strips"][0]["pictures"][0]["columns"]
    assert [c["name"] for c in columns] == ["sft", "dpo"]


def test_json_has_the_numbers_and_writes_no_page() -> None:
    result = unified("lens", "--example", "credit", "--algorithm", "dpo", "--json")
    (picture,) = json.loads(result.stdout)["pictures"][""]
    w, gc = picture["columns"][0]["seen"][2]["heads"]["logp"]
    assert [w * g for g in gc] == pytest.approx([-0.05] * 6, rel=1e-6)
    assert picture["columns"][0]["sums"]["logp"]["lowered"] == pytest.approx(-0.3)
    assert not Path("lens.html").exists()


def test_a_run_shows_its_pictures_and_its_model_is_held_against_the_reference_of_its_stage() -> None:
    Path("r.yaml").write_text(RECIPE)
    assert unified("run", "r.yaml", "--quiet").exit_code == 0
    result = unified("lens", "runs/lensed")
    assert "second, step 4, the last of 3 pictures" in result.stdout
    (strip,) = data_of(Path("lens.html").read_text(encoding="utf-8"))["strips"]
    assert (strip["name"], [p["step"] for p in strip["pictures"]]) == ("second", [0, 2, 4])
    pairs = "{name: random_walks, view: pairs}"
    result = unified("lens", "runs/lensed", "--data", pairs, "--rows", "2", "--json")
    found = json.loads(result.stdout)
    assert "reference: stage:first (of the run)" in found["about"][0]
    (picture,) = found["pictures"][""]
    assert [c["name"] for c in picture["columns"]] == ["dpo"]  # the stage's own
    assert picture["columns"][0]["seen"][0]["fields"]["kl"][0] != 0  # four steps away from the reference
    # the same rows and the same model as in the last picture that the run kept
    kept = json.loads(Path("runs/lensed/second/lens.jsonl").read_text().splitlines()[-1])
    of_file = picture["columns"][0]["seen"][0]["heads"]["logp"][1]
    assert of_file == pytest.approx(kept["columns"][0]["seen"][0]["heads"]["logp"][1], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a run, or a model with --data, or --example credit"),
        (("--data", "x.jsonl", "--example", "credit"), "not both"),
        (("--example", "credits"), "did you mean 'credit'"),
        (("--data", "rows.jsonl"), "which model?"),
        (("nowhere",), "there is no folder nowhere"),
        ((".",), "is no run"),
        ((".", "--algorithm", "dpo"), "give --data FILE beside --algorithm"),
        (("--example", "credit", "--algorithm", "dqo"), "no algorithm 'dqo'"),
        (("--example", "credit", "--algorithm", "{name: dpo, beat: 1}"), "no setting 'beat'"),
        (("--example", "credit", "--reward", "nothing"), "no reward 'nothing'"),
        (("--example", "credit", "--algorithm", "sft", "-o", "."), "is a folder"),
    ],
)
def test_what_cannot_be_shown_is_said_plainly(arguments: tuple[str, ...], said: str) -> None:
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    result = unified("lens", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("lens.html").exists()
