"""A stage that samples: a frozen policy answers prompts, a reward judges, a rule selects; what stays is a dataset.

Rejection sampling, best-of-n, pairs for preferences. Later stages read it as `data: stage:NAME`; people as
`data/train.jsonl`, one prompt a line with `answers`, `rewards` and the columns of its row. `data/held_out.jsonl` is
made in the same way from held-out prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unified import (
    Chosen,
    Example,
    Field,
    Measure,
    Problem,
    PromptGroup,
    Settings,
    StageContext,
    StageKind,
    StageResult,
    UserError,
    Work,
    call_named,
    choice,
    hookimpl,
    training,
)
from unified_plugins.stages._shared import as_example, name_source, reserve_of, source_of, write_rows
from unified_plugins.stages._work import answering, at_once, longest_of

if TYPE_CHECKING:
    from unified import Bench

Counts = dict[str, float]


class SampleSettings(Settings):
    """What a sampling stage may set."""

    model: str = Field("base", description="what answers: base (the recipe's model), stage:NAME, a path or hub id")
    data: Chosen = choice("dataset", description="where prompts come from: a dataset, or the path of a file")
    source: Chosen | None = choice(
        "source",
        None,
        description="how they are answered; without a name, `rollouts`: {group_size: 8, temperature: 1.0, ...}",
    )
    reward: Chosen | None = choice("reward", None, description="how answers are judged; needed where `select` compares")
    engine: Chosen | None = choice("engine", None, description="what samples; without, `transformers` in process")
    filters: list[Chosen] = choice("filter", [], description="rules that drop groups before the selection")
    select: Chosen | None = choice("selection", None, description="which answers are kept; without, all")
    limit: int | None = Field(None, ge=1, description="answers kept per prompt, at most: those of the highest reward")
    distinct: bool = Field(
        False, description="of answers to one prompt that read the same, only the first is looked at"
    )
    unfinished: Literal["drop", "keep"] = Field(
        "drop", description="answers cut off at max_tokens: dropped, or kept as if they ended there"
    )
    keep: list[Chosen] = choice(
        "dataset",
        [],
        description="rows that are added as they are: [stage:NAME, ...] for the samples of earlier rounds",
    )
    num_prompts: int | None = Field(None, ge=1, description="only so many prompts, from the beginning of the data")
    held_out: int = Field(64, ge=0, description="held-out prompts answered likewise, for later stages to measure on")
    max_length: int | None = Field(
        None, ge=1, description="longest prompt with answer, in tokens; without, the model's"
    )
    too_long: Literal["refuse", "drop"] = Field("refuse", description="rows over max_length: an error, or dropped")
    prompts_at_once: int = Field(256, ge=1, description="prompts handed to the engine together")
    tokens_per_micro_batch: int | None = Field(
        None, ge=1, description="token slots of one forward of a reward model; without, 4096 on a CPU, else 8192"
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A `source` without a name is `rollouts`."""
        return name_source(data)


def run(stage: StageContext, settings: SampleSettings) -> StageResult:
    """Write data/train.jsonl and data/held_out.jsonl. UserError where nothing is kept."""
    from unified import Bench

    bench = Bench(
        stage, stage.artifact(settings.model), rewards=[settings.reward], source=settings.source,
        engine=settings.engine,
        max_length=settings.max_length, tokens_per_micro_batch=settings.tokens_per_micro_batch,
    )  # fmt: skip
    train, summary = _split(bench, settings, "train", settings.num_prompts)
    if not train:
        said = ", ".join(f"{name} {value:g}" for name, value in summary.items())
        raise UserError(f"no answer was kept: {said}", "ask less in `select` or `filters`, or sample more answers")
    held_out, counts = _split(bench, settings, "held_out", settings.held_out) if settings.held_out else ([], {})
    summary |= {f"held_out_{name}": value for name, value in counts.items()}
    for data in settings.keep:
        where = {"split": "train", "seed": stage.seed, "folder": stage.home}
        earlier = list(call_named(data.part.open, settings=data.settings, **where))
        summary["added_prompts"] = summary.get("added_prompts", 0) + len(earlier)
        train += earlier
    if bench.main:
        write_rows(stage.folder / "data" / "train.jsonl", train)
        if held_out:
            write_rows(stage.folder / "data" / "held_out.jsonl", held_out)
    own = {"held_out_path": "data/held_out.jsonl"} if held_out else {"held_out": 0}
    return StageResult(summary=summary, dataset={"path": "data/train.jsonl", "format": "groups", **own})


def _split(bench: Bench, settings: SampleSettings, split: str, limit: int | None) -> tuple[list[Example], Counts]:
    """The rows that are kept of one split, and what is counted."""
    stage, source = bench.stage, source_of(settings.source)
    rows, prompts, dropped = bench.rows(
        settings.data, split, needs_answers=0 if source.part.online else 1, reserve=reserve_of(source),
        too_long=settings.too_long, limit=limit,
    )  # fmt: skip
    groups = bench.answer(
        prompts, source, label=f"{stage.name} {split}", at_once=settings.prompts_at_once,
        progress=lambda done, of: stage.progress(done, of, {}),
    )  # fmt: skip
    if settings.reward is not None:
        bench.judge(groups)
    groups = bench.together(groups)
    counts: Counts = {"prompts": len(groups), "answers": _answers(groups), **_left_out(dropped)}
    counts |= _mean("reward/sampled", groups)
    groups = _looked_at(groups, settings, counts)
    groups = selected(groups, settings, random.Random(f"{stage.name} {split} {stage.seed}"), bench.call)
    counts |= {"kept_prompts": len(groups), "kept_answers": _answers(groups), **_mean("reward/kept", groups)}
    return [as_example(group, rows, bench.renderer.vocabulary) for group in groups], counts


def _looked_at(groups: list[PromptGroup], settings: SampleSettings, counts: Counts) -> list[PromptGroup]:
    """Groups without the answers that could not be judged, were cut off, or read as an earlier one; all counted."""
    rules: list[tuple[str, bool, Callable[[PromptGroup], list[Any]]]] = [
        ("missing", settings.reward is not None, lambda g: [a for a in g.answers if a.reward is not None]),
        ("unfinished", settings.unfinished == "drop", lambda g: [a for a in g.answers if a.finish != "length"]),
        ("repeated", settings.distinct, lambda g: list({a.text: a for a in reversed(g.answers)}.values())[::-1]),
    ]
    for name, wanted, rest in rules:
        if wanted:
            before = _answers(groups)
            groups = [replace(g, answers=left) for g in groups if (left := rest(g))]
            counts[f"dropped/{name}"] = before - _answers(groups)
    return groups


def selected(
    groups: list[PromptGroup], settings: SampleSettings, draw: random.Random, call: Callable[..., Any]
) -> list[PromptGroup]:
    """What filters, selection and limit leave; `call(chosen, function, **arguments)` calls a part."""
    for rule in settings.filters:
        groups = call(rule, "value", groups=groups, **rule.settings.model_dump())
    rule = _selection(settings)
    groups = call(rule, "value", groups=groups, draw=draw, **rule.settings.model_dump())
    return [_limited(g, settings.limit) for g in groups] if settings.limit else groups


def _limited(group: PromptGroup, limit: int) -> PromptGroup:
    best = sorted(range(len(group.answers)), key=lambda i: group.answers[i].total_reward or 0.0, reverse=True)[:limit]
    return replace(group, answers=[group.answers[i] for i in sorted(best)])


def _selection(settings: SampleSettings) -> Chosen:
    from unified import catalogue

    if settings.select is not None:
        return settings.select
    part = catalogue().get("selection", "all")
    return Chosen(part, part.settings())


def _answers(groups: list[PromptGroup]) -> int:
    return sum(not a.probe for g in groups for a in g.answers)


def _mean(name: str, groups: list[PromptGroup]) -> Counts:
    """Mean reward of the judged answers, {} where none is."""
    judged = [r for g in groups for a in g.answers if not a.probe and (r := a.total_reward) is not None]
    return {name: sum(judged) / len(judged)} if judged else {}


def _left_out(dropped: dict[str, int]) -> Counts:
    return {name: number for name, number in dropped.items() if name not in ("rows", "kept") and number}


def uses(settings: SampleSettings) -> list[tuple[tuple[str | int, ...], str, str]]:
    """The policy that answers, and the models of the reward and of a source that searches."""
    judging = (("reward", settings.reward), ("source", settings.source))
    models = [use for key, part in judging for use in training.part_uses((key,), part)]
    return [(("model",), settings.model, "policy"), *models]


def check(settings: SampleSettings, home: Path, seed: int, tokenizer: Any) -> list[Problem]:
    """A reward where the selection compares, answers where the rows are to give them, and sound data."""
    problems = []
    source = source_of(settings.source)
    rule = _selection(settings)
    if "reward" in rule.part.names_read(rule.settings) and settings.reward is None:
        hint = "write `reward: NAME` (`given` takes that of the rows); `unified list reward` shows them"
        problems.append(Problem(f"selection '{rule.name}' needs a `reward`", ("select",), (hint,)))
    several = int(getattr(source.settings, "group_size", 1))
    if source.part.online and getattr(source.settings, "temperature", 1.0) == 0 and several > 1:
        what = f"temperature 0 gives {several} times the same answer"
        problems.append(Problem(what, ("source", "temperature"), ("use group_size: 1, or a temperature above 0",)))
    about: dict[str, Any] = {
        "home": home, "seed": seed, "tokenizer": tokenizer, "max_length": settings.max_length,
        "needed": 0 if source.part.online else 1, "reserve": reserve_of(source), "too_long": settings.too_long,
    }  # fmt: skip
    splits = ["train", *(["held_out"] if settings.held_out else [])]
    for split in splits:
        found = training.check_rows(settings.data, split, ("data",), **about)
        more = ("`held_out: 0` if no later stage measures on held-out rows",) if split == "held_out" else ()
        problems += [Problem(p.message, p.at, (*p.hints, *more)) for p in found]
    for i, data in enumerate(settings.keep):
        problems += training.check_rows(data, "train", ("keep", i), home=home, seed=seed, tokenizer=None, needed=1)
    return problems


def work(settings: SampleSettings, measure: Measure) -> Work | None:
    """Answers to the prompts and to held-out ones, and what judges them; None where the data are not there yet."""
    source, jobs, prompts, longest = source_of(settings.source), [], 0, 0.0
    for split, limit in (("train", settings.num_prompts), ("held_out", settings.held_out)):
        rows = measure(settings.data, split) if limit != 0 else None
        if rows is None and split == "train":
            return None
        if rows is not None:
            number = min(limit or rows.rows, rows.rows)
            jobs += answering(rows, number, source, settings.model, [settings.reward])
            prompts, longest = prompts + number, max(longest, longest_of(rows, source))
    return Work(prompts=prompts, jobs=jobs, at_once=at_once(settings.engine, source), longest=longest)


@hookimpl
def unified_stages() -> list[StageKind]:
    """Offer sampling to recipes as `kind: sample`."""
    return [
        StageKind(
            "sample", SampleSettings, run=run, uses=uses, makes=lambda settings: "dataset", check=check, work=work
        )
    ]
