"""Training on answers of an engine elsewhere: what is pushed when, how far behind answers are, what a loss costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import unified.loop
from tests.engines.peer import Peer, Starts, serving
from tests.tools import stage, train_settings
from unified import LostEngine, UserError, catalogue, check_recipe, load_recipe, save_model
from unified.checkpoint import steps_in
from unified.loop import train, train_stage
from unified.models import Artifact, base_artifact
from unified.settings import parse
from unified.stage import ModelSettings

MODEL = {
    "new": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 40,
    },
    "tokenizer": "random_walks",
}  # fmt: skip
REWARD = {"name": "length", "target": 3, "width": 4}
ONLINE: dict[str, Any] = {
    "algorithm": {"name": "grpo", "kl_weight": 0.0}, "data": {"name": "random_walks", "view": "prompts"},
    "reward": REWARD, "source": {"name": "rollouts", "group_size": 4, "max_tokens": 5}, "batch_size": 2,
    "learning_rate": 1e-2, "max_steps": 6,
}  # fmt: skip


def base() -> Artifact:
    settings, problems = parse(ModelSettings, MODEL, owner="model")
    assert not problems
    return base_artifact(settings, Path(), 0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starts]:
    save_model(base().module, base().own_tokenizer, tmp_path / "base")
    with serving(tmp_path / "base") as begin:
        yield begin


def context_of(folder: Path, heard: list[Any] | None = None) -> Any:
    """A stage; heard: (step, versions, draws) of every collected batch."""
    context = stage(folder, {"base": base()})

    def notify(event: str, **about: Any) -> None:
        if event == "groups_judged" and heard is not None:
            groups = about["groups"]
            heard.append((about["step"], {a.version for g in groups for a in g.answers}, [g.draw for g in groups]))

    context.notify = notify
    return context


def settings_of(*peers: Peer, engine: dict[str, Any] | None = None, **written: Any) -> Any:
    about = {"name": "vllm", "urls": [p.url for p in peers], **(engine or {})}
    return train_settings(**{**ONLINE, "engine": about, **written})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def marks(peer: Peer) -> list[int]:
    """The steps whose weights a server was given, in order."""
    named = [b["new_version"] for r, b in peer.requests if r == "/update_weight_version"]
    return [int(n.split("-")[1]) for n in named if n.startswith("step-")]


def test_on_policy_every_step_is_sampled_with_the_weights_before_it(start: Starts, tmp_path: Path) -> None:
    peer, heard = start(), list[Any]()
    train(context_of(tmp_path / "run", heard), settings_of(peer))
    assert marks(peer) == [0, 1, 2, 3, 4, 5]
    assert [(step, versions) for step, versions, _ in heard] == [(i, {i}) for i in range(6)]
    rows = rows_of(tmp_path / "run")
    assert [r["push/mismatch"] < 1e-5 for r in rows] == [True] * 6
    assert [r["mismatch"] < 1e-9 for r in rows] == [True] * 6  # k3 of a gap of 1e-5 is its square's half
    assert [abs(r["factor"] - 1) < 1e-4 for r in rows] == [True] * 6
    assert not (tmp_path / "run" / ".cache" / "weights" / "test").exists()  # at the end nobody reads them


@pytest.mark.parametrize(
    ("staleness", "pushed", "behind"),
    [
        # batches 0 and 1 are asked for with step 0; when 1 is taken, 2 is asked for with step 1; and so on
        (1, [0, 1, 2, 3, 4], [0, 1, 1, 1, 1, 1]),
        # 0, 1, 2 with step 0; when 2 is taken, 3 and 4 with step 2; when 4 is taken, 5 with step 4
        (2, [0, 2, 4], [0, 1, 2, 1, 2, 1]),
        (9, [0], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_sampled_ahead_no_batch_is_further_behind_than_the_bound(
    staleness: int, pushed: list[int], behind: list[int], start: Starts, tmp_path: Path
) -> None:
    peer, heard = start(), list[Any]()
    run, _ = train(context_of(tmp_path / "run", heard), settings_of(peer, max_staleness=staleness))
    assert marks(peer) == pushed
    assert [step - version for step, (version,), _ in heard] == behind
    assert [r["staleness"] for r in rows_of(tmp_path / "run")] == behind
    assert [draw for _, _, draws in heard for draw in draws] == list(range(12))  # every prompt once, in order
    assert run.streams[0].position == 12
    assert not run.rollouts.queue  # nothing was asked for that the run does not get to
    assert max(r["mismatch"] for r in rows_of(tmp_path / "run")) > 1e-4  # the policy has moved on meanwhile


def test_the_next_batch_is_sampled_while_the_model_learns(
    start: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, while_learning = start(), []
    real = unified.loop.optimise

    def optimise(run: Any, works: Any) -> None:
        (batch,) = run.rollouts.queue or [None]
        if batch is not None:
            batch.wait()  # it gets done though the main thread is here
            while_learning.append(len(batch.result()))
        real(run, works)

    monkeypatch.setattr(unified.loop, "optimise", optimise)
    train(context_of(tmp_path / "run"), settings_of(peer, max_staleness=1))
    assert while_learning == [2] * 5  # in each of the six steps but the last, the two prompts of the next


def test_several_steps_on_a_batch_count_as_one_batch_of_staleness(start: Starts, tmp_path: Path) -> None:
    peer, heard = start(), list[Any]()
    train(
        context_of(tmp_path / "run", heard),
        settings_of(peer, max_staleness=1, collect_size=4, inner_epochs=2, max_steps=12),
    )
    # 4 steps a batch: batches begin at steps 0, 4 and 8; the third is of the weights with which the second began
    assert [(step, versions) for step, versions, _ in heard] == [(0, {0}), (4, {0}), (8, {4})]
    assert [r["staleness"] for r in rows_of(tmp_path / "run")] == [0, 1, 1]


def test_a_refill_draws_prompts_behind_those_that_were_drawn_ahead(start: Starts, tmp_path: Path) -> None:
    peer, heard = start(), list[Any]()
    settings = settings_of(
        peer, max_staleness=1, refill=1, filters=["no_spread"], source={"group_size": 2, "max_tokens": 2}
    )
    train(context_of(tmp_path / "run", heard), settings)
    draws = [draw for _, _, drawn in heard for draw in drawn]
    assert len(heard) > 6  # some batch lacked groups
    assert len(draws) == len(set(draws))
    assert all(step - min(versions) <= 1 for step, versions, _ in heard)


def test_an_evaluation_measures_the_policy_as_it_is(start: Starts, tmp_path: Path) -> None:
    peer = start()
    about = {"reward": REWARD, "num_prompts": 2, "max_tokens": 4}
    run, summary = train(
        context_of(tmp_path / "run"), settings_of(peer, max_staleness=2, evaluation=about, eval_steps=3)
    )
    # pushed for batches at 0 and 2, for the evaluation after step 3, for batches after 4, at the end
    assert marks(peer) == [0, 2, 3, 4, 6]
    assert all(r["staleness"] <= 2 for r in rows_of(tmp_path / "run") if "staleness" in r)
    assert not [name for name in summary if name.startswith("eval/push")]
    assert run.evaluated_at == 6


def test_a_run_whose_server_is_lost_stops_with_a_checkpoint_and_goes_on_from_there(
    start: Starts, tmp_path: Path
) -> None:
    peer = start(dies_after=8 * 3 + 3)  # 8 answers a batch: in the middle of the fourth
    settings = {"engine": {"on_lost": "stop"}}
    heard: list[Any] = []
    with pytest.raises(LostEngine, match="run the same command"):
        train(context_of(tmp_path / "run", heard), settings_of(peer, **settings))
    assert steps_in(tmp_path / "run" / "checkpoint") == ["step-3"]
    peer.kill()
    start(peer.port)
    train(context_of(tmp_path / "run", heard), settings_of(peer, **settings))
    assert [step for step, _, _ in heard] == [0, 1, 2, 3, 4, 5]
    assert [draw for _, _, draws in heard for draw in draws] == list(range(12))  # each prompt was learned from once
    whole = start()
    train(context_of(tmp_path / "whole"), settings_of(whole))
    seen = [[r["reward"] for r in rows_of(tmp_path / name)] for name in ("run", "whole")]
    assert seen[0] == pytest.approx(seen[1], abs=1e-6)  # nothing of the loss is left in what was learned


def test_what_was_under_way_when_a_run_is_killed_is_sampled_anew(start: Starts, tmp_path: Path) -> None:
    class Killed(Exception):  # noqa: N818 - nothing went wrong
        pass

    peer, heard = start(), list[Any]()
    context = context_of(tmp_path / "run", heard)
    note = context.notify

    def notify(event: str, **about: Any) -> None:
        note(event, **about)
        if event == "checkpoint_saved" and about["step"] == 2:
            raise Killed  # batch 2 is drawn and under way

    context.notify = notify
    settings = settings_of(peer, max_staleness=1, save_steps=1)
    with pytest.raises(Killed):
        train(context, settings)
    run, _ = train(context_of(tmp_path / "run", heard), settings)
    assert [draw for _, _, draws in heard for draw in draws] == list(range(12))
    assert [(step, versions) for step, versions, _ in heard][2:4] == [(2, {2}), (3, {2})]  # anew, with newer weights
    assert run.step == 6


def test_a_server_that_loses_its_weights_in_the_middle_of_a_run_is_given_them_again(
    start: Starts, tmp_path: Path
) -> None:
    peer, other = start(), start()
    settings = settings_of(peer, other, max_steps=3)
    seen: list[Any] = []
    context = context_of(tmp_path / "run", seen)
    note = context.notify

    def notify(event: str, **about: Any) -> None:
        note(event, **about)
        if event == "step_finished" and about["step"] == 1:
            peer.kill()
            start(peer.port)

    context.notify = notify
    train(context, settings)
    assert [(s, v) for s, v, _ in seen] == [(0, {0}), (1, {1}), (2, {2})]
    assert max(r["mismatch"] for r in rows_of(tmp_path / "run")) < 1e-9


def test_an_adapter_alone_is_pushed_where_the_stage_trains_one(start: Starts, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    peer, heard = start(), list[Any]()
    context = context_of(tmp_path / "run", heard)
    train(context, settings_of(peer, engine={"push": "lora"}, adapter={"r": 2}, max_steps=3))
    asked = [b["lora_name"] for r, b in peer.requests if r == "/v1/load_lora_adapter"]
    assert [int(name.split("-")[1]) for name in asked] == [0, 1, 2]
    assert list(peer.adapters) == asked[-1:]  # older ones are unloaded
    assert peer.count("/collective_rpc") == 0
    assert max(r["mismatch"] for r in rows_of(tmp_path / "run")) < 1e-9
    assert max(r["push/mismatch"] for r in rows_of(tmp_path / "run")) < 1e-5


def test_with_an_adapter_all_weights_can_be_pushed_and_it_stays_on_the_model(start: Starts, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    peer = start()
    run, _ = train(context_of(tmp_path / "run"), settings_of(peer, adapter={"r": 2}, max_steps=3))
    assert marks(peer) == [0, 1, 2]
    assert max(r["push/mismatch"] for r in rows_of(tmp_path / "run")) < 1e-5
    assert any("lora_" in name for name, _ in run.roles.models["policy"].named_parameters())


def test_the_stage_leaves_the_model_that_it_trained(start: Starts, tmp_path: Path) -> None:
    result = train_stage(context_of(tmp_path / "run"), settings_of(start(), max_steps=2))
    assert result.artifact is not None
    moved = zip(result.artifact.load("policy").parameters(), base().module.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in moved) > 1e-3


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"algorithm": "grpo"}, ["importance"]),
        ({"algorithm": "ppo"}, ["importance"]),
        ({"algorithm": {"name": "grpo", "factors": "none"}}, []),
        ({"algorithm": {"name": "grpo", "factors": []}}, []),
        ({"algorithm": {"name": "grpo", "factors": ["reject"]}}, ["reject"]),
        ({"algorithm": "grpo", "engine": "transformers"}, []),
        ({"algorithm": "grpo", "source": "rows"}, []),
        ({"terms": [{"algorithm": "grpo"}, {"algorithm": "sft", "data": "random_walks"}]}, ["importance"]),
    ],
)
def test_on_answers_of_a_foreign_engine_importance_weights_are_truncated_unless_a_recipe_says_otherwise(
    written: dict[str, Any], expected: list[str]
) -> None:
    settings = train_settings(
        **{"engine": {"name": "vllm", "urls": "http://127.0.0.1:1"}, "data": "random_walks", **written}
    )
    chosen = settings.terms[0].algorithm if settings.terms else settings.algorithm
    assert [f.name for f in chosen.settings.factors] == expected
    if expected == ["importance"]:
        rule = chosen.settings.factors[0].settings
        assert (rule.level, rule.low, rule.high) == ("token", 0.0, 2.0)


RECIPE = """
name: away
model: {new: {model_type: llama, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2},
        tokenizer: random_walks}
stages:
  rl: {algorithm: grpo, data: {name: random_walks, view: prompts}, reward: {name: length, target: 3, width: 4}, ENGINE}
"""


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("max_staleness: 1", "`max_staleness` needs an engine that samples while the model learns"),
        (
            "engine: {name: vllm, urls: 'http://h:1', push: lora}",
            "is to be given an adapter, and this stage trains none",
        ),
        ("engine: {name: vllm}", "urls"),
    ],
)
def test_what_does_not_go_together_is_said_by_the_check(engine: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("ENGINE", engine))
    with pytest.raises(UserError, match=message):
        check_recipe(load_recipe(tmp_path / "r.yaml"))


@pytest.mark.parametrize(("factors", "expected"), [(None, ["importance"]), ("none", [])])
def test_the_check_and_the_manifest_show_how_answers_of_a_foreign_engine_are_corrected(
    factors: str | None, expected: list[str], tmp_path: Path
) -> None:
    algorithm = "algorithm: {name: grpo, factors: none}" if factors else "algorithm: grpo"
    text = RECIPE.replace("ENGINE", "engine: {name: vllm, urls: 'http://h:1'}").replace("algorithm: grpo", algorithm)
    (tmp_path / "r.yaml").write_text(text)
    (planned,) = check_recipe(load_recipe(tmp_path / "r.yaml")).stages
    assert [f["name"] for f in planned.written()["algorithm"]["factors"]] == expected  # both show what this gives


def test_an_engine_with_weights_of_its_own_is_refused_where_nothing_gives_it_any() -> None:
    from unified.settings import Chosen
    from unified.stream import Sampler

    part = catalogue().get("engine", "vllm")
    sampler = Sampler(Chosen(part, part.settings(urls=["http://127.0.0.1:1"])), base().module, None, 0)
    with pytest.raises(UserError, match="nothing gives it those of this model"):
        sampler([], 1, None)  # type: ignore[arg-type]


def test_the_probe_is_read_by_the_policy_itself(start: Starts, tmp_path: Path) -> None:
    from unified.pushed_weights import probe_of
    from unified.set_up import set_up

    run = set_up(context_of(tmp_path / "run"), settings_of(start()))
    ids, logp = probe_of(run)
    with torch.no_grad():
        plain = run.roles.models["policy"].eval()(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    assert len(logp) == len(ids) - 1 >= 8
    torch.testing.assert_close(torch.tensor(logp), plain[torch.arange(len(logp)), torch.tensor(ids[1:])])
