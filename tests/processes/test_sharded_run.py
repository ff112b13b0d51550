"""`unified run --launch FILE` with weights shared out: ZeRO-3 is stopped, FSDP2 ends the run as one process would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.processes.test_run import RECIPE, ROOT, TOLD
from tests.tools import relative
from unified.checkpoint import steps_in
from unified.launch import config_file

pytestmark = pytest.mark.slow
PPO = RECIPE.partition("  drawn:")[0] + "  online:" + RECIPE.partition("  online:")[2].replace(
    "{name: grpo, kl_weight: 0.05}", "ppo"
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A recipe, and the shipped configurations for two processes on the CPU; that of ZeRO-3 asks for bf16 besides."""
    (tmp_path / "r.yaml").write_text(PPO)
    (tmp_path / "told.py").write_text(TOLD)
    for name in ("fsdp2", "zero3"):
        text = config_file(name).read_text() + "use_cpu: true\nnum_processes: 2\n"
        (tmp_path / f"{name}.yaml").write_text(text + ("mixed_precision: bf16\n" if name == "zero3" else ""))
    return tmp_path


def run(home: Path, *command: str, python: Path | str = sys.executable, told: int = 0) -> tuple[int, str]:
    """The exit code, and all that was said."""
    about = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOLD": str(told or "")}
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")} | about
    done = subprocess.run(
        [str(python), "-m", "unified", *command],
        cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_what_zero_3_began_fsdp2_ends_and_policy_and_critic_load_in_one_process(home: Path, deepspeed: Path) -> None:
    code, said = run(home, "run", "r.yaml", "--output", "one", "--quiet")
    assert code == 0, said
    code, begun = run(home, "run", "r.yaml", "--output", "many", "--launch", "zero3.yaml", python=deepspeed, told=15)
    assert code == 143, begun
    assert begun.count("stopped in stage online; run the same command again to go on") == 1
    assert begun.count("`mixed_precision: bf16` has no part in training") == 1
    assert len(steps_in(home / "many" / "online" / "checkpoint")) == 1
    code, ended = run(home, "run", "r.yaml", "--output", "many", "--launch", "fsdp2.yaml")
    assert code == 0, ended
    for noise in ("Warning", "WARNING", "Traceback", "built successfully"):
        assert noise not in begun + ended
    for part in ("start/model", "online/model", "online/critic"):
        one, many = (load_file(home / folder / part / "model.safetensors") for folder in ("one", "many"))
        assert one.keys() == many.keys()
        assert max(relative(many[name], one[name]) for name in one) < 1e-5, part
    critic = AutoModelForSequenceClassification.from_pretrained(home / "many" / "online" / "critic")
    assert critic.config.num_labels == 1
    code, said = run(home, "export", "many", "exported")
    assert code == 0, said
    AutoModelForCausalLM.from_pretrained(home / "exported")


def test_an_optimiser_of_whole_matrices_is_refused_in_one_message(home: Path) -> None:
    (home / "r.yaml").write_text(PPO.replace("num_train_epochs: 1", "num_train_epochs: 1, optim: Adafactor"))
    code, said = run(home, "run", "r.yaml", "--output", "many", "--launch", "fsdp2.yaml")
    assert code == 2
    assert said.count("Adafactor looks at whole matrices, but their parts lie in several processes") == 1
    assert "Traceback" not in said
