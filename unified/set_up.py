"""From the settings of a training stage to a `Run`: models, streams, optimiser, schedule."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unified.accelerating import is_sharded, make_accelerator, prepare, refuse_sharded, wrap_blocks
from unified.blame import blaming
from unified.coefficient import Term
from unified.data import Example, PromptGroup
from unified.errors import UserError
from unified.judges import judges_of, load_judges
from unified.layout import Kind
from unified.lazy import LazyRows, is_streaming
from unified.left_out import Counts, told
from unified.lora import attach, quantise
from unified.models import Artifact, context_length, load_value_head
from unified.optim import optimiser, schedule
from unified.precision import in_bf16, use_fast_float32
from unified.processes import Processes
from unified.registry import call_named
from unified.render import Renderer, render_rows
from unified.roles import Roles, packing_is_exact, sharing_is_exact
from unified.running import Run
from unified.settings import Chosen
from unified.shells import shell_of
from unified.stage import StageContext, TermSettings, TrainSettings
from unified.stream import Stream, seed_of
from unified.teacher import check_vocabulary, divergences, load_teacher, most_stored
from unified.training import judging_parts, samples_online


def set_up(stage: StageContext, settings: TrainSettings) -> Run:
    """Load what the stage needs and nothing else, render its rows, and prepare one module with one optimiser."""
    terms = stage_terms(settings)
    artifact = stage.artifact(settings.model)
    _refuse_trusted(settings, artifact)
    tokenizer = artifact.tokenizer()
    torch.manual_seed(stage.seed)
    accelerator = make_accelerator(stage.say)
    refuse_sharded(accelerator, settings)
    bf16 = in_bf16(settings.bf16, accelerator.device)
    if not bf16:
        use_fast_float32(accelerator.device)
    models, value_head = load_models(stage, settings, terms, artifact)
    judges, named = load_judges(stage, [part for _, part in judging_parts(settings)])
    models |= judges
    counted = Counts({})
    renderer = make_renderer(tokenizer, models, settings.max_length)
    streams = make_streams(stage, settings, renderer, counted)
    trained = trained_heads([t for t, _ in terms], settings)
    for role, model in models.items():
        model.requires_grad_(role in trained)
        if role in trained and settings.adapter is not None:
            if settings.adapter.quantization is not None:
                quantise(model, bf16=bf16)
            kind = "policy" if role == "policy" else "scalar"
            attach(model, settings.adapter, kind=kind, seed=seed_of("adapter", stage.seed, role))
        model.train(role in trained)
        if role in trained and settings.gradient_checkpointing:
            with warnings.catch_warnings():  # a newer name of it is on the way
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layout = choose_layout(settings, models)
    own = settings.own_reference and "ref_logp" in names_read([t for t, _ in terms])
    roles = Roles(models, value_head=value_head, bf16=bf16, own_reference=own)
    roles.top_k = most_stored(t for t, _ in terms)
    modules: dict[str, nn.Module] = {r: roles.models[r] for r in trained}
    if value_head is not None:
        modules["policy"] = nn.ModuleList([roles.models["policy"], value_head])
    optimizer = optimiser(modules, settings)
    shells = make_shells(models, trained, value_head) if is_sharded(accelerator) else {}
    wrap_blocks(accelerator, models.values(), bf16=bf16)
    model, optimizer = prepare(accelerator, roles, optimizer)
    total, steps = plan_steps(settings, len(streams[0].rows))
    run = Run(
        stage, settings, accelerator, Processes(accelerator), model, roles, tokenizer,
        streams, optimizer, schedule(optimizer, settings, steps), steps, layout,
        value_role="policy" if value_head is not None else "critic", trained=trained, total_prompts=total,
        dropped=counted, divergences=divergences(t for t, _ in terms), judges=named, shells=shells,
    )  # fmt: skip
    for role in run.shells.keys() & judges.keys():
        run.shells[role].to(run.device)
    run.watch.judged = any(t.algorithm.reward == "required" for t in streams[0].terms)
    run.held_out = held_out_streams(stage, settings, renderer, run)
    for stream in [*streams, *run.held_out]:
        stream.judges = partial(judges_of, run)
        stream.time_limit = settings.reward_timeout
    return run


def make_shells(models: dict[str, Any], trained: Iterable[str], value_head: nn.Module | None) -> dict[str, Any]:
    """Whole models for processes that share the weights out: empty ones of what is trained, copies of judges."""
    shells: dict[str, Any] = {role: shell_of(models[role]) for role in trained}
    if value_head is not None:
        shells["value_head"] = shell_of(value_head)
    answering = [r for r, m in models.items() if r.startswith("judge") and m.get_output_embeddings() is not None]
    return shells | {role: copy.deepcopy(models[role]) for role in answering}


def _refuse_trusted(settings: TrainSettings, artifact: Artifact) -> None:
    """An adapter names its base, whose own Python never runs because an adapter names it."""
    if settings.adapter is not None and settings.adapter.save == "adapter" and artifact.trusted:
        raise UserError(
            f"an adapter of {artifact} could not be loaded again: the model runs Python of its own",
            "write `adapter: {save: merged}`",
        )


def make_renderer(tokenizer: Any, models: dict[str, Any], max_length: int | None) -> Renderer:
    """Text to ids as the models of a stage can hold it: up to max_length tokens, or the shortest limit of a model."""
    limit = max_length or min(context_length(m.config) for r, m in models.items() if not r.startswith("judge"))
    ends = models["policy"].generation_config.eos_token_id if "policy" in models else None
    return Renderer(tokenizer, limit, [ends] if isinstance(ends, int) else ends or [])


def stage_terms(settings: TrainSettings) -> list[tuple[Term, TermSettings]]:
    """The summands of the stage: those under `terms`, or the one algorithm."""
    written = settings.terms or [TermSettings(algorithm=settings.algorithm)]
    terms = [
        (Term(t.algorithm.part, t.algorithm.settings, t.weight, t.on, t.aggregation, t.constant_length), t)
        for t in written
    ]
    for i, (term, _) in enumerate(terms):
        term.number = i
    return terms


def trained_heads(terms: list[Term], settings: TrainSettings) -> dict[str, frozenset[str]]:
    """Role -> heads that some term pushes there."""
    shared = settings.critic.trunk == "shared"
    roles = {"value": "policy" if shared else "critic", "score": "scorer"}
    out: dict[str, frozenset[str]] = {}
    for term in terms:
        for head in term.aggregations:
            role = roles.get(head, "policy")
            out[role] = out.get(role, frozenset()) | {term.slot if head == "logits" else head}
    return out


def names_read(terms: list[Term]) -> frozenset[str]:
    """What the terms read, of the model as it is now and of what is scored before."""
    return frozenset(name for t in terms for name in t.reads | t.credit_reads)


def load_models(
    stage: StageContext, settings: TrainSettings, terms: list[tuple[Term, TermSettings]], artifact: Artifact
) -> tuple[dict[str, Any], nn.Linear | None]:
    """Every role that some term needs: trained ones, the reference where it is read, and the reward models."""
    plain = [t for t, _ in terms]
    trained = trained_heads(plain, settings)
    read = names_read(plain)
    models: dict[str, Any] = {}
    if "ref_logp" in read and not settings.own_reference:
        # before the policy, which may be the same object in memory and is trained in place
        source = artifact if settings.reference == "input" else stage.artifact(settings.reference)
        models["reference"] = source.load("policy")
    teacher = load_teacher(stage, settings, plain, artifact)
    if teacher is not None:
        models["teacher"] = teacher
    if "scorer" in trained:
        models["scorer"] = artifact.load("scalar", dropout=settings.dropout, trained=not settings.quantised)
    needs_value = any("value" in h for h in trained.values()) or "old_value" in read or "value" in read
    value_head = None
    if needs_value and settings.critic.trunk == "own":
        start = stage.artifact(settings.critic.model) if settings.critic.model else artifact
        models["critic"] = start.load("scalar", dropout=settings.dropout)
    if "policy" in trained or not models:
        models["policy"] = artifact.load("policy", dropout=settings.dropout, trained=not settings.quantised)
    check_vocabulary(stage.name, models)
    if needs_value and settings.critic.trunk == "shared":
        if settings.critic.model:
            raise UserError(
                "a critic that shares the policy's trunk cannot start from another model",
                "drop `model`, or `trunk: shared`",
            )
        embeddings = models["policy"].get_input_embeddings().weight
        value_head = load_value_head(artifact, embeddings.shape[1])
        if embeddings.dtype == torch.float64:
            value_head = value_head.double()
    return models, value_head


def _written_terms(settings: TrainSettings) -> list[TermSettings]:
    """The terms that have rows of their own; the stage's own stream comes before them."""
    return [t for t in settings.terms if t.data is not None]


def _reward_of(chosen: Any, algorithm: Any) -> Chosen | None:
    """The reward that was chosen, or the algorithm's own."""
    from unified.settings import choose

    if chosen is not None:
        return chosen
    if algorithm.reward == "required":
        raise UserError(
            f"algorithm '{algorithm.name}' needs a reward", "write `reward: NAME`; `unified list reward` shows them"
        )
    found, problems = choose("reward", algorithm.reward)
    if problems:
        raise UserError(problems[0].text())
    return found


def _first_algorithm(settings: TrainSettings) -> Any:
    chosen: Any = settings.terms[0].algorithm if settings.terms else settings.algorithm
    return chosen.part


def _rewards(settings: TrainSettings) -> list[Chosen | None]:
    own = [_reward_of(t.reward, t.algorithm.part) for t in _written_terms(settings)]
    return [_reward_of(settings.reward, _first_algorithm(settings)), *own]


def make_streams(stage: StageContext, settings: TrainSettings, renderer: Renderer, counted: Counts) -> list[Stream]:
    """The stream that drives the stage, with the terms on its rows, and one for each term with rows of its own."""
    from unified.settings import choose

    terms = stage_terms(settings)
    rewards = _rewards(settings)
    own = [(t, w) for t, w in terms if w.data is not None]
    shared = [t for t, w in terms if w.data is None]
    if not shared:
        raise UserError(f"stage '{stage.name}': the first term needs the stage's own rows", "leave out its `data`")
    streams = []
    plan: list[tuple[Any, Any, list[Term], int | None]] = [(settings.data, settings.source, shared, None)]
    plan += [(w.data, w.source, [t], w.per_step or settings.batch_size) for t, w in own]
    for i, (data, source, of_stream, per_step) in enumerate(plan):
        if source is None:
            source, problems = choose("source", of_stream[0].algorithm.source)
            if problems:
                raise UserError(f"stage '{stage.name}': " + problems[0].text())
        rows, counts = open_rows(data, "train", stage.home, stage.seed, renderer, settings, of_stream, source)
        for name, number in counts.items():
            counted[name] = counted.get(name, 0) + number
        counted.problems += counts.problems
        which = f"{stage.name}: rows" if i == 0 else f"{stage.name}: rows of terms[{of_stream[0].number}]"
        for line in told(counts, which):
            stage.say(line)
        streams.append(
            Stream(
                stage.name,
                rows,
                source,
                rewards[i],
                of_stream,
                stage.seed + i,
                per_step,
                list(settings.filters),
                label=f"train-{i}",
                shuffle=settings.shuffle,
                folder=stage.home,
            )
        )
    return streams


def open_rows(
    data: Any,
    split: str,
    home: Path,
    seed: int,
    renderer: Renderer,
    settings: TrainSettings,
    terms: list[Term],
    source: Any,
) -> tuple[list[PromptGroup] | LazyRows, Counts]:
    """The rows of a dataset as tokens, and what was counted on the way; rows that stay in their file as they are drawn.

    UserError for rows that do not fit.
    """
    if data is None:
        raise UserError("the stage needs `data`", "write `data: NAME` or the path of a file")
    where = {"split": split, "seed": seed, "folder": home}
    with blaming(data.part, "open"):
        examples: Sequence[Example] = call_named(data.part.open, settings=data.settings, **where)
    online = source.part.online
    needed = 0 if online else max(t.algorithm.answers for t in terms)
    reserve = int(getattr(source.settings, "max_tokens", 0)) if online else 0
    about: dict[str, Any] = {"needs_answers": needed, "too_long": settings.too_long, "reserve": reserve}
    if is_streaming(examples):
        lazy = LazyRows(renderer, examples, **about)
        return lazy, lazy.counts
    return render_rows(renderer, examples, **about)


def held_out_streams(stage: StageContext, settings: TrainSettings, renderer: Renderer, run: Run) -> list[Stream]:
    """The held-out rows of the stage's data (or of the evaluation's own) with the terms and the evaluation's reward."""
    wanted = settings.evaluation
    if wanted is None:
        return []
    driver = run.streams[0]
    data = wanted.data or settings.data
    rows, counts = open_rows(data, "held_out", stage.home, stage.seed, renderer, settings, driver.terms, driver.source)
    if isinstance(rows, LazyRows):
        rows, counts = rows.first(wanted.num_prompts)
    for name, number in counts.items():
        run.dropped[f"held_out_{name}"] = number
    run.dropped.problems += [f"held-out: {problem}" for problem in counts.problems]
    for line in told(counts, f"{stage.name}: held-out rows"):
        stage.say(line)
    stream = Stream(
        stage.name, rows, driver.source, driver.reward, driver.terms, stage.seed, label="held-out", folder=stage.home
    )
    judged = Stream(stage.name, rows, driver.source, wanted.reward, [], stage.seed, label="judged", folder=stage.home)
    return [stream, judged]


def choose_layout(settings: TrainSettings, models: dict[str, Any]) -> Kind:
    """The layout that was asked for; `auto` is the best one that every model computes exactly.

    Prefix-shared (then each collected batch is packed all the same where sharing does not pay), without it packed, else
    padded. Dropout acts on every answer's prompt by itself, so that it rules sharing out. UserError for a layout that a
    model computes otherwise.
    """
    kinds: dict[Kind, Any] = {"prefix-shared": sharing_is_exact, "packed": packing_is_exact}
    wrong = {
        "prefix-shared": "this model does not see a shared prompt as if it were the answer's own",
        "packed": "this model mixes the rows of a packed stream",
    }
    for kind, is_exact in kinds.items():
        if settings.layout not in ("auto", kind) or (kind == "prefix-shared" and settings.drops):
            continue
        if all(is_exact(m) for m in models.values()):
            return kind
        if settings.layout == kind:
            raise UserError(f"`layout: {kind}`: {wrong[kind]}", "use `layout: padded`, or `auto`")
    return "padded"


def plan_steps(settings: TrainSettings, rows: int) -> tuple[int, int]:
    """(prompts drawn at most, optimiser steps at most).

    Rows of data are never seen twice in one step: the last batch of a pass over them is what is left of it. Prompts to
    sample from follow each other without a seam.
    """
    if settings.max_steps > 0:
        return sys.maxsize, settings.max_steps
    collected = settings.collect_size or settings.batch_size

    def steps(prompts: int) -> int:
        full, rest = divmod(prompts, collected)
        whole = full * math.ceil(collected / settings.batch_size) + math.ceil(rest / settings.batch_size)
        return settings.inner_epochs * whole

    total = max(1, round(rows * settings.num_train_epochs))
    if samples_online(settings):
        return total, steps(total)
    passes, rest = divmod(total, rows)
    return total, passes * steps(rows) + steps(rest)
