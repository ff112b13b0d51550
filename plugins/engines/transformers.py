"""Sampling in process, with the model as it stands in memory.

Temperature, top-k, top-p and min-p are applied here, in this order, and the log-probability of a token is taken from
exactly the distribution that it was drawn from; nothing of the model's own generation configuration has a say but its
list of end-of-sequence tokens. A token is drawn by noise that belongs to its answer and its place in it, so that an
answer depends on no other. Models whose attention can be given by name are decoded with keys and values in rows
(`_decode`), others by `generate` of transformers, which is said once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from weakref import WeakSet

import torch

from unified import Answer, Field, RolloutEngine, Sampling, Settings, UserError, hookimpl
from unified_plugins.engines._rows import Row, Watch

_told: WeakSet[Any] = WeakSet()  # models of which it has been said that `generate` samples


class TransformersSettings(Settings):
    """How much is sampled at once, and how."""

    max_batch: int = Field(128, ge=1, description="answers sampled at the same time; lower it when memory runs out")
    decode: Literal["auto", "fast", "generate"] = Field(
        "auto",
        description="fast: rows of keys and values; generate: that of transformers; auto: fast where it is exact",
    )
    precision: Literal["trainer", "float32", "bfloat16"] = Field(
        "trainer", description="of matrix products: those of the stage (`bf16`), or others"
    )


def generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    n: int,
    sampling: Sampling,
    settings: TransformersSettings,
    seeds: Sequence[Sequence[int]],
    told: Callable[[int, int, int], None] | None = None,
) -> list[list[Answer]]:
    """n answers per prompt, in the order of the prompts; the k-th answer of prompt i follows from seeds[i][k].

    told: called with (i, k, token) for each token when it is drawn; of greedy answers for the first one, k = 0.

    The sampling_logp of greedy answers (temperature 0) is 0: they are certain.

    Raises:
        UserError: a prompt without tokens, or `decode: fast` for a model that cannot be decoded so.
    """
    empty = next((i for i, prompt in enumerate(prompts) if not prompt), None)
    if empty is not None:
        raise UserError(
            f"prompt {empty} has no tokens, so nothing can be sampled", "use a tokenizer with a beginning token"
        )
    once = sampling.temperature == 0 and n > 0  # greedy answers to one prompt are one answer
    rows = [
        Row(i, seed % 2**64, sampling.max_tokens, Watch(tokenizer, sampling.stop) if sampling.stop else None)
        for i in range(len(prompts))
        for seed in seeds[i][: 1 if once else n]
    ]
    if told is not None:
        for number, row in enumerate(rows):
            row.told = partial(told, row.prompt, number % (1 if once else n))
    fill(model, tokenizer, prompts, rows, sampling, settings)
    texts = iter(tokenizer.batch_decode([row.ids for row in rows], skip_special_tokens=True))
    answers: list[list[Answer]] = [[] for _ in prompts]
    for row in rows:
        answer = Answer(row.ids, next(texts), sampling_logp=row.logp, finish=row.finish or "length")
        copies = [replace(answer, ids=list(row.ids), sampling_logp=list(row.logp)) for _ in range(n - 1 if once else 0)]
        answers[row.prompt] += [answer, *copies]
    return answers


def fill(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    rows: list[Row],
    sampling: Sampling,
    settings: TransformersSettings,
) -> None:
    """Draw the answers of new rows, each up to its own limit."""
    from unified_plugins.engines import _decode, _generate

    ends = end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    with torch.no_grad(), _sampling_mode(model), _precision(model, settings.precision):
        if rows and _is_fast(model, settings):
            with _decode.without_history(model):
                _decode.Decoder(model, prompts, sampling, frozenset(ends), settings.max_batch).run(rows)
        elif rows:
            _generate.run(model, prompts, rows, sampling, frozenset(ends), settings.max_batch, pad)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: all that the model's generation configuration lists, and the tokenizer's own."""
    listed = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(listed if isinstance(listed, (list, tuple)) else [listed]), tokenizer.eos_token_id} - {None}
    return sorted(int(i) for i in ids)


def _is_fast(model: Any, settings: TransformersSettings) -> bool:
    """Whether the model is decoded here; says once where it is not though it might have been."""
    from unified_plugins.engines._decode import why_not

    if settings.decode == "generate":
        return False
    reason = why_not(model)
    if reason is None:
        return True
    name = type(model).__name__
    if settings.decode == "fast":
        raise UserError(f"`decode: fast`: {name} cannot be decoded so: {reason}", "use `decode: auto`, or `generate`")
    if model not in _told:
        _told.add(model)
        print(
            f"warning: engine 'transformers' samples {name} by `generate`, which is slower: {reason} "
            "(write `decode: generate` to have it so without this line)",
            file=sys.stderr,
        )
    return False


@contextmanager
def _precision(model: Any, precision: str) -> Iterator[None]:
    """Matrix products as asked; weights are rounded once and not for every token.

    Autocast keeps its roundings only of weights that require a gradient; it forgets them when it is left.
    """
    kind = next(model.parameters()).device.type
    on = torch.is_autocast_enabled(kind) if precision == "trainer" else precision == "bfloat16"
    dtype = torch.get_autocast_dtype(kind) if precision == "trainer" else torch.bfloat16
    still = [p for p in model.parameters() if on and p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in still:
            parameter.requires_grad_(True)
        with torch.autocast(kind, dtype, enabled=on):
            yield
    finally:
        for parameter in still:
            parameter.requires_grad_(False)


@contextmanager
def _sampling_mode(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradient checkpointing, an empty generation configuration; all put back afterwards."""
    from transformers import GenerationConfig

    training = [(module, module.training) for module in model.modules()]
    checkpointing = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    configuration = model.generation_config
    try:
        model.eval()
        for module in checkpointing:
            module.gradient_checkpointing = False
        model.generation_config = GenerationConfig()  # else its penalties and bans would be merged in
        yield
    finally:
        model.generation_config = configuration
        for module in checkpointing:
            module.gradient_checkpointing = True
        for module, was in training:
            module.training = was


@hookimpl
def unified_engines() -> list[RolloutEngine]:
    """Offer the engine as `engine: transformers`."""
    return [RolloutEngine("transformers", TransformersSettings, generate=generate)]
