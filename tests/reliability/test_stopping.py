"""SIGINT and SIGTERM: a checkpoint within a bounded time, exit codes 130 and 143, one line; a second one at once."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.reliability.test_checkpoint import LONG, go_on, told, weights
from tests.strangers import Plugin
from tests.tools import stage, tiny_policy, train_settings
from tests.workshop import Workshop, write_base
from unified.checkpoint import steps_in
from unified.cli import app
from unified.interrupt import StopRequest, StopSignal, stopped_by_signals
from unified.loop import train
from unified.registry import Catalogue, using
from unified.stream import Stream

MEASURED = {"evaluation": {"num_prompts": 4, "reward": "vowels"}, "eval_steps": 3}


@pytest.fixture(autouse=True)
def only_strangers() -> Iterator[None]:
    """A catalogue without any built-in part."""
    with using(Catalogue({"stranger": Plugin()}, installed=False)):
        yield


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function of a module is called so many times; in the middle of the last one a signal arrives."""

    def wired(owner: Any, name: str, number: int, sent: int) -> list[str]:
        real, calls = getattr(owner, name), list[str]()

        def counted(*arguments: Any, **named: Any) -> Any:
            calls.append("began")
            out = real(*arguments, **named)
            if len([c for c in calls if c == "began"]) == number:
                signal.raise_signal(sent)
            calls.append("ended")
            return out

        monkeypatch.setattr(owner, name, counted)
        return calls

    return wired


def stopped(folder: Path, written: dict[str, Any]) -> int:
    """Train until the signal; its number."""
    with pytest.raises(StopSignal) as raised:
        train(stage(folder, {"base": tiny_policy()}), train_settings(**written))
    return raised.value.number


def test_within_an_optimiser_step_a_signal_waits_for_its_end(tmp_path: Path, called: Any) -> None:
    import unified.step

    written = {**LONG, "max_steps": 9}
    straight, _ = go_on(tmp_path / "a", written)
    with pytest.MonkeyPatch.context():
        calls = called(unified.step, "update", 2, signal.SIGTERM)
        assert stopped(tmp_path / "b", written) == signal.SIGTERM
    assert calls == ["began", "ended"] * 2  # the step was done, and no further one begun
    assert steps_in(tmp_path / "b" / "checkpoint") == ["step-2-within"]
    again, _ = go_on(tmp_path / "b", written)
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")


@pytest.mark.parametrize(
    ("owner", "name", "number", "left"),
    [
        (Stream, "collect", 2, "step-6"),  # the second rollout, after the 6 steps on the first
        (Stream, "judge", 3, "step-6"),  # the first was judged, then 4 held-out prompts, now the second rollout
        ("unified.loop", "evaluate", 1, "step-6-within"),
    ],
)
def test_a_rollout_or_evaluation_is_left_at_once_as_if_it_had_not_begun(
    tmp_path: Path, called: Any, owner: Any, name: str, number: int, left: str
) -> None:
    from importlib import import_module

    written = {**LONG, "max_steps": 12, **MEASURED}
    straight, _ = go_on(tmp_path / "a", written)
    owner = import_module(owner) if isinstance(owner, str) else owner
    calls = called(owner, name, number, signal.SIGINT)
    assert stopped(tmp_path / "b", written) == signal.SIGINT
    assert calls[-1] == "began"  # it never came to its end
    assert steps_in(tmp_path / "b" / "checkpoint") == [left]
    again, _ = go_on(tmp_path / "b", written)
    assert again.streams[0].position == straight.streams[0].position
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_stop_in_the_last_evaluation_keeps_the_last_step(tmp_path: Path, called: Any) -> None:
    import unified.loop

    written = {**LONG, "max_steps": 6, "evaluation": MEASURED["evaluation"]}
    straight, _ = go_on(tmp_path / "a", written)
    called(unified.loop, "evaluate", 1, signal.SIGTERM)
    stopped(tmp_path / "b", written)
    assert steps_in(tmp_path / "b" / "checkpoint") == ["step-6"]
    again, _ = go_on(tmp_path / "b", written)
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_stop_before_the_first_step_leaves_no_checkpoint(tmp_path: Path, called: Any) -> None:
    called(Stream, "collect", 1, signal.SIGINT)
    stopped(tmp_path, {**LONG, "max_steps": 6})
    assert steps_in(tmp_path / "checkpoint") == []


def test_the_first_signal_is_noted_and_the_second_stops_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
        with pytest.raises(StopSignal) as raised:
            signal.raise_signal(signal.SIGINT)
        assert raised.value.number == signal.SIGTERM


def test_of_several_processes_each_waits_for_the_others_whatever_their_launcher_repeats() -> None:
    with StopRequest(alone=False) as stop, stop.at_once():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked == signal.SIGINT


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopped_by_signals(), StopRequest():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_with_the_signals_code_and_one_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "iron")
    (tmp_path / "r.yaml").write_text("name: demo\nmodel: ./iron\nstages: {one: {mark: a}, two: {mark: b}}\n")
    shop = Workshop()
    shop.during = lambda context: signal.raise_signal(sent) if context.name == "two" else None
    with using(shop.catalogue()):
        done = CliRunner().invoke(app, ["run", "r.yaml", "--output", "out"])
        assert (done.exit_code, done.stderr) == (code, "stopped in stage two; run the same command again to go on\n")
        shop.during = lambda context: None
        again = CliRunner().invoke(app, ["run", "r.yaml", "--output", "out"])
    assert again.exit_code == 0
    assert shop.ran == ["one", "two", "two"]
    assert json.loads((tmp_path / "out" / "two" / "manifest.json").read_text())["model"] == "model"
