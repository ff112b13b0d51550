"""The parts of a reward wait at the same time: for a server, an endpoint, a program, a function, a model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.test_judges import _serving
from unified import Answer, PromptGroup, call_named
from unified.settings import choose
from unified_plugins.rewards import code
from unified_plugins.rewards._sandbox import Verdict

#: seconds after which a meeting counts as failed; nothing waits for them where all come
PATIENCE = 20.0
FUNCTIONS = """
import asyncio

MEETING = []


def slow(answer):
    MEETING[0].wait()
    return 1.0


async def slow_too(answer):
    await asyncio.get_running_loop().run_in_executor(None, MEETING[0].wait)
    return 2.0


def all_at_once(completions, **kwargs):
    MEETING[0].wait()
    return [4.0] * len(completions)
"""


class Meeting:
    """All parts wait until as many as there are have come: one that is asked after another would never meet it."""

    def __init__(self, parts: int) -> None:
        self.barrier = threading.Barrier(parts, timeout=PATIENCE)

    def wait(self) -> None:
        """Come, and wait for the others."""
        self.barrier.wait()


class Policy:
    """A judge that is a model of the stage."""

    class tokenizer:  # noqa: N801
        chat_template = None

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def answer(self, prompts: list[Any], *_: Any) -> list[list[Answer]]:
        self.meeting.wait()
        return [[Answer([1], "Score: 5")] for _ in prompts]


def judged(reward: dict[str, Any], groups: list[PromptGroup], folder: Path, models: Any = None) -> Any:
    chosen, problems = choose("reward", reward)
    assert chosen is not None, [p.text() for p in problems]
    about = {"groups": groups, "settings": chosen.settings, "models": models or {}, "folder": folder}
    return call_named(chosen.part.judge, **about)


def functions(folder: Path, meeting: Meeting) -> dict[str, dict[str, Any]]:
    """Rewards by the functions above, which come to this meeting."""
    (folder / "meeting.py").write_text(FUNCTIONS)
    names = ("slow", "slow_too", "all_at_once")
    made = {name: {"name": "python", "function": f"meeting.py:{name}"} for name in names}
    from unified_plugins.rewards._user_function import find_function

    find_function("meeting.py", "slow", folder).__globals__["MEETING"][:] = [meeting]
    return made


def test_all_parts_of_several_wait_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Meeting(7)
    made = functions(tmp_path, meeting)

    def run_all(programs: list[Any], *_: Any, **__: Any) -> list[Verdict]:
        meeting.wait()
        return [Verdict((True,), "passed") for _ in programs]

    def reply(number: int, path: str, payload: Any, headers: Any) -> tuple[int, Any]:
        meeting.wait()
        if path.endswith("/chat/completions"):
            return 200, {"choices": [{"message": {"content": "Score: 0"}}]}
        return 200, {"rewards": [8.0]}

    monkeypatch.setattr(code, "run_all", run_all)
    with _serving(reply) as (url, _):
        parts: list[dict[str, Any]] = [
            *({"reward": one, "column": name} for name, one in made.items()),
            {"reward": {"name": "server", "url": url, "retries": 0, "timeout": PATIENCE}},
            {"reward": "code", "weight": 16},
            {"reward": {"name": "rubric", "endpoint": {"url": url, "model": "m", "retries": 0}}, "column": "endpoint"},
            {"reward": {"name": "rubric", "model": "self"}, "weight": 32, "column": "self"},
        ]
        group = PromptGroup([1], [Answer([2], "x")], "p", {"test_list": ["assert True"]})
        found = judged({"name": "several", "rewards": parts}, [group], tmp_path, {"self": Policy(meeting)})
    assert found == [[1.0 + 2.0 + 4.0 + 8.0 + 16.0 + 0.0 + 32.0]]


def test_the_rewards_of_different_rows_wait_at_the_same_time(tmp_path: Path) -> None:
    made = functions(tmp_path, Meeting(3))
    groups = [PromptGroup([1], [Answer([2], "x")], "p", {"source": name}) for name in made]
    assert judged({"name": "by_column", "rewards": made}, groups, tmp_path) == [[1.0], [2.0], [4.0]]


def test_a_reward_that_is_shaped_waits_beside_the_others(tmp_path: Path) -> None:
    made = functions(tmp_path, Meeting(2))
    shaped = {"name": "overlong", "of": made["slow"], "max_tokens": 9, "buffer": 4}
    parts = [{"reward": shaped}, {"reward": made["slow_too"]}]
    group = PromptGroup([1], [Answer([2], "x")], "p")
    assert judged({"name": "several", "rewards": parts}, [group], tmp_path) == [[3.0]]
