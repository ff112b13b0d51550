"""Parameter gradients of whole steps against those of a well-known library's trainers, on its one-layer Qwen2.

The cases hold token ids, masks, the log-probs that the library computed and dLoss/dparameter (DESIGN 5.3). The built-in
algorithms take part, so this file uses the installed catalogue.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tools import SHARED, letter_tokenizer, stage, train_settings
from unified import Answer, PromptGroup
from unified.models import Artifact, artifact_at
from unified.registry import Catalogue, using
from unified.run import Run, Table, tabulate
from unified.set_up import set_up
from unified.step import accumulate, count

CASES = SHARED / "oracles" / "e2e"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not CASES.exists(), reason="the reference cases are not beside the checkout"),
]


def case(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """Inputs, expected figures, expected gradients and configuration."""
    whole = json.loads((CASES / f"{name}.json").read_text())
    instance = whole["instances"][0] if "instances" in whole else whole
    return instance["inputs"], instance["expected"], load_file(CASES / f"{name}.safetensors"), whole["config"]


def running(folder: Path, artifact: str, **written: Any) -> Run:
    """A stage on one of the case's models, which come without a tokenizer."""
    at = artifact_at(CASES / artifact)
    base = Artifact(at.kind, at.path, own_tokenizer=letter_tokenizer())
    data = {"name": "random_walks", "view": "pairs"}
    return set_up(stage(folder, {"base": base}), train_settings(data=data, reference="base", **written))


def rows(inputs: dict[str, Any], starts: list[int], rewards: list[float], per_prompt: int) -> list[PromptGroup]:
    """Rows of a padded batch as prompt groups: the answer begins at `starts`, padding is cut off."""
    answers = []
    for ids, mask, start, reward in zip(inputs["input_ids"], inputs["attention_mask"], starts, rewards, strict=True):
        length = sum(mask)
        answers.append((ids[:start], Answer(ids[start:length], reward=reward)))
    return [
        PromptGroup(answers[i][0], [a for _, a in answers[i : i + per_prompt]], key=i)
        for i in range(0, len(answers), per_prompt)
    ]


def assert_gradients(run: Run, table: Table, expected: dict[str, torch.Tensor], role: str) -> None:
    accumulate(run, [count(run, table, list(range(len(table.rows))))])
    own = {n: p.grad for n, p in run.roles.models[role].named_parameters()}
    compared = 0
    for name, wanted in expected.items():
        if name in own and own[name] is not None:
            torch.testing.assert_close(
                own[name], wanted.to(own[name].dtype), rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
            compared += 1
    assert compared == sum(g is not None for g in own.values()) > 5


def starts_of(inputs: dict[str, Any]) -> list[int]:
    return [mask.index(1) for mask in inputs["completion_mask"]]


@pytest.fixture(autouse=True)
def installed() -> Any:
    """The built-in plugins, against the rule of this folder."""
    with using(Catalogue()) as catalogue:
        yield catalogue


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_imitation(tmp_path: Path, layout: str) -> None:
    inputs, expected, gradients, _ = case("trl_sft")
    run = running(tmp_path, "policy", algorithm="sft", layout=layout)
    groups = rows(inputs, starts_of(inputs), [1.0] * len(inputs["input_ids"]), 1)
    table = tabulate(run, run.streams[0], groups)
    assert_gradients(run, table, gradients, "policy")
    assert run.sums["loss"][0] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_scalar_model_on_pairs(tmp_path: Path, layout: str) -> None:
    inputs, expected, gradients, config = case("trl_reward")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    half = len(ids) // 2
    order = [i for k in range(half) for i in (k, half + k)]
    turned = {"input_ids": [ids[i] for i in order], "attention_mask": [mask[i] for i in order]}
    groups = rows(turned, [1] * len(order), [1.0, 0.0] * half, 2)
    for group, k in zip(
        groups, range(half), strict=True
    ):  # the first tokens of the two answers differ: no common prompt
        group.prompt, group.answers = (
            [],
            [
                Answer(ids[i][: sum(mask[i])], reward=a.reward)
                for i, a in zip((k, half + k), group.answers, strict=True)
            ],
        )
    run = running(
        tmp_path,
        "reward",
        algorithm={"name": "reward_model", "centring": config["center_rewards_coefficient"]},
        layout=layout,
    )
    table = tabulate(run, run.streams[0], groups)
    assert_gradients(run, table, gradients, "scorer")
    assert run.sums["loss"][0] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_policy_gradient_with_a_trust_region_and_a_reference(tmp_path: Path, layout: str) -> None:
    inputs, expected, gradients, config = case("trl_grpo")
    algorithm = {
        "name": "grpo",
        "kl_weight": config["beta"],
        "ratio": {"name": "clip", "low": config["epsilon"], "high": config["epsilon_high"]},
        "kl": {"name": "k3", "importance": "old_policy"},  # the library weighs its k3 by the differentiated ratio
    }
    run = running(tmp_path, "policy", algorithm=algorithm, layout=layout, source={"max_tokens": 8}, reward="given")
    groups = rows(inputs, [inputs["prompt_length"]] * len(inputs["input_ids"]), inputs["advantages"], 1)
    table = tabulate(run, run.streams[0], groups)
    time = table.batch.loss_mask.shape[1]
    given = {n: torch.tensor(inputs[n])[:, :time] * table.batch.loss_mask for n in ("old_logp", "ref_logp")}
    table.batch = table.batch.plus(**given, advantage=table.batch.expand(torch.tensor(inputs["advantages"])))
    assert_gradients(run, table, gradients, "policy")
    assert run.sums["loss"][0] == pytest.approx(expected["loss"], rel=1e-4)
