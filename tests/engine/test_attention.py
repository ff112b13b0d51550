"""Packed attention gives every row what it gets alone: grouped heads, sliding windows, capped scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unified.attention import _mask, attention, packed_masks

HEADS, SHARED, WIDTH = 4, 2, 8
#: lengths of packed rows; runs of equal length are computed together
SEGMENTS = (1, 3, 3, 5, 2, 2, 7)


def layer() -> nn.Module:
    """What an attention function is told about the layer that calls it."""
    module = nn.Module()
    module.num_key_value_groups = HEADS // SHARED  # type: ignore[assignment]
    module.is_causal = True  # type: ignore[assignment]
    return module


def streams(tokens: int) -> list[Tensor]:
    """Query with 4 heads, key and value with 2."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, tokens, WIDTH) for n in (HEADS, SHARED, SHARED)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def by_hand(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, softcap: float | None) -> Tensor:
    """One row: softmax over the tokens from max(0, t − window + 1) to t, head by head, token by token."""
    length = q.shape[2]
    out = torch.zeros(1, length, HEADS, WIDTH, dtype=q.dtype)
    for head in range(HEADS):
        shared = head // (HEADS // SHARED)
        for t in range(length):
            first = 0 if window is None else max(0, t - window + 1)
            score = k[0, shared, first : t + 1] @ q[0, head, t] / math.sqrt(WIDTH)
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            out[0, t, head] = score.softmax(0) @ v[0, shared, first : t + 1]
    return out


@pytest.mark.parametrize("window", [None, 1, 2, 4, 50])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_every_packed_row_attends_to_itself_alone(window: int | None, softcap: float | None) -> None:
    q, k, v = streams(sum(SEGMENTS))
    packed, none = attention(layer(), q, k, v, None, segments=SEGMENTS, sliding_window=window, softcap=softcap)
    assert none is None
    starts = [sum(SEGMENTS[:i]) for i in range(len(SEGMENTS))]
    rows = [[x[:, :, s : s + n] for x in (q, k, v)] for s, n in zip(starts, SEGMENTS, strict=True)]
    alone = torch.cat([by_hand(*row, window=window, softcap=softcap) for row in rows], 1)
    torch.testing.assert_close(packed, alone, atol=1e-12, rtol=1e-12)
    weight = torch.randn(packed.shape, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((packed * weight).sum(), [q, k, v]),
        torch.autograd.grad((alone * weight).sum(), [q, k, v]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


def test_heads_that_lie_in_memory_as_models_make_them_give_the_same() -> None:
    # a model's query is a transposed view of [1, tokens, heads, width]
    q, k, v = streams(sum(SEGMENTS))
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not views[0].is_contiguous()
    wanted = attention(layer(), q, k, v, None, segments=SEGMENTS)[0]
    torch.testing.assert_close(attention(layer(), *views, None, segments=SEGMENTS)[0], wanted, atol=0, rtol=0)


def test_capped_scores_in_padded_rows_look_where_the_mask_allows() -> None:
    # two rows of 5 slots; the second has its first two slots empty
    q, k, v = (x.detach().expand(2, -1, -1, -1) for x in streams(5))
    mask = torch.ones(5, 5).tril().bool().repeat(2, 1, 1, 1)
    mask[1, :, :, :2] = False
    out, _ = attention(layer(), q, k, v, mask, softcap=1.5)
    torch.testing.assert_close(out[:1], by_hand(q[:1], k[:1], v[:1], window=None, softcap=1.5), atol=1e-12, rtol=0)
    part = [x[1:, :, 2:] for x in (q, k, v)]
    torch.testing.assert_close(out[1:, 2:], by_hand(*part, window=None, softcap=1.5), atol=1e-12, rtol=0)
    added = torch.zeros(2, 1, 5, 5, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    torch.testing.assert_close(attention(layer(), q, k, v, added, softcap=1.5)[0], out, atol=1e-12, rtol=0)


def test_capped_scores_without_a_mask_are_causal_and_a_new_token_sees_all_before_it() -> None:
    q, k, v = (x.detach() for x in streams(5))
    whole = by_hand(q, k, v, window=None, softcap=1.5)
    torch.testing.assert_close(attention(layer(), q, k, v, None, softcap=1.5)[0], whole, atol=1e-12, rtol=0)
    last, _ = attention(layer(), q[:, :, 4:], k, v, None, softcap=1.5)  # as when generating with a cache
    torch.testing.assert_close(last, whole[:, 4:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("how", [{}, {"softcap": 1.5}, {"segments": (3, 2)}, {"segments": (3, 2), "softcap": 1.5}])
def test_dropout_acts_in_every_way_of_computing(how: dict[str, Any]) -> None:
    q, k, v = (x.detach() for x in streams(5))
    torch.manual_seed(0)
    first, second = (attention(layer(), q, k, v, None, dropout=0.5, **how)[0] for _ in range(2))
    assert not torch.allclose(first, second)
    again = [attention(layer(), q, k, v, None, dropout=0.0, **how)[0] for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize("name", ["s_aux", "position_bias"])
@pytest.mark.parametrize("segments", [None, (3, 2)])
def test_scores_with_terms_that_are_not_computed_here_are_refused(name: str, segments: tuple[int, ...] | None) -> None:
    with pytest.raises(NotImplementedError, match=f"Module needs {name}, which this attention does not compute"):
        attention(layer(), *streams(5), None, segments=segments, **{name: torch.zeros(HEADS)})


def test_no_mask_of_tokens_times_tokens_is_made_for_a_packed_stream_and_one_is_made_otherwise() -> None:
    padding = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    arguments: dict[str, Any] = {"batch_size": 2, "q_length": 3, "kv_length": 3, "attention_mask": padding}
    with packed_masks():
        assert _mask(**arguments) is None
    made = _mask(**arguments)
    assert made is not None
    assert made[:, 0].tolist() == [
        [[True, False, False], [True, True, False], [True, True, True]],
        [[True, False, False], [True, True, False], [True, True, False]],
    ]
