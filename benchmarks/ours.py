"""This project's side: a stage's settings as a recipe would write them, and its own loop, stepped from outside.

The verbs of the step are timed from here by standing in for them; the engine knows nothing of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import APART, KNOWN, LEARNING_RATE, Case
from benchmarks.material import end_ids
from benchmarks.measure import Timer
from benchmarks.worker import Serve, loop

#: (module, name) -> what its own time is called; `forward` and `generate` are the models', `lay out` what surrounds one
VERBS = {
    ("unified.step", "collect"): "collect",
    ("unified.stream", "Sampler.__call__"): "generate",
    ("unified.step", "judge"): "judge",
    ("unified.step", "select"): "select",
    ("unified.step", "tabulate"): "tabulate",
    ("unified.step", "score"): "score",
    ("unified.step", "credit"): "credit",
    ("unified.loop", "count"): "count",
    ("unified.step", "look_ahead"): "look ahead",
    ("unified.step", "forward"): "lay out",
    ("unified.running", "forward"): "lay out",
    ("unified.roles", "Roles.forward"): "forward",
    ("unified.step", "learn"): "learn",
    ("unified.step", "weigh"): "weigh",
    ("accelerate", "Accelerator.backward"): "backward",
    ("unified.step", "update"): "update",
    ("unified.loop", "Loop.control"): "control",
    ("unified.loop", "Loop.report"): "report",
}
#: model and optimiser; everything else is overhead of the engine
MODEL = ("generate", "forward", "backward", "update")

ALGORITHMS: dict[str, dict[str, Any]] = {
    "sft": {"algorithm": "sft"},
    "rm": {"algorithm": "reward_model"},
    "dpo": {"algorithm": {"name": "dpo", "beta": 0.1}},
    "grpo": {"algorithm": {"name": "grpo", "kl_weight": 0.0}},
    "ppo": {"algorithm": {"name": "ppo", "kl_weight": 0.05}, "inner_epochs": 2},
    "rollout": {"algorithm": {"name": "grpo", "kl_weight": 0.0}},
}
FORMATS = {"sft": "text", "rm": "preference", "dpo": "preference"}
SAMPLED = ("grpo", "ppo", "rollout")


def settings_of(case: Case, folder: Path, *, bf16: bool, **more: Any) -> dict[str, Any]:
    """What a recipe would write for the stage of a case."""
    ranked = case.kind in ("rm", "dpo") and case.answers > 2
    shape = "ranked" if ranked else FORMATS.get(case.kind, "prompts")
    out = {
        **ALGORITHMS[case.kind],
        "data": {"name": "files", "path": str(folder / "rows.jsonl"), "format": shape, "held_out": 0},
        "batch_size": case.rows,
        "max_steps": 1_000_000,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": 1.0,
        "shuffle": False,
        "bf16": bf16,
        **more,
    }
    if case.name == APART:
        out["layout"] = "packed"
    if case.kind in SAMPLED:
        out["source"] = {"name": "rollouts", "group_size": case.answers, "max_tokens": case.answer}
        out["reward"] = {"name": "python", "function": "benchmarks.cases:reward"}
    return out


def start(case: Case, folder: Path, models: Path, written: Mapping[str, Any]) -> Any:
    """The engine's loop over collected batches, set up as a stage of a run would."""
    from unified.interrupt import StopRequest
    from unified.loop import Loop
    from unified.models import artifact_at
    from unified.set_up import set_up
    from unified.settings import parse
    from unified.stage import StageContext, TrainSettings

    settings, problems = parse(TrainSettings, written, owner="the stage")
    if problems:
        raise ValueError("\n".join(p.text() for p in problems))
    out = folder / "ours"
    out.mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (out / name).unlink(missing_ok=True)
    model = models / ("scalar" if case.kind == "rm" else "policy")
    stage = StageContext(
        "bench", out, folder, case.seed, lambda _: artifact_at(model), lambda *_, **__: None, lambda *_: None
    )
    return Loop(set_up(stage, settings), StopRequest())


def watch(timer: Timer) -> None:
    """Put the timer around every verb. AttributeError for one that the engine does not have (any more)."""
    for (module, name), label in VERBS.items():
        owner: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        timer.wrap(owner, last, label)


def run(serve: Serve, case: Case, asked: Mapping[str, Any]) -> None:
    """Load, say ready, and step when told to."""
    if case.kind == "logprob":
        return loop(serve, _logprob(case, asked))
    folder, bf16 = Path(asked["folder"]), asked["precision"] == "bf16"
    written = settings_of(case, folder, bf16=bf16, **asked.get("settings", {}))
    stepper = start(case, folder, Path(asked["models"]), written)
    serve.timer = Timer()
    watch(serve.timer)
    if case.kind == "rollout":
        return loop(serve, _rollout(case, stepper.run))
    tokens: list[int] = []
    _count(tokens, sampled=case.kind in SAMPLED)

    def step() -> int:
        tokens.clear()
        stepper.iterate()
        serve.loss = stepper.run.last.get("loss")
        return sum(tokens)

    return loop(serve, step)


def _count(into: list[int], *, sampled: bool) -> None:
    """Take down the tokens of every table: of prompts and answers, or of sampled answers alone."""
    engine: Any = importlib.import_module("unified.loop")
    original = engine.prepare

    def prepare(*args: Any, **kwargs: Any) -> Any:
        table = original(*args, **kwargs)
        into.append(sum(len(r.answer) if sampled else r.tokens for r in table.rows))
        return table

    engine.prepare = prepare


def _rollout(case: Case, run: Any) -> Callable[[], int]:
    """The verb that collects, alone: answers as a stage would sample them."""
    import unified.step as engine

    run.roles.models["policy"].generation_config.eos_token_id = end_ids(case)

    def step() -> int:
        groups = engine.collect(run, run.streams[0], case.rows)
        run.step += 1
        run.iteration += 1
        return sum(len(a.ids) for group in groups for a in group.answers)

    return step


def _logprob(case: Case, asked: Mapping[str, Any]) -> Callable[[], int]:
    """Log-probs of tokens: their coefficients known before, or read from them, when logits are made twice."""
    import torch

    from benchmarks.limit_parts import logprob_step
    from unified.logprob import token_logprobs, weighted_logprob

    dtype = torch.bfloat16 if asked["precision"] == "bf16" else None
    if case.name == KNOWN:
        return logprob_step(case, lambda h, w, t, push: weighted_logprob(h, w, None, t, push, dtype=dtype)[0])
    return logprob_step(case, lambda h, w, t, push: (token_logprobs(h, w, None, t, dtype=dtype)[0] * push).sum())
