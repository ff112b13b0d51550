"""Which number types matrix products are computed in, by what the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import torch

#: largest relative error of a float32 product that passes as float32; the plain one has 2.4e-7 on 512 x 512 numbers,
#: products of bfloat16 numbers 3e-3
FLOAT32_ERROR = 1e-6


def in_bf16(asked: bool | Literal["auto"], device: torch.device) -> bool:
    """Whether to autocast to bfloat16: as asked; "auto" where the hardware multiplies bfloat16 numbers.

    By what the hardware has and not by a trial with a clock: a run that is resumed must choose the same again.
    Measured on a CPU with avx512_bf16, a whole step is 1.9 (5M weights) to 3.2 (130M) times as fast as in float32.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def use_fast_float32(device: torch.device) -> None:
    """Let float32 products on a CPU go the fast way of torch ("medium"), where that is still float32.

    It may compute in bfloat16 on other processors, so its error is tried first. A precision that somebody has set, and
    processes that see a GPU, for which the word means something else, are left alone. Measured with avx512: 1.2 times
    (5M weights) to 1.7 times (30M) as many tokens a second, error 3.5e-7 against 2.5e-7.
    """
    if device.type != "cpu" or torch.cuda.is_available() or torch.get_float32_matmul_precision() != "highest":
        return
    if _error_of_medium() <= FLOAT32_ERROR:
        torch.set_float32_matmul_precision("medium")


@contextmanager
def plain_float32() -> Iterator[None]:
    """The plain way again, for kernels that multiply many small matrices, where the fast way is up to 10 times slower.

    Attention of rows of 64 to 128 tokens in float32, forward and backward, measured on one thread.
    """
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@lru_cache(maxsize=1)
def _error_of_medium() -> float:
    """Relative error of a product of 512 x 512 random numbers."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    try:
        return float(((a @ b).double() - exact).norm() / exact.norm())
    finally:
        torch.set_float32_matmul_precision("highest")
