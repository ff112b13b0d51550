"""Environments that the tests play, in the form in which a user writes them: plain classes, no import of ours."""

from __future__ import annotations

from threading import Barrier, Event
from typing import Any, ClassVar


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


class Calculator:
    """A sum, with a tool that knows it: 1 for an answer with the number that the row has."""

    tools: ClassVar[list[Any]] = [add]

    def reset(self, columns: dict[str, Any]) -> None:
        self.wanted = str(columns["answer"])

    def step(self, text: str, calls: list[Any]) -> dict[str, Any]:
        if calls:
            return {"observation": [call.run() for call in calls]}
        return {"done": True, "reward": float(self.wanted in text), "metrics": {"letters": len(text)}}


class Echo:
    """Says a word after each turn, in a role; ends after `turns` of them, and gives `reward` for each."""

    def __init__(self, say: str = "NO", role: str = "user", turns: int = 99, reward: float | None = None) -> None:
        self.say, self.role, self.turns, self.reward = say, role, turns, reward
        self.heard: list[tuple[str, str]] = []

    def step(self, text: str, finish: str, turn: int) -> dict[str, Any]:
        self.heard.append((text, finish))
        said = {"role": self.role, "content": self.say}
        return {"observation": said, "done": turn == self.turns, "reward": self.reward}


class Secret:
    """Tells each episode another letter first, drawn from its seed."""

    told: ClassVar[list[tuple[Any, int]]] = []

    def reset(self, prompt: Any, seed: int) -> str:
        self.told.append((prompt, seed))
        return "ABCDEFGHIJ"[seed % 10]

    async def step(self, text: str) -> dict[str, Any]:
        return {"done": True, "reward": 1}


class Together:
    """A step that ends only while the steps of three others are running."""

    barrier = Barrier(4)

    def step(self, text: str) -> dict[str, Any]:
        self.barrier.wait(timeout=20)
        return {"done": True, "reward": 1.0}


class Faulty:
    """Goes wrong in the way that `how` says, in episodes whose seed is even, or in all."""

    closed = 0
    never = Event()

    def __init__(self, how: str, every: bool = True) -> None:
        self.how, self.every = how, every

    def reset(self, seed: int) -> None:
        self.wrong = self.every or seed % 2 == 0
        if self.wrong and self.how == "reset":
            raise LookupError("no board")

    def step(self, text: str) -> Any:
        if not self.wrong:
            return {"done": True, "reward": 1.0}
        if self.how == "raises":
            raise ZeroDivisionError("at play")
        if self.how == "late":
            self.never.wait(timeout=2)
        return {
            "nothing": None,
            "number": 7,
            "key": {"rewrad": 1.0},
            "reward": {"done": True, "reward": "much"},
            "nan": {"done": True, "reward": float("nan")},
            "metrics": {"done": True, "metrics": {"a": "b"}},
            "silent": {"done": False},
            "speaks": {"observation": {"role": "assistant", "content": "me"}},
            "message": {"observation": [{"role": "user"}]},
            "observation": {"observation": 3},
            "done": {"done": "yes"},
        }.get(self.how)

    def close(self) -> None:
        type(self).closed += 1


class NoStep:
    """No environment."""


class AsksForMore:
    """Its step wants what is not there."""

    def step(self, action: str) -> dict[str, Any]:
        return {}


def factory() -> Calculator:
    """A function, not a class."""
    return Calculator()
