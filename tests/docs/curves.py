"""Mini recipes of the algorithms, and their measured curves: `python -m tests.docs.curves [NAME ...]` measures anew.

A mini recipe imitates random walks for some seconds and goes on with the algorithm. All share the stages before it, so
they are measured as one recipe; a stage draws from its own name, hence its numbers are those of the recipe alone.
What is measured stands in docs/algorithms/curves.json, beside the stages it was measured with.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from tests.docs.snippets import ROOT
from unified.parts import Algorithm
from unified.recipe import load_recipe
from unified.registry import catalogue
from unified.runner import run_recipe

CURVES = ROOT / "docs" / "algorithms" / "curves.json"
SEED = 0
#: steps that a point of a training metric is the mean of; the numbers of steps are multiples of it
MEAN = 5
MODEL = {
    "new": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "tokenizer": "random_walks",
}
START = {
    "algorithm": "sft",
    "data": "random_walks",
    "num_train_epochs": 15,
    "batch_size": 100,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "linear",
}
#: the best of four walks, imitated: better than what the start has learned
TEACHER = {
    "terms": [{"algorithm": "sft", "on": "best"}],
    "model": "stage:start",
    "data": {"name": "random_walks", "view": "ranked"},
    "num_train_epochs": 5,
    "batch_size": 50,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
}
#: a search whose nodes are steps with a label: how often answers from there were right
TREE = {
    "kind": "sample",
    "model": "stage:start",
    "data": {"name": "random_walks", "view": "prompts", "repeat": 10},
    "source": {
        "name": "tree_search",
        "reward": "random_walks",
        "judge": "rollout",
        "simulations": 8,
        "expand": 3,
        "step_tokens": 1,
        "max_tokens": 12,
        "keep": 32,
    },
    "held_out": 40,
}
#: settings that this task asks for, where a preset is made for another length or scale; the rest is the preset's own
SPECIAL: dict[str, dict[str, Any]] = {
    "dr_grpo": {"constant_length": 12},
    "vapo": {"advantage": {"name": "gae", "value_lam": 1.0, "length_alpha": 4.0}},
    "gspo": {"ratio": {"name": "sequence_clip", "low": 0.2, "high": 0.2}},
    "luspo": {"ratio": {"name": "sequence_clip", "low": 0.2, "high": 0.2}},
}
#: keys of the stage that differ from those of its family
STAGE: dict[str, dict[str, Any]] = {
    "sft": {"model": "base", "num_train_epochs": 20, "batch_size": 100, "learning_rate": 2e-3, "eval_steps": 40},
    "dpo_pl": {"data": {"name": "random_walks", "view": "ranked"}},
    "tpo": {"data": {"name": "random_walks", "view": "ranked"}},
    "plackett_luce": {"data": {"name": "random_walks", "view": "ranked"}},
    "reward_model": {"data": {"name": "random_walks", "view": "ranked"}},
    "weighted_sft": {"data": {"name": "random_walks", "view": "pairs"}},
    "rft": {"data": {"name": "random_walks", "view": "pairs"}},
    "prm": {"data": "stage:tree", "num_train_epochs": 8, "batch_size": 20, "eval_steps": 10},
    "xpo": {
        "data": "stage:theirs",
        "source": {"name": "self_play", "max_tokens": 12, "mark": "from_reference"},
        "reward": "random_walks",
        "evaluation": {
            "data": {"name": "random_walks", "view": "prompts"},
            "reward": "random_walks",
            "num_prompts": 200,
            "samples": 4,
            "max_tokens": 12,
        },
    },
}
#: answers of the reference, one to a prompt, which the policy plays against
THEIRS = {
    "kind": "sample",
    "model": "stage:start",
    "data": {"name": "random_walks", "view": "prompts", "repeat": 100},
    "source": {"group_size": 1, "max_tokens": 12},
    "held_out": 0,
}
#: why there is no curve
WITHOUT: dict[str, str] = {}


def heads(part: Algorithm) -> list[str]:
    """The heads that an algorithm pushes under its own settings."""
    return list(part.aggregations(part.settings()))


def metric(part: Algorithm) -> str:
    """What the curve of an algorithm shows: the verifier's reward of held-out answers, a scalar model's accuracy, or
    the divergence from the teacher in training."""
    found = {"score": "eval/accuracy", "logits": "divergence"}
    return next((found[head] for head in heads(part) if head in found), "eval/reward")


def stages(name: str) -> dict[str, dict[str, Any]]:
    """The stages of the mini recipe of an algorithm, itself last; KeyError for one WITHOUT."""
    if name in WITHOUT:
        raise KeyError(WITHOUT[name])
    part = catalogue().get("algorithm", name)
    made: dict[str, Any] = {"algorithm": {"name": name, **SPECIAL[name]} if name in SPECIAL else name}
    made["model"] = "stage:start"
    before: dict[str, dict[str, Any]] = {"start": START}
    if "score" in heads(part):
        made |= {"data": _view("pairs"), "num_train_epochs": 4, "batch_size": 50, "learning_rate": 1e-3}
        made |= {"evaluation": {"num_prompts": 200}, "eval_steps": 20}
    elif catalogue().get("source", part.source).online:
        made |= {"data": {**_view("prompts"), "repeat": 100}}
        if part.reward == "required":
            made["reward"] = "random_walks"
        greedy = part.source.endswith("greedy")
        made["source"] = {"max_tokens": 12} if greedy else {"group_size": 16, "max_tokens": 12}
        critic = "value" in heads(part)
        steps = 80 if critic else 40
        made |= {"batch_size": 160 if greedy else 20, "inner_epochs": 2 if critic else 1, "max_steps": steps}
        made |= {"learning_rate": 5e-4, "evaluation": _judged(), "eval_steps": steps // 5}
    else:
        view = "pairs" if part.reward == "given" else "walks"
        made |= {"data": _view(view), "num_train_epochs": 2, "batch_size": 50, "learning_rate": 2e-4}
        made |= {"evaluation": _judged(), "eval_steps": 8}
    if "logits" in heads(part) or name == "on_policy_distillation":
        before, made["teacher"] = {**before, "teacher": TEACHER}, "stage:teacher"
    if name == "prm":
        before = {**before, "tree": TREE}
    if name == "xpo":
        before = {**before, "theirs": THEIRS}
    made |= {"lr_scheduler_type": "linear", "eval_on_start": True, **STAGE.get(name, {})}
    return before | {name: made} if made["model"] != "base" else {name: made}


def _view(name: str) -> dict[str, Any]:
    return {"name": "random_walks", "view": name}


def _judged() -> dict[str, Any]:
    return {"reward": "random_walks", "num_prompts": 200, "samples": 4, "max_tokens": 12}


def recipe(names: Iterable[str]) -> dict[str, Any]:
    """One recipe with the mini stages of these algorithms."""
    found = list(names)
    every = {stage: how for name in found for stage, how in stages(name).items()}
    return {"name": f"mini-{found[0]}", "seed": SEED, "model": MODEL, "stages": every}


def written(name: str) -> str:
    """The mini recipe of an algorithm as a file."""
    lines: list[str] = []
    for key, value in recipe([name]).items():
        if key != "stages":
            lines.append(f"{key}: {_flow(value)}")
            continue
        lines.append("stages:")
        for stage, how in value.items():
            lines += [f"  {stage}:", *(f"    {k}: {_flow(v)}" for k, v in how.items())]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value in one line, as a person writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return str(value)


def measured_here(names: list[str]) -> dict[str, Any]:
    """Run the mini recipes of these algorithms; per algorithm its stage, metric and [step, value] points."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mini.yaml"
        file.write_text(yaml.safe_dump(recipe(names), sort_keys=False), encoding="utf-8")
        run = Path(folder) / "run"
        run_recipe(load_recipe(file), run)
        return {name: _read(run / name / "metrics.jsonl", name) for name in names}


def _read(file: Path, name: str) -> dict[str, Any]:
    part = catalogue().get("algorithm", name)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    shown = {key for row in rows for key in row}
    points = [(row["step"], row[metric(part)]) for row in rows if metric(part) in row]
    if not metric(part).startswith("eval/"):
        blocks = [points[k : k + MEAN] for k in range(0, len(points), MEAN)]
        points = [(block[-1][0], fmean(y for _, y in block)) for block in blocks]
    hidden = {"step", "iteration", "seconds", "tokens_per_second", "learning_rate", "tokens"}
    return {
        "metric": metric(part),
        "points": [[x, round(y, 4)] for x, y in points],
        "metrics": sorted(shown - hidden),
        "stages": stages(name),
    }


def stored() -> dict[str, Any]:
    """The curves that were measured, by algorithm."""
    found: dict[str, Any] = json.loads(CURVES.read_text(encoding="utf-8")) if CURVES.exists() else {}
    return found


def main(wanted: list[str]) -> None:
    """Measure these algorithms, or all whose recipe has changed since, and write the file."""
    known = [n for n in catalogue().names("algorithm") if n not in WITHOUT]
    built_in = [n for n in known if catalogue().provider("algorithm", n).startswith("plugin unified_plugins.")]
    old = stored()
    names = wanted or [n for n in built_in if old.get(n, {}).get("stages") != stages(n)]
    new = {**old, **(measured_here(names) if names else {})}
    lines = [f"{json.dumps(n)}: {json.dumps(new[n])}" for n in sorted(new) if n in built_in]
    CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
