"""The number types of matrix products: by what the machine has, and as exact as float32 where they are called so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from unified import precision
from unified.precision import in_bf16, use_fast_float32

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    precision._error_of_medium.cache_clear()
    yield
    precision._error_of_medium.cache_clear()
    torch.set_float32_matmul_precision(before)


def test_the_fast_way_is_taken_only_where_it_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, taken in ((3e-7, "medium"), (3e-3, "highest")):
        monkeypatch.setattr(precision, "_error_of_medium", lambda error=error: error)
        torch.set_float32_matmul_precision("highest")
        use_fast_float32(CPU)
        assert torch.get_float32_matmul_precision() == taken


def test_what_was_chosen_has_the_error_of_float32_products() -> None:
    use_fast_float32(CPU)
    a, b = torch.randn(300, 700, generator=torch.Generator().manual_seed(1)), torch.randn(700, 200)
    exact = a.double() @ b.double()
    assert float(((a @ b).double() - exact).norm() / exact.norm()) < precision.FLOAT32_ERROR


def test_a_precision_that_somebody_has_set_stays() -> None:
    torch.set_float32_matmul_precision("high")
    use_fast_float32(CPU)
    assert torch.get_float32_matmul_precision() == "high"


def test_the_trial_leaves_the_precision_as_it_found_it() -> None:
    assert 0 < precision._error_of_medium() < 1e-2
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("has", "chosen"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)])
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, Any], chosen: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert in_bf16("auto", CPU) is chosen
    assert in_bf16(True, CPU) is True
    assert in_bf16(False, CPU) is False
