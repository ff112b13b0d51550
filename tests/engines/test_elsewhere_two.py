"""Two processes on one server: each asks for its own prompts, the main one pushes, and both learn what one would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.docs.snippets import ROOT
from tests.engines.peer import Peer
from tests.engines.test_elsewhere import base, marks
from unified import save_model

RECIPE = """
name: two
model: {path: base}
stages:
  rl:
    algorithm: {name: grpo, kl_weight: 0.0}
    data: {name: random_walks, view: prompts}
    reward: {name: length, target: 3, width: 4}
    source: {group_size: 4, max_tokens: 5}
    engine: {name: vllm, urls: "URL", on_lost: stop}
    batch_size: 5
    learning_rate: 1e-2
    max_steps: 5
    max_staleness: STALENESS
"""


def trained(folder: Path, output: str, processes: int) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port"]
    command += [str(port), "-m", "unified", "run", "r.yaml", "--output", output, "--quiet"]
    about = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env={**os.environ, **about}, capture_output=True, text=True, timeout=240)


def weights(folder: Path) -> torch.Tensor:
    read = load_file(folder / "rl" / "model" / "model.safetensors")
    return torch.cat([read[name].flatten().double() for name in sorted(read)])


@pytest.mark.slow
@pytest.mark.parametrize(("staleness", "pushed"), [(0, [0, 1, 2, 3, 4]), (1, [0, 1, 2, 3])])
def test_two_processes_sample_and_learn_what_one_does(staleness: int, pushed: list[int], tmp_path: Path) -> None:
    save_model(base().module, base().own_tokenizer, tmp_path / "base")
    asked = []
    for processes in (1, 2):
        peer = Peer(tmp_path / "base")
        text = RECIPE.replace("URL", peer.url).replace("STALENESS", str(staleness))
        (tmp_path / "r.yaml").write_text(text)
        done = trained(tmp_path, f"of-{processes}", processes)
        peer.kill()
        assert done.returncode == 0, done.stderr[-4000:]
        assert marks(peer) == pushed  # by one process, whatever their number
        asked.append(
            sorted(
                b["sampling_params"]["seed"] for r, b in peer.requests if "seed" in (b or {}).get("sampling_params", {})
            )
        )
    assert asked[0] == asked[1]  # the same answers, each once
    assert len(asked[0]) == 5 * 5 * 4
    one, two = weights(tmp_path / "of-1"), weights(tmp_path / "of-2")
    assert float((one - two).norm() / one.norm()) < 1e-5
    rows = [json.loads(line) for line in (tmp_path / "of-2" / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert [r["staleness"] for r in rows if "staleness" in r] == ([0, 1, 1, 1, 1] if staleness else [])


@pytest.mark.slow
def test_both_processes_leave_with_a_checkpoint_where_the_server_is_lost(tmp_path: Path) -> None:
    save_model(base().module, base().own_tokenizer, tmp_path / "base")
    peer = Peer(tmp_path / "base", dies_after=5 * 4 * 2 + 7)  # in the middle of the third batch
    (tmp_path / "r.yaml").write_text(RECIPE.replace("URL", peer.url).replace("STALENESS", "0"))
    cut = trained(tmp_path, "run", 2)
    peer.kill()
    assert cut.returncode != 0
    assert "no server answers" in cut.stderr
    assert cut.stderr.count("exitcode  : 2") == 2, cut.stderr[-3000:]
    assert (tmp_path / "run" / "rl" / "checkpoint" / "step-2" / "index.json").is_file()
    anew = Peer(tmp_path / "base", peer.port)
    again = trained(tmp_path, "run", 2)
    anew.kill()
    assert again.returncode == 0, again.stderr[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]
