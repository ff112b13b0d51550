"""Run folders as a run leaves them, without running one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: what a test calls the rows of each log
LOGS = {"rows": "metrics.jsonl", "samples": "samples.jsonl", "warnings": "warnings.jsonl", "bins": "coefficients.jsonl"}


def make_run(folder: Path, stages: Mapping[str, Mapping[str, Any]], *, name: str = "demo") -> Path:
    """A run folder with these stages; of each its logs by `LOGS`, `manifest` (None: not done), `given` (settings)."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {stage: dict(about.get("given", {})) for stage, about in stages.items()}
    resolved = {"model": {"new": {"model_type": "llama"}}, "defaults": {"seed": 7}, "stages": given}
    about = {"run": name, "recipe": "r.yaml", "home": "/nowhere", "stages": list(stages), "resolved": resolved}
    (folder / "run.json").write_text(json.dumps(about))
    for stage, what in stages.items():
        place = folder / stage
        place.mkdir(exist_ok=True)
        (place / "fingerprint").write_text("f")
        for name, file in LOGS.items():
            rows = what.get(name)
            if rows is not None:
                (place / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        if what.get("manifest") is not None:
            written = {"name": stage, "kind": "train", "settings": given[stage], "model": "model", **what["manifest"]}
            (place / "manifest.json").write_text(json.dumps(written))
    return folder


def rows(steps: int, *, of: Iterable[str] = ("loss",), **more: Any) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl: each metric a wave; two seconds and 100 tokens a step."""
    names = list(of)
    return [
        {"step": i, "seconds": 2.0, "tokens": 100.0, **{n: math.sin(i / 9 + k) for k, n in enumerate(names)}, **more}
        for i in range(1, steps + 1)
    ]


def sample(step: int, prompt: str = "why?", answer: str = "because", **more: Any) -> dict[str, Any]:
    """A row of a samples.jsonl."""
    return {"step": step, "prompt": prompt, "answer": answer, "reward": 1.0, "finish": "stop", **more}


def chain(folder: Path, *, name: str = "demo", steps: int = 40) -> Path:
    """Two stages that are done: imitation without a KL, and one with KL and reward that learns from it."""
    online = ["reward", "kl", "completions/mean_length", "completions/clipped_ratio", "completions/nats", "gc/abs",
              "gc/positive", "gc/negative"]  # fmt: skip
    first = {
        "rows": [*rows(steps, of=["loss", "gc/abs"]), {"step": steps, "eval/loss": 0.5}],
        "samples": [sample(s) for s in range(1, steps + 1)],
        "given": {"algorithm": "imitate", "data": "walks", "learning_rate": 1e-3},
        "manifest": {"inputs": {"base": {"path": None, "sha256": {}}}, "seconds": 3.0,
                     "summary": {"eval/loss": 0.5, "steps": steps}, "versions": {"torch": "2.13.0"}},
    }  # fmt: skip
    second = {
        "rows": [*rows(steps, of=online), {"step": steps, "eval/reward": 0.9, "eval/kl": 2.0}],
        "samples": [sample(s, answer=f"answer {s}") for s in range(1, steps + 1)],
        "given": {"algorithm": {"name": "walk", "kl_weight": 0.1}, "model": "stage:first", "data": "walks"},
        "manifest": {"inputs": {"stage:first": {"path": "x", "sha256": {}}}, "seconds": 9.0,
                     "summary": {"eval/reward": 0.9, "eval/kl": 2.0, "warnings": {"gradient_spike": 2}}},
        "warnings": [{"stage": "second", "step": s, "kind": "gradient_spike", "message": "grad_norm is 60",
                      "values": {"norm": 60.0}, "remedy": "If it stays, lower learning_rate"} for s in (7, 9)],
        "bins": [{"step": s, "gc": [[14, s], [20, 10], [8, steps - s]]} for s in range(1, steps + 1)],
    }  # fmt: skip
    return make_run(folder, {"first": first, "second": second}, name=name)
