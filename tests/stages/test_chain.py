"""Stages as a chain: datasets that stages make, what the check refuses of them, and that rejection sampling helps."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unified import UserError
from unified.check import check_recipe
from unified.console import RunConsole
from unified.made import references, resolved
from unified.manifest import read_manifest
from unified.recipe import load_recipe
from unified.runner import run_recipe
from unified.settings import choose

HEAD = """\
name: chain
threads: 1
model:
  new: {model_type: llama, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 1, num_attention_heads: 4,
        max_position_embeddings: 32}
  tokenizer: random_walks
stages:
  sft: {algorithm: sft, data: {name: random_walks, rows: 400}, num_train_epochs: 10, batch_size: 50,
        learning_rate: 6e-3, lr_scheduler_type: linear}
  best:
    kind: sample
    model: stage:sft
    data: {name: random_walks, view: prompts, repeat: 8}
    source: {group_size: 4, max_tokens: 12}
    reward: random_walks
    select: best
"""
REST = """\
  again: {algorithm: sft, model: stage:sft, data: stage:best, num_train_epochs: 8, batch_size: 40, learning_rate: 2e-3,
          evaluation: {num_prompts: 20}}
  measure: {kind: evaluate, model: stage:again, data: {name: random_walks, view: prompts}, reward: random_walks,
            samples: 24, max_tokens: 12, against: stage:sft}
"""


def recipe(folder: Path, stages: str, *sets: str) -> Any:
    (folder / "r.yaml").write_text(HEAD + stages)
    return load_recipe(folder / "r.yaml", sets)


def refused(folder: Path, stages: str) -> str:
    with pytest.raises(UserError) as caught:
        check_recipe(recipe(folder, stages))
    return str(caught.value)


def test_imitating_the_best_of_four_beats_the_policy_that_sampled_them(tmp_path: Path) -> None:
    quiet = RunConsole(Console(file=io.StringIO()), silent=True)
    outcomes = run_recipe(recipe(tmp_path, REST), tmp_path / "out", console=quiet)
    found = {o.manifest.name: o.manifest for o in outcomes}
    best, measured = found["best"].summary, found["measure"].summary
    assert best["reward/kept"] > best["reward/sampled"]
    gain = measured["eval/reward"] - measured["eval/against/reward"]
    assert gain > 2 * measured["eval/reward_se"]
    assert measured["eval/win_rate"] > 0.5 + 2 * measured["eval/win_rate_se"]
    assert (found["best"].model, found["best"].dataset) == (
        None,
        {"path": "data/train.jsonl", "format": "groups", "held_out_path": "data/held_out.jsonl"},
    )
    # all 160 kept rows are trained on, and the 20 starts of the held-out split are what the loss is measured on
    assert found["again"].summary["dropped_rows"]["rows"] == 160
    assert found["again"].summary["dropped_rows"]["held_out_rows"] == 20
    assert "eval/loss" in found["again"].summary
    written = json.dumps(found["again"].settings)
    assert "stage:best" in written
    assert str(tmp_path) not in written  # a run that is moved is not run again
    assert found["again"].inputs["stage:best"]["sha256"] == found["best"].outputs

    kept = (tmp_path / "out" / "best" / "data" / "train.jsonl").read_bytes()
    again = run_recipe(recipe(tmp_path, REST), tmp_path / "out", console=quiet)
    assert [o.fresh for o in again] == [False] * 4
    other = recipe(tmp_path, REST, "stages.best.select=all", "stages.again.max_steps=1", "stages.measure.samples=1")
    fresh = [o.manifest.name for o in run_recipe(other, tmp_path / "out", console=quiet) if o.fresh]
    assert fresh == ["best", "again", "measure"]
    assert (tmp_path / "out" / "best" / "data" / "train.jsonl").read_bytes() != kept
    manifest = read_manifest(tmp_path / "out" / "best")
    assert manifest is not None
    assert manifest.summary["kept_answers"] > 500


def test_a_dataset_of_a_stage_that_has_not_run_passes_the_check_and_is_told_in_the_plan(tmp_path: Path) -> None:
    said = [stage.describe() for stage in check_recipe(recipe(tmp_path, REST)).stages]
    assert said[2] == "again: train from stage:sft with algorithm sft, data stage:best"
    assert said[3].startswith("measure: evaluate from stage:again, stage:sft with data random_walks, reward")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            "{algorithm: sft, data: stage:sft}",
            "r.yaml:17: stage 's': 'stage:sft' is a policy (a causal language model), but a dataset is needed here",
        ),
        (
            "{algorithm: sft, data: random_walks, model: stage:best}",
            "r.yaml:17: stage 's': 'stage:best' is a dataset, but a policy (a causal language model) is needed here",
        ),
        (
            "{algorithm: reward_model, data: {name: random_walks, view: ranked}, model: stage:best}",
            "'stage:best' is a dataset, but a model is needed here",
        ),
        ("{algorithm: sft, data: stage:bset}", "r.yaml:17: stage 's': no stage 'bset'\n    did you mean 'best'?"),
        ("{algorithm: sft, data: stage:s}", "'stage:s' is this stage itself"),
        (
            "{kind: evaluate, data: random_walks, perplexity: true}\n  t: {algorithm: sft, data: stage:s}",
            "r.yaml:18: stage 't': stage 's' makes no dataset",
        ),
        (
            "{kind: sample, data: random_walks, keep: [stage:best, stage:later], source: {max_tokens: 4}}\n"
            "  later: {kind: sample, data: random_walks, source: {max_tokens: 4}}",
            "stage 'later' comes later, so 'stage:later' is not there yet",
        ),
        ("{kind: merge, models: [stage:sft, stage:best]}", "'stage:best' is a dataset, but a policy"),
        (
            "{kind: merge, models: [stage:sft], of: scalar}",
            "'stage:sft' is a policy (a causal language model), but a sc",
        ),
        ("{kind: sample, data: random_walks, select: best}", "selection 'best' needs a `reward`"),
        (
            "{kind: sample, data: random_walks, select: bets}",
            "r.yaml:17: stage 's': no selection 'bets'\n    did you mean 'best'?",
        ),
        (
            "{kind: sample, data: random_walks, source: {temperature: 0, max_tokens: 4}}",
            "temperature 0 gives 8 times the same answer",
        ),
        ("{kind: evaluate, data: random_walks}", "nothing is measured"),
        (
            "{kind: evaluate, data: random_walks, reward: random_walks, pass_at: [1, 9]}",
            "pass@9 needs 9 samples or more, there are 1",
        ),
        (
            "{kind: evaluate, data: random_walks, reward: random_walks, reference: base, temperature: 0}",
            "the KL is estimated from answers of the whole distribution",
        ),
        (
            "{kind: evaluate, data: {name: random_walks, view: prompts}, perplexity: true}",
            "row 0 has 0 answers, this stage needs 1 or more",
        ),
    ],
)
def test_a_wrong_edge_or_setting_is_refused_with_its_line(tmp_path: Path, stage: str, message: str) -> None:
    assert message in refused(tmp_path, f"  s: {stage}\n")


def test_what_the_recipe_says_of_a_stages_file_wins_over_what_the_stage_says() -> None:
    said = {"path": "/run/best/data/train.jsonl", "format": "groups", "held_out_path": "/run/best/data/held_out.jsonl"}
    plain, _ = choose("dataset", {"name": "files", "path": "stage:best"})
    own, _ = choose("dataset", {"name": "files", "path": "stage:best", "held_out": 5, "limit": 7})
    assert plain is not None
    assert own is not None
    read = resolved([plain, own], lambda reference: said if reference == "stage:best" else {})
    first, second = (chosen.settings for chosen in read)
    assert (first.path, first.format.name, first.held_out_path) == (said["path"], "groups", said["held_out_path"])
    assert (second.path, second.held_out, second.held_out_path, second.limit) == (said["path"], 5, None, 7)
    assert list(references([plain])) == [((0, "path"), "stage:best")]
    assert plain.as_dict()["path"] == "stage:best"  # the settings of the recipe stay as they were
