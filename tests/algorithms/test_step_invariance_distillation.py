"""A step of distillation: its gradient is that of the published loss, however the step is cut and laid out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gradients import leave
from tests.tools import (
    gradient,
    random_groups,
    relative,
    stage,
    step_gradient,
    table_of,
    tiny_policy,
    train_settings,
)
from unified import PromptGroup, UserError
from unified.models import Artifact
from unified.running import Run
from unified.set_up import set_up
from unified.step import accumulate, count
from unified.training import check

ROOT = Path(__file__).resolve().parents[2]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("distill_forward", {}),
    ("distill_forward", {"support": "teacher", "top_k": 5}),
    ("distill_forward", {"support": "student", "top_k": 5, "tail": "drop", "temperature": 2.0}),
    ("distill_reverse", {"support": "teacher", "top_k": 5, "tail": "floor", "floor": -30.0}),
    ("gkd", {}),
    ("on_policy_distillation", {"advantage": {"name": "teacher", "gamma": 0.9}}),
    ("minillm", {}),
]
WAYS: list[dict[str, Any]] = [
    {"tokens_per_micro_batch": 25},
    {"layout": "packed"},
    {"layout": "packed", "tokens_per_micro_batch": 40},
    {"layout": "padded-left"},
    {"layout": "prefix-shared", "tokens_per_micro_batch": 40},
]


def made(name: str, settings: dict[str, Any], dtype: torch.dtype, kind: str = "gpt2", **how: Any) -> Run:
    """A stage with a teacher; `layout` may be padded-left, `source` replaces the algorithm's own."""
    artifacts = {
        "base": tiny_policy(kind, dtype=dtype),
        "other": tiny_policy(kind, seed=1, dtype=dtype),
        "narrow": Artifact("policy", module=narrow(), own_tokenizer=tiny_policy().own_tokenizer),
    }
    layout = how.pop("layout", "padded")
    written = {"teacher": "other", "data": {"name": "random_walks", "view": "pairs"}, "max_length": 60, **how}
    rows = "terms" in written or name == "distill_forward"
    written.setdefault("source", {"name": "rows"} if rows else {"name": "rollouts", "max_tokens": 8})
    if "terms" not in written:
        written["algorithm"] = {"name": name, **settings}
    laid = "packed" if layout == "packed" else "padded"
    run = set_up(stage(Path(tempfile.mkdtemp()), artifacts), train_settings(**written, layout=laid))
    run.layout = layout
    return run


def narrow() -> Any:
    """A policy with logits for one token less."""
    model = tiny_policy("gpt2").module
    model.resize_token_embeddings(model.config.vocab_size - 1)
    return model


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
@pytest.mark.parametrize("how", WAYS, ids=lambda how: ", ".join(map(str, how.values())))
def test_gradient_is_the_same_however_the_step_is_cut_and_laid_out(
    name: str, settings: dict[str, Any], how: dict[str, Any]
) -> None:
    groups = random_groups(5, 3, empty=True)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        whole = step_gradient(made(name, settings, dtype), groups, several_steps=True)
        assert whole.norm() > 1e-4
        assert relative(step_gradient(made(name, settings, dtype, **how), groups, several_steps=True), whole) < bound


def main(out: str) -> None:
    """Write the gradient of a step of every variant; the groups are dealt to the processes in turn."""
    found = {}
    for name, settings in VARIANTS:
        run = made(name, settings, torch.float64, tokens_per_micro_batch=30)
        found[f"{name} {settings}"] = step_gradient(run, random_groups(5, 3, empty=True), several_steps=True)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(found, out)
    leave()


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    # 5 prompts on 2 processes: one of them runs forwards of no meaning, with numbers in the place of stored tokens
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone", "-m"]
    for before, out in (([], "one.pt"), (launch, "two.pt")):
        command = [
            sys.executable,
            "-m",
            *before,
            "tests.algorithms.test_step_invariance_distillation",
            str(tmp_path / out),
        ]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / out) for out in ("one.pt", "two.pt"))
    assert len(one) == len(VARIANTS)
    for name, gradient_alone in one.items():
        assert relative(two[name], gradient_alone) < 1e-10, name


def mean_divergence(run: Run, groups: list[PromptGroup], temperature: float) -> Tensor:
    """The published loss: reverse KL of whole distributions, mean over tokens, each row through the models alone."""
    losses = []
    for group in groups:
        for answer in group.answers:
            ids = torch.tensor([group.prompt + answer.ids])
            student, teacher = (
                run.roles.models[r](input_ids=ids, use_cache=False).logits for r in ("policy", "teacher")
            )
            s, t = ((x[0] / temperature).log_softmax(-1) for x in (student, teacher.detach()))
            kl = (s.exp() * (s - t)).sum(-1)
            mask = answer.loss_mask or []
            losses += [kl[len(group.prompt) + i - 1] for i, counts in enumerate(mask) if counts]
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("kind", "bound"), [("gpt2", 1e-10), ("gemma2", 1e-6)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_of_the_step_is_autograd_of_the_divergence_through_the_models_own_logits(
    kind: str, bound: float, temperature: float
) -> None:
    # sampling at temperature T: both distributions are those of softmax(logits / T); Gemma 2 caps its logits
    source = {"name": "rollouts", "max_tokens": 8, "temperature": temperature}
    run = made("distill_reverse", {}, torch.float64, kind, source=source, tokens_per_micro_batch=30)
    groups = random_groups(4, 2)
    mine = step_gradient(run, groups)
    run.optimizer.zero_grad(set_to_none=True)
    mean_divergence(run, groups, temperature).backward()  # type: ignore[no-untyped-call]
    assert relative(mine, gradient(run)) < bound


def test_the_logged_loss_is_the_mean_divergence() -> None:
    run = made("distill_reverse", {}, torch.float64)
    groups = random_groups(3, 2)
    step_gradient(run, groups)
    wanted = float(mean_divergence(run, groups, 1.0).detach())
    assert run.sums["loss"][0] == pytest.approx(wanted, rel=1e-9)
    assert run.sums["divergence"][0] / run.sums["divergence"][1] == pytest.approx(wanted, rel=1e-9)


def test_a_policy_that_is_its_own_teacher_has_loss_0_and_no_gradient() -> None:
    run = made("gkd", {}, torch.float64, teacher="base")
    assert step_gradient(run, random_groups(3, 2)).norm() < 1e-12
    assert abs(run.sums["loss"][0]) < 1e-12


def test_several_divergences_in_one_stage_add() -> None:
    # 0.3 forward + 0.7 reverse as two terms is the mixed rule with 0.3 as one
    groups = random_groups(3, 2)
    terms = [
        {"algorithm": "distill_forward", "weight": 0.3},
        {"algorithm": "distill_reverse", "weight": 0.7},
    ]
    both = step_gradient(made("", {}, torch.float64, terms=terms), groups)
    mixed = made("distill_forward", {"divergence": {"name": "mixed_kl", "forward": 0.3}}, torch.float64)
    assert relative(both, step_gradient(mixed, groups)) < 1e-10


def test_distillation_adds_to_imitation() -> None:
    groups = random_groups(3, 2)

    def of(*algorithms: str) -> Tensor:
        teacher = {} if "distill_forward" in algorithms else {"teacher": None}
        terms = [{"algorithm": a, "weight": 0.5} for a in algorithms]
        return step_gradient(made("", {}, torch.float64, terms=terms, **teacher), groups)

    assert relative(of("distill_forward", "sft"), of("distill_forward") + of("sft")) < 1e-10


def test_every_term_has_the_credit_of_its_own() -> None:
    # grpo compares rewards, on-policy distillation asks the teacher: two advantages of the same tokens
    groups = random_groups(3, 3)
    source = {"name": "rollouts", "max_tokens": 8}
    rewarded = {"algorithm": {"name": "grpo", "kl_weight": 0.0}, "weight": 0.5}
    taught = {"algorithm": "on_policy_distillation", "weight": 2.0}

    def of(*terms: Any) -> Tensor:
        teacher = "other" if taught in terms else None
        how = {"terms": list(terms), "teacher": teacher, "source": source, "reward": "given"}
        return step_gradient(made("", {}, torch.float64, **how), groups, several_steps=True)

    apart = of(rewarded) + of(taught)
    assert relative(of(rewarded, taught), apart) < 1e-10
    assert relative(of(taught, rewarded), apart) < 1e-10


def test_the_teacher_is_frozen_and_asked_once_for_stored_tokens_of_fixed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made("distill_forward", {"support": "teacher", "top_k": 5}, torch.float64)
    groups, asked = random_groups(3, 2), []
    teacher: Any = run.roles.models["teacher"]
    monkeypatch.setattr(teacher.base_model, "forward", _counting(teacher.base_model.forward, asked))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    first = step_gradient(run, groups)
    assert len(asked) == 1
    assert relative(step_gradient(run, groups[::-1]), first) < 1e-10  # what is kept is found again in another order
    assert len(asked) == 1
    run.optimizer.step()
    assert all((v == before[k]).all() for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def _counting(function: Any, calls: list[int]) -> Any:
    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return function(*arguments, **named)

    return counted


def test_an_answer_without_stored_tokens_counts_for_nothing() -> None:
    # the process whose share is empty still runs the same forwards, on a row of no meaning
    run = made("distill_forward", {"support": "teacher", "top_k": 5}, torch.float64)
    table = table_of(run, [])
    accumulate(run, [count(run, table, [])])
    assert gradient(run).norm() == 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"teacher": None}, "algorithm 'gkd' needs a teacher"),
        ({"teacher": "narrow"}, r"the policy gives logits for \d+ tokens, the teacher for \d+"),
    ],
)
def test_a_teacher_that_is_missing_or_has_another_vocabulary_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made("gkd", {}, torch.float32, **how)


def test_check_says_where_a_teacher_is_missing_or_not_needed() -> None:
    settings = train_settings(algorithm="gkd", data={"name": "random_walks", "view": "prompts"})
    found = check(settings, Path(), 0, None)
    assert [(p.at, p.message) for p in found] == [(("algorithm",)[:0], "algorithm 'gkd' needs a `teacher`")]
    settings = train_settings(algorithm="sft", data={"name": "random_walks", "view": "pairs"}, teacher="base")
    assert [(p.at, p.message) for p in check(settings, Path(), 0, None)] == [
        (("teacher",), "no term of this stage asks a teacher")
    ]


def test_distillation_brings_the_policy_to_the_teacher() -> None:
    # 60 steps on the same answers: what is left of the divergence is less than a tenth
    run = made("distill_forward", {}, torch.float32, learning_rate=3e-3, max_steps=60)
    groups = random_groups(6, 2)

    def divergence() -> float:
        run.sums.clear()
        step_gradient(run, groups)
        return run.sums["divergence"][0] / run.sums["divergence"][1]

    before = divergence()
    for _ in range(60):
        divergence()
        run.optimizer.step()
    assert divergence() < before / 10


if __name__ == "__main__":
    main(*sys.argv[1:])
