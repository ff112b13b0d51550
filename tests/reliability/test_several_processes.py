"""Two processes stop together, and go on to the same weights as two that nobody stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.kills import differences
from unified.checkpoint import steps_in

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: two
model: {new: {model_type: llama, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2,
              max_position_embeddings: 32}, tokenizer: random_walks}
stages:
  online:
    algorithm: {name: grpo, kl_weight: 0.05, kl_target: 0.02}
    data: {name: random_walks, view: prompts}
    reward: &length {name: length, target: 3, width: 4}
    source: {group_size: 4, max_tokens: 6}
    learning_rate: 1e-2
    batch_size: 4
    collect_size: 8
    inner_epochs: 2
    max_steps: 12
    save_steps: 3
    evaluation: {reward: *length, num_prompts: 6, max_tokens: 6}
    metric_for_best_model: eval/reward
    eval_steps: 4
"""
#: after the 7th optimiser step, the third on the second collected batch, one process gets a signal
STEPS = """
import os, signal, unified.step
from unified.__main__ import main
real, done = unified.step.update, []
def update(run):
    real(run)
    done.append(run.step)
    if os.environ.get("SENT") and len(done) == 7 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), int(os.environ["SENT"]))
unified.step.update = update
main()
"""


def run(folder: Path, output: str, sent: int = 0) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += ["steps.py", "run", "r.yaml", "--output", output, "--quiet"]
    about = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **about, "SENT": str(sent or "")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_leave_together_and_go_on_to_the_same_weights_after_sigterm_and_after_sigkill(
    tmp_path: Path,
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "steps.py").write_text(STEPS)
    whole = run(tmp_path, "whole")
    assert whole.returncode == 0, whole.stderr
    for output, sent, left in (("asked", 15, "step-7-within"), ("killed", 9, "step-6-within")):
        cut = run(tmp_path, output, sent)
        assert cut.returncode != 0
        assert cut.stderr.count("stopped in stage online; run the same command again") == (sent == 15)
        assert cut.stderr.count("exitcode  : 143") == (2 if sent == 15 else 0), cut.stderr
        assert steps_in(tmp_path / output / "online" / "checkpoint")[0] == left
        again = run(tmp_path, output)
        assert again.returncode == 0, again.stderr
        assert list(differences(tmp_path / "whole", tmp_path / output)) == []
