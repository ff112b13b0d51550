"""Metrics that a recipe names and nothing measures are refused before anything runs, where that can be known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from unified import Algorithm, Settings, UserError, run_recipe
from unified.batch import Batch
from unified.check import check_recipe
from unified.console import RunConsole
from unified.measured import of_training, problem_of
from unified.recipe import load_recipe
from unified.registry import catalogue
from unified.tried import metric_names

HEAD = """\
name: a
model:
  new: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
  tokenizer: random_walks
stages:
"""
RL = "{algorithm: grpo, data: random_walks, reward: random_walks"
KNOWN = "eval/answers, eval/clipped_ratio, eval/dropped/missing, eval/kl, eval/length, eval/reward, eval/reward_std"


def said(folder: Path, *lines: str) -> str:
    """What the check says; the first line is the recipe's sixth."""
    (folder / "r.yaml").write_text(HEAD + "".join(f"{line}\n" for line in lines))
    try:
        check_recipe(load_recipe(folder / "r.yaml"))
    except UserError as error:
        return str(error).replace(f"{folder}/", "").partition("\n1 problem")[0]
    return ""


@pytest.mark.parametrize("name", ["reward", "eval/reward", "length", "kl"])
def test_a_metric_that_an_evaluation_measures_may_choose_the_best_model(tmp_path: Path, name: str) -> None:
    assert said(tmp_path, f"  s: {RL}, evaluation: {{reward: random_walks}}, metric_for_best_model: {name}}}") == ""


@pytest.mark.parametrize("name", ["rewrad", "eval/accuracy", "loss", "eval/reward_se"])
def test_a_metric_that_it_does_not_measure_is_told_with_those_that_it_does(tmp_path: Path, name: str) -> None:
    lines = ["  s:", *(f"    {x}" for x in ("algorithm: grpo", "data: random_walks", "reward: random_walks"))]
    lines += ["    evaluation: {reward: random_walks}", f"    metric_for_best_model: {name}"]
    told = said(tmp_path, *lines)
    assert told.startswith(f"r.yaml:11: stage 's': 'eval/{name.removeprefix('eval/')}' is not measured\n")
    assert told.endswith(f"measured: {KNOWN}")


@pytest.mark.parametrize(
    ("stage", "metric", "told"),
    [
        ("algorithm: sft", "eval/logp", ""),
        ("algorithm: sft", "logp", ""),
        ("algorithm: sft", "eval/dropped/too_long", ""),  # what is left out is counted by reason
        ("algorithm: sft", "los", "'eval/los' is not measured\n    did you mean 'eval/loss'?"),
        (
            "algorithm: sft",
            "margin_of_mine",
            "'eval/margin_of_mine' is not measured\n    measured: eval/logp, eval/loss",
        ),
        ("algorithm: sft", "reward", "'eval/reward' is not measured\n    `evaluation: {reward: ...}` measures it"),
        ("terms: [{algorithm: sft}, {algorithm: dft}]", "sft/logp", ""),
        ("terms: [{algorithm: sft}, {algorithm: dft}]", "loss", "'eval/loss' is not measured\n"),
        (
            "terms: [{algorithm: sft}, {algorithm: dft}]",
            "stf/logp",
            "'eval/stf/logp' is not measured\n    did you mean",
        ),
    ],
)
def test_a_metric_of_an_algorithm_on_rows_is_held_against_the_names_that_it_gives(
    tmp_path: Path, stage: str, metric: str, told: str
) -> None:
    rows = f"{stage}, data: random_walks, evaluation: {{num_prompts: 4}}"
    found = said(tmp_path, f"  s: {{{rows}, metric_for_best_model: {metric}}}")
    assert found.startswith(f"r.yaml:6: stage 's': {told}" if told else "")
    assert bool(found) == bool(told)


def test_the_names_of_an_algorithms_metrics_are_those_of_its_settings() -> None:
    def names(name: str, **settings: object) -> frozenset[str] | None:
        part = catalogue().get("algorithm", name)
        return metric_names(part, part.settings(**settings))

    pair = {"rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"}
    assert names("dpo") == pair
    assert names("pointwise") == {"score", "accuracy"}
    assert names("pointwise", target="number") == {"score", "error_square"}


def test_metrics_whose_names_hang_on_the_numbers_may_be_any() -> None:
    def changing(batch: Batch) -> dict[str, tuple[float, float]]:
        return {f"best_{float(batch.reward.max()):.3f}": (1.0, 1.0)}

    def refusing(batch: Batch) -> dict[str, tuple[float, float]]:
        raise ValueError("these are no numbers of mine")

    for metrics in (changing, refusing):
        assert (
            metric_names(Algorithm("a", Settings, coefficient=lambda batch: batch.reward, metrics=metrics), Settings())
            is None
        )


def test_every_installed_algorithm_tells_the_names_of_its_metrics() -> None:
    found = {}
    for name in catalogue().names("algorithm"):
        part = catalogue().get("algorithm", name)
        if not any(field.is_required() for field in part.settings.model_fields.values()):
            found[name] = metric_names(part, part.settings())
    assert len(found) > 50
    assert [name for name, names in found.items() if names is None] == []


def test_the_metric_that_ends_rounds_is_held_against_the_stage_that_measures_it(tmp_path: Path) -> None:
    def block(metric: str, evaluation: str) -> str:
        return said(
            tmp_path, "  loop:", "    repeat: 2", "    until:", f"      metric: {metric}", "      at_least: 1",
            "    stages:", f"      rl: {RL}{evaluation}}}",
        )  # fmt: skip

    measured = ", evaluation: {reward: random_walks}"
    assert block("eval/reward", measured) == ""
    assert block("last/whatever", measured) == ""  # the metrics of training are not known by name
    told = "r.yaml:9: block 'loop': stage 'rl': 'eval/rewards' is not measured\n    did you mean 'eval/reward'?"
    assert block("eval/rewards", measured).startswith(told)
    told = "r.yaml:9: block 'loop': stage 'rl': 'eval/reward' is not measured\n    `evaluation: {reward: ...}` measures"
    assert block("eval/reward", "").startswith(told)


@pytest.mark.parametrize(
    ("settings", "metric", "told"),
    [
        ("", "eval/accuracy", ""),
        ("", "eval/a_column_of_mine", ""),  # a reward may write it
        ("", "eval/acuracy", "'eval/acuracy' is not measured\n    did you mean 'eval/accuracy'?"),
        ("", "eval/kl", "'eval/kl' is not measured\n    a `reference` measures it"),
        (", reference: base", "eval/kl_se", ""),
        ("", "eval/win_rate", "'eval/win_rate' is not measured\n    `against` measures it"),
        ("", "eval/perplexity", "'eval/perplexity' is not measured\n    `perplexity: true` measures it"),
        (", pass_at: [1, 4], samples: 4", "eval/pass@4", ""),
        (", pass_at: [1, 4], samples: 4", "eval/pass@8", "'eval/pass@8' is not measured\n    did you mean 'eval/pass@"),
        (", rewards: [constant]", "eval/reward/constant", ""),
        ("", "reward", "'reward' is not measured\n    did you mean 'eval/reward'?"),
    ],
)
def test_what_a_recipe_expects_is_held_against_what_a_measuring_stage_measures(
    tmp_path: Path, settings: str, metric: str, told: str
) -> None:
    stage = f"  look: {{kind: evaluate, data: random_walks, reward: random_walks{settings}}}"
    found = said(tmp_path, stage, "expect:", f"  - {{stage: look, metric: {metric}, at_least: 0}}")
    assert found.startswith(f"r.yaml:8: expect[0]: stage 'look': {told}" if told else "")
    assert bool(found) == bool(told)


def test_both_stages_of_a_comparison_must_measure_it(tmp_path: Path) -> None:
    look = "  look: {kind: evaluate, data: random_walks, reward: random_walks}"
    rows = "  rows: {algorithm: sft, data: random_walks}"
    told = said(tmp_path, look, rows, "expect:", "  - {stage: look, than: rows}")
    assert told.startswith("r.yaml:9: expect[0]: stage 'rows': 'eval/reward' is not measured")


@pytest.mark.parametrize(
    ("name", "known", "slip"),
    [
        ("reward", "rewards", True), ("rewards", "reward", True), ("rewrad", "reward", True),
        ("rewerd", "reward", True),
        ("reward_a", "reward_se", False), ("xreward", "reward", True), ("drawer", "reward", False), ("", "r", True),
    ],
)  # fmt: skip
def test_one_slip_of_the_pen_is_one_letter_or_two_exchanged(name: str, known: str, slip: bool) -> None:
    assert (problem_of({known: "", "*": ""}, name, ()) is not None) == slip


ONLINE = "reward: random_walks, algorithm: {name: grpo, kl_weight: 0.1}, source: {group_size: 2, max_tokens: 3}"
SAMPLED = {"eval/reward", "eval/kl"}
TERMS = {"eval/sft/loss", "eval/sft/logp", "eval/dft/loss", "eval/dft/logp"}


@pytest.mark.parametrize(
    ("terms", "evaluation", "least"),
    [
        (ONLINE, "reward: random_walks", SAMPLED),
        ("algorithm: sft", "", {"eval/loss", "eval/logp"}),
        ("terms: [{algorithm: sft}, {algorithm: dft}]", "reward: random_walks", {*TERMS, "eval/reward"}),
    ],
)
def test_what_a_stage_is_said_to_measure_is_what_its_summary_holds(
    tmp_path: Path, terms: str, evaluation: str, least: set[str]
) -> None:
    stage = f"  s: {{data: random_walks, {terms}, max_steps: 1, batch_size: 2, "
    stage += f"evaluation: {{num_prompts: 4, {evaluation}}}}}\n"
    (tmp_path / "r.yaml").write_text(HEAD + stage)
    recipe = load_recipe(tmp_path / "r.yaml")
    run = run_recipe(recipe, tmp_path / "out", console=RunConsole(Console(file=io.StringIO())))
    (settings,) = [stage.settings for stage in check_recipe(recipe).stages]
    online = terms == ONLINE
    known = {name for name, hint in of_training(settings, online=online).items() if not hint}
    summary = json.loads((tmp_path / "out" / "s" / "manifest.json").read_text())["summary"]
    measured = {k for k, v in summary.items() if isinstance(v, float) and not k.startswith("last/")}
    assert least <= measured <= known, run
    assert {k for k in summary if k.endswith("/loss") and k.startswith("last/")} <= known
