"""The quickstart keeps its promise: SFT imitates, GRPO reaches 0.97 and PPO 0.95 of the best walks, on three seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unified.cli import app

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.yaml"


def summaries(folder: Path) -> dict[str, dict[str, Any]]:
    return {p.parent.name: json.loads(p.read_text())["summary"] for p in folder.glob("*/manifest.json")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_stage_reaches_what_the_readme_says(tmp_path: Path, seed: int) -> None:
    done = CliRunner().invoke(app, ["run", str(RECIPE), "--output", str(tmp_path / "run"), "--set", f"seed={seed}"])
    assert done.exit_code == 0, done.output
    found = summaries(tmp_path / "run")
    assert set(found) == {"sft", "rm", "ppo", "dpo", "grpo"}
    assert found["sft"]["eval/reward"] == pytest.approx(0.75, abs=0.05)  # imitation is as good as the walks
    assert found["rm"]["eval/accuracy"] > 0.95
    assert found["ppo"]["eval/reward"] >= 0.95
    assert found["grpo"]["eval/reward"] >= 0.97
    assert found["sft"]["eval/reward"] < found["dpo"]["eval/reward"] < found["grpo"]["eval/reward"]
    assert 0 < found["grpo"]["eval/kl"] < 3  # nats per answer
    assert "reward" in done.output
    assert "accuracy" in done.output  # the table


@pytest.mark.slow
def test_a_quickstart_that_is_killed_and_run_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys

    short = {
        "sft.num_train_epochs": 3,
        "sft.save_steps": 10,
        "rm.num_train_epochs": 1,
        "ppo.max_steps": 8,
        "dpo.num_train_epochs": 1,
        "grpo.max_steps": 6,
        "grpo.save_steps": 2,
    }
    settings = [word for key, value in short.items() for word in ("--set", f"stages.{key}={value}")]
    command = [sys.executable, "-m", "unified", "run", str(RECIPE), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [*command, "--output", str(tmp_path / "whole")], env=environment, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    killed = 0
    for place in ("sft", "grpo"):
        process = subprocess.Popen([*command, "--output", str(tmp_path / "cut")], env=environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        while process.poll() is None and not (tmp_path / "cut" / place / "checkpoint").exists():
            pass
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed == 2
    again = subprocess.run(
        [*command, "--output", str(tmp_path / "cut")], env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    for stage in ("sft", "rm", "ppo", "dpo", "grpo"):
        names = ("model/model.safetensors",)
        for name in names:
            assert (tmp_path / "whole" / stage / name).read_bytes() == (tmp_path / "cut" / stage / name).read_bytes()
