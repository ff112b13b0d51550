"""A prompt computed once for all of its answers gives what separate rows give: heads, gradients, windows, the cut."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tools import (
    ARCHITECTURES,
    WORDS,
    random_groups,
    relative,
    stage,
    step_gradient,
    tiny_config,
    tiny_policy,
    tiny_scalar,
    train_settings,
)
from unified import Answer, PromptGroup
from unified.errors import UserError
from unified.layout import Kind, Row, cut, lay_out, sharing_pays
from unified.roles import Roles, packing_is_exact, sharing_is_exact
from unified.set_up import choose_layout, set_up
from unified.training import check

#: a prompt with five answers of many lengths (one without a token, two of one length), a pair, a row alone, no prompt
ROWS = [
    Row([5, 6, 7], [8, 9, 10, 11], [True, False, True, True]),
    Row([17, 4], [18], [True]),
    Row([5, 6, 7], [8], [True]),
    Row([], [12, 13, 14, 15, 16], [False, True, True, True, False]),
    Row([5, 6, 7], [], []),
    Row([30, 31, 32, 33, 34], [35, 36, 37, 38, 39, 40, 41, 42], [True] * 8),
    Row([5, 6, 7], [20, 21, 22, 23], [True] * 4),
    Row([17, 4], [19, 25, 26, 27, 28, 29, 30, 31, 32], [False] * 2 + [True] * 7),
    Row([], [12, 13, 14], [False, True, True]),
    Row([5, 6, 7], [9, 11, 24, 25, 26, 27, 28, 29, 30, 31, 32], [True] * 11),
]
HEADS = {"policy": frozenset({"logp", "entropy", "collision_logp", "value"}), "reference": frozenset({"logp"}),
         "critic": frozenset({"value", "score"})}  # fmt: skip


class ExactNorm(nn.Module):
    """x / rms(x), times a weight, in the type of x; those of the models round to float32, and hide what differs."""

    def __init__(self, norm: Any, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = norm.weight, offset
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        scaled: Tensor = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * (self.weight + self.offset)
        return scaled


def exact(model: Any) -> Any:
    """The model with norms that keep float64."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child, 1.0 if "Gemma" in type(child).__name__ else 0.0))
    return model


def all_roles(kind: str) -> Roles:
    """Policy with a value head, reference and critic in float64."""
    torch.manual_seed(3)
    models = {"policy": tiny_policy(kind, dtype=torch.float64).load("policy"),
              "reference": tiny_policy(kind, seed=1, dtype=torch.float64).load("policy"),
              "critic": tiny_scalar(kind, seed=2, dtype=torch.float64).load("scalar")}  # fmt: skip
    return Roles({k: exact(m) for k, m in models.items()}, value_head=nn.Linear(32, 1).double())


def heads_and_gradient(roles: Roles, kind: Kind, rows: list[Row]) -> tuple[dict[str, Tensor], Tensor]:
    """All heads, and the gradient of all parameters when each number is pushed with a coefficient of its own."""
    roles.zero_grad(set_to_none=True)
    found = {f"{r}.{h}": v for r, named in roles(lay_out(rows, kind), HEADS).items() for h, v in named.items()}
    generator = torch.Generator().manual_seed(5)
    pushed = [(v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in found.values()]
    torch.stack(pushed).sum().backward()
    grads = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in roles.parameters()]
    return {k: v.detach() for k, v in found.items()}, torch.cat(grads)


def check_exact(kind: str, rows: list[Row] = ROWS) -> None:
    """Heads and gradients of all roles agree with those of rows that each have a prompt of their own."""
    roles = all_roles(kind)
    wanted, gradient = heads_and_gradient(roles, "padded", rows)
    heads, mine = heads_and_gradient(roles, "prefix-shared", rows)
    assert set(heads) == {f"{role}.{head}" for role, named in HEADS.items() for head in named}
    for name, value in heads.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-10, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    assert gradient.norm() > 1
    assert relative(mine, gradient) < 1e-10


# --- where tokens lie ---


def test_a_prompt_stands_once_and_the_positions_of_every_answer_go_on_from_it() -> None:
    rows = [Row([1, 2], [3, 4], [True] * 2), Row([7], [8], [True]), Row([1, 2], [5], [True]), Row([1, 2], [6], [True])]
    layout = lay_out(rows, "prefix-shared")
    # the row alone; then prompt 1 2 with its answers, the shortest first
    assert layout.input_ids.tolist() == [[7, 8, 1, 2, 5, 6, 3, 4]]
    assert layout.position_ids.tolist() == [[0, 1, 0, 1, 2, 2, 2, 3]]
    assert layout.segments == (2, (2, 1, 1, 2))
    assert layout.attention_mask is None
    assert (layout.row.tolist(), layout.time.tolist()) == ([0, 0, 1, 2, 3], [0, 1, 0, 0, 0])
    assert layout.after.tolist() == [6, 7, 1, 4, 5]
    assert layout.before.tolist() == [3, 6, 0, 3, 3]  # slot 3, the prompt's last, predicts three first tokens


def test_one_answer_or_no_prompt_is_a_row_like_any_other() -> None:
    rows = [Row([1, 2], [3], [True]), Row([1, 2], [], []), Row([], [4, 5], [False, True]), Row([], [4], [False])]
    layout = lay_out(rows, "prefix-shared")
    assert layout.segments == (1, 2, 3)
    assert layout.input_ids.tolist() == [[4, 4, 5, 1, 2, 3]]


def test_every_answer_token_is_found_with_the_token_before_it_whatever_the_rows() -> None:
    layout = lay_out(ROWS, "prefix-shared")
    flat = layout.input_ids.flatten()
    assert flat[layout.after].tolist() == layout.target.tolist()
    assert len(layout.row) == sum(sum(r.mask) for r in ROWS) > 20
    for i, t, before in zip(layout.row.tolist(), layout.time.tolist(), layout.before.tolist(), strict=True):
        row = ROWS[i]
        assert flat[before] == (row.prompt + row.answer)[len(row.prompt) + t - 1]
    # 3 + 2 + 5 tokens of prompts, 0 of none; 20 + 10 + 8 + 8 of answers
    assert flat.numel() == 10 + 46


# --- heads and gradients ---


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_head_and_parameter_gradient_is_that_of_separate_rows(kind: str) -> None:
    check_exact(kind)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 11, 50])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text"])
def test_a_window_is_counted_by_position_also_where_it_does_not_reach_the_prompt(
    kind: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, kind, {**ARCHITECTURES[kind], "sliding_window": window})
    check_exact(kind)


def test_layers_with_and_without_a_window_may_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    monkeypatch.setitem(ARCHITECTURES, "qwen2", {**ARCHITECTURES["qwen2"], **window})
    assert tiny_config("qwen2").layer_types == ["full_attention", "sliding_attention"]
    check_exact("qwen2")


@pytest.mark.parametrize("seed", range(6))
def test_any_number_of_answers_of_any_length_is_exact(seed: int) -> None:
    r = random.Random(seed)
    rows = []
    for _ in range(r.randint(1, 5)):
        prompt = [r.randrange(3, len(WORDS)) for _ in range(r.randint(0, 12))]
        for _ in range(r.randint(1, 9)):
            ids = [r.randrange(3, len(WORDS)) for _ in range(r.randint(0, 14))]
            rows.append(Row.of(PromptGroup(prompt), Answer(ids, loss_mask=[r.random() < 0.8 for _ in ids])))
    r.shuffle(rows)
    rows.append(Row([3], [4, 5], [True, True]))
    check_exact("qwen3", rows)


def test_a_prompt_position_that_is_off_by_one_would_be_seen() -> None:
    # the control: the same stream whose answers start at position 0 differs by far more than the bounds above
    roles = all_roles("llama")
    layout = lay_out(ROWS, "prefix-shared")
    right = roles(layout, HEADS)["policy"]["logp"]
    object.__setattr__(layout, "position_ids", layout.position_ids * 0)
    assert (roles(layout, HEADS)["policy"]["logp"] - right).abs().max() > 1e-3


def test_answers_do_not_see_each_other() -> None:
    roles = all_roles("llama")
    others = [Row(r.prompt, [39] * len(r.answer), r.mask) if i not in (0, 5) else r for i, r in enumerate(ROWS)]
    first, second = (roles(lay_out(rows, "prefix-shared"), HEADS)["policy"]["logp"] for rows in (ROWS, others))
    torch.testing.assert_close(first[[0, 5]], second[[0, 5]], atol=1e-12, rtol=0)
    assert (first[6] - second[6]).abs().max() > 1e-3


# --- when it is chosen ---


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_sharing_is_exact_for_the_tested_architectures(kind: str) -> None:
    assert sharing_is_exact(tiny_policy(kind).load("policy"))
    assert sharing_is_exact(tiny_scalar(kind).load("scalar"))


def test_a_model_that_ignores_the_positions_it_is_told_is_packed_or_padded_instead() -> None:
    # its own positions are those in the stream, so that the second answer of a prompt would stand too far from it
    model = tiny_policy("llama").load("policy")
    forward = model.base_model.forward
    model.base_model.forward = lambda *a, position_ids=None, **k: forward(*a, **k)
    assert not sharing_is_exact(model)
    assert packing_is_exact(model)  # distances within a row are what they were
    assert choose_layout(train_settings(algorithm="imitate", data="letters"), {"policy": model}) == "packed"


def test_one_model_of_a_stage_that_cannot_share_decides_for_all() -> None:
    able, other = (tiny_policy("llama").load("policy") for _ in range(2))
    settings = train_settings(algorithm="imitate", data="letters")
    assert choose_layout(settings, {"policy": able}) == "prefix-shared"
    other.config.layer_types = ["linear_attention"] * 2
    assert choose_layout(settings, {"policy": able, "reference": other}) == "padded"


def test_dropout_rules_sharing_out(tmp_path: Path) -> None:
    # one draw for the prompt of all answers is another gradient than a draw for each
    written = {"algorithm": "imitate", "data": "letters", "dropout": 0.1}
    models = {"policy": tiny_policy("llama").load("policy")}
    assert choose_layout(train_settings(**written), models) == "packed"
    (problem,) = check(train_settings(**written, layout="prefix-shared"), tmp_path, 0, None)
    assert problem.at == ("layout",)
    assert problem.message == "dropout is 0.1, but all answers share one pass of a prompt"
    assert problem.hints == ("drop `dropout`, or write `layout: packed`",)
    assert not check(train_settings(**written, layout="packed"), tmp_path, 0, None)


def test_a_layout_asked_for_by_name_is_refused_where_a_model_computes_it_otherwise() -> None:
    model = tiny_policy("llama").load("policy")
    model.config.layer_types = ["chunked_attention"] * 2
    with pytest.raises(UserError, match="`layout: prefix-shared`: this model does not see a shared prompt"):
        choose_layout(train_settings(algorithm="imitate", data="letters", layout="prefix-shared"), {"policy": model})


def test_sharing_pays_where_it_saves_more_than_its_calls_cost_and_a_twentieth_of_the_tokens() -> None:
    def pair(prompt: int, answer: int) -> list[Row]:
        return [Row(list(range(prompt)), [k] * answer, [True] * answer) for k in range(2)]

    # saved 4 of 10, but 4 is what the calls cost; of 5 of 100 nothing is left; 10 - 4 of 100 is more than 5, of 120 not
    assert not sharing_pays(pair(4, 1))
    assert not sharing_pays(pair(5, 45))
    assert sharing_pays(pair(10, 40))
    assert not sharing_pays(pair(10, 50))
    assert not sharing_pays([])
    assert not sharing_pays([Row([1], [2], [True]), Row([3], [4], [True])])


@pytest.mark.parametrize(("prompt", "laid"), [(20, "prefix-shared"), (1, "packed")])
def test_auto_shares_prompts_of_a_batch_where_that_pays(tmp_path: Path, prompt: int, laid: str) -> None:
    from unified.running import tabulate

    run = set_up(stage(tmp_path, {"base": tiny_policy()}), train_settings(algorithm="imitate", data="letters"))
    groups = [PromptGroup([5] * prompt, [Answer([6 + k] * 9) for k in range(3)])]
    table = tabulate(run, run.streams[0], groups)
    assert run.layout_of(table) == laid
    run.settings = run.settings.model_copy(update={"layout": "prefix-shared"})
    assert run.layout_of(table) == "prefix-shared"  # asked for by name, it is not second-guessed


# --- the step, and its cut ---


@pytest.mark.parametrize("algorithm", ["imitate", "prefer", "clipped", "valued", "scored", "centred"])
@pytest.mark.parametrize("budget", [8192, 60, 25, 12, 1])
def test_the_gradient_of_a_step_is_the_same_however_prompts_are_shared_and_cut(
    tmp_path: Path, algorithm: str, budget: int
) -> None:
    groups = random_groups(5, 4, empty=True)
    scalar = algorithm == "scored"
    artifacts = {
        "base": (tiny_scalar if scalar else tiny_policy)("gpt2", dtype=torch.float64),
        "critic": tiny_scalar("gpt2", seed=2, dtype=torch.float64),
        "other": tiny_policy("gpt2", seed=1, dtype=torch.float64),
    }
    written = {"algorithm": algorithm, "data": "letters", "reference": "other", "critic": "critic", "reward": "vowels"}

    def of(**how: Any) -> Tensor:
        return step_gradient(set_up(stage(tmp_path, artifacts), train_settings(**written, **how)), groups)

    whole = of(layout="padded")
    assert whole.norm() > 1e-4
    assert relative(of(layout="prefix-shared", tokens_per_micro_batch=budget), whole) < 1e-10


def test_a_prompt_counts_once_and_a_prompt_over_the_budget_is_repeated_in_every_part() -> None:
    # prompt of 6, answers of 4 3 3 2: 6 + 12 = 18 together, where rows of their own take 4 x 6 + 12 = 36
    rows = [Row([1] * 6, [k] * n, [True] * n) for k, n in enumerate((4, 3, 3, 2))]
    units = [[0], [1], [2], [3]]
    assert cut(rows, units, 18, "prefix-shared") == [[[0, 1, 2, 3]]]
    # 12 slots leave 6 beside the prompt: best fit puts 4 and 2, 3 and 3
    assert cut(rows, units, 12, "prefix-shared") == [[[0, 3]], [[1, 2]]]
    # coupled answers are one pass of the same two forwards
    assert cut(rows, [[0, 1, 2, 3]], 12, "prefix-shared") == [[[0, 3], [1, 2]]]
    assert cut(rows, units, 5, "prefix-shared") == [[[0]], [[1]], [[2]], [[3]]]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("budget", [1, 9, 25, 80, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_rows_come_once_budgets_hold_and_no_prompt_is_cut_that_fits(grouped: bool, budget: int, seed: int) -> None:
    r = random.Random(seed)
    rows: list[Row] = []
    groups: list[list[int]] = []
    for key in range(8):
        groups.append(list(range(len(rows), len(rows) + r.randint(1, 5))))
        rows += [Row([key] * (3 + key), [0] * r.randint(1, 9), []) for _ in groups[-1]]
    cost = {frozenset(g): 3 + key + sum(len(rows[i].answer) for i in g) for key, g in enumerate(groups)}
    units = groups if grouped else [[i] for i in range(len(rows))]
    passes = cut(rows, units, budget, "prefix-shared")
    assert passes == cut(rows, units, budget, "prefix-shared")
    micros = [m for p in passes for m in p]
    assert sorted(i for m in micros for i in m) == list(range(len(rows)))
    for micro in micros:
        of = {rows[i].prompt[0] for i in micro}
        slots = sum(3 + key for key in of) + sum(len(rows[i].answer) for i in micro)
        assert slots <= budget or len(micro) == 1
    for group in groups:
        parts = [m for m in micros if set(m) & set(group)]
        if cost[frozenset(group)] <= budget:
            assert len(parts) == 1
        if grouped:
            assert len([p for p in passes if any(set(m) & set(group) for m in p)]) == 1
