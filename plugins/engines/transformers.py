"""Sampling in process, by `generate` of transformers.

Temperature, top-k and top-p are applied here, in this order, and the log-probability of a token is taken from exactly
the distribution that it was drawn from; nothing of the model's own generation configuration has a say but its list of
end-of-sequence tokens. Only the logits of the last step are kept: [rows, vocabulary], not one per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unified import Answer, Field, RolloutEngine, Sampling, Settings, UserError, hookimpl

if TYPE_CHECKING:  # imported where it is used: a recipe is checked without it
    from transformers import GenerationConfig


class TransformersSettings(Settings):
    """How much is sampled at once."""

    max_batch: int = Field(128, ge=1, description="answers sampled at the same time; lower it when memory runs out")


class Recorder:
    """Stands last among the processors and takes down the log-probability of each token once it is known."""

    def __init__(self, length: int, *, greedy: bool) -> None:
        """length: tokens of the padded prompt. greedy: the distribution is a point, every log-probability 0."""
        self.length, self.greedy = length, greedy
        self.logp: list[Tensor] = []  # per step [rows]
        self._scores: Tensor | None = None  # [rows, vocab], of the step whose token is not known yet

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: [rows, so far]; scores: [rows, vocab], returned as they are."""
        self._take(input_ids)
        if not self.greedy:
            self._scores = scores
        return scores

    def finish(self, sequences: Tensor) -> Tensor:
        """[rows, new] nats, of sequences [rows, prompt + new]; meaningless behind the end of an answer."""
        self._take(sequences)
        new = sequences[:, self.length :]
        self._scores = None
        return torch.zeros(new.shape) if self.greedy else torch.stack(self.logp, 1).cpu()

    def _take(self, input_ids: Tensor) -> None:
        if self._scores is not None:
            token = input_ids[:, -1:]  # [rows, 1]
            scores = self._scores.float()
            self.logp.append(scores.gather(1, token)[:, 0] - scores.logsumexp(1))


def generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], n: int, sampling: Sampling, settings: TransformersSettings
) -> list[list[Answer]]:
    """n answers per prompt, in the order of the prompts.

    Rows of similar length are sampled together, so which random numbers a row gets depends on the other rows. The
    sampling_logp of greedy answers (temperature 0) is 0: they are certain.

    Raises:
        UserError: a prompt without tokens.
    """
    empty = next((i for i, prompt in enumerate(prompts) if not prompt), None)
    if empty is not None:
        raise UserError(
            f"prompt {empty} has no tokens, so nothing can be sampled", "use a tokenizer with a beginning token"
        )
    rows = sorted((i for i in range(len(prompts)) for _ in range(n)), key=lambda i: len(prompts[i]))
    ends = end_ids(model, tokenizer)
    answers: list[list[Answer]] = [[] for _ in prompts]
    with torch.no_grad(), _sampling_mode(model):
        for start in range(0, len(rows), settings.max_batch):
            batch = rows[start : start + settings.max_batch]
            made = _sample(model, tokenizer, [prompts[i] for i in batch], sampling, ends)
            for i, answer in zip(batch, made, strict=True):
                answers[i].append(answer)
    return answers


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: all that the model's generation configuration lists, and the tokenizer's own."""
    listed = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(listed if isinstance(listed, (list, tuple)) else [listed]), tokenizer.eos_token_id} - {None}
    return sorted(int(i) for i in ids)


def _sample(model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Sampling, ends: list[int]) -> list[Answer]:
    """One answer for each row of a batch."""
    from transformers import LogitsProcessorList

    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)  # [rows, longest]
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    recorder = Recorder(longest, greedy=sampling.temperature == 0)
    sequences = model.generate(
        input_ids=ids,
        attention_mask=seen,
        generation_config=_plain_configuration(sampling, ends, pad),
        logits_processor=LogitsProcessorList([*_warpers(sampling), recorder]),
    )
    logp = recorder.finish(sequences).tolist()  # [rows, new]
    new = sequences[:, longest:].tolist()
    lengths = [_length(tokens, set(ends)) for tokens in new]
    kept = [tokens[:length] for tokens, length in zip(new, lengths, strict=True)]
    texts = tokenizer.batch_decode(kept, skip_special_tokens=True)
    return [
        Answer(
            tokens,
            text,
            sampling_logp=nats[: len(tokens)],
            finish="stop" if tokens and tokens[-1] in ends else "length",
        )
        for tokens, text, nats in zip(kept, texts, logp, strict=True)
    ]


def _length(tokens: list[int], ends: set[int]) -> int:
    """Tokens up to and with the first that ends the answer."""
    return next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))


def _warpers(sampling: Sampling) -> list[Any]:
    """What turns the model's distribution into the one that is sampled from."""
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = []
    if sampling.temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(float(sampling.top_p)))
    return warpers


def _plain_configuration(sampling: Sampling, ends: list[int], pad: int) -> GenerationConfig:
    """A configuration that changes nothing; each value is given, for what is left open would be filled with others."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=sampling.temperature != 0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )


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
