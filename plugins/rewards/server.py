"""A reward server over HTTP: prompts and answers go out, numbers come back.

POST {"prompts": [text], "answers": [text], "columns": [{...}]}, one entry per answer, at most `batch` of them at once;
the reply is {"rewards": [number or null]}. Batches are under way side by side. What a batch could not get after all
retries is missing; where no batch got anything the stage stops.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from unified import Field, Problem, PromptGroup, Reward, hookimpl
from unified_plugins.rewards._columns import lacking
from unified_plugins.rewards._http import Failed, ServerSettings, post, side_by_side


class RewardServerSettings(ServerSettings):
    """Where the server is, and what it is sent."""

    batch: int = Field(64, ge=1, description="answers in one request, at most")
    columns: list[str] = Field([], description="columns of the row that are sent along")


def check(settings: RewardServerSettings, columns: frozenset[str] | None) -> list[Problem]:
    """Columns that no row has."""
    return [problem for name in settings.columns for problem in lacking(name, columns, key="columns")]


def judge(groups: Sequence[PromptGroup], settings: RewardServerSettings) -> list[list[float | None]]:
    """What the server says, in order; None where it replied null, or not at all."""
    rows = [(group, answer.text) for group in groups for answer in group.answers]
    batches = [rows[i : i + settings.batch] for i in range(0, len(rows), settings.batch)]
    replies = side_by_side(settings, lambda batch: _asked(batch, settings), batches)
    flat: list[float | None] = []
    for batch, reply in zip(batches, replies, strict=True):
        if isinstance(reply, Failed):
            batch[0][0].reasons.append(f"the server at {settings.url}: {reply}")
        flat += [None] * len(batch) if isinstance(reply, Failed) else reply
    each = iter(flat)
    return [[next(each) for _ in group.answers] for group in groups]


def _asked(batch: list[tuple[PromptGroup, str]], settings: RewardServerSettings) -> list[float | None]:
    columns = [{name: _plain(group.columns.get(name)) for name in settings.columns} for group, _ in batch]
    payload = {"prompts": [g.text for g, _ in batch], "answers": [text for _, text in batch], "columns": columns}
    reply = post(settings, "", payload)
    rewards = reply.get("rewards") if isinstance(reply, dict) else None
    if not isinstance(rewards, list) or len(rewards) != len(batch):
        raise Failed(f'it replied no {{"rewards": [...]}} with {len(batch)} entries')
    wrong = [r for r in rewards if r is not None and not _is_number(r)]
    if wrong:
        raise Failed(f"a reward must be a number or null, not {wrong[0]!r}")
    return [None if r is None else float(r) for r in rewards]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """A cell as JSON can hold it."""
    return json.loads(json.dumps(value, default=str))


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: server, url: http://localhost:8000/rewards}`."""
    return [Reward("server", RewardServerSettings, judge=judge, check=check)]
