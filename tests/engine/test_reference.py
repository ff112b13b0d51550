"""Log-probs of the reference on fixed rows are kept on disk, under the name of everything that they follow from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unified.reference
from tests.tools import gradient, random_groups, stage, table_of, tiny_policy, train_settings
from unified.batch import Batch
from unified.memo import Memo, weights_digest
from unified.running import Run
from unified.set_up import set_up

PAIRS = {"algorithm": "prefer", "data": "letters"}


def run_with_cache(folder: Path, name: str, *, seed: int = 0, **written: Any) -> Run:
    """A stage whose policy has moved away from its reference, in a folder of its own, with the cache of all."""
    context = stage(folder / name, {"base": tiny_policy(seed=seed)})
    run = set_up(replace(context, cache=folder / ".cache"), train_settings(**{**PAIRS, **written}))
    for parameter in run.roles.models["policy"].parameters():
        parameter.data += 0.01
    return run


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the reference was asked for, one number for each time."""
    asked: list[int] = []
    original = unified.reference.heads_without_gradient

    def counting(run: Run, table: Any, wanted: Any, asks: Any) -> Any:
        asked.append(len(wanted))
        return original(run, table, wanted, asks)

    monkeypatch.setattr(unified.reference, "heads_without_gradient", counting)
    return asked


def reference_of(run: Run) -> torch.Tensor:
    batch: Batch = table_of(run, random_groups(3, 2)).batch
    return batch.ref_logp


def test_a_second_run_reads_bit_for_bit_what_the_first_one_computed(tmp_path: Path, passes: list[int]) -> None:
    first = reference_of(run_with_cache(tmp_path, "a"))
    second = reference_of(run_with_cache(tmp_path, "b", learning_rate=1e-2))
    assert passes == [6]
    assert torch.equal(first, second)
    assert float(first.abs().sum()) > 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"bf16": True}, {"layout": "padded"}, {"tokens_per_micro_batch": 9}])
def test_other_weights_precision_layout_or_micro_batches_are_computed_anew(
    tmp_path: Path, passes: list[int], change: dict[str, Any]
) -> None:
    reference_of(run_with_cache(tmp_path, "a"))
    reference_of(run_with_cache(tmp_path, "b", **change))
    assert passes == [6, 6]


def test_other_rows_are_computed_anew(tmp_path: Path, passes: list[int]) -> None:
    reference_of(run_with_cache(tmp_path, "a"))
    table_of(run_with_cache(tmp_path, "b"), random_groups(3, 2, seed=1))
    assert passes == [6, 6]


def test_a_renewed_reference_is_never_read_from_disk(tmp_path: Path, passes: list[int]) -> None:
    for name in "ab":
        reference_of(run_with_cache(tmp_path, name, ref_sync_steps=1))
    assert passes == [6, 6]
    assert not (tmp_path / ".cache").exists()


def test_a_broken_file_is_computed_again_and_mended(tmp_path: Path, passes: list[int]) -> None:
    first = reference_of(run_with_cache(tmp_path, "a"))
    (file,) = (tmp_path / ".cache").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-7])
    assert torch.equal(reference_of(run_with_cache(tmp_path, "b")), first)
    assert torch.equal(reference_of(run_with_cache(tmp_path, "c")), first)
    assert passes == [6, 6]


def test_the_gradient_is_the_same_with_a_cold_a_warm_and_no_cache(tmp_path: Path) -> None:
    def step(run: Run) -> torch.Tensor:
        from unified.step import accumulate, count

        table = table_of(run, random_groups(3, 2))
        accumulate(run, [count(run, table, list(range(len(table.rows))))])
        return gradient(run)

    cold, warm = step(run_with_cache(tmp_path, "a")), step(run_with_cache(tmp_path, "b"))
    without = run_with_cache(tmp_path, "c")
    without.stage = replace(without.stage, cache=None)
    assert torch.equal(cold, warm)
    assert torch.equal(cold, step(without))


def test_a_digest_follows_from_every_weight_and_its_name(tmp_path: Path) -> None:
    one = nn.Linear(3, 2)
    before = weights_digest(one)
    assert weights_digest(nn.Sequential(one)) != before
    one.bias.data[1] += 1e-7
    assert weights_digest(one) != before


def test_a_memo_recalls_what_was_kept_under_the_same_words_only(tmp_path: Path) -> None:
    memo, kept = Memo(tmp_path, ("a", 1)), torch.tensor([1.5, -2.0])
    memo.keep(["x", [1, 2]], kept)
    found = memo.recall(["x", [1, 2]])
    assert found is not None
    assert torch.equal(found, kept)
    assert memo.recall(["x", [1, 3]]) is None
    assert Memo(tmp_path, ("a", 2)).recall(["x", [1, 2]]) is None
    assert not list(tmp_path.rglob("*.draft"))
