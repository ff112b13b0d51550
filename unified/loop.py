"""A training stage from its settings to its result: set up, loop over collected batches, finish."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import pstdev
from typing import Any

import torch

from unified.blame import named_step
from unified.checkpoint import keep_best_weights, load_best_weights, resume, save_checkpoint
from unified.data import PromptGroup
from unified.dealt import places
from unified.disk import space_for
from unified.errors import LostEngine
from unified.evaluate import evaluate
from unified.guard import batch_done, warn
from unified.histogram import taken, write_coefficients
from unified.interrupt import StopRequest, StopSignal
from unified.lens.kept import keep_picture
from unified.lora import fold, taken_off
from unified.models import artifact_at, save_adapter, save_model
from unified.pushed_weights import clear_weights
from unified.running import Collected, Run, Table
from unified.samples import write_samples
from unified.set_up import set_up
from unified.stage import StageContext, StageResult, TrainSettings
from unified.step import count, optimise, prepare
from unified.stream import seed_all, seed_of
from unified.trackers import tracked

#: answers of a collected batch whose repetitions are counted (16 of 1,024 tokens take 2 ms), and their fewest tokens
REPEATED_OF, REPEATED_IN = 16, 16


def train_stage(stage: StageContext, settings: TrainSettings) -> StageResult:
    """Train, write the model (and its critic) beside the metrics, and give the numbers for the table."""
    with tracked(stage, settings) as followed:
        run, summary = train(followed, settings)
    role = "scorer" if "scorer" in run.trained else "policy"
    folder = stage.folder / "model"
    _write(run, role, settings.model, folder)
    if "critic" in run.trained:
        _write(run, "critic", settings.critic.model or settings.model, stage.folder / "critic")
    run.accelerator.wait_for_everyone()
    run.accelerator.free_memory()
    return StageResult(artifact_at(folder), summary)


def _write(run: Run, role: str, start: str, folder: Path) -> None:
    """A trained model, or its adapter, which names what the stage was handed (`start`); the main process writes it."""
    model, settings = run.to_write(role), run.settings
    value_head = run.to_write("value_head") if role == "policy" and run.roles.value_head is not None else None
    if not run.accelerator.is_main_process:
        return
    if settings.adapter is None:
        save_model(model, run.tokenizer, folder, value_head)
        return
    artifact = run.stage.artifact(start)

    def handed() -> Any:
        """What was handed over, in all its bits."""
        return artifact.load("policy" if role == "policy" else "scalar")

    if settings.adapter.save == "merged":
        whole = fold(model, handed()) if settings.quantised else taken_off(model, folded=True)
        save_model(whole, run.tokenizer, folder, value_head)
        return
    base = artifact.path if artifact.module is None else None
    save_adapter(model, run.tokenizer, folder, base, value_head, handed if settings.quantised else None)


def train(stage: StageContext, settings: TrainSettings) -> tuple[Run, dict[str, Any]]:
    """Train without writing a model; the run that is returned holds it in memory."""
    run = set_up(stage, settings)
    resumed = resume(run)
    with StopRequest(alone=run.processes.count == 1) as stop, run.rollouts.until_left():
        loop = Loop(run, stop, saved=_place(run) if resumed else None)
        if settings.eval_on_start and not resumed:
            loop.evaluate(written=True)
        if not resumed:
            loop.picture(-1)
        while run.collected or (run.step < run.steps and run.streams[0].position < run.total_prompts):
            loop.iterate()
            loop.pause()
        loop.evaluate(written=True)
    clear_weights(run)
    loop.restore_best()
    return run, loop.summary()


@dataclass
class Loop:
    """The loop over collected batches, and what it reports.

    saved: where in the run the newest checkpoint stands; None before the first. mark: when the collected batch began.
    """

    run: Run
    stop: StopRequest
    saved: tuple[int, bool] | None = None
    mark: float = 0.0

    def iterate(self) -> None:
        """One collected batch: collect to credit, the optimiser steps on it, control and report.

        Of one that an earlier process began, what is left.
        """
        run, settings = self.run, self.run.settings
        self.mark = time.time()
        now = run.collected or self.collect()
        run.collected = now
        self.mark -= now.seconds
        while now.metrics is None and now.epoch < settings.inner_epochs and run.step < run.steps:
            self.learn(now)
            if now.epoch < settings.inner_epochs and run.step < run.steps:
                self.save_if_due()
                self.pause()
        if now.metrics is None:
            run.iteration += 1
            now.metrics = self.control(run.step - now.before)
            every = settings.ref_sync_steps
            if every and run.step // every > now.before // every:
                run.renew_reference()
        measured: dict[str, float] = {}
        if settings.eval_steps and run.step // settings.eval_steps > now.before // settings.eval_steps:
            measured = self.evaluate()
        self.picture(now.before)
        self.report(now.table, now.metrics | measured)
        run.collected = None
        self.save_if_due()

    def collect(self) -> Collected:
        """The next collected batch, up to credit."""
        run, settings = self.run, self.run.settings
        driver = run.streams[0]
        seed_all("step", run.stage.seed, run.iteration, run.processes.rank)
        prompts = min(settings.collect_size or settings.batch_size, run.total_prompts - driver.position)
        if not driver.online:  # no row twice in one step: a pass over the data ends with what is left of it
            prompts = min(prompts, len(driver.rows) - driver.position % len(driver.rows))
        parts = math.ceil(prompts / settings.batch_size)
        with self.as_if_not_begun():
            table = prepare(run, driver, prompts, several_steps=parts * settings.inner_epochs > 1)
        return Collected(table, parts, run.step)

    def learn(self, now: Collected) -> None:
        """The next optimiser step on a collected batch, with fresh rows of the other streams.

        Whatever it draws at random follows from its number, so that the step before may have been another process's.
        """
        run, others = self.run, self.run.streams[1:]
        seed_all("learn", run.stage.seed, run.step, run.processes.rank)
        with self.as_if_not_begun():
            beside = [prepare(run, s, s.per_step or 1, several_steps=False) for s in others]
        index = split(run, now.table, now.parts, now.epoch)[now.part]
        works = [count(run, t, list(range(len(t.rows)))) for t in beside]
        optimise(run, [*works, count(run, now.table, index)])
        now.epoch, now.part = divmod(now.epoch * now.parts + now.part + 1, now.parts)

    @contextmanager
    def as_if_not_begun(self) -> Iterator[None]:
        """A rollout or evaluation: may take long, and changes little. A stop within it leaves at once.

        What it had changed is put back and a checkpoint written: it will be done again, to the same end.
        """
        run = self.run
        streams = [(s.position, s.left_out) for s in run.streams]
        sums, kept, kept_top, pending = dict(run.sums), len(run.kept), len(run.kept_top), list(run.guard.pending)
        try:
            with self.stop.at_once():
                yield
        except (StopSignal, LostEngine):
            for stream, (position, left_out) in zip(run.streams, streams, strict=True):
                stream.position, stream.left_out = position, left_out
            run.sums, run.guard.pending = sums, pending
            for known, before in ((run.kept, kept), (run.kept_top, kept_top)):
                for place in list(known)[before:]:  # in the order in which they were kept
                    del known[place]
            self.save()
            raise

    def pause(self) -> None:
        """Between two optimiser steps: where somebody asked to stop, all processes save and leave together."""
        asked = self.run.processes.most(self.stop.asked)
        if asked:
            self.save()
            raise StopSignal(asked)

    def save_if_due(self) -> None:
        """A checkpoint every `save_steps` optimiser steps, but not after the last one."""
        run, every = self.run, self.run.settings.save_steps
        if every and run.step - (self.saved[0] if self.saved else 0) >= every and run.step < run.steps:
            self.save()

    def save(self) -> None:
        """A checkpoint to go on from, where there is something new to keep."""
        run = self.run
        place = _place(run)
        if place in (self.saved, (0, False)):
            return
        if run.collected:
            run.collected.seconds = time.time() - self.mark
        folder = save_checkpoint(run)
        self.saved = place
        run.stage.notify("checkpoint_saved", stage=run.stage.name, step=run.step, folder=str(folder))

    def control(self, steps: int) -> dict[str, float]:
        """Means over what was learned from, and the state of the terms that follows from them."""
        run = self.run
        totals = run.processes.totals(run.sums)
        run.sums = {}
        metrics = means(totals, max(steps, 1))
        batch_done(run, metrics)
        for term in (t for stream in run.streams for t in stream.terms if t.algorithm.update):
            own = {k.removeprefix(f"{term.algorithm.name}/"): v for k, v in metrics.items()}
            with named_step(run.stage.name, run.step):
                term.state = term.updated({**metrics, **own})
        return metrics

    def report(self, table: Table, metrics: dict[str, float]) -> None:
        """Metrics and a few samples to their files, and the event."""
        run = self.run
        metrics = group_metrics(run, table.groups) | said(run, table) | metrics
        bins = taken(metrics)
        seconds = max(time.time() - self.mark, 1e-9)
        metrics["tokens_per_second"] = metrics.get("tokens", 0.0) / seconds
        row = {"step": run.step, "iteration": run.iteration, "seconds": seconds, **metrics}
        if run.accelerator.is_main_process:
            write_metrics(run, row)
            write_coefficients(run.stage.folder, run.step, bins)
        write_samples(run, table.groups)
        run.last = metrics
        for sign in run.watch.look(metrics):
            warn(run, sign.kind, sign.message, sign.values)
        run.stage.notify("step_finished", stage=run.stage.name, step=run.step, metrics=metrics)
        run.stage.progress(run.step, run.steps, metrics)

    def evaluate(self, *, written: bool = False) -> dict[str, float]:
        """Measure on held-out prompts (once per step), and keep the weights if they are the best so far.

        written: as a line of its own in metrics.jsonl, and not with those of the step.
        """
        run = self.run
        if run.settings.evaluation is None or run.evaluated_at == run.step:
            return {}
        with self.as_if_not_begun():
            measured = evaluate(run)
        name = run.settings.metric_for_best_model
        if name and run.is_best(measured, name):
            keep_best_weights(run)
        run.evaluated, run.evaluated_at = measured, run.step
        if written and run.accelerator.is_main_process:
            write_metrics(run, {"step": run.step, **measured})
        return measured

    def picture(self, before: int) -> None:
        """Keep what a step on a few fixed prompts would do, every `lens_steps` steps. before: of the run, -1: none."""
        every = self.run.settings.lens_steps
        if every and self.run.step // every > before // every:
            with self.as_if_not_begun():
                keep_picture(self.run)

    def restore_best(self) -> None:
        """Put the best weights back, where a metric was named."""
        run = self.run
        if run.best is not None:
            load_best_weights(run)
            run.evaluated = run.best.measured

    def summary(self) -> dict[str, Any]:
        """What the table and the manifest show of the stage."""
        run = self.run
        out: dict[str, Any] = {"steps": run.step, **({"best_step": run.best.step} if run.best else {}), **run.evaluated}
        dropped = Counter(run.dropped)
        for stream in run.streams:
            dropped.update(stream.left_out)
            if stream.left_out:
                said = ", ".join(f"{name} {number}" for name, number in stream.left_out.items())
                run.stage.say(f"{run.stage.name}: of rows that stay in their file, as they were drawn: {said}")
        out |= {"dropped_rows": dict(dropped), "layout": run.layout}
        if run.watch.told:
            out["warnings"] = dict(run.watch.told)
        if run.dropped.problems:
            out["dropped_places"] = run.dropped.problems
        if not all(run.roles.plain_head.values()):
            out["head"] = "the model's own, because it scales or caps its logits"
        return out | {f"last/{k}": v for k, v in run.last.items() if not k.startswith("eval/")}


def split(run: Run, table: Table, parts: int, epoch: int) -> list[list[int]]:
    """Rows of the table for each optimiser step of one pass: whole groups, in an order of their own for each pass.

    Which groups make a step does not depend on which process has them: the order is that of all processes' groups.
    """
    own, number = places(run.processes, table.groups)
    order = list(range(number))
    if parts > 1 or epoch > 0:
        generator = torch.Generator().manual_seed(seed_of("split", run.stage.seed, run.iteration, epoch))
        order = torch.randperm(number, generator=generator).tolist()
    ends = [round(number * (k + 1) / parts) for k in range(parts)]
    starts = [0, *ends[:-1]]
    rows: dict[int, range] = {}
    at = 0
    for place, group in zip(own, table.groups, strict=True):
        rows[place] = range(at, at + len(group.answers))
        at += len(group.answers)
    return [[i for place in order[a:b] for i in rows.get(place, ())] for a, b in zip(starts, ends, strict=True)]


def means(totals: dict[str, tuple[float, float]], steps: int) -> dict[str, float]:
    """{name: (sum, count)} as means. Without a count: losses are means over optimiser steps, the rest are totals."""
    out = {}
    for name, (value, number) in totals.items():
        if number:
            out[name] = value / number
        else:
            out[name] = value / steps if name.endswith("loss") else value
    return out


def group_metrics(run: Run, groups: list[PromptGroup]) -> dict[str, float]:
    """Reward, its spread within prompts, lengths and truncation of the answers of this collected batch."""
    sums: dict[str, tuple[float, float]] = {}

    def add(name: str, values: list[float]) -> None:
        if values:
            sums[name] = (sum(values), float(len(values)))

    answers = [a for g in groups for a in g.answers]
    judged = [[r for a in g.answers if (r := a.total_reward) is not None] for g in groups]
    flat = [r for rewards in judged for r in rewards]
    if any(s.online for s in run.streams[:1]):
        add("reward", flat)
        several = [rewards for rewards in judged if len(rewards) > 1]
        add("frac_reward_zero_std", [float(max(r) == min(r)) for r in several])
        add("completions/mean_length", [float(len(a.ids)) for a in answers])
        add("completions/clipped_ratio", [float(a.finish == "length") for a in answers])
    out = means(run.processes.totals(sums), 1)
    if "reward" in out:
        out["reward_std"] = pstdev(run.processes.lists(flat))  # exact, so that equal rewards have exactly none
    return out


def said(run: Run, table: Table) -> dict[str, float]:
    """What the sampled answers show of the policy's choice.

    nats: mean of -log p of the tokens drawn, which is the entropy where they were drawn from the whole distribution
    (not at temperature 0). repeated: of the 4-grams of an answer, those that stood in it before; of `REPEATED_OF`.
    """
    sums = {}
    batch = table.batch
    if batch.has("sampling_logp") and table.stream.temperature and table.stream.online:
        drawn = batch.loss_mask & ~batch.probe[:, None]
        sums["completions/nats"] = (-float((batch.sampling_logp * drawn).sum()), float(drawn.sum()))
    long = [a.ids for g in table.groups for a in g.answers if len(a.ids) >= REPEATED_IN and not a.probe][:REPEATED_OF]
    if long and table.stream.online:
        shares = [1.0 - len(set(zip(i, i[1:], i[2:], i[3:], strict=False))) / (len(i) - 3) for i in long]
        sums["completions/repeated"] = (sum(shares), float(len(shares)))
    return {name: value / number for name, (value, number) in run.processes.totals(sums).items() if number}


def _place(run: Run) -> tuple[int, bool]:
    """Where in the run a checkpoint would stand: the step, and whether it is within a collected batch."""
    return run.step, run.collected is not None


def write_metrics(run: Run, row: dict[str, Any]) -> None:
    """One line of metrics.jsonl."""
    path = run.stage.folder / "metrics.jsonl"
    with space_for(path.name, path.parent), path.open("a") as file:
        finite = {k: _finite(v) for k, v in row.items()}
        file.write(json.dumps(finite) + "\n")
    run.stage.log(finite)


def _finite(value: float) -> float | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None
