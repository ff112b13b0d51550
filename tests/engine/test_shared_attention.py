"""Attention of a stream in which answers share a prompt, held against one mask written token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tools import tiny_config
from unified.attention import attention


def streams(tokens: int, heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query with 4 heads, key and value with `heads`, as models make them: views of [1, tokens, heads, width]."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, tokens, n, 8, generator=generator, dtype=torch.float64) for n in (4, heads, heads)]
    return [x.to(dtype).transpose(1, 2).requires_grad_() for x in made]


def seen(segments: tuple[Any, ...]) -> Tensor:
    """[tokens, tokens] bool, written token by token: who sees whom."""
    owner: list[tuple[int, int, int]] = []  # (segment, piece, place in it)
    for s, segment in enumerate(segments):
        for p, length in enumerate(segment if isinstance(segment, tuple) else (segment,)):
            owner += [(s, p, t) for t in range(length)]
    allowed = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for i, (s, p, t) in enumerate(owner):
        for j, (other, piece, place) in enumerate(owner):
            allowed[i, j] = s == other and ((piece == p and place <= t) or (piece == 0 and p > 0))
    return allowed


SEGMENTS: list[tuple[Any, ...]] = [((5, 2, 2, 7),), (3, 3, (1, 1, 1), (1, 1, 1), 2, (9, 4, 3, 3)), (2, (4, 6, 6))]


@pytest.mark.parametrize("segments", SEGMENTS, ids=str)
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("fast", [True, False])
def test_every_answer_attends_to_its_prompt_and_to_itself(
    segments: tuple[Any, ...], heads: int, scale: float | None, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr("unified.attention.has_flash", lambda *_: False)
    mask = seen(segments)
    inputs = streams(len(mask), heads)
    out, _ = attention(nn.Module(), *inputs, None, scale, segments=segments)
    q, k, v = inputs
    scores = q @ k.repeat_interleave(4 // heads, 1).mT * (scale or 8**-0.5)
    wanted = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v.repeat_interleave(4 // heads, 1)
    torch.testing.assert_close(out, wanted.transpose(1, 2), atol=1e-12, rtol=0)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    mine = torch.autograd.grad((out * weight).sum(), inputs)
    theirs = torch.autograd.grad((wanted.transpose(1, 2) * weight).sum(), inputs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_scores_far_apart_lose_no_part_of_the_sum() -> None:
    # scores of some hundreds: the weights of a part relative to the whole are 0 or 1, never 0 / 0
    q, k, v = streams(len(seen(SEGMENTS[0])), 4)
    out, _ = attention(nn.Module(), q * 30, k * 30, v, None, segments=SEGMENTS[0])
    scores = (q * 30) @ (k * 30).mT * 8**-0.5
    assert scores.abs().max() > 700
    wanted = scores.masked_fill(~seen(SEGMENTS[0]), -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(out, wanted.transpose(1, 2), atol=1e-10, rtol=0)


def test_under_autocast_attention_is_computed_in_its_type() -> None:
    inputs = streams(16, 2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = attention(nn.Module(), inputs[0], inputs[1], inputs[2].bfloat16(), None, segments=SEGMENTS[0])
    assert out.dtype == torch.bfloat16
    wanted, _ = attention(nn.Module(), *inputs, None, segments=SEGMENTS[0])
    torch.testing.assert_close(out.float(), wanted, atol=0.03, rtol=0)
    for grad in torch.autograd.grad(out.float().sum(), inputs):
        assert grad.dtype == torch.float32


def test_dropout_behind_a_shared_prompt_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="dropout would drop a shared prompt"):
        attention(nn.Module(), *streams(16, 2), None, None, 0.1, segments=SEGMENTS[0])


@pytest.mark.parametrize("kind", ["chunked_attention", "sliding_attention", "linear_attention"])
@pytest.mark.parametrize("segments", [(16,), SEGMENTS[0]])
def test_a_layer_that_says_more_than_its_window_is_refused_in_a_stream(kind: str, segments: tuple[Any, ...]) -> None:
    module = nn.Module()
    module.config, module.layer_idx = tiny_config("llama"), 1  # type: ignore[assignment]
    module.config.layer_types = ["full_attention", kind]  # type: ignore[union-attr]
    with pytest.raises(NotImplementedError, match=f"layer 1 has {kind}"):
        attention(module, *streams(16, 2), None, segments=segments)
    if kind == "sliding_attention":  # told its window, it is computed
        attention(module, *streams(16, 2), None, segments=segments, sliding_window=4)
