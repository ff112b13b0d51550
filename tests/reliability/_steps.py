"""Prompt groups that no sound source would give, learned from for one step: finite numbers, or a clear error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tests.reliability._outcomes import Outcomes, Unclear, each, judged
from unified import Answer, DataSource, PluginError, PromptGroup, UserError, hookimpl

#: an algorithm for every way of reading groups: one answer, pairs, rankings, unpaired, groups with and without critic
ALGORITHMS: tuple[Any, ...] = (
    "sft", "dpo", "kto", "grpo", "rloo", "plackett_luce", "reward_model", "ppo", "raft", "simpo", "bco", "gspo",
    {"name": "grpo", "kl_weight": 0.1, "kl_target": 0.1},
    {"name": "rloo", "entropy_weight": 0.1, "entropy_target": 1.0},
)  # fmt: skip
LENGTHS = (0, 1, 1, 2, 3, 9, 40, 200)
REWARDS = (None, 0.0, 0.0, 1.0, 1.0, -1.0, 0.5, 1e6, -1e-9)

ids = st.sampled_from(LENGTHS).flatmap(lambda n: st.lists(st.integers(3, 20), min_size=n, max_size=n))
masks = st.sampled_from([*["none", "all", "nothing", "first", "odd"] * 6, "short"])
answers = st.builds(
    lambda tokens, mask, reward, probe: (tokens, mask, reward, probe),
    ids, masks, st.sampled_from(REWARDS), st.integers(0, 9).map(lambda n: n == 0),
)  # fmt: skip
groups = st.lists(
    st.tuples(ids, st.lists(answers, max_size=4), st.integers(0, 2)), min_size=1, max_size=4
)  # (prompt, answers, key)
cases = st.tuples(st.sampled_from(ALGORITHMS), groups, st.sampled_from(["auto", "padded", "packed"]), st.booleans())


def _mask(kind: str, n: int) -> list[bool] | None:
    if kind == "none":
        return None
    wanted = {"all": [True] * n, "nothing": [False] * n, "first": [i == 0 for i in range(n)]}
    return wanted.get(kind, [i % 2 == 1 for i in range(max(n - (kind == "short"), 0))])


def made(drawn: Any) -> list[PromptGroup]:
    """The groups of a case, anew each time: what learns from them may change them."""
    return [
        PromptGroup(
            list(prompt),
            [Answer(list(tokens), loss_mask=_mask(mask, len(tokens)), reward=reward, probe=probe)
             for tokens, mask, reward, probe in written],
            key=key,
        )
        for prompt, written, key in drawn
    ]  # fmt: skip


class Hostile:
    """A stranger's plugin whose source gives what was drawn, whatever the rows are."""

    drawn: Any = ()

    @hookimpl
    def unified_sources(self) -> list[DataSource]:
        """Offer it as `source: hostile`."""
        return [DataSource("hostile", collect=lambda prompts: made(self.drawn))]


def try_steps(number: int, folder: Path, keep: Path | None = None, *, start: int = 0) -> Outcomes:
    """One training step on each of so many batches."""
    from unified.registry import Catalogue, using

    outcomes, plugin = Outcomes(), Hostile()
    count = [0]

    def one(drawn: Any) -> None:
        count[0] += 1
        algorithm, plugin.drawn, layout, shared = drawn
        at = folder / str(count[0])
        judged(outcomes, lambda: _learned(algorithm, at, layout, shared), repr(drawn))

    with using(Catalogue({"hostile": plugin})):
        each(cases, number, one, start=start)
    return outcomes


def _learned(algorithm: Any, folder: Path, layout: str, shared: bool) -> str:
    from tests.tools import stage, tiny_policy, train_settings
    from unified.loop import train_stage

    (folder).mkdir(parents=True, exist_ok=True)
    row = {"prompt": "ab", "chosen": "c", "rejected": "d"}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    data = {"name": "files", "path": "rows.jsonl", "held_out": 0}
    settings = train_settings(
        algorithm=algorithm, source="hostile", reward="given", data=data,
        batch_size=4, max_steps=1, layout=layout, too_long="drop", max_missing=1.0,
        critic={"trunk": "shared" if shared and algorithm == "ppo" else "own"},
    )  # fmt: skip
    try:
        result = train_stage(stage(folder, {"base": tiny_policy()}), settings)
    except (UserError, PluginError) as error:
        if isinstance(error, PluginError) and "hostile" not in str(error):
            raise Unclear(f"a plugin that did nothing wrong is blamed: {error}") from error
        return "refused"
    wrong = [k for k, v in result.summary.items() if isinstance(v, float) and not math.isfinite(v)]
    weights = result.artifact.module.state_dict() if result.artifact and result.artifact.module is not None else {}
    wrong += [name for name, w in weights.items() if not torch.isfinite(w).all()]
    if wrong:
        raise Unclear(f"not finite: {', '.join(wrong[:5])}")
    return "finite"
