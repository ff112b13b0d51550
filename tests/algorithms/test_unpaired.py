"""KTO, BCO and unpaired APO-zero: coefficients by hand, the level they compare with, and where it comes from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.algorithms.batches import known, loss, mean_metrics, pushed, random_fields, term
from tests.tools import stage, tiny_policy, train_settings
from unified import Answer, Batch, PromptGroup, call_named, catalogue
from unified.coefficient import Term
from unified.loop import train

Z = torch.zeros


def answers(gains: list[float], rewards: list[float], probes: int = 0) -> Batch:
    """One-token answers that gained so many nats over the reference; the last `probes` of them are probes."""
    logp = torch.tensor(gains, dtype=torch.float64)[:, None]
    n = len(gains)
    fields = {"logp": logp, "ref_logp": Z(n, 1).double(), "loss_mask": logp == logp, "reward": torch.tensor(rewards)}
    return Batch({**fields, "probe": torch.arange(n) >= n - probes})


def test_kto_pushes_a_good_answer_at_the_level_by_a_quarter_of_beta() -> None:
    # probes gained 1 and 3 nats, so z0 = 2; both answers stand at it: u = 0, s'(0) = 1/4, times 0.1, two answers
    batch = answers([2.0, 2.0, 1.0, 3.0], [1.0, 0.0, 0.0, 0.0], probes=2)
    found = pushed(term("kto"), batch)["logp"][:, 0]
    torch.testing.assert_close(found, torch.tensor([0.0125, -0.0125, 0, 0], dtype=torch.float64))
    assert loss(term("kto"), batch) == pytest.approx(0.5)


def test_the_level_of_kto_is_never_below_zero() -> None:
    # the probes' mean is -3: z0 = 0, so an answer that gained nothing stands at u = 0
    batch = answers([0.0, -3.0], [1.0, 0.0], probes=1)
    assert float(known(term("kto"), batch)["kl"]) == 0
    assert float(pushed(term("kto"), batch)["logp"][0, 0]) == pytest.approx(0.1 / 4)


def test_both_sides_of_kto_have_a_weight() -> None:
    one = term("kto", desirable_weight=2.0, undesirable_weight=0.5)
    batch = answers([0.0, 0.0, 0.0], [1.0, 0.0, 0.0], probes=1)
    found = pushed(one, batch)["logp"][:2, 0]
    torch.testing.assert_close(found, torch.tensor([0.05, -0.0125], dtype=torch.float64) / 2)


def test_kto_is_the_gradient_of_the_papers_loss() -> None:
    fields = random_fields()
    probe = torch.arange(12) % 3 == 2
    batch = Batch({**fields, "probe": probe})
    leaf = fields["logp"].clone().requires_grad_()
    h = ((leaf - fields["ref_logp"]) * fields["loss_mask"]).sum(1)
    z0 = h[probe].mean().detach().clamp(min=0)
    good = fields["reward"] > 0.5
    value = torch.where(good, torch.sigmoid(0.1 * (h - z0)), torch.sigmoid(0.1 * (z0 - h)))
    published = (1 - value)[~probe].mean()  # lambda_y - v(x, y), arXiv:2402.01306
    published.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(pushed(term("kto"), batch)["logp"], -leaf.grad, rtol=1e-9, atol=1e-9)
    assert loss(term("kto"), batch) == pytest.approx(published.item(), abs=1e-12)


def test_the_log_shows_whether_there_were_probes() -> None:
    batch = answers([2.0, 2.0, 1.0, 3.0], [1.0, 0.0, 0.0, 0.0], probes=2)
    found = mean_metrics(term("kto"), batch)
    assert found == pytest.approx(
        {"kl": 2.0, "probes": 0.5, "rewards": 0.2, "rewards/chosen": 0.2, "rewards/rejected": 0.2}
    )
    alone = mean_metrics(term("kto"), answers([2.0], [1.0]))
    assert (alone["kl"], alone["probes"]) == (0, 0)


def test_apo_zero_without_pairs_is_kto_at_level_zero() -> None:
    # beta h = 0.1 * 10 log 3 = log 3: s' = 3/4 * 1/4; two answers
    batch = answers([10 * math.log(3), 0.0], [1.0, 0.0])
    found = pushed(term("apo_zero_unpaired"), batch)["logp"][:, 0]
    torch.testing.assert_close(found, torch.tensor([0.1 * 3 / 16, -0.1 / 4], dtype=torch.float64) / 2)
    # 1 - 3/4 and 1/2
    assert loss(term("apo_zero_unpaired"), batch) == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_bco_shifts_the_reward_by_its_mean() -> None:
    # r = 0.1 * (30, 10) = 3, 1: delta 2, so both stand 1 on the right side; sigmoid(-1), two answers
    found = pushed(term("bco"), answers([30.0, 10.0], [1.0, 0.0]))["logp"][:, 0]
    wanted = 0.1 / (1 + math.e) / 2
    torch.testing.assert_close(found, torch.tensor([wanted, -wanted], dtype=torch.float64))


def test_the_mean_of_bco_runs_over_all_steps_and_is_state() -> None:
    one = term("bco")
    one.state = {"mean": 0.5, "count": 6.0}
    batch = answers([30.0, 10.0], [1.0, 0.0])
    # (6 * 0.5 + 3 + 1) / 8 = 7/8
    assert float(known(one, batch)["delta"]) == pytest.approx(7 / 8)
    assert one.call("update", totals={"answers": 2.0, "rewards": 2.0}) == pytest.approx({"mean": 7 / 8, "count": 8.0})
    again = Term(one.algorithm, one.settings, state={"mean": 7 / 8, "count": 8.0})
    # saved and loaded: (8 * 7/8 + 4) / 10
    assert float(known(again, batch)["delta"]) == pytest.approx(1.1)


def test_bco_is_the_gradient_of_the_papers_loss() -> None:
    fields = random_fields()
    leaf = fields["logp"].clone().requires_grad_()
    r = 0.1 * ((leaf - fields["ref_logp"]) * fields["loss_mask"]).sum(1)
    sign = torch.where(fields["reward"] > 0.5, 1.0, -1.0)
    (-F.logsigmoid(sign * (r - r.detach().mean()))).mean().backward()  # arXiv:2404.04656
    assert leaf.grad is not None
    torch.testing.assert_close(pushed(term("bco"), Batch(fields))["logp"], -leaf.grad, rtol=1e-9, atol=1e-9)


def group(prompt: list[int], *ids: list[int], **columns: float) -> PromptGroup:
    return PromptGroup(prompt, [Answer(i, reward=1.0, columns=dict(columns)) for i in ids], key=prompt[0])


def probes(groups: list[PromptGroup]) -> list[Any]:
    part = catalogue().get("source", "mismatched")
    return [[a for a in g.answers if a.probe] for g in call_named(part.collect, prompts=groups)]


def test_each_prompt_gets_the_answer_to_the_next_other_prompt_as_a_probe() -> None:
    found = probes([group([1], [10, 11], hard=1.0), group([2], [20, 21, 22]), group([2], [23]), group([3], [30])])
    assert [[a.ids for a in one] for one in found] == [[[20, 21, 22]], [[30]], [[30]], [[10, 11]]]
    assert found[0][0].columns == {"hard": 1.0}
    assert all(a.reward == 0.0 for one in found for a in one)


def test_a_probe_is_no_longer_with_its_prompt_than_the_longest_row() -> None:
    # rows of 3 + 1 and 1 + 2 tokens: behind the long prompt there is room for one token
    found = probes([group([1, 1, 1], [10]), group([2], [20, 21])])
    assert (found[0][0].ids, found[0][0].finish) == ([20], "length")
    assert (found[1][0].ids, found[1][0].finish) == ([10], "stop")


def test_one_prompt_alone_gets_no_probe() -> None:
    assert probes([group([1], [10])]) == [[]]


def test_the_rows_themselves_are_not_changed() -> None:
    rows = [group([1], [10]), group([2], [20])]
    probes(rows)
    assert [len(g.answers) for g in rows] == [1, 1]


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_a_stage_on_labelled_rows_raises_the_good_answers_and_lowers_the_bad(tmp_path: Path, name: str) -> None:
    rows = tmp_path / "rows.jsonl"
    made = [{"prompt": p, "completion": "xyx" if p in "ab" else "yxyy", "label": p in "ab"} for p in "abcd"]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made * 2))
    written: dict[str, Any] = {
        "data": {"name": "files", "path": str(rows), "held_out": 0},
        "batch_size": 4,
        "learning_rate": 3e-3,
    }
    folder = tmp_path / "run"
    run, _ = train(stage(folder, {"base": tiny_policy()}), train_settings(algorithm=name, max_steps=6, **written))
    first, *_, last = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0  # the policy is the reference
    assert last["rewards/chosen"] > 0.1 > 0 > last["rewards/rejected"]
    state = run.streams[0].terms[0].state
    if name == "kto":
        assert last["probes"] == 0.5  # one for each of the four answers
    else:
        assert state["count"] == 24  # four answers in each of six steps
        assert state["mean"] == pytest.approx(last["delta"])
