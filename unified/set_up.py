"""From the settings of a training stage to a `Run`: models, streams, optimiser, schedule."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from unified.coefficient import Term
from unified.data import Example, PromptGroup
from unified.errors import UserError
from unified.layout import Kind
from unified.models import Artifact, context_length, load_value_head
from unified.optim import optimiser, schedule
from unified.processes import Processes
from unified.registry import call_named
from unified.render import Renderer, render_rows
from unified.roles import Roles, packing_is_exact
from unified.run import Run, score_answers
from unified.settings import Chosen
from unified.stage import StageContext, TermSettings, TrainSettings
from unified.stream import Stream
from unified.teacher import check_vocabulary, divergences, load_teacher, most_stored
from unified.training import samples_online


def set_up(stage: StageContext, settings: TrainSettings) -> Run:
    """Load what the stage needs and nothing else, render its rows, and prepare one module with one optimiser."""
    terms = stage_terms(settings)
    artifact = stage.artifact(settings.model)
    tokenizer = artifact.tokenizer()
    torch.manual_seed(stage.seed)
    accelerator = Accelerator()
    models, value_head = load_models(stage, settings, terms, artifact)
    counted: dict[str, int] = {}
    renderer = make_renderer(tokenizer, models, settings.max_length)
    streams = make_streams(stage, settings, renderer, counted)
    trained = trained_heads([t for t, _ in terms], settings)
    for role, model in models.items():
        model.requires_grad_(role in trained)
        model.train(role in trained)
        if role in trained and settings.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layout = choose_layout(settings, models)
    roles = Roles(models, value_head=value_head, bf16=settings.bf16)
    roles.top_k = most_stored(t for t, _ in terms)
    modules: dict[str, nn.Module] = {r: roles.models[r] for r in trained}
    if value_head is not None:
        modules["policy"] = nn.ModuleList([roles.models["policy"], value_head])
    optimizer = optimiser(modules, settings)
    model, optimizer = accelerator.prepare(roles, optimizer)
    total, steps = plan_steps(settings, len(streams[0].rows))
    run = Run(
        stage, settings, accelerator, Processes(accelerator), model, accelerator.unwrap_model(model), tokenizer,
        streams, optimizer, schedule(optimizer, settings, steps), steps, layout,
        value_role="policy" if value_head is not None else "critic", trained=trained, total_prompts=total,
        dropped=counted, divergences=divergences(t for t, _ in terms),
    )  # fmt: skip
    for i, stream in enumerate(streams):
        stream.score = _scorer(run, f"judge-{i}")
    run.held_out = held_out_streams(stage, settings, renderer, run)
    return run


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


def load_models(
    stage: StageContext, settings: TrainSettings, terms: list[tuple[Term, TermSettings]], artifact: Artifact
) -> tuple[dict[str, Any], nn.Linear | None]:
    """Every role that some term needs: trained ones, the reference where it is read, and the reward models."""
    plain = [t for t, _ in terms]
    trained = trained_heads(plain, settings)
    read = frozenset(name for t in plain for name in t.reads | t.credit_reads)
    models: dict[str, Any] = {}
    if "ref_logp" in read:  # before the policy, which may be the same object in memory and is trained in place
        source = artifact if settings.reference == "input" else stage.artifact(settings.reference)
        models["reference"] = source.load("policy")
    teacher = load_teacher(stage, settings, plain, artifact)
    if teacher is not None:
        models["teacher"] = teacher
    if "scorer" in trained:
        models["scorer"] = artifact.load("scalar", dropout=settings.dropout, trained=True)
    needs_value = any("value" in h for h in trained.values()) or "old_value" in read or "value" in read
    value_head = None
    if needs_value and settings.critic.trunk == "own":
        start = stage.artifact(settings.critic.model) if settings.critic.model else artifact
        models["critic"] = start.load("scalar", dropout=settings.dropout)
    if "policy" in trained or not models:
        models["policy"] = artifact.load("policy", dropout=settings.dropout, trained=True)
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
    for i, reward in enumerate([*_rewards(settings), _evaluation_reward(settings)]):
        reference = call_named(reward.part.model, settings=reward.settings) if reward and reward.part.model else None
        if reference:
            role = f"judge-{i}" if i < len(_rewards(settings)) else "judge-eval"
            models[role] = stage.artifact(reference).load("scalar")
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


def _evaluation_reward(settings: TrainSettings) -> Chosen | None:
    return settings.evaluation.reward if settings.evaluation else None


def make_streams(
    stage: StageContext, settings: TrainSettings, renderer: Renderer, counted: dict[str, int]
) -> list[Stream]:
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
) -> tuple[list[PromptGroup], dict[str, int]]:
    """The rows of a dataset as tokens, and what was counted on the way. UserError for rows that do not fit."""
    if data is None:
        raise UserError("the stage needs `data`", "write `data: NAME` or the path of a file")
    examples: list[Example] = call_named(data.part.open, settings=data.settings, split=split, seed=seed, folder=home)
    online = source.part.online
    needed = 0 if online else max(t.algorithm.answers for t in terms)
    reserve = int(getattr(source.settings, "max_tokens", 0)) if online else 0
    return render_rows(renderer, examples, needs_answers=needed, too_long=settings.too_long, reserve=reserve)


def held_out_streams(stage: StageContext, settings: TrainSettings, renderer: Renderer, run: Run) -> list[Stream]:
    """The held-out rows of the stage's data (or of the evaluation's own) with the terms and the evaluation's reward."""
    wanted = settings.evaluation
    if wanted is None:
        return []
    driver = run.streams[0]
    data = wanted.data or settings.data
    rows, counts = open_rows(data, "held_out", stage.home, stage.seed, renderer, settings, driver.terms, driver.source)
    for name, number in counts.items():
        run.dropped[f"held_out_{name}"] = number
    stream = Stream(
        stage.name, rows, driver.source, driver.reward, driver.terms, stage.seed, label="held-out", score=driver.score
    )
    judged = Stream(
        stage.name, rows, driver.source, wanted.reward, [], stage.seed, label="judged", score=_scorer(run, "judge-eval")
    )
    return [stream, judged]


def _scorer(run: Run, role: str) -> Any:
    """score(groups) for a reward with a model of its own."""

    def score(groups: list[PromptGroup]) -> list[list[float | None]]:
        if role not in run.roles.models:
            raise UserError(f"stage '{run.stage.name}': a reward asked for scores but names no model")
        return score_answers(run, role, groups)

    return score


def choose_layout(settings: TrainSettings, models: dict[str, Any]) -> Kind:
    """Packed where every model computes packed rows exactly; padded otherwise, or as the settings say."""
    if settings.layout == "padded":
        return "padded"
    exact = all(packing_is_exact(m) for m in models.values())
    if settings.layout == "packed" and not exact:
        raise UserError(
            "`layout: packed`: this model mixes the rows of a packed stream", "use `layout: padded`, or `auto`"
        )
    return "packed" if exact else "padded"


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
