"""Stages run on tiny models with the built-in parts and one reward that is easy to work by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from unified import PromptGroup, Reward, hookimpl
from unified.registry import Catalogue, using


class Vowels:
    """A reward: how many of the answer's letters are vowels."""

    @hookimpl
    def unified_rewards(self) -> list[Reward]:
        """By name."""
        return [Reward("vowels", judge=count), Reward("one_vowel", judge=any_vowel)]


def count(groups: list[PromptGroup]) -> list[list[float]]:
    """Vowels of each answer."""
    return [[float(sum(c in "aeiou" for c in a.text)) for a in g.answers] for g in groups]


def any_vowel(groups: list[PromptGroup]) -> list[list[float]]:
    """1 where there is one."""
    return [[min(1.0, n) for n in row] for row in count(groups)]


@pytest.fixture(autouse=True)
def _catalogue() -> Iterator[None]:
    torch.set_num_threads(1)
    with using(Catalogue({"vowels": Vowels()})):
        yield
