"""A LoRA on a real pretrained model: SFT lowers the held-out loss, and DPO after it begins at ln 2."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.tools import SHARED, stage, train_settings
from unified.loop import train, train_stage
from unified.models import Artifact, artifact_at

MODEL = SHARED / "models" / "tinyllamas-stories260k"
ADAPTER = {"r": 8, "lora_alpha": 16}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not MODEL.exists(), reason="the real models are not beside the checkout"),
]


def file(path: str, **settings: Any) -> dict[str, Any]:
    return {"name": "files", "path": str(SHARED / "data" / path), **settings}


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_imitation_with_an_adapter_lowers_the_held_out_loss_and_preferences_start_from_it(tmp_path: Path) -> None:
    imitate = train_settings(
        algorithm="sft", data=file("gsm8k/train.jsonl.gz", limit=400), learning_rate=1e-2, max_steps=20, batch_size=12,
        evaluation={"num_prompts": 32}, eval_on_start=True, too_long="drop", adapter=ADAPTER,
    )  # fmt: skip
    made = train_stage(stage(tmp_path / "sft", {"base": artifact_at(MODEL)}), imitate)
    held_out = [row["eval/loss"] for row in rows_of(tmp_path / "sft") if "eval/loss" in row]
    assert held_out[0] > 6.0  # nats per token of a model that has read stories only
    assert held_out[-1] < 4.5
    weights = sum(p.numel() for p in artifact_at(MODEL).load("policy").parameters())
    size = (tmp_path / "sft" / "model" / "adapter_model.safetensors").stat().st_size
    assert size < 4 * weights / 2
    again, _ = train(stage(tmp_path / "again", {"base": artifact_at(MODEL)}), imitate)
    assert made.artifact is not None
    starts = {
        "path": made.artifact,
        "memory": Artifact("policy", module=again.roles.models["policy"], own_tokenizer=again.tokenizer),
    }
    prefer = train_settings(
        algorithm="dpo", data=file("hh_rlhf/harmless_base_half_a.jsonl.gz", limit=60, bad_rows="skip"),
        learning_rate=1e-3, max_steps=4, batch_size=12, too_long="drop", adapter=ADAPTER,
    )  # fmt: skip
    losses = {}
    for name, artifact in starts.items():
        run, _ = train(stage(tmp_path / name, {"base": artifact}), prefer)
        losses[name] = [row["loss"] for row in rows_of(tmp_path / name)]
        assert set(run.roles.models) == {"policy"}
        assert losses[name][0] == pytest.approx(math.log(2), abs=1e-5)
        assert abs(losses[name][-1] - math.log(2)) > 1e-3
    assert losses["path"] == pytest.approx(losses["memory"], rel=1e-3)


def test_a_policy_with_an_adapter_learns_from_its_own_samples(tmp_path: Path) -> None:
    rule = {"name": "contains", "words": ["happy"]}
    settings = train_settings(
        algorithm={"name": "grpo", "kl_weight": 0.02}, reward=rule, source={"group_size": 8, "max_tokens": 32},
        data=file("text/tinystories.jsonl", limit=300, format={"name": "text", "prompt_words": 12}), too_long="drop",
        learning_rate=5e-3, max_steps=16, batch_size=8, adapter=ADAPTER,
    )  # fmt: skip
    train_stage(stage(tmp_path, {"base": artifact_at(MODEL)}), settings)
    rows = rows_of(tmp_path)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["kl"] > 1e-3
    first, last = (sum(row["reward"] for row in part) / 4 for part in (rows[:4], rows[-4:]))
    assert last > first + 0.15  # of 256 answers each: more than three standard errors of the difference
