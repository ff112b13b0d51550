"""Sampling ahead where something else goes on as well: other terms, a stop in the middle, judges, what earlier runs
left behind; and what the thread may see and do."""

from __future__ import annotations

import io
import json
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import unified.answers
from tests.engines.test_elsewhere import ONLINE, RECIPE, REWARD, Starts, context_of, marks, rows_of, settings_of, start
from unified import Bench, LostEngine, PromptGroup, UserError, check_recipe, load_recipe, run_recipe
from unified.ahead import Ahead, Outline, Pushed, Rollouts
from unified.checkpoint import steps_in
from unified.console import RunConsole
from unified.loop import train
from unified.stream import Sampler

__all__ = ["start"]
ROWS = {"name": "random_walks", "view": "prompts"}
GRPO = {"name": "grpo", "kl_weight": 0.0}
SAMPLED = {"algorithm": GRPO, "data": ROWS, "reward": REWARD, "source": ONLINE["source"], "per_step": 1}


def test_rows_that_are_sampled_beside_rows_of_data_are_of_the_policy_as_it_is(start: Starts, tmp_path: Path) -> None:
    peer, heard = start(), list[Any]()
    beside = {"algorithm": None, "reward": None, "source": None, "data": "random_walks", "max_steps": 4}
    terms = [{"algorithm": "sft"}, SAMPLED]
    train(context_of(tmp_path / "run", heard), settings_of(peer, max_staleness=1, terms=terms, **beside))
    assert [(step, versions) for step, versions, _ in heard if versions != {None}] == [(i, {i}) for i in range(4)]
    assert marks(peer) == [0, 1, 2, 3]


def test_a_run_that_goes_on_in_the_middle_of_a_batch_gives_the_server_its_weights(
    start: Starts, tmp_path: Path
) -> None:
    class Killed(Exception):  # noqa: N818 - nothing went wrong
        pass

    peer, heard = start(), list[Any]()
    context = context_of(tmp_path / "run", heard)
    note = context.notify

    def notify(event: str, **about: Any) -> None:
        note(event, **about)
        if event == "checkpoint_saved" and about["step"] == 3:
            raise Killed

    context.notify = notify
    written = {"algorithm": None, "terms": [{"algorithm": GRPO}, SAMPLED], "collect_size": 4, "save_steps": 1}
    settings = settings_of(peer, max_staleness=1, **written)
    with pytest.raises(Killed):
        train(context, settings)
    assert steps_in(tmp_path / "run" / "checkpoint")[0] == "step-3-within"
    heard.clear()
    run, _ = train(context_of(tmp_path / "run", heard), settings)
    assert run.step == 6
    assert heard[0][:2] == (3, {3})  # the second step on the batch, with fresh rows of the other term


def test_a_source_that_asks_a_model_of_the_stage_is_refused_ahead(tmp_path: Path) -> None:
    search = "source: {name: best_of_n, reward: {name: model, model: rm}, n: 2}"
    urls = "engine: {name: vllm, urls: 'http://127.0.0.1:1'}"
    text = RECIPE.replace("algorithm: grpo", "algorithm: sft")
    (tmp_path / "r.yaml").write_text(text.replace("ENGINE", f"{search}, {urls}, max_staleness: 1"))
    with pytest.raises(UserError, match="source 'best_of_n' asks rm while it samples"):
        check_recipe(load_recipe(tmp_path / "r.yaml"))


def test_what_an_earlier_run_left_in_the_folder_is_not_pushed(start: Starts, tmp_path: Path) -> None:
    left = tmp_path / "run" / ".cache" / "weights" / "test" / "v0"
    left.mkdir(parents=True)
    (left / "adapter_config.json").write_text("{}")
    (left.parent / "v0.json").write_text("{}")
    (left.parent / "v7").mkdir()
    peer, seen = start(), list[Any]()
    real = peer.reply

    def reply(route: str, body: Any) -> tuple[int, Any]:
        if route == "/collective_rpc":
            folder = Path(body["kwargs"]["weights_path"])
            marker = json.loads(folder.with_name(f"{folder.name}.json").read_text())
            seen.append((sorted(marker["files"]), sorted(p.name for p in folder.iterdir())))
        return real(route, body)

    peer.reply = reply  # type: ignore[method-assign]
    train(context_of(tmp_path / "run"), settings_of(peer, max_steps=2))
    assert len(seen) == 2
    assert all(named == there and "adapter_config.json" not in there for named, there in seen)


def test_behind_a_batch_that_failed_no_other_is_asked_for(
    start: Starts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 4 batches are under way, and the server is lost in the first of them
    peer = start(dies_after=3)
    with pytest.raises(LostEngine, match="no server answers"):
        train(context_of(tmp_path / "run"), settings_of(peer, max_staleness=3, engine={"wait_seconds": 0.2}))
    (thread,) = [t for t in threading.enumerate() if t.name == "sampling ahead"] or [None]
    if thread is not None:
        thread.join(10)
    assert capsys.readouterr().err.count("waiting for up to 0.2 s") == 1


def test_a_run_that_was_left_asks_for_nothing_more() -> None:
    began, go_on, asked = threading.Event(), threading.Event(), []

    def work(number: int) -> list[Any]:
        asked.append(number)
        began.set()
        assert go_on.wait(10)
        return []

    rollouts, pushed = Rollouts(), Pushed(0, 0, None)
    batches = [Ahead(i, 1, i, {}, pushed, lambda i=i: work(i)) for i in range(3)]  # type: ignore[misc]

    def left_by_ctrl_c() -> None:
        with rollouts.until_left():
            rollouts.start(batches)
            assert began.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        left_by_ctrl_c()
    go_on.set()
    rollouts.wait()  # none of them is waited for without end
    assert asked == [0]
    with pytest.raises(RuntimeError, match="the run has ended"):
        batches[2].result()


def test_behind_the_last_batch_ahead_the_position_is_behind_what_refills_drew(
    start: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], unified.answers._ask_ahead

    def ask_ahead(run: Any, stream: Any, n: int, first: int, last: int) -> None:
        seen.append((stream.position, run.rollouts.position))
        real(run, stream, n, first, last)

    monkeypatch.setattr(unified.answers, "_ask_ahead", ask_ahead)
    heard: list[Any] = []
    written = {"refill": 1, "filters": ["no_spread"], "source": {"group_size": 2, "max_tokens": 2}, "max_steps": 12}
    run, _ = train(context_of(tmp_path / "run", heard), settings_of(start(), max_staleness=3, **written))
    draws = [draw for _, _, drawn in heard for draw in drawn]
    assert len(heard) > 12  # some batch lacked groups
    assert len(seen) >= 4
    assert all(position == drawn for position, drawn in seen)
    assert sorted(draws) == list(range(run.streams[0].position))


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_engine_elsewhere_sees_no_weights_of_the_model(
    staleness: int, start: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any, bool]] = []
    real = Sampler.__call__

    def call(self: Sampler, *args: Any) -> Any:
        seen.append((self.model, self.tokenizer, threading.current_thread() is threading.main_thread()))
        return real(self, *args)

    monkeypatch.setattr(Sampler, "__call__", call)
    run, _ = train(context_of(tmp_path / "run"), settings_of(start(), max_staleness=staleness))
    assert len(seen) == 6
    assert all(isinstance(model, Outline) for model, _, _ in seen)
    assert all(main == (not staleness) and (t is run.tokenizer) == main for _, t, main in seen)
    assert len({id(t) for _, t, _ in seen}) == 1  # one copy for all batches


def test_metrics_of_a_push_stand_in_the_row_of_the_batch_that_it_served(start: Starts, tmp_path: Path) -> None:
    train(context_of(tmp_path / "run"), settings_of(start(), max_staleness=2))
    pushed = ["push/mismatch" in row for row in rows_of(tmp_path / "run")]
    assert pushed == [True, False, True, False, True, False]  # for 0 to 2; with batch 2 for 3 and 4; with 4 for 5


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["evaluate", "sample"])
def test_a_stage_that_only_asks_leaves_no_weights_behind_also_when_it_fails(
    start: Starts, tmp_path: Path, kind: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, there = start(), list[bool]()

    def looked(self: Bench, groups: list[PromptGroup], reward: int = 0) -> None:
        there.append((tmp_path / "out" / ".cache" / "weights" / "look" / "v0" / "model.safetensors").exists())
        if fails:
            raise UserError("it cannot be judged")
        judge(self, groups, reward)

    judge = Bench.judge
    monkeypatch.setattr(Bench, "judge", looked)
    wanted = {
        "kind": kind, "data": ONLINE["data"], "reward": REWARD, "num_prompts": 2,
        "source": {"name": "rollouts", "group_size": 1, "max_tokens": 3},
        "engine": {"name": "vllm", "urls": [peer.url]},
        **({"unfinished": "keep"} if kind == "sample" else {}),
    }  # fmt: skip
    recipe = {"name": "a", "model": {"path": str(tmp_path / "base")}, "stages": {"look": wanted}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match="cannot be judged") if fails else nullcontext():
        run_recipe(load_recipe(tmp_path / "r.yaml"), tmp_path / "out", console=RunConsole(Console(file=io.StringIO())))
    assert there[0]  # a server that loses them is given them again
    assert not (tmp_path / "out" / ".cache" / "weights" / "look").exists()
