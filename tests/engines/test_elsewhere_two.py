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


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def trained(
    folder: Path, output: str, processes: int, launch: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port"]
    command += [str(port), "-m", "unified", "run", "r.yaml", "--output", output, "--quiet"]
    about = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    about |= launch or {}
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
def test_processes_that_share_out_the_weights_push_them_whole_and_learn_what_one_does(tmp_path: Path) -> None:
    # with FSDP2 no process has a model that could be asked; the second one never sees whole weights
    save_model(base().module, base().own_tokenizer, tmp_path / "base")
    for processes, launch in ((1, {}), (2, FSDP2)):
        peer = Peer(tmp_path / "base")
        evaluated = "    evaluation: {reward: {name: length, target: 3, width: 4}, num_prompts: 3, max_tokens: 4}\n"
        text = RECIPE.replace("URL", peer.url).replace("STALENESS", "1") + evaluated
        (tmp_path / "r.yaml").write_text(text)
        done = trained(tmp_path, f"of-{processes}", processes, launch)
        peer.kill()
        assert done.returncode == 0, done.stderr[-4000:]
        assert marks(peer) == [0, 1, 2, 3, 5]  # the last for the evaluation at the end
        rows = (tmp_path / f"of-{processes}" / "rl" / "metrics.jsonl").read_text().splitlines()
        assert max(json.loads(row).get("push/mismatch", 0.0) for row in rows) < 1e-5
    one, two = weights(tmp_path / "of-1"), weights(tmp_path / "of-2")
    assert float((one - two).norm() / one.norm()) < 1e-5


@pytest.mark.slow
def test_both_leave_where_the_server_is_lost_to_one_of_them_in_an_evaluation(tmp_path: Path) -> None:
    # one held-out prompt: the second process asks the server nothing, and would wait for the first without end
    save_model(base().module, base().own_tokenizer, tmp_path / "base")
    peer = Peer(tmp_path / "base", dies_after=5 * 4 * 2)  # the first answer of the evaluation after step 2
    about = "    evaluation: {reward: {name: length, target: 3, width: 4}, num_prompts: 1, max_tokens: 4}\n"
    text = RECIPE.replace("URL", peer.url).replace("STALENESS", "0") + about + "    eval_steps: 2\n"
    (tmp_path / "r.yaml").write_text(text)
    cut = trained(tmp_path, "run", 2)
    peer.kill()
    assert "no server answers" in cut.stderr or "no request is answered" in cut.stderr
    assert cut.stderr.count("exitcode  : 2") == 2, cut.stderr[-3000:]
    assert [p.name for p in (tmp_path / "run" / "rl" / "checkpoint").glob("step-*")] == ["step-2-within"]


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
