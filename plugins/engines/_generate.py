"""Rows drawn by `generate` of transformers, for models that are not decoded here: padded on the left, all to the end.

Only the model's logits are `generate`'s own: a processor draws the tokens, so that distribution, noise and what ends an
answer are the same as elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unified import Sampling
from unified_plugins.engines._rows import Row, extend, longest_first

if TYPE_CHECKING:  # imported where it is used: a recipe is checked without it
    from transformers import GenerationConfig


class Drawing:
    """Stands as the only processor and draws: the token's score is left 0, all others −inf. Also tells who is done."""

    def __init__(self, rows: Sequence[Row], sampling: Sampling, ends: Collection[int]) -> None:
        self.rows, self.sampling, self.ends = rows, sampling, ends

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: [rows, so far]; scores: [rows, vocab]."""
        tokens = extend(self.rows, scores, self.sampling, self.ends)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def done(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """[rows] bool, as a stopping criterion."""
        return torch.tensor([row.finish is not None for row in self.rows], device=input_ids.device)


def run(
    model: Any, prompts: Sequence[list[int]], rows: Sequence[Row], sampling: Sampling, ends: Collection[int],
    max_batch: int, pad: int,
) -> None:  # fmt: skip
    """Fill the rows, which are new, at most `max_batch` at a time."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    device = next(model.parameters()).device
    order = longest_first(rows, prompts)[::-1]
    for start in range(0, len(order), max_batch):
        batch = order[start : start + max_batch]
        own = [prompts[row.prompt] for row in batch]
        longest = max(map(len, own))
        drawing = Drawing(batch, sampling, ends)
        model.generate(
            input_ids=torch.tensor([[pad] * (longest - len(p)) + p for p in own], device=device),
            attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in own], device=device),
            generation_config=_plain_configuration(max(row.limit for row in batch), pad),
            logits_processor=LogitsProcessorList([drawing]),
            stopping_criteria=StoppingCriteriaList([drawing.done]),
        )


def _plain_configuration(max_tokens: int, pad: int) -> GenerationConfig:
    """A configuration that changes nothing; each value is given, for what is left open would be filled with others."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_beams=1,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=pad,
    )
