"""Token by token over rows that come and go: a prompt is computed once for all of its answers, a row that has ended
leaves at once, and another takes its place.

The model runs as it stands, through the two attention functions of `_cache`, with positions given and without a cache
of its own. Whether it gives the same distributions as a plain forward is tried before it is used (`why_not`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from unified import Sampling
from unified_plugins.engines._cache import PROMPTS, TOKENS, RowsCache
from unified_plugins.engines._linears import laid_out
from unified_plugins.engines._places import KeyValue
from unified_plugins.engines._rows import Row, extend, longest_first

#: tokens of prompts that are computed together, at most, unless one prompt alone has more
PROMPT_TOKENS = 4096
#: rows are let in where at least this part of the places has become free
FREE = 8
#: largest error of a logit, as a part of the largest distance of a logit from their mean, that passes as rounding
EXACT, ROUGH = 1e-4, 5e-2  # of weights in float32 or float64 (norms are in float32 either way), and in others
_tried: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()


class Decoder:
    """Draws rows to their ends, at most `max_batch` at a time.

    rows: those that are being drawn. logits: of the next token of each, [live, vocab].
    """

    cache: RowsCache
    rows: list[Row]
    logits: Tensor
    _begun: tuple[int, dict[int, KeyValue], Tensor] | None  # a prompt some answers of which wait

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], sampling: Sampling, ends: Collection[int], max_batch: int
    ) -> None:
        self.model, self.prompts, self.sampling, self.ends = model, prompts, sampling, ends
        self.max_batch = max_batch
        self.device = next(model.parameters()).device

    def run(self, rows: Sequence[Row]) -> None:
        """Fill the rows, which are new; their order has no influence on what is drawn."""
        waiting = deque(longest_first(rows, self.prompts))
        self.start(rows)
        with attention_functions(self.model) as switch, laid_out(self.model, max(row.limit for row in rows)):
            while waiting or self.rows:
                free = self.cache.capacity - len(self.rows)
                if waiting and (not self.rows or free * FREE >= self.cache.capacity):
                    switch(PROMPTS)
                    while waiting and len(self.rows) < self.cache.capacity:
                        self._admit(waiting)
                tokens = extend(self.rows, self.logits, self.sampling, self.ends)
                tokens = self._drop(tokens)
                if self.rows:
                    switch(TOKENS)
                    self.logits = self._step(tokens)

    def start(self, rows: Collection[Row]) -> None:
        """Make ready for these rows; prompts are held apart where one of them has several."""
        prompt, answer = max(len(self.prompts[row.prompt]) for row in rows), max(row.limit for row in rows)
        shared = len({row.prompt for row in rows}) < len(rows)
        self.cache = RowsCache(min(self.max_batch, len(rows)), prompt, answer, shared=shared)
        self.rows, self.logits, self._begun = [], torch.empty(0), None

    def _admit(self, waiting: deque[Row]) -> None:
        """Let rows in: those of the prompt that has been begun, else those of the next few prompts."""
        if self._begun is not None and self._begun[0] == waiting[0].prompt:
            self._enter(waiting, *self._begun)
            return
        chosen: list[int] = []
        tokens = 0
        for row in list(waiting)[: self.cache.capacity - len(self.rows)]:
            if not chosen or row.prompt != chosen[-1]:
                tokens += len(self.prompts[row.prompt])
                if chosen and tokens > PROMPT_TOKENS:
                    break
                chosen.append(row.prompt)
        logits, layers = self._compute(chosen)
        at = 0
        for place, prompt in enumerate(chosen):
            part = slice(at, at + len(self.prompts[prompt]))
            at = part.stop
            own = {n: KeyValue(kv.key[:, part], kv.value[:, part]) for n, kv in layers.items()}
            self._enter(waiting, prompt, own, logits[place : place + 1])

    def _enter(self, waiting: deque[Row], prompt: int, own: dict[int, KeyValue], logits: Tensor) -> None:
        """As many of the prompt's rows as there is room for."""
        count = 0
        while waiting and waiting[0].prompt == prompt and len(self.rows) < self.cache.capacity:
            self.rows.append(waiting.popleft())
            count += 1
        self.cache.admit(own, count)
        here = logits.expand(count, -1)
        self.logits = torch.cat([self.logits, here]) if len(self.rows) > count else here
        self._begun = (prompt, own, logits) if waiting and waiting[0].prompt == prompt else None

    def _compute(self, chosen: Sequence[int]) -> tuple[Tensor, dict[int, KeyValue]]:
        """Logits behind each prompt, [prompts, vocab], and keys and values of all their tokens, layer by layer."""
        lengths = [len(self.prompts[i]) for i in chosen]
        ids = torch.tensor([t for i in chosen for t in self.prompts[i]], device=self.device)
        places = torch.cat([torch.arange(n, device=self.device) for n in lengths])
        last = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        self.cache.taken = {}
        logits = self.model(
            input_ids=ids[None], position_ids=places[None], use_cache=False, logits_to_keep=last, segments=lengths,
            rows_cache=self.cache,
        ).logits[0]  # fmt: skip
        taken, self.cache.taken = self.cache.taken, {}
        return logits, taken

    def _drop(self, tokens: Tensor) -> Tensor:
        """Rows that have ended leave, and the last ones take their places. Returns the tokens of those that stay."""
        live = sum(row.finish is None for row in self.rows)
        if live == len(self.rows):
            return tokens
        holes = [i for i, row in enumerate(self.rows[:live]) if row.finish is not None]
        movers = [i for i in range(live, len(self.rows)) if self.rows[i].finish is None]
        self.cache.keep(holes, movers, live)
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[live:]
        if holes:
            tokens[torch.tensor(holes, device=tokens.device)] = tokens[torch.tensor(movers, device=tokens.device)]
        return tokens[:live]

    def _step(self, tokens: Tensor) -> Tensor:
        """[live, vocab]: the logits behind the tokens [live], which were just drawn."""
        at = [len(self.prompts[row.prompt]) + len(row.ids) - 1 for row in self.rows]
        position = torch.tensor(at, device=self.device)
        self.cache.begin(at, position)
        return self.model(
            input_ids=tokens[:, None], position_ids=position[:, None], use_cache=False, logits_to_keep=1,
            rows_cache=self.cache,
        ).logits[:, -1]  # fmt: skip


@contextmanager
def without_history(model: Any) -> Iterator[None]:
    """Tensors are made without what autograd needs: a step is many small operations, and this a twentieth of its time.

    What the model keeps for itself (positions of a rotary embedding that grows) is made an ordinary tensor again.
    """
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in model.modules():
            for held in (module._buffers, vars(module)):
                for name, kept in list(held.items()):
                    if isinstance(kept, Tensor) and kept.is_inference():
                        held[name] = kept.clone()


@contextmanager
def attention_functions(model: Any) -> Iterator[Any]:
    """Gives a function that sets the attention of the whole model by name; afterwards it is what it was."""
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if hasattr(config, "_attn_implementation")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    current = [""]

    def switch(name: str) -> None:
        if current[0] != name:
            current[0] = name
            for config in configs.values():
                config._attn_implementation = name

    try:
        yield switch
    finally:
        for config, name in before:
            config._attn_implementation = name


def why_not(model: Any) -> str | None:
    """Why a model cannot be decoded here, in words; None where it can. Tried once for each model object.

    A model must take attention functions by name, and what is decoded for three short prompts of different length must
    have the logits of a plain forward. Recurrent and hybrid models, linear attention, and terms of the scores that the
    attention here does not know (sinks, learned biases) fail one or the other.
    """
    if model not in _tried:
        _tried[model] = _try(model)
    return _tried[model]


def _try(model: Any) -> str | None:
    if not getattr(model, "_supports_attention_backend", False):
        return "its code takes no attention function by name"
    size = int(model.get_input_embeddings().weight.shape[0])
    prompts = [[(7 * i + 3 * j + 1) % size for j in range(n)] for i, n in enumerate((5, 2, 9))]
    answers = [(own, [(11 * i + 5 * j + 2) % size for j in range(4)]) for i, own in enumerate((0, 0, 1, 2))]
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            plain = [
                model(input_ids=torch.tensor([p + a], device=device), use_cache=False).logits[0, len(p) - 1 : -1]
                for p, a in ((prompts[own], answer) for own, answer in answers)
            ]
            found = _forced(model, prompts, answers)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        said = str(error).strip() or "it gave no reason"
        return f"a trial failed: {type(error).__name__}: {said.splitlines()[0][:120]}"
    expected = torch.stack(plain)
    wide = max(float((expected - expected.mean(-1, keepdim=True)).abs().max()), 1e-30)
    off = float((found - expected).abs().max()) / wide
    limit = EXACT if expected.dtype in (torch.float32, torch.float64) else ROUGH
    if not off <= limit:  # also where it is no number
        return f"a trial gave logits that differ from a plain forward by {off:.1g} of their size"
    return None


def _forced(model: Any, prompts: list[list[int]], answers: list[tuple[int, list[int]]]) -> Tensor:
    """[answers, tokens, vocab]: the logits that each token of given (prompt, answer) would have been drawn from."""
    tokens = len(answers[0][1])
    waiting = deque(Row(own, 0, tokens) for own, _ in answers)
    decoder = Decoder(model, prompts, Sampling(), (), len(answers))
    decoder.start(waiting)
    with attention_functions(model) as switch:
        switch(PROMPTS)
        while waiting:
            decoder._admit(waiting)
        switch(TOKENS)
        out = [decoder.logits]
        for place in range(tokens - 1):
            for row, (_, answer) in zip(decoder.rows, answers, strict=True):
                row.ids.append(answer[place])
            given = torch.tensor([answer[place] for _, answer in answers], device=decoder.device)
            out.append(decoder._step(given))
    return torch.stack(out, 1)
