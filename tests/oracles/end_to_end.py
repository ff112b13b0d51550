"""Whole steps of a peer's trainers: real forwards of small models, and the gradient of every parameter.

A case of this family holds token ids, masks, the loss and the log-probs; beside its file lie dLoss/dparameter and the
models. The step here goes the whole way: rows, layout, heads, coefficients, backward, once padded and once packed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.cases import FOLDER, Case, Config, DiffersError, Inputs, NotMappedError, compare
from tests.tools import letter_tokenizer, stage, train_settings
from unified import Answer, PromptGroup
from unified.models import Artifact, artifact_at
from unified.running import Run, Table, tabulate
from unified.set_up import set_up
from unified.step import accumulate, count, credit, score

#: trainer -> what (config, inputs) means here: the stage's settings, the groups, and fields that the case gives
Meaning = tuple[dict[str, Any], list[PromptGroup], dict[str, Tensor]]
TRAINERS: dict[str, Callable[[Config, Inputs], Meaning]] = {}


def trainer(name: str) -> Callable[[Any], Any]:
    """Enter a trainer's class into the table."""

    def enter(function: Any) -> Any:
        TRAINERS[name] = function
        return function

    return enter


def check(case: Case) -> int:
    """Compare every instance in both layouts; the number compared."""
    name = case.function.rpartition(":")[2].partition(".")[0]
    if name not in TRAINERS:
        raise NotMappedError(f"no whole step is mapped for {case.function}")
    file = Path(case.name) if case.name.endswith(".json") else FOLDER / f"{case.name}.json"
    done = 0
    for seed, inputs, expected in case.instances():
        for layout in ("padded", "packed"):
            config = case.config()
            settings, groups, given = TRAINERS[name](config, inputs)
            config.finish()
            with tempfile.TemporaryDirectory() as folder:
                run, table = _table(Path(folder), file.parent, {**settings, "layout": layout}, groups, given)
                accumulate(run, [count(run, table, list(range(len(table.rows))))])
            compare(f"seed {seed}, {layout}: loss", run.sums["loss"][0], expected["loss"], case.tolerance)
            _compare_gradients(
                run, load_file(file.with_suffix(".safetensors")), case.tolerance, f"seed {seed}, {layout}"
            )
        done += 1
    if not done:
        raise DiffersError("the case has no instance")
    return done


def _table(
    folder: Path, models: Path, settings: Mapping[str, Any], groups: list[PromptGroup], given: Mapping[str, Tensor]
) -> tuple[Run, Table]:
    """A stage on the case's models, which come without a tokenizer, and its rows with what the case gives."""
    artifacts = {}
    for role, name in (
        ("base", "reward" if "centring" in settings.get("algorithm", {}) else "policy"),
        ("other", "reference"),
    ):
        at = artifact_at(models / name)
        artifacts[role] = Artifact(at.kind, at.path, own_tokenizer=letter_tokenizer())
    data = {"name": "random_walks", "view": "pairs"}
    run = set_up(stage(folder, artifacts), train_settings(data=data, reference="other", **settings))
    table = tabulate(run, run.streams[0], groups)
    time = table.batch.loss_mask.shape[1]
    known = {n: table.batch.expand(x if x.dim() == 1 else x[:, :time]).to(run.dtype) for n, x in given.items()}
    table.batch = table.batch.plus(**known)
    if not known:
        score(run, table, several_steps=False)
        credit(run, table)
    return run, table


def _compare_gradients(run: Run, expected: Mapping[str, Tensor], tolerance: tuple[float, float], where: str) -> None:
    role = next(iter(run.trained))
    own = {n: p.grad for n, p in run.roles.models[role].named_parameters() if p.grad is not None}
    if not own or set(own) - set(expected):
        raise DiffersError(f"{where}: parameters {sorted(set(own) ^ set(expected))[:3]} are not in both")
    for name, grad in own.items():
        compare(f"{where}: gradient of {name}", grad, expected[name].tolist(), tolerance)


def _rows(inputs: Inputs, starts: list[int]) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of each row of a padded batch; padding is cut off."""
    ids, masks = inputs.raw["input_ids"], inputs.raw["attention_mask"]
    return [(i[:s], i[s : sum(m)]) for i, m, s in zip(ids, masks, starts, strict=True)]


def _starts(inputs: Inputs) -> list[int]:
    return [mask.index(1) for mask in inputs.raw["completion_mask"]]


def _pairs(rows: list[tuple[list[int], list[int]]]) -> list[PromptGroup]:
    """Chosen rows first, then rejected; a pair with one prompt is one group."""
    half = len(rows) // 2
    groups = []
    for k in range(half):
        (prompt, better), (other, worse) = rows[k], rows[half + k]
        if prompt != other:
            raise NotMappedError("chosen and rejected answer different prompts")
        groups.append(PromptGroup(prompt, [Answer(better, reward=1.0), Answer(worse, reward=0.0)], key=k))
    return groups


@trainer("SFTTrainer")
def imitation(config: Config, inputs: Inputs) -> Meaning:
    """All tokens of the completions weigh the same."""
    config.expect(loss_type="nll")
    rows = _rows(inputs, _starts(inputs))
    return {"algorithm": {"name": "sft"}}, [PromptGroup(p, [Answer(a)], key=i) for i, (p, a) in enumerate(rows)], {}


@trainer("RewardTrainer")
def scalar_model(config: Config, inputs: Inputs) -> Meaning:
    """The score after the last token; the whole row is the answer to an empty prompt."""
    centring = config.take("center_rewards_coefficient") or 0.0
    groups = _pairs(_rows(inputs, [0] * len(inputs.raw["input_ids"])))
    return {"algorithm": {"name": "reward_model", "centring": centring}}, groups, {}


@trainer("DPOTrainer")
def preference(config: Config, inputs: Inputs) -> Meaning:
    """Pairs against the reference."""
    config.expect(loss_type="sigmoid")
    groups = _pairs(_rows(inputs, _starts(inputs)))
    return {"algorithm": {"name": "dpo", "beta": config.take("beta", 0.1)}}, groups, {}


@trainer("GRPOTrainer")
def policy_gradient(config: Config, inputs: Inputs) -> Meaning:
    """Advantages are given; the KL is weighed by the differentiated ratio where the peer's correction is on."""
    how = {"grpo": "sequence", "dapo": "token", "bnpo": "token"}
    loss = config.take("loss_type", "dapo")
    if loss not in how:
        raise NotMappedError(f"loss_type {loss}")
    config.expect(temperature=1.0)
    low = config.take("epsilon", 0.2)
    ratio = {"name": "clip", "low": low, "high": config.take("epsilon_high") or low}
    kl = {"name": "k3", "importance": "old_policy" if config.take("use_bias_correction_kl", True) else "none"}
    written = {"name": "grpo", "kl_weight": config.take("beta", 0.0), "ratio": ratio, "kl": kl}
    rows = _rows(inputs, [int(inputs.number("prompt_length"))] * len(inputs.raw["input_ids"]))
    groups = [PromptGroup(p, [Answer(a, reward=0.0)], key=i) for i, (p, a) in enumerate(rows)]
    given = {name: inputs[name] for name in ("old_logp", "ref_logp") if name in inputs}
    given["advantage"] = inputs["advantages"].to(torch.float64)
    term = {"algorithm": written, "aggregation": how[loss]}
    return {"terms": [term], "source": {"name": "rollouts", "max_tokens": 8}, "reward": "given"}, groups, given
