"""samples.jsonl: of each collected batch, the best answer to a few prompts, for people to read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from unified.data import PromptGroup
from unified.dealt import places
from unified.disk import space_for

if TYPE_CHECKING:
    from unified.running import Run


def write_samples(run: Run, groups: list[PromptGroup]) -> None:
    """One answer to each of the first `sample_rows` prompts of all processes, as text, with its reward.

    All must ask; the main process writes.
    """
    if not run.settings.sample_rows:
        return
    own, _ = places(run.processes, groups)
    numbered = zip(own, groups, strict=True)
    here = [(place, _row(run, group)) for place, group in numbered if place < run.settings.sample_rows]
    everyone = sorted(run.processes.lists(here), key=lambda sample: sample[0])
    if not run.accelerator.is_main_process:
        return
    path = run.stage.folder / "samples.jsonl"
    with space_for(path.name, path.parent), path.open("a") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for _, row in everyone)


def _row(run: Run, group: PromptGroup) -> dict[str, Any]:
    answer = max(group.answers, key=lambda a: a.total_reward or 0.0)
    text = answer.text or run.tokenizer.decode(answer.ids, skip_special_tokens=True)
    about = {"step": run.step, "prompt": group.text, "answer": text}
    return {**about, "reward": answer.total_reward, "finish": answer.finish}
