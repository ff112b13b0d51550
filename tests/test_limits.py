"""A row longer than the model's context is refused before anything runs, by file and line, unless it may be dropped."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from unified.cli import app

RECIPE = """
name: limits
model: {new: {model_type: llama, hidden_size: 32, max_position_embeddings: 8}, tokenizer: random_walks}
stages:
  imitation: {algorithm: sft, data: {name: files, path: rows.jsonl, held_out: 0}, max_steps: 1}
  practice:
    algorithm: grpo
    model: stage:imitation
    data: {name: files, path: prompts.jsonl, held_out: 0}
    reward: {name: contains, words: a}
    source: {max_tokens: 4}
    max_steps: 1
"""


def recipe(folder: Path, text: str = RECIPE) -> Path:
    rows = [{"prompt": "b", "completion": "c a"}, {"prompt": "b", "completion": "c d e f g h a"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"prompt": "b"}, {"prompt": "b c d e f"}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    file = folder / "limits.yaml"
    file.write_text(text)
    return file


def test_rows_over_the_context_are_all_named_and_nothing_is_written(tmp_path: Path) -> None:
    # prompt and answer with its end: 1 + 7 + 1 = 9 tokens; prompt and room for an answer: 5 + 4 = 9; the model holds 8
    done = CliRunner().invoke(app, ["run", str(recipe(tmp_path)), "--output", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "rows.jsonl:2" in done.stderr
    assert "prompts.jsonl:2" in done.stderr
    assert done.stderr.count("9 tokens") == 2
    assert "too_long: drop" in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


def test_rows_over_the_context_may_be_dropped_and_are_counted(tmp_path: Path) -> None:
    text = RECIPE.replace("max_steps: 1}", "max_steps: 1, too_long: drop}").replace(
        "    max_steps: 1\n", "    max_steps: 1\n    too_long: drop\n"
    )
    done = CliRunner().invoke(app, ["run", str(recipe(tmp_path, text)), "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    for stage in ("imitation", "practice"):
        summary = json.loads((tmp_path / "run" / stage / "manifest.json").read_text())["summary"]
        assert summary["dropped_rows"] == {"rows": 2, "kept": 1, "dropped_too_long": 1}
