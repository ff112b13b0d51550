"""A program: two processes train together, and only the second one meets NaN; each writes what it did.

torchrun --nproc_per_node 2 -m tests.reliability.two_guards FOLDER stop|skip reward|coefficient
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.gradients import leave
from tests.strangers import Plugin
from tests.tools import stage, tiny_policy, train_settings
from unified import PromptGroup, UserError
from unified.loop import train
from unified.registry import Catalogue, using
from unified.set_up import set_up


def main(folder: str, policy: str, where: str) -> None:
    """In the second of four steps."""
    written = {"algorithm": "clipped", "data": "letters", "reward": "vowels", "source": {"group_size": 3},
               "batch_size": 4, "max_steps": 4, "learning_rate": 1e-2, "nonfinite": policy}  # fmt: skip
    events: list[Any] = []
    with using(Catalogue({"stranger": Plugin()}, installed=False)) as known:
        rank = set_up(stage(Path(folder) / "rank", {"base": tiny_policy()}), train_settings(**written)).processes.rank
        part = known.get("reward" if where == "reward" else "algorithm", "vowels" if where == "reward" else "clipped")
        name, calls = ("judge", [0]) if where == "reward" else ("coefficient", [0])
        plain = getattr(part, name)

        def judge(groups: list[PromptGroup]) -> Any:
            given = plain(groups)
            given[0][0] = broken(given[0][0])
            return given

        def coefficient(batch: Any, settings: Any) -> Any:
            return broken(plain(batch, settings))

        def broken(value: Any) -> Any:
            calls[0] += 1
            return value * float("nan") if rank == 1 and calls[0] == 2 else value

        object.__setattr__(part, name, judge if where == "reward" else coefficient)
        context = stage(Path(folder) / "shared", {"base": tiny_policy()})
        context.notify = lambda event, **told: events.append((event, told.get("message")))
        out: dict[str, Any] = {}
        try:
            run, _ = train(context, train_settings(**written))
            vector = torch.cat([p.detach().flatten() for p in run.roles.models["policy"].parameters()])
            out |= {"weights": vector.double().sum().item(), "step": run.step, "in_a_row": run.guard.in_a_row}
        except UserError as error:
            out["error"] = str(error)
    out["warnings"] = [message for event, message in events if event == "warning_raised"]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(out))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
