"""Every preset that samples learns to walk: from the imitation of random walks (0.75) to 0.95 of the best and beyond.

And a negative control: a reward that means nothing teaches nothing.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.tools import stage, train_settings
from unified import Reward, hookimpl
from unified.loop import train_stage
from unified.models import Artifact, artifact_at, new_policy
from unified.registry import Catalogue, call_named, catalogue, using

pytestmark = pytest.mark.slow
WITH_CRITIC = {"ppo", "vapo"}
#: settings away from the preset's own, where a task of 20 prompts asks for them
SPECIAL: dict[str, dict[str, Any]] = {
    "dr_grpo": {"constant_length": 12},
    # its lambda 1 - 1 / (0.05 length) is made for answers of thousands of tokens; here they have five
    "vapo": {"advantage": {"name": "gae", "value_lam": 1.0, "length_alpha": 4.0}},
    "gspo": {"ratio": {"name": "sequence_clip", "low": 0.2, "high": 0.2}},
}
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MEASURED = {"reward": "random_walks", "num_prompts": 20, "samples": 16, "max_tokens": 12}


def sampling_presets() -> list[str]:
    """Presets of policy gradients on a verifier's reward; others need a teacher, a judge or data."""
    found = []
    for name in catalogue().names("algorithm"):
        part = catalogue().get("algorithm", name)
        if catalogue().get("source", part.source).online and part.reward == "required":
            found.append(name)
    return found


@pytest.fixture(scope="module")
def imitation(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A policy that imitates the walks."""
    part = catalogue().get("dataset", "random_walks")
    base = new_policy(SMALL, call_named(part.tokenizer, settings=part.settings()), 0)
    folder = tmp_path_factory.mktemp("imitation")
    settings = train_settings(
        algorithm="sft", data="random_walks", learning_rate=2e-3, num_train_epochs=30, batch_size=100,
        lr_scheduler_type="linear", evaluation=MEASURED,
    )  # fmt: skip
    result = train_stage(stage(folder, {"base": base}), settings)
    assert result.summary["eval/reward"] == pytest.approx(0.75, abs=0.05)
    return artifact_at(folder / "model")


def learned(folder: Path, start: Artifact, name: str, **written: Any) -> dict[str, Any]:
    """Summary of 60 collected batches of 20 prompts."""
    part = catalogue().get("algorithm", name)
    source = {"max_tokens": 12} | ({} if part.source.endswith("greedy") else {"group_size": 16})
    epochs = 2 if name in WITH_CRITIC else 1
    settings = train_settings(
        algorithm={"name": name, **SPECIAL.get(name, {})},
        data={"name": "random_walks", "view": "prompts", "repeat": 4},
        source=source, batch_size=80 if "greedy" in part.source else 20, inner_epochs=epochs, max_steps=60 * epochs,
        learning_rate=5e-4, lr_scheduler_type="linear", evaluation=MEASURED, **written,
    )  # fmt: skip
    return train_stage(stage(folder, {"base": start}), settings).summary


def test_there_are_presets_that_sample() -> None:
    assert {"ppo", "grpo", "rloo", "dapo", "gspo", "reinforce", "remax"} <= set(sampling_presets())


@pytest.mark.parametrize("name", sampling_presets())
def test_the_preset_learns_to_walk(tmp_path: Path, imitation: Artifact, name: str) -> None:
    summary = learned(tmp_path, imitation, name, reward="random_walks")
    assert summary["eval/reward"] >= 0.95


class Noise:
    """A reward that means nothing."""

    @hookimpl
    def unified_rewards(self) -> list[Reward]:
        draw = random.Random(0)
        return [Reward("noise", judge=lambda groups: [[draw.random() for _ in g.answers] for g in groups])]


def test_random_rewards_teach_nothing(tmp_path: Path, imitation: Artifact) -> None:
    with using(Catalogue({"noise": Noise()})):
        summary = learned(tmp_path, imitation, "grpo", reward="noise")
    assert summary["eval/reward"] < 0.8
