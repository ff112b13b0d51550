"""Reads the oracle cases: inputs and outputs of other libraries' own code, kept beside the checkout.

The format is told in the README of that folder. Nothing here knows an algorithm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "oracles"


class NotMappedError(Exception):
    """The case needs something that the table, or the project, does not have."""


class DiffersError(Exception):
    """The project computes something else than the peer."""


class Config:
    """The peer's hyper-parameters; whatever is not asked for is an error at the end, never ignored."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self._left = set(values)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the peer's default where the case does not give it."""
        self._left.discard(key)
        return self._values.get(key, default)

    def has(self, key: str) -> bool:
        """Whether the case gives the key; does not count as taking it."""
        return key in self._values

    def expect(self, **wanted: Any) -> None:
        """Take keys that may have only one value; NotMappedError where one has another."""
        for key, value in wanted.items():
            if self.take(key, value) != value:
                raise NotMappedError(f"{key} is {self._values[key]!r}; mapped is only {value!r}")

    def finish(self) -> None:
        """NotMappedError when a key was never asked for."""
        if self._left:
            raise NotMappedError(f"unknown config keys: {', '.join(sorted(self._left))}")


class Inputs:
    """The inputs of one instance, as float64 tensors where they are tables of numbers."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.raw = dict(values)

    def __contains__(self, name: str) -> bool:
        return self.raw.get(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise NotMappedError(f"the case has no input {name}")
        return tensor(self.raw[name])

    def number(self, name: str, default: float = 1.0) -> float:
        """A single number, or the default where it is not given."""
        return float(self.raw[name]) if name in self else default

    @property
    def mask(self) -> Tensor:
        """[batch, time] bool: tokens that count."""
        return self["mask"].bool()


@dataclass(frozen=True)
class Case:
    """One file: the peer, its configuration, and several draws of inputs with what the peer made of them."""

    name: str
    data: Mapping[str, Any]

    @property
    def project(self) -> str:
        """Whose code computed it."""
        return str(self.data["peer"]["project"])

    @property
    def function(self) -> str:
        """Which function of it."""
        return str(self.data["peer"]["function"])

    def config(self) -> Config:
        """A fresh view of the hyper-parameters."""
        return Config(self.data["config"])

    def instances(self) -> Iterator[tuple[int, Inputs, Mapping[str, Any]]]:
        """(seed, inputs, expected) of every draw."""
        for one in self.data["instances"]:
            yield one["seed"], Inputs(one["inputs"]), one["expected"]

    @property
    def tolerance(self) -> tuple[float, float]:
        """Relative and absolute."""
        return self.data["tolerance"]["rtol"], self.data["tolerance"]["atol"]


def names() -> list[str]:
    """All cases of `open.txt`; [] where the folder does not exist."""
    return (FOLDER / "open.txt").read_text().split() if FOLDER.exists() else []


def load(name: str | Path) -> Case:
    """A case by its name in `open.txt`, or by the path of its file."""
    path = Path(name) if str(name).endswith(".json") else FOLDER / f"{name}.json"
    return Case(str(name), json.loads(path.read_text()))


def tensor(values: Any) -> Tensor:
    """Nested lists (or one number) as float64; "NaN" and "Infinity" are read as such."""

    def number(x: Any) -> Any:
        return [number(y) for y in x] if isinstance(x, list) else float(x)

    return torch.tensor(number(values), dtype=torch.float64)


def compare(what: str, ours: Any, theirs: Any, tolerance: tuple[float, float], where: Tensor | None = None) -> None:
    """Raise DiffersError with the largest difference. `where` [batch, time] bool leaves out what has no meaning."""
    if isinstance(theirs, Mapping):
        for key, value in theirs.items():
            if key not in ours:
                raise NotMappedError(f"{what}: nothing to compare with {key}")
            compare(f"{what} {key}", ours[key], value, tolerance, where)
        return
    if isinstance(ours, list):
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            compare(f"{what}, part {i}", mine, other, tolerance, where)
        return
    wanted = tensor(theirs)
    got = torch.as_tensor(ours, dtype=torch.float64).detach()
    if got.shape != wanted.shape:
        raise DiffersError(f"{what}: ours is {list(got.shape)}, the peer's {list(wanted.shape)}")
    if where is not None and where.shape == wanted.shape:
        got, wanted = got[where], wanted[where]
    if not torch.allclose(got, wanted, rtol=tolerance[0], atol=tolerance[1], equal_nan=True):
        raise DiffersError(f"{what}: largest difference {float((got - wanted).abs().max()):.3g}")
