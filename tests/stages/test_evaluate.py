"""The measuring stage: estimators worked by hand, and log-probs against those of transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import stage, tiny_policy
from unified import Artifact, UserError, catalogue
from unified.settings import parse
from unified_plugins.stages.evaluate import pass_at, win_rate

PROMPTS = {"name": "random_walks", "view": "prompts"}


def evaluate(folder: Path, artifacts: dict[str, Artifact] | None = None, **written: Any) -> dict[str, float]:
    """The summary of the stage, without eval/ in front."""
    part = catalogue().get("stage", "evaluate")
    about = {"data": PROMPTS, "reward": "vowels", "samples": 4, "max_tokens": 6}
    settings, problems = parse(part.settings, {**about, **written}, owner="stage 'test'")
    assert not problems, problems
    made = part.run(stage(folder, artifacts or {"base": tiny_policy()}), settings)
    return {name.removeprefix("eval/"): value for name, value in made.summary.items()}


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data" / "answers.jsonl").read_text().splitlines()]


def logp(artifact: Artifact, prompt: str, answer: str) -> list[float]:
    """log p of every token of the answer, its end included, by the model's own forward."""
    tokenizer = artifact.tokenizer()
    ids = tokenizer(prompt).input_ids
    all_ids = [*ids, *tokenizer(answer).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        read = artifact.module(input_ids=torch.tensor([all_ids])).logits[0].log_softmax(-1)
    return [float(read[t - 1, all_ids[t]]) for t in range(len(ids), len(all_ids))]


def test_two_right_of_five_give_pass_at_2_of_seven_tenths() -> None:
    # 1 - C(3, 2) / C(5, 2) = 1 - 3 / 10
    assert pass_at(5, 2, 2) == pytest.approx(0.7)
    assert pass_at(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at(5, 0, 3) == 0.0
    assert pass_at(5, 3, 3) == 1.0  # only two are wrong


def test_pass_at_k_is_unbiased_for_the_chance_of_k_fresh_answers() -> None:
    # c of 6 is binomial(6, 0.3): the expectation must be 1 - 0.7^k
    for k in (1, 2, 4):
        mean = sum(math.comb(6, c) * 0.3**c * 0.7 ** (6 - c) * pass_at(6, c, k) for c in range(7))
        assert mean == pytest.approx(1 - 0.7**k)


def test_win_rate_counts_ties_half_and_has_the_standard_error_over_prompts() -> None:
    # means 1 > 0, 0 < 1, 1/2 = 1/2, 0 > -1: 1, 0, 1/2, 1 -> 5/8; s^2 = 0.6875 / 3, se = s / 2; the last has no answer
    ours: list[list[float]] = [[1.0, 1.0], [0.0], [1.0, 0.0], [0.0], [3.0]]
    theirs: list[list[float]] = [[0.0], [1.0], [0.5], [-1.0], []]
    found = win_rate(ours, theirs)
    assert found == {
        "win_rate": pytest.approx(0.625), "win_rate_se": pytest.approx(math.sqrt(0.6875 / 3) / 2), "ties": 0.25
    }  # fmt: skip


def test_mean_spread_and_error_of_the_reward_are_those_of_the_answers_that_are_kept(tmp_path: Path) -> None:
    found = evaluate(tmp_path)
    each = torch.tensor([row["rewards"] for row in answers(tmp_path)], dtype=torch.float64)
    assert each.shape == (20, 4)
    assert found["reward"] == pytest.approx(float(each.mean()))
    assert found["reward_std"] == pytest.approx(float(each.std(correction=0)))
    assert found["reward_se"] == pytest.approx(float(each.mean(1).std()) / math.sqrt(20))
    assert found["prompts"] == 20


def test_rewards_that_are_all_equal_spread_by_exactly_nothing(tmp_path: Path) -> None:
    for value in (0.1, 0.7, 1e8 + 0.1):
        found = evaluate(tmp_path / str(value), reward={"name": "constant", "value": value}, num_prompts=7)
        assert (found["reward"], found["reward_std"], found["reward_se"]) == (value, 0.0, 0.0)


def test_accuracy_and_pass_at_k_follow_from_which_answers_are_right(tmp_path: Path) -> None:
    found = evaluate(tmp_path, reward="one_vowel", pass_at=[1, 3], rewards=["vowels"])
    right = [int(sum(row["rewards"])) for row in answers(tmp_path)]
    assert 0 < sum(right) < 80
    assert found["accuracy"] == found["pass@1"] == pytest.approx(sum(right) / 80)
    # of 4 answers with c right: 1 - C(4 - c, 3) / 4
    assert found["pass@3"] == pytest.approx(sum(1 - math.comb(4 - c, 3) / 4 for c in right) / 20)
    vowels = [sum(c in "aeiou" for c in text) for row in answers(tmp_path) for text in row["answers"]]
    assert found["reward/vowels"] == pytest.approx(sum(vowels) / 80)


def test_pass_at_k_of_rewards_between_0_and_1_needs_to_be_told_what_is_right(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pass@k needs rewards of 0 or 1\n +set `correct_at`"):
        evaluate(tmp_path, pass_at=[2])
    assert evaluate(tmp_path, pass_at=[2], correct_at=2)["pass@2"] <= 1


def test_perplexity_is_exp_of_the_mean_loss_per_token_of_the_best_answers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(
            json.dumps({"prompt": p, "answers": ["xyz", a], "rewards": [0.0, 1.0]})
            for p, a in zip("bc", ["a", "def"], strict=True)
        )
    )
    data = {"name": "files", "path": str(tmp_path / "rows.jsonl"), "held_out": 0}
    policy = tiny_policy()
    found = evaluate(tmp_path / "s", {"base": policy}, data=data, split="train", reward=None, perplexity=True)
    nats = [*logp(policy, "b", "a"), *logp(policy, "c", "def")]
    assert len(nats) == 2 + 4
    assert found == {"perplexity": pytest.approx(math.exp(-sum(nats) / 6), rel=1e-5)}


def test_kl_is_0_to_the_model_itself_and_the_mean_log_ratio_of_its_answers_to_another(tmp_path: Path) -> None:
    policy, other = tiny_policy(), tiny_policy(seed=1)
    models = {"base": policy, "other": other}
    assert evaluate(tmp_path / "same", models, reference="base")["kl"] == pytest.approx(0, abs=1e-6)
    found = evaluate(tmp_path / "s", models, reference="other", source={"group_size": 4, "max_tokens": 40})
    rows = [(row["prompt"], text) for row in answers(tmp_path / "s") for text in row["answers"]]
    if found["clipped_ratio"] == 0:  # an answer that was cut off has no end to compute
        gaps = [sum(logp(policy, *row)) - sum(logp(other, *row)) for row in rows]
        assert found["kl"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    assert found["kl"] > 0.1


def test_of_two_models_that_read_the_same_neither_wins_by_more_than_chance(tmp_path: Path) -> None:
    found = evaluate(tmp_path, against="base", samples=16)
    assert abs(found["win_rate"] - 0.5) < 3 * found["win_rate_se"]
    assert found["against/reward"] != found["reward"]  # other draws, not the same answers again
