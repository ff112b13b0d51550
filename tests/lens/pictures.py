"""Pictures for the tests of the lens: algorithms on three answers, by tiny models in float64."""

from __future__ import annotations

import json
from typing import Any

import torch

from tests.report.test_page import Seen
from tests.tools import tiny_policy
from unified import Answer, PromptGroup
from unified.lens.compare import Asked, compare
from unified.lens.picture import Column, Picture
from unified.models import Artifact
from unified.settings import choose

#: three answers to one prompt: of 3, 5 and 2 tokens
ANSWERS = ([5, 6, 7], [8, 9, 10, 11, 12], [13, 14])


def policy(seed: int = 0) -> Artifact:
    return tiny_policy("gpt2", seed=seed, dtype=torch.float64)


def nudged(seed: int, by: float) -> Artifact:
    """The policy of seed 0 with its weights moved a little."""
    made = policy()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.module.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return made


def group(*rewards: float | None, key: int = 0) -> PromptGroup:
    """One prompt with as many of the answers as there are rewards."""
    answers = [Answer(list(ids), reward=r) for ids, r in zip(ANSWERS, rewards, strict=False)]
    return PromptGroup([3, 4], answers, text="ab", key=key)


def asked(*algorithms: Any, **models: Any) -> Asked:
    chosen = []
    for written in algorithms:
        found, problems = choose("algorithm", written)
        assert found is not None, problems
        chosen.append(found)
    return Asked(models.pop("model", None) or policy(), chosen, **models)


def picture(*algorithms: Any, groups: list[PromptGroup] | None = None, **models: Any) -> Picture:
    what = asked(*algorithms, **models)
    return compare(what, groups or [group(1.0, 1.0, 0.0)], what.model.tokenizer())


def pushes(column: Column, head: str = "logp") -> list[list[float]]:
    return [one.pushes(head) if one is not None else [] for one in column.seen]


def data_of(html: str) -> dict[str, Any]:
    """The data in a page, as its script reads them."""
    return json.loads(Seen(html).scripts[0])
