"""A training stage from its settings to its result: set up, loop over collected batches, finish."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from unified.checkpoint import resume, save_checkpoint
from unified.data import PromptGroup
from unified.evaluate import evaluate
from unified.interrupt import StopRequest
from unified.models import Artifact, save_model
from unified.run import Run, Table
from unified.set_up import set_up
from unified.stage import StageContext, StageResult, TrainSettings
from unified.step import count, optimise, prepare
from unified.stream import seed_of


def train_stage(stage: StageContext, settings: TrainSettings) -> StageResult:
    """Train, write the model (and its critic) beside the metrics, and give the numbers for the table."""
    run, summary = train(stage, settings)
    role = "scorer" if "scorer" in run.trained else "policy"
    model = run.roles.models[role]
    folder = stage.folder / "model"
    if run.accelerator.is_main_process:
        save_model(model, run.tokenizer, folder, run.roles.value_head)
        if "critic" in run.trained:
            save_model(run.roles.models["critic"], run.tokenizer, stage.folder / "critic")
    run.accelerator.wait_for_everyone()
    run.accelerator.free_memory()
    return StageResult(Artifact("scalar" if role == "scorer" else "policy", folder), summary)


def train(stage: StageContext, settings: TrainSettings) -> tuple[Run, dict[str, Any]]:
    """Train without writing a model; the run that is returned holds it in memory."""
    run = set_up(stage, settings)
    resumed = resume(run)
    loop = Loop(run, saved_at=run.step)
    if settings.eval_on_start and not resumed:
        loop.evaluate(written=True)
    with StopRequest() as stop:
        while run.step < run.steps and run.streams[0].position < run.total_prompts:
            loop.iterate()
            if run.processes.most(stop.asked):
                loop.save()
                raise KeyboardInterrupt
    loop.evaluate(written=True)
    loop.restore_best()
    return run, loop.summary()


@dataclass
class Loop:
    """The loop over collected batches, and what it reports."""

    run: Run
    evaluated_at: int = -1
    saved_at: int = 0
    mark: float = 0.0

    def iterate(self) -> None:
        """One collected batch: collect to credit, the optimiser steps on it, control and report."""
        run, settings = self.run, self.run.settings
        driver, *others = run.streams
        self.mark = time.time()
        torch.manual_seed(seed_of("step", run.stage.seed, run.iteration, run.processes.rank))
        prompts = min(settings.collect_size or settings.batch_size, run.total_prompts - driver.position)
        if not driver.online:  # no row twice in one step: a pass over the data ends with what is left of it
            prompts = min(prompts, len(driver.rows) - driver.position % len(driver.rows))
        parts = math.ceil(prompts / settings.batch_size)
        before = run.step
        table = prepare(run, driver, prompts, several_steps=parts * settings.inner_epochs > 1)
        for epoch in range(settings.inner_epochs):
            for index in split(run, table, parts, epoch):
                if run.step >= run.steps:
                    break
                beside = [prepare(run, s, s.per_step or 1, several_steps=False) for s in others]
                works = [count(run, t, list(range(len(t.rows)))) for t in beside]
                optimise(run, [*works, count(run, table, index)])
        run.iteration += 1
        metrics = self.control(run.step - before)
        every = settings.ref_sync_steps
        if every and run.step // every > before // every:
            run.renew_reference()
        if settings.eval_steps and run.step // settings.eval_steps > before // settings.eval_steps:
            metrics |= self.evaluate()
        self.report(table, metrics)
        if settings.save_steps and run.step - self.saved_at >= settings.save_steps and run.step < run.steps:
            self.save()

    def save(self) -> None:
        """A checkpoint to go on from."""
        run = self.run
        folder = save_checkpoint(run)
        self.saved_at = run.step
        run.stage.notify("checkpoint_saved", stage=run.stage.name, step=run.step, folder=str(folder))

    def control(self, steps: int) -> dict[str, float]:
        """Means over what was learned from, and the state of the terms that follows from them."""
        run = self.run
        totals = run.processes.totals(run.sums)
        run.sums = {}
        metrics = means(totals, max(steps, 1))
        for stream in run.streams:
            for term in stream.terms:
                if term.algorithm.update:
                    own = {k.removeprefix(f"{term.algorithm.name}/"): v for k, v in metrics.items()}
                    term.state = dict(term.call("update", totals={**metrics, **own}))
        return metrics

    def report(self, table: Table, metrics: dict[str, float]) -> None:
        """Metrics and a few samples to their files, and the event."""
        run = self.run
        metrics = group_metrics(run, table.groups) | metrics
        seconds = max(time.time() - self.mark, 1e-9)
        metrics["tokens_per_second"] = metrics.get("tokens", 0.0) / seconds
        row = {"step": run.step, "iteration": run.iteration, "seconds": seconds, **metrics}
        if run.accelerator.is_main_process:
            with (run.stage.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({k: _finite(v) for k, v in row.items()}) + "\n")
            write_samples(run, table.groups[: run.settings.sample_rows])
        run.last = metrics
        run.stage.notify("step_finished", stage=run.stage.name, step=run.step, metrics=metrics)
        run.stage.progress(run.step, run.steps, metrics)

    def evaluate(self, *, written: bool = False) -> dict[str, float]:
        """Measure on held-out prompts (once per step), and keep the weights if they are the best so far.

        written: as a line of its own in metrics.jsonl, and not with those of the step.
        """
        run = self.run
        if run.settings.evaluation is None or self.evaluated_at == run.step:
            return {}
        self.evaluated_at = run.step
        measured = evaluate(run)
        run.evaluated = measured
        name = run.settings.metric_for_best_model
        if name:
            run.keep_best(measured, name)
        if written and run.accelerator.is_main_process:
            with (run.stage.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": run.step, **{k: _finite(v) for k, v in measured.items()}}) + "\n")
        return measured

    def restore_best(self) -> None:
        """Put the best weights back, where a metric was named."""
        run = self.run
        if run.best is not None:
            run.roles.load_state_dict(run.best.weights, strict=False)
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
        if run.dropped.problems:
            out["dropped_places"] = run.dropped.problems
        if not all(run.roles.plain_head.values()):
            out["head"] = "the model's own, because it scales or caps its logits"
        return out | {f"last/{k}": v for k, v in run.last.items() if not k.startswith("eval/")}


def split(run: Run, table: Table, parts: int, epoch: int) -> list[list[int]]:
    """Rows of the table for each optimiser step of one pass: whole groups, in an order of their own for each pass."""
    order = list(range(len(table.groups)))
    if parts > 1 or epoch > 0:
        generator = torch.Generator().manual_seed(seed_of("split", run.stage.seed, run.iteration, epoch))
        order = torch.randperm(len(order), generator=generator).tolist()
    ends = [round(len(order) * (k + 1) / parts) for k in range(parts)]
    starts = [0, *ends[:-1]]
    rows: list[list[int]] = []
    at = 0
    for group in table.groups:
        rows.append(list(range(at, at + len(group.answers))))
        at += len(group.answers)
    return [[i for g in order[a:b] for i in rows[g]] for a, b in zip(starts, ends, strict=True)]


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
    if any(s.online for s in run.streams[:1]):
        flat = [r for rewards in judged for r in rewards]
        add("reward", flat)
        add("reward_square", [r * r for r in flat])
        several = [rewards for rewards in judged if len(rewards) > 1]
        add("frac_reward_zero_std", [float(max(r) == min(r)) for r in several])
        add("completions/mean_length", [float(len(a.ids)) for a in answers])
        add("completions/clipped_ratio", [float(a.finish == "length") for a in answers])
    out = means(run.processes.totals(sums), 1)
    if "reward_square" in out:
        out["reward_std"] = max(out.pop("reward_square") - out["reward"] ** 2, 0.0) ** 0.5
    return out


def write_samples(run: Run, groups: list[PromptGroup]) -> None:
    """One answer of each of a few prompts, as text, with its reward."""
    with (run.stage.folder / "samples.jsonl").open("a") as file:
        for group in groups:
            answer = max(group.answers, key=lambda a: a.total_reward or 0.0)
            text = answer.text or run.tokenizer.decode(answer.ids, skip_special_tokens=True)
            row = {
                "step": run.step,
                "prompt": group.text,
                "answer": text,
                "reward": answer.total_reward,
                "finish": answer.finish,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _finite(value: float) -> float | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None
