"""Pictures of a few fixed prompts, kept while a stage trains: one line of lens.jsonl every `lens_steps` steps.

Prompts, and answers that stand in the rows, are the same in every picture; answers that are sampled are sampled anew by
the policy as it is, from the same seeds. Nothing that training depends on is touched.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from unified.data import PromptGroup
from unified.disk import space_for
from unified.lazy import LazyRows
from unified.lens.read import LENS

if TYPE_CHECKING:
    from unified.running import Run
    from unified.stream import Stream


def keep_picture(run: Run) -> None:
    """Write what a step on the fixed prompts would do now. Every process must call this."""
    from unified.lens.look import look, pictured, undisturbed

    notes: list[str] = []
    with undisturbed(run):
        looks = [(stream, look(run, stream, _judged(run, stream, notes))) for stream in run.streams]
        picture = pictured(run, looks, step=run.step, notes=notes)
    if run.accelerator.is_main_process:
        path = run.stage.folder / LENS
        with space_for(path.name, path.parent), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(picture.as_dict(), ensure_ascii=False, allow_nan=False) + "\n")


def _judged(run: Run, stream: Stream, notes: list[str]) -> list[PromptGroup]:
    """This process's share of the fixed prompts of a stream with answers and rewards; what is left out is noted."""
    from unified.stream import NoSampler, Sampler, in_process, seed_all, seed_of

    wanted, seed = run.settings.lens_rows, run.stage.seed
    rows = stream.rows.first(wanted)[0] if isinstance(stream.rows, LazyRows) else stream.rows[:wanted]
    numbered = [replace(group, draw=number) for number, group in enumerate(rows)]
    seed_all("lens", seed, stream.label, run.processes.rank)
    if stream.online:
        place = ("lens", seed, stream.label)
        run.make_whole()
        policy, bf16 = run.answering(), run.roles.bf16
        sampler = Sampler(in_process(run.settings.engine), policy, run.tokenizer, run.step, place, bf16=bf16)
        groups = stream.collect(run.processes.mine(numbered), sampler, seed_of(*place))
    else:
        groups = run.processes.mine(stream.collect(numbered, NoSampler(run.tokenizer), seed))
    stream.judge(groups, run.guard.note)
    kept, counts = stream.select(groups)
    said = {name: total for name, (total, _) in run.processes.totals({n: (c, 0.0) for n, c in counts.items()}).items()}
    notes += [f"left out before the step: {name} {number:g}" for name, number in said.items() if number]
    return kept
