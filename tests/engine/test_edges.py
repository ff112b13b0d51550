"""Steps with little or nothing in them: no rows, empty and masked answers, rewards per token; and what the log says."""

from __future__ import annotations

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
from unified import Answer, PromptGroup, UserError
from unified.judges import Judge
from unified.running import Run, tabulate
from unified.set_up import set_up
from unified.step import count, optimise

ALGORITHMS = ["imitate", "prefer", "clipped", "valued", "scored", "centred"]


def run_of(folder: Path, algorithm: str, kind: str = "llama", **how: Any) -> Run:
    base = tiny_scalar(kind, dtype=torch.float64) if algorithm == "scored" else tiny_policy(kind, dtype=torch.float64)
    artifacts = {"base": base, "other": tiny_policy(kind, seed=1, dtype=torch.float64)}
    written = {"algorithm": algorithm, "data": "letters", "reference": "other", "reward": "vowels"}
    return set_up(stage(folder, artifacts), train_settings(**written, **how))


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.roles.parameters()])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "groups",
    [
        [],
        [PromptGroup([5, 6], [Answer([7, 8], loss_mask=[False, False], reward=r) for r in (1.0, 0.0)])],
        [PromptGroup([5, 6], [Answer([7], probe=True, reward=r) for r in (1.0, 0.0)])],
        [PromptGroup([5, 6], [Answer([], reward=r) for r in (1.0, 0.0)])],
        [PromptGroup([], [Answer([7], reward=r) for r in (1.0, 0.0)])],
    ],
    ids=["no rows", "all masked", "all probes", "no tokens", "context only"],
)
def test_a_step_in_which_nothing_counts_is_skipped_and_counted(
    tmp_path: Path, algorithm: str, groups: list[PromptGroup]
) -> None:
    run = run_of(tmp_path, algorithm, optim="sgd", learning_rate=1.0, weight_decay=0.1)
    before = weights(run)
    table = table_of(run, groups, several_steps=True)
    optimise(run, [count(run, table, list(range(len(table.rows))))])
    assert torch.equal(weights(run), before)
    assert run.sums["steps_skipped"] == (1.0, 0.0)
    assert run.step == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("budget", [1, 10_000])
def test_answers_without_a_token_change_nothing_for_the_others(
    tmp_path: Path, algorithm: str, layout: str, budget: int
) -> None:
    # the empty one is the worst of its prompt and makes no pair; rewards stay, so that no mean moves
    run = run_of(tmp_path, algorithm, "gpt2", layout=layout, tokens_per_micro_batch=budget)
    groups = random_groups(3, 2)
    wanted = step_gradient(run, groups, several_steps=True)
    groups[1].answers.append(Answer([], reward=-1.0))
    assert relative(step_gradient(run, groups, several_steps=True), wanted) < 1e-10


def test_a_reward_per_token_stands_at_its_token_and_one_per_answer_at_the_last_that_counts(tmp_path: Path) -> None:
    run = run_of(tmp_path, "imitate")
    answers = [
        Answer([5, 6, 7], reward=[0.1, 0.2, 0.3]),
        Answer([5, 6, 7], loss_mask=[True, True, False], reward=4.0),
        Answer([5], reward=None),
    ]
    batch = tabulate(run, run.streams[0], [PromptGroup([3], answers)]).batch
    assert batch.reward.tolist() == [[0.1, 0.2, 0.3], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]  # float64: exactly these
    assert batch.total_reward.tolist() == pytest.approx([0.6, 4.0, 0.0])


def test_numbers_of_the_data_keep_float64_where_the_model_is_in_float64(tmp_path: Path) -> None:
    run = run_of(tmp_path, "imitate")
    answer = Answer([5], reward=0.1, sampling_logp=[-0.3], columns={"margin": 0.7})
    batch = tabulate(run, run.streams[0], [PromptGroup([3], [answer])]).batch
    assert (batch.reward.item(), batch.sampling_logp.item(), batch.columns["margin"].item()) == (0.1, -0.3, 0.7)


def test_the_kept_reference_is_that_of_the_same_tokens_whatever_place_or_key_an_answer_has(tmp_path: Path) -> None:
    run = run_of(tmp_path, "prefer")
    groups = random_groups(3, 3)
    for group in groups:
        group.key = -1  # a source that makes groups of its own may set none
    first = table_of(run, groups).batch.ref_logp
    assert len({float(x) for x in first.sum(1)}) == 9  # all different, so that a mistake shows
    moved = [PromptGroup(g.prompt, g.answers[::-1]) for g in groups[::-1]]
    again = table_of(run, moved).batch.ref_logp
    assert torch.equal(again, first.flip(0))  # to the last bit of float64
    # one answer gone, and one that was never seen
    new = Answer([9, 9, 9, 9])
    mixed = [PromptGroup(groups[0].prompt, [groups[0].answers[1], new])]
    third = table_of(run, mixed).batch.ref_logp
    assert torch.equal(third[0], first[1, : third.shape[1]])
    fresh = table_of(run_of(tmp_path / "fresh", "prefer"), mixed).batch.ref_logp
    torch.testing.assert_close(third, fresh, atol=1e-12, rtol=0)


@pytest.mark.parametrize("how", [{"layout": "packed"}, {"tokens_per_micro_batch": 12}])
def test_a_critic_on_the_policys_trunk_has_the_same_gradient_however_the_step_is_cut(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    groups = random_groups(4, 3)
    whole = step_gradient(run_of(tmp_path, "valued", "gpt2", critic="shared", layout="padded"), groups)
    apart = step_gradient(run_of(tmp_path, "valued", "gpt2", critic="shared", **{"layout": "padded", **how}), groups)
    assert relative(apart, whole) < 1e-10


def test_a_scalar_model_reads_none_from_an_answer_without_a_token_that_counts(tmp_path: Path) -> None:
    run = run_of(tmp_path, "scored")
    groups = [PromptGroup([5, 6], [Answer([7, 8]), Answer([])]), PromptGroup([], [Answer([7]), Answer([7, 8])])]
    scores = Judge(run, "scorer", run.tokenizer).score(groups)
    assert [[s is None for s in row] for row in scores] == [[False, True], [True, False]]
    assert Judge(run, "scorer", run.tokenizer).score([]) == []


def test_the_size_of_coefficients_is_a_mean_over_the_tokens_that_a_term_acts_on(tmp_path: Path) -> None:
    # imitation pushes with 1: the mean is 1 on every row, also where the term acts on the best answers only
    artifacts = {"base": tiny_policy(dtype=torch.float64)}
    terms = [{"algorithm": "imitate", "on": "best"}]
    run = set_up(stage(tmp_path, artifacts), train_settings(terms=terms, data="letters"))
    step_gradient(run, random_groups(4, 3))
    value, number = run.sums["gc/abs"]
    assert value / number == 1.0


def test_a_reward_on_text_of_a_tool_goes_to_the_token_before_it(tmp_path: Path) -> None:
    # tokens: own, tool, own, tool; the tool's 0.5 and 2 belong to what the policy wrote before
    answer = Answer([5, 6, 7, 8], loss_mask=[True, False, True, False], reward=[1.0, 0.5, 0.25, 2.0])
    first = Answer([5, 6], loss_mask=[False, True], reward=[3.0, 1.0])
    run = set_up(stage(tmp_path, {"base": tiny_policy()}), train_settings(algorithm="imitate", data="letters"))
    batch = tabulate(run, run.streams[0], [PromptGroup([4], [answer, first])]).batch
    assert batch.reward.tolist() == [[1.5, 0.0, 2.25, 0.0], [0.0, 4.0, 0.0, 0.0]]
    assert batch.total_reward.tolist() == [answer.total_reward, first.total_reward]


def test_out_of_memory_is_one_message_that_says_which_budget_to_lower(tmp_path: Path) -> None:
    run = set_up(stage(tmp_path, {"base": tiny_policy()}), train_settings(algorithm="imitate", data="letters"))
    trunk = run.roles.models["policy"].base_model
    trunk.register_forward_hook(lambda *_: torch.empty(2**60))  # more than any machine has
    with pytest.raises(UserError) as refused:
        step_gradient(run, random_groups(2, 2))
    said = str(refused.value)
    assert "stage 'test': out of memory" in said
    assert "lower `tokens_per_micro_batch` (now 4096)" in said
