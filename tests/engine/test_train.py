"""The loop: what a stage leaves behind, exact resume, the reference it uses, and what is computed at all."""

from __future__ import annotations

import json
import math
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import (
    random_groups,
    relative,
    stage,
    step_gradient,
    table_of,
    tiny_policy,
    tiny_scalar,
    train_settings,
)
from unified import PromptGroup, UserError
from unified.checkpoint import steps_in
from unified.evaluate import evaluate
from unified.loop import group_metrics, train, train_stage
from unified.models import Artifact, artifact_at
from unified.running import Run
from unified.set_up import plan_steps, set_up
from unified.stage import StageContext

SAMPLED = {"algorithm": "clipped", "data": "letters", "reward": "vowels", "source": {"group_size": 3}, "batch_size": 4}


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.roles.models["policy"].parameters()])


def test_imitation_learns_the_rows_and_leaves_a_checkpoint_that_loads_as_it_was(tmp_path: Path) -> None:
    settings = train_settings(
        algorithm="imitate",
        data="letters",
        learning_rate=1e-2,
        num_train_epochs=6,
        batch_size=8,
        evaluation={"num_prompts": 24},
    )
    result = train_stage(stage(tmp_path, {"base": tiny_policy()}), settings)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [r["loss"] for r in rows if "loss" in r]
    assert len(steps) == 18  # 24 rows, 8 a step, 6 epochs
    assert steps[-1] < 0.8 * steps[0]
    assert result.artifact is not None
    assert result.summary["eval/loss"] < steps[0]
    again = artifact_at(tmp_path / "model")
    assert again.kind == "policy"
    evaluated = set_up(stage(tmp_path / "x", {"base": again}), settings)
    table = table_of(evaluated, [evaluated.held_out[0].rows[0]])
    assert table.rows[0].answer[-1] == 2  # the end-of-sequence token travels with the tokenizer


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


@pytest.mark.parametrize(
    "written",
    [
        {"algorithm": "prefer", "data": "letters", "reference": "input", "batch_size": 5, "max_steps": 12},
        {**SAMPLED, "max_steps": 12, "collect_size": 8, "inner_epochs": 2},
        {"algorithm": "centred", "data": "letters", "reference": "input", "batch_size": 6, "max_steps": 10},
    ],
)
@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_run_that_was_stopped_ends_with_the_same_weights_and_metrics(
    tmp_path: Path, written: dict[str, Any], stop_after: int
) -> None:
    settings = train_settings(**written, learning_rate=1e-2, save_steps=4, lr_scheduler_type="linear")
    straight, _ = train(stage(tmp_path / "a", {"base": tiny_policy()}), settings)

    broken = stage(tmp_path / "b", {"base": tiny_policy()})
    calls = []

    def stop(step: int, steps: int, metrics: Any) -> None:
        calls.append(step)
        if len(calls) == stop_after + 1 and (tmp_path / "b" / "checkpoint").exists():
            raise StoppedError

    broken.progress = stop
    with suppress(StoppedError):
        train(broken, settings)
    again, _ = train(stage(tmp_path / "b", {"base": tiny_policy()}), settings)
    assert torch.equal(weights(again), weights(straight))
    told = [
        [
            {k: v for k, v in json.loads(line).items() if "second" not in k}
            for line in (tmp_path / x / "metrics.jsonl").read_text().splitlines()
        ]
        for x in "ab"
    ]
    assert told[0] == told[1]
    assert [t.state for t in again.streams[0].terms] == [t.state for t in straight.streams[0].terms]


def test_first_loss_of_a_pair_is_ln_2_because_the_reference_is_what_was_handed_in_memory_and_by_path(
    tmp_path: Path,
) -> None:
    first, _ = train(
        stage(tmp_path / "1", {"base": tiny_policy()}),
        train_settings(algorithm="imitate", data="letters", learning_rate=1e-2, max_steps=5),
    )
    moved = Artifact("policy", module=first.roles.models["policy"], own_tokenizer=first.tokenizer)
    settings = train_settings(algorithm="prefer", data="letters", learning_rate=1e-3, max_steps=3, batch_size=8)
    for name, artifact in {"memory": moved, "path": None}.items():
        if artifact is None:
            train_stage(
                stage(tmp_path / "saved", {"base": tiny_policy()}),
                train_settings(algorithm="imitate", data="letters", learning_rate=1e-2, max_steps=5),
            )
            artifact = artifact_at(tmp_path / "saved" / "model")
        train(stage(tmp_path / name, {"base": artifact}), settings)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert abs(rows[-1]["loss"] - math.log(2)) > 1e-3
    both = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("memory", "path")
    ]
    assert both[0] == pytest.approx(both[1], rel=1e-4)


def test_the_old_policy_and_the_reference_are_asked_only_where_they_are_needed(tmp_path: Path) -> None:
    run = set_up(stage(tmp_path, {"base": tiny_policy()}), train_settings(**SAMPLED))
    assert set(run.roles.models) == {"policy"}  # no reference: nothing reads ref_logp
    assert not table_of(run, random_groups()).batch.has("old_logp")
    assert table_of(run, random_groups(), several_steps=True).batch.has("old_logp")


def test_reference_of_fixed_rows_is_computed_once(tmp_path: Path) -> None:
    run = set_up(stage(tmp_path, {"base": tiny_policy()}), train_settings(algorithm="prefer", data="letters"))
    groups = run.streams[0].rows[:3]
    first = table_of(run, groups).batch.ref_logp
    run.roles.models["reference"].requires_grad_(False)
    for parameter in run.roles.models["reference"].parameters():
        parameter.data.zero_()
    assert torch.equal(table_of(run, groups).batch.ref_logp, first)


def test_steps_and_prompts_follow_from_epochs_batch_and_inner_epochs() -> None:
    # 24 rows: 3 collected batches of 10, 10 and 4; of 3, 3 and 1 steps of 4 prompts; twice over each
    assert plan_steps(train_settings(algorithm="imitate", batch_size=4, collect_size=10, inner_epochs=2), 24) == (
        24,
        2 * 7,
    )
    # 24 rows twice in batches of 10: 10, 10, 4 in each pass; sampled prompts: 10 four times and 8
    twice = {"batch_size": 10, "num_train_epochs": 2}
    assert plan_steps(train_settings(algorithm="imitate", **twice), 24) == (48, 6)
    assert plan_steps(train_settings(algorithm="clipped", reward="vowels", **twice), 24) == (48, 5)
    # as many prompts as 7 steps take
    written = train_settings(algorithm="imitate", batch_size=4, collect_size=10, inner_epochs=2, max_steps=7)
    assert plan_steps(written, 24) == (sys.maxsize, 7)


def test_sampled_answers_carry_the_version_of_the_weights_and_their_log_probs(tmp_path: Path) -> None:
    seen: list[PromptGroup] = []
    context = stage(tmp_path, {"base": tiny_policy()})
    context.notify = lambda event, **k: seen.extend(k["groups"]) if event == "groups_judged" else None
    train(context, train_settings(**SAMPLED, max_steps=3, learning_rate=1e-2))
    assert {a.version for g in seen for a in g.answers} == {0, 1, 2}
    fresh = set_up(stage(tmp_path / "again", {"base": tiny_policy()}), train_settings(**SAMPLED))
    first = [g for g in seen if g.answers[0].version == 0]
    table = table_of(fresh, first, several_steps=True)
    torch.testing.assert_close(table.batch.old_logp, table.batch.sampling_logp, atol=1e-4, rtol=1e-4)


def test_best_weights_by_a_held_out_metric_are_kept(tmp_path: Path) -> None:
    # a rate so large that the last step is not the best one
    settings = train_settings(
        algorithm="imitate",
        data="letters",
        learning_rate=0.5,
        max_steps=5,
        max_grad_norm=0,
        evaluation={},
        eval_steps=1,
        metric_for_best_model="eval/loss",
        greater_is_better=False,
    )
    _, summary = train(stage(tmp_path, {"base": tiny_policy()}), settings)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["eval/loss"] for r in rows if "eval/loss" in r}
    assert summary["best_step"] == min(losses, key=lambda s: losses[s])
    assert summary["eval/loss"] == min(losses.values())
    assert min(losses.values()) < losses[5]


def test_less_of_a_loss_is_better_and_more_of_another_metric_unless_a_recipe_says_otherwise() -> None:
    said = {"algorithm": "imitate", "data": "letters", "evaluation": {}}
    assert not train_settings(**said, metric_for_best_model="eval/loss").greater_is_better
    assert train_settings(**said, metric_for_best_model="eval/loss", greater_is_better=True).greater_is_better
    assert train_settings(**said, metric_for_best_model="eval/reward").greater_is_better


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(tmp_path: Path) -> None:
    settings = train_settings(
        algorithm="imitate", data="letters", max_steps=1, evaluation={}, metric_for_best_model="eval/los"
    )
    with pytest.raises(UserError, match="did you mean 'eval/loss'"):
        train(stage(tmp_path, {"base": tiny_policy()}), settings)


def test_rewards_that_are_all_equal_spread_by_exactly_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # of 20 times 0.7 the mean of squares less the square of the mean is 4e-16, whose root is 2e-8
    def judge(groups: list[PromptGroup], *_: Any) -> dict[str, Any]:
        for answer in (a for g in groups for a in g.answers):
            answer.reward = 0.7
        return {}

    wanted = {"reward": "vowels", "num_prompts": 10, "samples": 2}
    run = set_up(stage(tmp_path, {"base": tiny_policy()}), train_settings(**SAMPLED, evaluation=wanted))
    monkeypatch.setattr(run.held_out[1], "judge", judge)
    measured = evaluate(run)
    assert measured["eval/answers"] == 20
    assert measured["eval/reward"] == pytest.approx(0.7)
    assert measured["eval/reward_std"] == 0
    groups = random_groups(10, 2)
    judge(groups)
    assert group_metrics(run, groups)["reward_std"] == 0
    groups[0].answers[0].reward = 1.7  # of 1 among 20 that differs by 1: sqrt(1/20 - 1/400)
    assert group_metrics(run, groups)["reward_std"] == pytest.approx(math.sqrt(19) / 20)


def test_critic_on_the_policys_trunk_and_critic_of_its_own_both_learn_the_reward(tmp_path: Path) -> None:
    for critic in ("shared", "critic"):
        written = {
            **SAMPLED,
            "algorithm": "valued",
            "critic": critic,
            "max_steps": 30,
            "learning_rate": {"policy": 0.0, "critic": 1e-2},
        }
        if critic == "shared":
            written["learning_rate"] = 3e-3
        run = set_up(
            stage(tmp_path / critic, {"base": tiny_policy(), "critic": tiny_scalar()}), train_settings(**written)
        )
        assert ("critic" in run.roles.models) == (critic == "critic")
        groups = random_groups(4, 2)
        losses = []
        for _ in range(40):
            table = table_of(run, groups, several_steps=True)
            value = table.batch.old_value
            error = (table.batch.expand(table.batch.total_reward) - value)[table.batch.loss_mask]
            losses.append(float(error.square().mean()))
            step_gradient(run, groups, several_steps=True)
            run.optimizer.step()
        assert losses[-1] < 0.5 * losses[0]


def test_in_bfloat16_the_gradient_points_where_float32_points(tmp_path: Path) -> None:
    groups = random_groups(6, 3)
    of = {
        b: step_gradient(
            set_up(
                stage(tmp_path, {"base": tiny_policy()}), train_settings(algorithm="prefer", data="letters", bf16=b)
            ),
            groups,
        )
        for b in (False, True)
    }
    assert relative(of[True], of[False]) < 0.05
    run = set_up(
        stage(tmp_path, {"base": tiny_policy()}), train_settings(algorithm="prefer", data="letters", bf16=True)
    )
    table = table_of(run, groups)
    from unified.running import heads_without_gradient

    now = heads_without_gradient(run, table, list(range(len(table.rows))), {"policy": frozenset({"logp"})})["policy"][
        "logp"
    ]
    assert float((now - table.batch.ref_logp).abs().max()) <= 1e-3


def test_dropout_is_drawn_forward_by_forward_and_the_same_again_in_the_same_run(tmp_path: Path) -> None:
    def learned(name: str, dropout: float | None, budget: int) -> torch.Tensor:
        context = stage(tmp_path / name, {"base": tiny_policy()})
        settings = train_settings(
            algorithm="imitate", data="letters", batch_size=4, max_steps=1, learning_rate=1e-2, optim="sgd",
            shuffle=False, dropout=dropout, tokens_per_micro_batch=budget,
        )  # fmt: skip
        return weights(train(context, settings)[0])

    once, again = learned("a", 0.3, 10_000), learned("b", 0.3, 10_000)
    assert torch.equal(once, again)
    plain, cut = learned("c", None, 10_000), learned("d", None, 1)
    torch.testing.assert_close(cut, plain)
    assert relative(once, plain) > 1e-5
    assert relative(learned("e", 0.3, 1), once) > 1e-5  # the cut into forwards draws anew


def test_gradient_checkpointing_does_not_change_the_gradient(tmp_path: Path) -> None:
    groups = random_groups(4, 2)
    of = {
        c: step_gradient(
            set_up(
                stage(tmp_path, {"base": tiny_policy(dtype=torch.float64)}),
                train_settings(algorithm="imitate", data="letters", gradient_checkpointing=c, layout="packed"),
            ),
            groups,
        )
        for c in (False, True)
    }
    assert relative(of[True], of[False]) < 1e-12


def test_context_of_a_stage_is_all_that_the_engine_needs(tmp_path: Path) -> None:
    events: list[str] = []
    context: StageContext = stage(tmp_path, {"base": tiny_policy()})
    context.notify = lambda event, **_: events.append(event)
    train(context, train_settings(**SAMPLED, max_steps=2, save_steps=1))
    assert events == ["groups_judged", "step_finished", "checkpoint_saved", "groups_judged", "step_finished"]


def test_groups_without_spread_are_replaced_by_fresh_ones_within_a_bound(tmp_path: Path) -> None:
    # the reward of a word is its share of vowels: many groups of two equal answers, which the filter drops
    written = {
        **SAMPLED,
        "source": {"group_size": 2, "max_tokens": 1},
        "batch_size": 8,
        "max_steps": 3,
        "filters": ["spread"],
    }

    def learned_from(refill: int) -> tuple[Run, list[dict[str, Any]]]:
        folder = tmp_path / str(refill)
        run, _ = train(stage(folder, {"base": tiny_policy()}), train_settings(**written, refill=refill))
        return run, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    plain, without = learned_from(0)
    assert plain.streams[0].position == 24
    assert all(r["dropped/filtered"] > 0 and "refilled" not in r for r in without)
    filled, rows = learned_from(20)
    assert filled.streams[0].position > 24
    assert all(r["refilled"] >= 1 for r in rows)
    bounded, rows = learned_from(1)
    assert all(r["refilled"] == 1 for r in rows)
    assert plain.streams[0].position < bounded.streams[0].position < filled.streams[0].position


def test_a_renewed_reference_is_the_policy_and_what_was_kept_of_the_old_one_is_forgotten(tmp_path: Path) -> None:
    settings = train_settings(
        algorithm="prefer", data="letters", learning_rate=1e-2, max_steps=4, batch_size=8, ref_sync_steps=2
    )
    train(stage(tmp_path, {"base": tiny_policy()}), settings)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    ln2 = pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["loss"] == ln2
    assert rows[1]["loss"] != ln2
    assert rows[2]["loss"] == ln2  # after two steps the reference is the policy again
    halfway = train_settings(algorithm="prefer", data="letters", max_steps=4, ref_sync_steps=2, ref_mixup_alpha=0.25)
    mixed = set_up(stage(tmp_path / "mixed", {"base": tiny_policy(), "other": tiny_policy(seed=1)}), halfway)
    old = next(mixed.roles.models["reference"].parameters())
    old.data.fill_(1.0)
    new = next(mixed.roles.models["policy"].parameters())
    new.data.fill_(3.0)
    mixed.renew_reference()
    assert torch.allclose(old, torch.full_like(old, 1.5))  # 0.25 x 3 + 0.75 x 1


def test_ctrl_c_finishes_the_batch_writes_a_checkpoint_and_the_next_run_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    settings = train_settings(**SAMPLED, max_steps=6, learning_rate=1e-2)
    straight, _ = train(stage(tmp_path / "a", {"base": tiny_policy()}), settings)
    broken = stage(tmp_path / "b", {"base": tiny_policy()})
    broken.progress = lambda step, steps, metrics: signal.raise_signal(signal.SIGINT) if step == 3 else None
    with pytest.raises(KeyboardInterrupt):
        train(broken, settings)
    assert steps_in(tmp_path / "b" / "checkpoint") == ["step-3"]
    again, _ = train(stage(tmp_path / "b", {"base": tiny_policy()}), settings)
    assert torch.equal(weights(again), weights(straight))


def test_no_row_is_seen_twice_in_one_step_also_where_the_batch_is_larger_than_the_data(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    context = stage(tmp_path, {"base": tiny_policy()})
    context.notify = lambda event, **k: seen.append([g.key for g in k["groups"]]) if event == "groups_judged" else None
    train(context, train_settings(algorithm="imitate", data="letters", batch_size=40, max_steps=3))
    assert [sorted(keys) for keys in seen] == [list(range(24))] * 3


def test_a_term_is_updated_from_its_own_metrics_by_their_own_names_beside_other_terms(tmp_path: Path) -> None:
    terms = [{"algorithm": "imitate"}, {"algorithm": "centred", "weight": 0.5}]
    run, _ = train(stage(tmp_path, {"base": tiny_policy()}), train_settings(terms=terms, data="letters", max_steps=2))
    assert run.last["centred/depth"] == pytest.approx(run.streams[0].terms[1].state["depth"])
    assert "imitate/loss" in run.last
