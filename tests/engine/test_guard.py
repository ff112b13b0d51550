"""What is not finite is found where it appears, named, and stopped for or left out; nothing else is touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.strangers import Plugin
from tests.tools import gradient, random_groups, stage, table_of, tiny_policy, train_settings
from unified import Answer, Batch, Catalogue, PromptGroup, Reward, UserError, hookimpl, using
from unified.guard import Finding, Guard, batch_done, check_table, first_not_finite, looks_finite, settle
from unified.loop import train
from unified.running import Run, tabulate
from unified.set_up import set_up
from unified.step import accumulate, count, credit, optimise, score

NAN, INF = float("nan"), float("inf")
ONLINE = {"algorithm": "clipped", "data": "letters", "reward": "vowels", "source": {"group_size": 3}, "batch_size": 4}


def run_of(folder: Path, **written: Any) -> Run:
    """A stage before its first step; what it says and tells is noted on it."""
    context = stage(folder, {"base": tiny_policy()})
    run = set_up(context, train_settings(**{"algorithm": "imitate", "data": "letters", **written}))
    run.stage.told = []  # type: ignore[attr-defined]
    run.stage.notify = lambda event, **about: run.stage.told.append((event, about))  # type: ignore[attr-defined]
    return run


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in run.roles.models["policy"].parameters()])


# --- looking ---


@pytest.mark.parametrize(
    ("value", "finite"),
    [([1.0, -2.0], True), ([1.0, NAN], False), ([INF, -INF], False), ([], True), ([-INF], False)],
)
def test_a_sum_tells_whether_all_is_finite(value: list[float], finite: bool) -> None:
    assert looks_finite([torch.ones(3), torch.tensor(value)]) is finite


def test_a_sum_that_overflows_is_looked_at_again_and_found_finite() -> None:
    # 3e38 + 3e38 is more than float32 holds
    large = torch.full((1, 2), 3e38)
    assert not looks_finite([large])
    assert first_not_finite(large) is None


def test_the_first_place_is_that_of_the_lowest_row_and_then_token() -> None:
    value = torch.zeros(3, 4)
    value[2, 0] = value[1, 3] = NAN
    assert first_not_finite(value) == (1, 3)
    assert first_not_finite(value[:, 3]) == (1, None)


# --- a table ---


def test_a_reference_that_is_not_finite_is_named_with_its_sample_and_never_kept(tmp_path: Path) -> None:
    run = run_of(tmp_path, algorithm="centred", reference="input", nonfinite="skip", layout="padded")
    broken = run.roles.models["reference"].get_input_embeddings().weight.data
    made = [PromptGroup([4], [Answer([20, 21], "rs"), Answer([5, 6], "cd")], "b", key=7)]
    before = broken[20].clone()
    broken[20] = NAN  # of 'r', which is in the first answer alone; masked tokens have it too, because 0 · NaN is NaN
    table = table_of(run, made)
    (finding,) = run.guard.pending
    assert finding.quantity == "ref_logp"
    assert finding.text == ("ref_logp of the reference is nan for prompt 7 ('b'), answer 0 ('rs'), token 0 ('r')")
    assert table.batch.loss_mask.tolist() == [[False, False], [True, True]]
    assert torch.isfinite(table.batch.ref_logp).all()
    assert len(run.kept) == 1
    broken[20] = before
    again = table_of(run, made)
    assert again.batch.loss_mask.all()
    assert len(run.kept) == 2


@pytest.mark.parametrize("where", ["old_logp", "advantage"])
def test_answers_that_are_left_out_push_as_much_as_if_they_had_not_been_there(tmp_path: Path, where: str) -> None:
    run = run_of(tmp_path, **ONLINE, nonfinite="skip")
    term = run.streams[0].terms[0]
    kept = random_groups(3, 1)
    extra = PromptGroup([5, 6], [Answer([7, 8, 9], reward=1.0)], key=9)
    poison = torch.tensor([0.0, 0.0, 0.0, NAN])

    def ones(batch: Batch) -> dict[str, torch.Tensor]:
        return {"advantage": 1.0 + (poison if where == "advantage" else 0 * poison.nan_to_num())[: batch.size]}

    term.algorithm = replace(term.algorithm, credit=ones)
    gradients = []
    for rows in (kept, [*kept, extra]):
        run.optimizer.zero_grad(set_to_none=True)
        table = tabulate(run, run.streams[0], rows)
        score(run, table, several_steps=True)
        if where == "old_logp":
            table.batch = table.batch.plus(old_logp=table.batch.old_logp + poison[: len(rows), None])
            check_table(run, table, {"old_logp": "the policy"})
        credit(run, table)
        assert settle(run) is (len(rows) == 4)
        assert accumulate(run, [count(run, table, list(range(len(rows))))])
        gradients.append(gradient(run))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)
    assert run.sums[f"nonfinite/{where}"] == (1.0, 0.0)


# --- an optimiser step ---


def work_of(run: Run) -> Any:
    table = table_of(run, random_groups(3, 2))
    return count(run, table, list(range(len(table.rows))))


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_head_that_is_not_finite_leaves_the_step_out_and_is_named(tmp_path: Path, layout: str) -> None:
    run = run_of(tmp_path, nonfinite="skip", layout=layout)
    work = work_of(run)
    poison = run.roles.models["policy"].model.layers[0].mlp.down_proj.weight
    kept = poison.data.clone()
    poison.data.fill_(NAN)
    optimise(run, [work])
    assert (run.step, run.sums["steps_skipped"]) == (1, (1.0, 0.0))
    assert run.sums["nonfinite/logp"][0] == 6  # all answers of the step
    poison.data.copy_(kept)
    before = weights(run)
    assert all(p.grad is None for p in run.roles.parameters())
    optimise(run, [work_of(run)])
    assert not torch.equal(weights(run), before)
    (event,) = [about for name, about in run.stage.told if name == "warning_raised"]  # type: ignore[attr-defined]
    assert (event["kind"], event["step"]) == ("nonfinite", 1)
    assert "logp of the policy as it is now is nan for prompt " in event["message"]


def test_a_gradient_that_is_not_finite_is_named_by_its_first_parameter_and_moves_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    parameter = run.roles.models["policy"].model.layers[1].mlp.up_proj.weight
    hook = parameter.register_hook(lambda gradient: gradient / 0)
    before = weights(run)
    with pytest.raises(UserError) as stopped:
        optimise(run, [work_of(run)])
    said = str(stopped.value)
    assert said.startswith("stage 'test', step 1: the gradient of the policy has the norm")
    assert "the first to break is model.layers.1.mlp.up_proj.weight" in said
    assert "`nonfinite: skip`" in said
    assert torch.equal(weights(run), before)
    hook.remove()


def test_a_gradient_that_is_not_finite_is_left_out_with_the_optimisers_and_the_schedules_step(tmp_path: Path) -> None:
    run = run_of(tmp_path, nonfinite="skip")
    parameter = run.roles.models["policy"].model.layers[1].mlp.up_proj.weight
    hook = parameter.register_hook(lambda gradient: gradient * NAN)
    before, rate = weights(run), run.scheduler.state_dict()
    optimise(run, [work_of(run)])
    hook.remove()
    assert torch.equal(weights(run), before)
    assert (run.scheduler.state_dict(), run.optimizer.state_dict()["state"]) == (rate, {})
    assert {name: value[0] for name, value in run.sums.items() if "nonfinite" in name or "skipped" in name} == {
        "nonfinite/gradient": 1.0, "steps_skipped": 1.0,
    }  # fmt: skip


# --- the bound ---


def test_past_so_many_batches_in_a_row_it_stops_and_one_that_is_clean_begins_anew(tmp_path: Path) -> None:
    run = run_of(tmp_path, nonfinite="skip", max_nonfinite=2)
    bad, good = {"nonfinite/reward": 3.0, "loss": 1.0}, {"loss": 1.0}
    for metrics in (bad, bad, good, bad, bad):
        batch_done(run, metrics)
    assert run.guard.state() == {"in_a_row": 2}
    loaded = Guard()
    loaded.load_state(json.loads(json.dumps(run.guard.state())))
    run.guard = loaded  # as after a checkpoint
    with pytest.raises(UserError, match="3 collected batches in a row held NaN or infinity; the last: reward 3"):
        batch_done(run, bad)


class NeverFinite(Plugin):
    """The first answer to every prompt is judged by a division of zero by zero."""

    @hookimpl
    def unified_rewards(self) -> list[Reward]:
        """One."""
        return [Reward("vowels", judge=lambda groups: [[NAN] + [1.0] * (len(g.answers) - 1) for g in groups])]


def test_a_run_whose_reward_is_never_finite_is_stopped_by_the_bound(tmp_path: Path) -> None:
    context = stage(tmp_path, {"base": tiny_policy()})
    with (
        using(Catalogue({"mine": NeverFinite()}, installed=False)),
        pytest.raises(UserError, match="3 collected batches in a row"),
    ):
        train(context, train_settings(**ONLINE, max_steps=10, nonfinite="skip", max_nonfinite=2))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["nonfinite/reward"] for r in rows] == [4.0, 4.0]  # one answer of each of four prompts
    assert [r["dropped/missing"] for r in rows] == [4.0, 4.0]
    assert [r["missing_share"] for r in rows] == [pytest.approx(1 / 3)] * 2


def test_what_one_process_finds_every_process_acts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the second of two processes, which has found nothing itself
    run = run_of(tmp_path, nonfinite="stop")
    monkeypatch.setattr(run.processes, "most", lambda n: 1)
    monkeypatch.setattr(run.processes, "lists", lambda items: [Finding("reward", "reward 'r' gave nan"), *items])
    with pytest.raises(UserError, match="step 1: reward 'r' gave nan"):
        settle(run)
    run.settings = run.settings.model_copy(update={"nonfinite": "skip"})
    assert settle(run)
    assert run.sums == {}  # counted by the process that found it


# --- healthy runs ---


def test_a_run_that_is_healthy_hears_nothing_of_all_this(tmp_path: Path) -> None:
    events: list[str] = []
    context = stage(tmp_path, {"base": tiny_policy()})
    context.notify = lambda event, **_: events.append(event)
    run, _ = train(context, train_settings(**ONLINE, max_steps=6, learning_rate=1e-3))
    assert "warning_raised" not in events
    assert events.count("step_finished") == 6
    assert (run.guard.pending, run.guard.in_a_row, run.watch.told) == ([], 0, {})
    assert not [k for k in run.last if k.startswith("nonfinite")]
    assert 0 < run.last["completions/nats"] < 4  # of 45 tokens: ln 45 is 3.8
