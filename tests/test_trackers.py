"""Trackers: they get what metrics.jsonl gets, nothing that is secret, and none of them can stop a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from tests.strangers import Plugin
from tests.tools import stage, tiny_policy, train_settings
from unified import training
from unified.loop import train_stage
from unified.registry import Catalogue, using
from unified.trackers import TRACKERS, sent_settings, tracked_name, tracker_problems


@pytest.fixture(autouse=True)
def only_strangers() -> Iterator[None]:
    """A catalogue without any built-in part."""
    with using(Catalogue({"stranger": Plugin()}, installed=False)):
        yield


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


class Fake:
    """Stands in for a tracker; `fails` names the method that raises."""

    requires_logging_directory = False
    fails = ""
    made: list[Fake]

    def __init__(self, project: str, **named: Any) -> None:
        self.project, self.named = project, named
        self.config: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.calls: list[str] = []
        type(self).made.append(self)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise ConnectionError("no route to https://user:pass@tracker.example/x")

    def start(self) -> None:
        self._called("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._called("store")
        self.config = values

    def log(self, values: dict[str, float], step: int) -> None:
        self._called("log")
        self.rows.append((step, values))

    def finish(self) -> None:
        self._called("finish")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """Two trackers that can be looked into, under the names of real ones."""
    cls = type("Watched", (Fake,), {"made": []})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", cls)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "aim", type("Silent", (Fake,), {"made": []}))
    monkeypatch.setattr("unified.trackers.find_spec", lambda name: object())
    return cls


def run(folder: Path, **also: Any) -> tuple[list[dict[str, float]], list[str]]:
    """Lines of metrics.jsonl of a short stage, and what was said."""
    surroundings = stage(folder, {"base": tiny_policy()})
    said: list[str] = []
    surroundings.say = said.append
    surroundings.progress = also.pop("progress", surroundings.progress)
    written = {
        "algorithm": "imitate", "data": "letters", "max_steps": 3, "batch_size": 8, "eval_on_start": True,
        "evaluation": {"num_prompts": 8}, **also,
    }  # fmt: skip
    train_stage(surroundings, train_settings(**written))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], said


def test_a_tracker_gets_every_line_of_the_metrics_with_its_step(tmp_path: Path, fake: type[Fake]) -> None:
    rows, said = run(tmp_path, report_to=["wandb"], project="letters", run_name="first")
    [made] = fake.made
    assert (made.project, made.named) == ("letters", {"name": "first"})
    assert [step for step, _ in made.rows] == [row["step"] for row in rows] == [0, 1, 2, 3, 3]
    assert made.rows[0][1]["eval/loss"] == rows[0]["eval/loss"]
    assert made.rows[1][1]["train/loss"] == rows[1]["loss"]
    assert made.rows[1][1]["train/step_time"] == rows[1]["seconds"]
    assert made.calls[:2] == ["start", "store"]
    assert made.calls[-1] == "finish"
    assert said == []


def test_tokens_are_counted_from_the_beginning_of_the_stage_also_when_it_was_stopped(
    tmp_path: Path, fake: type[Fake]
) -> None:
    # 8 rows a step, of two answers of 4 tokens (three letters and the end), each behind its prompt of 3: 8 x 2 x 7
    def counted(of: int) -> list[float]:
        return [values["train/num_tokens"] for _, values in fake.made[of].rows if "train/num_tokens" in values]

    def stop(step: int, steps: int, metrics: Any) -> None:
        if step == 2:
            raise StoppedError

    with suppress(StoppedError):
        run(tmp_path, report_to="wandb", save_steps=1, progress=stop)
    assert counted(0) == [112, 224]
    assert fake.made[0].calls[-1] == "finish"
    run(tmp_path, report_to="wandb", save_steps=1)
    assert counted(1) == [224, 336]  # the second step is made again


def test_metrics_have_the_names_of_the_field() -> None:
    names = {
        "loss": "train/loss",
        "reward": "train/reward",
        "eval/reward": "eval/reward",
        "completions/mean_length": "train/completions/mean_length",
        "rewards/margins": "train/rewards/margins",
        "reward/format": "train/rewards/format/mean",
        "clip_ratio": "train/clip_ratio/region_mean",
        "policy_kl": "train/policy/approxkl_avg",
    }
    assert {name: tracked_name(name) for name in names} == names


@pytest.mark.parametrize("fails", ["start", "store", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(tmp_path: Path, fake: type[Fake], fails: str) -> None:
    fake.fails = fails
    rows, said = run(tmp_path, report_to=["wandb", "aim"])
    assert len(rows) == 5
    assert len(said) == 1
    assert said[0].startswith("test: tracker 'wandb' failed and gets no more metrics (ConnectionError: no route to")
    assert "user:pass" not in said[0]
    assert fake.made[0].calls.count(fails) == 1
    other: Any = LOGGER_TYPE_TO_CLASS["aim"]
    assert len(other.made[0].rows) == 5


def test_a_run_with_a_tracker_ends_with_the_weights_of_one_without(tmp_path: Path, fake: type[Fake]) -> None:
    run(tmp_path / "a", report_to=["wandb"])
    run(tmp_path / "b")
    both = [(tmp_path / x / "model" / "model.safetensors").read_bytes() for x in "ab"]
    assert both[0] == both[1]


def test_no_secret_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: type[Fake]) -> None:
    monkeypatch.setenv("TRACKER_API_KEY", "correct-horse-battery")
    where = {"lr_scheduler_kwargs": {"api_key": "plain-words", "note": "correct-horse-battery"}}
    sent = sent_settings(train_settings(algorithm="imitate", data="letters", learning_rate=2e-3, **where))
    assert sent["lr_scheduler_kwargs.api_key"] == sent["lr_scheduler_kwargs.note"] == "***"
    assert (sent["learning_rate"], sent["algorithm.name"]) == (2e-3, "imitate")
    assert not [value for value in sent.values() if not isinstance(value, (str, int, float))]
    run(tmp_path, report_to=["wandb"])
    assert fake.made[0].config["algorithm.name"] == "imitate"
    assert (fake.made[0].config["stage"], fake.made[0].config["seed"]) == ("test", 0)


def test_what_is_unknown_or_not_installed_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unified.trackers.find_spec", lambda name: None)
    settings = train_settings(algorithm="imitate", data="letters", report_to=["tensorbord", "comet_ml"])
    first, second = [p for p in training.check(settings, tmp_path, 0, None) if p.at[0] == "report_to"]
    assert "did you mean 'tensorboard'?" in first.hints
    assert (second.message, second.hints) == ("tracker 'comet_ml' is not installed", ("pip install comet-ml",))
    assert second.at == ("report_to", 1)
    assert tracker_problems(train_settings(algorithm="imitate", data="letters", report_to="none")) == []


def test_every_tracker_of_accelerate_is_known() -> None:
    assert set(LOGGER_TYPE_TO_CLASS) == set(TRACKERS)


def test_tensorboard_reads_back_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows, said = run(tmp_path / "run" / "stage", report_to=["tensorboard"])
    assert said == []
    folder = tmp_path / "run" / "logs" / "test"
    read = EventAccumulator(str(folder)).Reload()
    losses = [(event.step, event.value) for event in read.Scalars("train/loss")]
    expected = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert len(expected) == 3
    assert losses == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    held_out = [(event.step, event.value) for event in read.Scalars("eval/loss")]
    assert held_out == [(row["step"], pytest.approx(row["eval/loss"])) for row in rows if "eval/loss" in row]
    assert [step for step, _ in held_out] == [0, 3]
    [settings] = folder.glob("*/hparams.yml")
    assert "algorithm.name: imitate" in settings.read_text()
    run(tmp_path / "other" / "stage", report_to=["tensorboard"], run_name="mine", max_steps=1)
    assert list((tmp_path / "other" / "logs" / "mine").glob("events.*"))
