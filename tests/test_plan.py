"""What a stage costs: tokens, operations, memory and time, each worked by hand for a small model on the walks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unified import UserError
from unified.cost import Cost, cost_of
from unified.devices import BANDWIDTH_USED, DEVICES, UTILISATION, hardware
from unified.plan import Estimate, Place, estimates
from unified.plan_page import size_text
from unified.recipe import load_recipe
from unified.sizes import Size
from unified.work import Job, Work

HEAD = """
name: walks
model:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
        num_key_value_heads: 2}
  tokenizer: random_walks
stages:
"""
IMITATE = "  start: {algorithm: sft, data: {name: random_walks, rows: 100}, num_train_epochs: 3, batch_size: 40}\n"


def planned(folder: Path, text: str, *sets: str, on: str | None = None) -> list[Estimate]:
    (folder / "r.yaml").write_text(HEAD + text)
    recipe = load_recipe(folder / "r.yaml", sets)
    return estimates(recipe, folder / "out", Place(hardware(on)) if on else None)


def jobs(estimate: Estimate) -> dict[tuple[str, str], float]:
    assert estimate.work is not None
    out: dict[tuple[str, str], float] = {}
    for job in estimate.work.jobs:
        out[job.role, job.does] = out.get((job.role, job.does), 0.0) + job.tokens
    return out


def vocabulary(folder: Path) -> int:
    from unified.models import base_tokenizer

    recipe = load_recipe(folder / "r.yaml")
    assert recipe.model is not None
    return len(base_tokenizer(recipe.model, folder))


def test_the_parameters_are_counted_from_the_configuration(tmp_path: Path) -> None:
    [start] = planned(tmp_path, IMITATE)
    # a layer: q and o 32·32, k and v 32·16 (2 of 4 heads), three matrices 32·64, two norms of 32
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    n = 2 * vocabulary(tmp_path) * 32 + 2 * layer + 32  # embedding and read-out, layers, last norm
    assert start.cost is not None
    assert start.work is not None
    assert start.cost.memory.weights == 4 * n
    [size] = start.cost.sizes.values()
    # a token meets the matrices of its layers and the read-out, but no row of the embedding and no norm
    assert (size.body, size.head) == (2 * (layer - 2 * 32), vocabulary(tmp_path) * 32)
    assert (size.inner, size.gated, size.query_width, size.key_width) == (64, True, 32, 16)


def test_a_prompt_is_not_read_out_and_attention_sees_half_of_a_row(tmp_path: Path) -> None:
    [start] = planned(tmp_path, IMITATE)
    assert start.cost is not None
    assert start.work is not None
    [job] = start.work.jobs
    [size] = start.cost.sizes.values()
    assert job.read_out is not None
    assert 0 < job.read_out < job.tokens
    # forward: 2 per number, and 4 per query number (two products) and token seen, of 2 layers 32 wide; backward twice
    attention = 4 * 2 * 32 * job.length / 2
    expected = 3 * (job.tokens * (2 * size.body + attention) + job.read_out * 2 * size.head)
    assert start.cost.flops == pytest.approx(expected)


def test_imitation_trains_on_every_row_once_an_epoch_and_nothing_else(tmp_path: Path) -> None:
    from unified_plugins.datasets import random_walks as walks

    [start] = planned(tmp_path, IMITATE)
    assert start.work is not None
    # 3 passes over 100 rows, each in steps of 40, 40 and 20
    assert (start.work.steps, start.work.prompts) == (9, 300)
    rows = walks.open_walks(walks.RandomWalksSettings(rows=100), "train", 0)
    assert jobs(start) == {("policy", "train"): pytest.approx(3 * _counted(tmp_path, rows))}


def _counted(folder: Path, rows: Any) -> int:
    """Tokens of all prompts and answers; up to COUNTED_ROWS rows the estimate counts each of them, too."""
    from unified.models import base_tokenizer
    from unified.render import Renderer

    recipe = load_recipe(folder / "r.yaml")
    assert recipe.model is not None
    renderer = Renderer(base_tokenizer(recipe.model, folder), 1000)
    groups = [renderer.group(row) for row in rows]
    return sum(len(g.prompt) + len(g.answers[0].ids) for g in groups)


ONLINE = """
  tune:
    algorithm: {name: ppo, kl_weight: 0.1}
    data: {name: random_walks, view: prompts, rows: 100}
    reward: random_walks
    source: {group_size: 5, max_tokens: 7}
    batch_size: 10
    inner_epochs: 2
    max_steps: 8
"""


def test_sampled_answers_pass_through_every_model_that_reads_them(tmp_path: Path) -> None:
    [tune] = planned(tmp_path, ONLINE)
    # 8 steps, 2 from each collected batch of 10 prompts: 40 prompts, 5 answers, 1 token of prompt (+ what opens it) + 7
    assert tune.work is not None
    one = tune.work.longest
    assert one - 7 == int(one - 7) >= 1  # every prompt is as long
    assert (tune.work.steps, tune.work.prompts) == (8, 40)
    assert jobs(tune) == {
        ("policy", "generate"): 40 * 5 * one,
        ("policy", "score"): 40 * 5 * one,  # its log-probs before it is changed: two steps from one batch
        ("reference", "score"): 40 * 5 * one,
        ("critic", "score"): 40 * 5 * one,
        ("policy", "train"): 2 * 40 * 5 * one,
        ("critic", "train"): 2 * 40 * 5 * one,
    }
    assert sum(j.new_tokens for j in tune.work.jobs) == 40 * 5 * 7


def test_no_reference_is_scored_where_the_kl_weighs_nothing_and_no_policy_where_one_step_follows(
    tmp_path: Path,
) -> None:
    sets = ("stages.tune.algorithm.kl_weight=0", "stages.tune.inner_epochs=1")
    [tune] = planned(tmp_path, ONLINE, *sets)
    assert {("reference", "score"), ("policy", "score")} & set(jobs(tune)) == set()


def test_data_that_an_earlier_stage_has_yet_to_write_leaves_a_cost_unknown(tmp_path: Path) -> None:
    text = "  draw: {kind: sample, data: {name: random_walks, view: prompts, rows: 100}, source: {max_tokens: 7}}\n"
    text += "  start: {algorithm: sft, data: stage:draw}\n"
    draw, start = planned(tmp_path, text)
    assert start.work is None
    assert start.cost is None
    assert draw.work is not None
    # the graph has 20 nodes to start from, of either split; 8 answers to each
    assert jobs(draw) == {("policy", "generate"): pytest.approx((20 + 20) * 8 * draw.work.longest)}


# --- the arithmetic, on a model of round numbers: N = 1e9, 10 layers of width 100 with keys of 50 ---

SIZE = Size(parameters=10**9, layers=10, width=100, key_width=50)


def cost(work: Work, on: str | None = None) -> Cost:
    found = cost_of(work, lambda reference, scalar: SIZE, hardware(on) if on else None)
    assert found is not None
    return found


def test_training_is_six_operations_per_parameter_and_token_and_scoring_two() -> None:
    work = Work(jobs=[Job("policy", "base", "train", 1000), Job("reference", "base", "score", 500)])
    assert cost(work).flops == 6e9 * 1000 + 2e9 * 500
    again = Work(jobs=work.jobs, checkpointing=True)
    assert cost(again).flops == 8e9 * 1000 + 2e9 * 500


def test_memory_by_part() -> None:
    policy, reference = Job("policy", "base", "train", 1000), Job("reference", "base", "score", 1000)
    sampling = Job("policy", "base", "generate", 1000, 900)
    work = Work(jobs=[policy, reference, sampling], micro_tokens=200, at_once=16, longest=30)
    memory = cost(work).memory
    assert memory.weights == 2 * 4e9  # two models in float32, one of them trained
    assert memory.gradients == 4e9
    assert memory.optimiser == 8e9  # two moments
    assert memory.activations == 34 * 2 * 200 * 100 * 10  # twice the 34 bytes of 16 bit, per token, width and layer
    assert memory.kv_cache == 2 * 10 * 50 * 4 * 16 * 30
    assert memory.working == 0  # nothing is known of a head, and nothing is cast
    # one micro-batch: its activations are gone when all gradients are there
    assert memory.total == memory.weights + memory.optimiser + max(memory.gradients, memory.activations)
    several = cost(Work(jobs=work.jobs, micro_tokens=200, step_tokens=400)).memory
    assert several.total == memory.weights + memory.optimiser + memory.gradients + memory.activations
    less = cost(Work(jobs=work.jobs, micro_tokens=200, bf16=True, checkpointing=True)).memory
    # the input of each layer, in float32, and one layer whole
    assert less.activations == 4 * 200 * 100 * 10 + 34 * 200 * 100


def test_time_of_training_is_operations_over_the_used_share_of_the_peak() -> None:
    work = Work(jobs=[Job("policy", "base", "train", 1e6)], bf16=True)
    # 6e15 operations on 8 · 989.5e12 · 0.4 a second
    pace = cost(work, "8xH100").pace
    assert pace is not None
    assert pace.forward + pace.backward == pytest.approx(6e15 / (8 * 989.5e12 * 0.4))
    slow = cost(Work(jobs=work.jobs), "8xH100").pace
    assert slow is not None
    assert slow.forward + slow.backward == pytest.approx(6e15 / (8 * 67e12 * UTILISATION))  # float32
    assert cost(work).seconds is None


def test_sampling_few_answers_at_once_waits_for_the_weights_to_be_read() -> None:
    # 1000 new tokens, 4 at once: 250 passes over 2e9 bytes of weights at 3.35e12 bytes a second
    work = Work(jobs=[Job("policy", "base", "generate", 1100, 1000)], at_once=4, bf16=True)
    assert cost(work, "H100").seconds == pytest.approx(250 * 2e9 / (3.35e12 * BANDWIDTH_USED))


def test_a_model_whose_configuration_is_not_here_leaves_the_cost_unknown() -> None:
    assert cost_of(Work(jobs=[Job("policy", "x", "train", 1)]), lambda reference, scalar: None, None) is None


@pytest.mark.parametrize(
    ("text", "count", "name"), [("8xH100", 8, "H100"), ("a100-40gb", 1, "A100-40GB"), ("h100x16", 16, "H100")]
)
def test_hardware_is_a_number_of_devices_of_the_table(text: str, count: int, name: str) -> None:
    found = hardware(text)
    assert (found.count, found.device) == (count, DEVICES[name])


@pytest.mark.parametrize("text", ["0xH100", "cpu", "8x", "H100x0"])
def test_other_hardware_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--hardware {text}"):
        hardware(text)


@pytest.mark.parametrize(("value", "text"), [(999, "999 B"), (3.2e9, "3.2 GB"), (1.5e15, "1.5e+03 TB")])
def test_bytes_are_written_in_powers_of_a_thousand(value: float, text: str) -> None:
    assert size_text(value) == text
