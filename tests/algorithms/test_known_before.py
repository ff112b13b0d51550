"""On answers of the policy itself a ratio is 1: the coefficient is known before the forward, and all else is equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tools import relative, stage, tiny_policy, train_settings
from unified import Algorithm, Batch, catalogue
from unified.contract import Subject, failures, through_ratio
from unified.loop import train
from unified.parts import Algorithm as Part
from unified.roles import Roles
from unified.settings import parse

ONLINE: dict[str, Any] = {
    "data": {"name": "random_walks", "view": "prompts"}, "reward": {"name": "length", "target": 3, "width": 4},
    "source": {"group_size": 3, "max_tokens": 7}, "learning_rate": 1e-3, "batch_size": 4, "max_steps": 3,
    "tokens_per_micro_batch": 40,
}  # fmt: skip
#: without a KL in the loss. sapo and gmpo compute ratios of their own, through log_ratio
KNOWN = ["grpo", "dapo", "dr_grpo", "gspo", "cispo", "gmpo", "sapo", "luspo", "rloo", "opo", "reinforce"]


def chosen(name: str, **written: Any) -> tuple[Algorithm, Any]:
    algorithm = catalogue().get("algorithm", name)
    settings, problems = parse(algorithm.settings, written, owner="the algorithm")
    assert not problems
    return algorithm, settings


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *, known: bool, **how: Any) -> tuple[Tensor, list[Any], int]:
    """Weights after some steps, every line of the metrics, and how often a forward was told what to push."""
    told = 0
    forward = Roles.forward

    def watched(self: Roles, *args: Any, **kwargs: Any) -> Any:
        nonlocal told
        told += (kwargs.get("push") is not None) or (len(args) > 4 and args[4] is not None)
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Roles, "forward", watched)
        if not known:
            patch.setattr(Part, "looks_through_ratio", lambda self, settings: False)
        artifacts = {"base": tiny_policy(dtype=torch.float64), "other": tiny_policy(seed=1, dtype=torch.float64)}
        ran, _ = train(stage(folder, artifacts), train_settings(**{**ONLINE, **how}))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for timed in ("seconds", "tokens_per_second"):
            line.pop(timed, None)
    return torch.cat([w.detach().flatten() for _, w in sorted(ran.trained_weights().items())]), lines, told


@pytest.mark.parametrize("name", KNOWN)
def test_steps_with_the_coefficient_known_before_are_those_without(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"algorithm": {"name": name, "kl_weight": 0.0, **({"constant_length": 7} if name == "dr_grpo" else {})}}
    (tmp_path / "known").mkdir()
    (tmp_path / "not").mkdir()
    weights, lines, told = run(tmp_path / "known", monkeypatch, known=True, **how)
    same, wanted, never = run(tmp_path / "not", monkeypatch, known=False, **how)
    part, settings = chosen(**how["algorithm"])
    reads_ratio = "old_logp" in part.names_read(settings)  # else it was known before in any case
    assert told > 3
    assert never == (0 if reads_ratio else told)
    assert relative(weights, same) < 1e-12
    assert len(lines) == len(wanted) >= 3
    for mine, other in zip(lines, wanted, strict=True):
        assert mine == pytest.approx(other, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "how",
    [
        {"algorithm": {"name": "grpo", "kl_weight": 0.1}},  # another policy is looked at
        {"algorithm": {"name": "grpo", "kl_weight": 0.1, "kl_place": "reward"}},  # old_logp is computed for the credit
        {"algorithm": {"name": "grpo", "kl_weight": 0.0, "entropy_weight": 0.1}},  # another head is pushed
        {"algorithm": {"name": "dppo", "kl_weight": 0.0}},  # it looks at probabilities themselves
        {"algorithm": {"name": "grpo", "kl_weight": 0.0}, "inner_epochs": 2},  # the second step has an old policy
        {"algorithm": {"name": "grpo", "kl_weight": 0.0, "factors": ["importance"]}},  # and so has another engine
    ],
    ids=lambda how: " ".join(map(str, how.items())),
)
def test_what_looks_at_more_than_a_ratio_of_the_policy_to_itself_waits_for_the_forward(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lines, told = run(tmp_path, monkeypatch, known=True, reference="other", **how)
    assert len(lines) >= 2
    assert told == 0


def test_most_of_these_algorithms_look_at_a_ratio() -> None:
    assert sum("old_logp" in part.names_read(settings) for part, settings in map(chosen, KNOWN)) >= 6


def test_the_contract_finds_an_algorithm_that_looks_at_more_than_it_says() -> None:
    def coefficient(batch: Batch) -> Tensor:
        return torch.where(batch.logp > -1, batch.expand(batch.reward), 0.0)

    def honest(batch: Batch) -> Tensor:
        return (batch.logp - batch.old_logp).exp() * batch.expand(batch.reward)

    reads = frozenset({"logp", "old_logp"})
    for function, found in ((coefficient, 1), (honest, 0)):
        algorithm = Algorithm("mine", coefficient=function, reads=reads, through_ratio=True)
        assert len(failures(through_ratio, Subject(algorithm, algorithm.settings()))) == found


def test_a_coefficient_is_known_before_by_what_it_reads_and_whether_the_step_is_the_only_one() -> None:
    grpo, none = chosen("grpo", kl_weight=0.0)
    assert grpo.is_known_before(none, once=True)
    assert not grpo.is_known_before(none, once=False)
    assert not grpo.is_known_before(chosen("grpo")[1], once=True)
    sft, plain = chosen("sft")
    assert sft.is_known_before(plain, once=False)
