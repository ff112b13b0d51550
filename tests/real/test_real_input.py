"""Real pretrained models and real data, in short: what falls, falls; what rises, rises; what is dropped is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.tools import SHARED, stage, train_settings
from unified.loop import train_stage
from unified.models import artifact_at

MODELS = {"story-260k": "tinyllamas-stories260k", "story-656k": "tinystories-656k"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not (SHARED / "models").exists(), reason="the real models are not beside the checkout"),
]


def file(path: str, **settings: Any) -> dict[str, Any]:
    return {"name": "files", "path": str(SHARED / "data" / path), **settings}


def trained(folder: Path, model: str = "story-260k", **written: Any) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Rows of metrics.jsonl, and the summary of a stage on a real model."""
    artifact = artifact_at(SHARED / "models" / MODELS[model])
    settings = train_settings(too_long="drop", eval_on_start=True, **written)
    result = train_stage(stage(folder, {"base": artifact}), settings)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], result.summary


@pytest.mark.parametrize(
    ("path", "before", "after"),
    # nats per token of the answers, of a model that has read stories only, on 32 held-out rows
    [("gsm8k/train.jsonl.gz", 6.0, 4.0), ("sft/gpteacher_roleplay.jsonl.gz", 3.2, 2.9)],
)
def test_imitation_lowers_the_held_out_loss(tmp_path: Path, path: str, before: float, after: float) -> None:
    rows, summary = trained(
        tmp_path, algorithm="sft", data=file(path, limit=400), learning_rate=1e-3, max_steps=20, batch_size=12,
        evaluation={"num_prompts": 32},
    )  # fmt: skip
    assert rows[0]["eval/loss"] > before
    assert summary["eval/loss"] < after
    counted = summary["dropped_rows"]
    assert counted["kept"] + counted["dropped_too_long"] == counted["rows"] == 360


def test_rows_over_the_context_are_dropped_and_counted_and_the_first_preference_loss_is_ln_2(tmp_path: Path) -> None:
    rows, summary = trained(
        tmp_path, algorithm="dpo", data=file("hh_rlhf/harmless_base_half_a.jsonl.gz", limit=80, bad_rows="skip"),
        learning_rate=2e-4, num_train_epochs=4, batch_size=12, evaluation={"num_prompts": 8},
    )  # fmt: skip
    assert rows[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)
    steps = [r for r in rows if "loss" in r]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert sum(r["loss"] for r in steps[-4:]) / 4 < 0.6  # seen four times, the pairs are told apart
    counted = summary["dropped_rows"]
    assert counted["dropped_too_long"] > 0
    assert counted["kept"] + counted["dropped_too_long"] == counted["rows"]


@pytest.mark.parametrize(
    "data",
    [
        {"path": "hh_rlhf/harmless_base_half_a.jsonl.gz", "limit": 80, "bad_rows": "skip"},
        {"path": "preference/oasst_en_ranked.jsonl"},
    ],
    ids=["pairs", "ranked"],
)
def test_a_scalar_model_learns_to_tell_the_better_answer(tmp_path: Path, data: dict[str, Any]) -> None:
    rows, summary = trained(
        tmp_path, algorithm="reward_model", data=file(**data), learning_rate=1e-3, num_train_epochs=5, batch_size=10,
        evaluation={"num_prompts": 20},
    )  # fmt: skip
    steps = [r for r in rows if "loss" in r]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the read-out starts at zero
    assert sum(r["accuracy"] for r in steps[-3:]) / 3 > 0.7
    assert 0 <= summary["eval/accuracy"] <= 1
    assert summary["dropped_rows"]["dropped_too_long"] > 0


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize(
    ("algorithm", "further"),
    [
        ({"name": "grpo", "kl_weight": 0.1}, {"learning_rate": 3e-4, "max_steps": 25}),
        (
            {"name": "ppo", "kl_weight": 0.02},
            {"learning_rate": {"policy": 3e-4, "critic": 1e-3}, "max_steps": 40, "inner_epochs": 2},
        ),
    ],
    ids=["grpo", "ppo"],
)  # fmt: skip
def test_a_rule_as_reward_raises_it_and_the_policy_stays_near_the_reference(
    tmp_path: Path, model: str, algorithm: dict[str, Any], further: dict[str, Any]
) -> None:
    rule = {"name": "contains", "words": ["happy"]} if model == "story-260k" else "sentence_end"
    rows, summary = trained(
        tmp_path, model, algorithm=algorithm, reward=rule, source={"group_size": 8, "max_tokens": 40}, batch_size=8,
        data=file("text/tinystories.jsonl", limit=300, format={"name": "text", "prompt_words": 12}),
        evaluation={"reward": rule, "num_prompts": 25, "samples": 4, "max_tokens": 40}, **further,
    )  # fmt: skip
    before = rows[0]
    assert before["eval/kl"] == pytest.approx(0, abs=1e-3)  # nats per answer, of the policy as it was handed in
    # 25 prompts x 4 answers: more than two standard errors of the difference
    error = math.hypot(before["eval/reward_std"], summary["eval/reward_std"]) / 10
    assert summary["eval/reward"] > before["eval/reward"] + 2 * error
    first = next(r for r in rows if "kl" in r)
    assert abs(first["kl"]) < 1e-2 if "inner_epochs" in further else abs(first["kl"]) < 1e-5
    assert 0 < summary["eval/kl"] < 20
