"""The optimiser: which parameters decay, a rate per role, and transformers' schedules, by their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.tools import tiny_policy, tiny_scalar, train_settings
from unified import TrainSettings, UserError
from unified.optim import optimiser, optimiser_class, role_rate, schedule, schedule_problems


def settings(**written: Any) -> TrainSettings:
    return train_settings(algorithm="imitate", data="letters", **written)


def two_layers() -> nn.ModuleDict:
    return nn.ModuleDict({"embed": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "linear": nn.Linear(4, 3)})


def decay_of(made: torch.optim.Optimizer) -> dict[int, float]:
    return {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    model = two_layers()
    decay = decay_of(optimiser({"policy": model}, settings(weight_decay=0.1)))
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "embed.weight": 0.1, "norm.weight": 0.0, "norm.bias": 0.0, "linear.weight": 0.1, "linear.bias": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma3_text"])
def test_in_whole_models_every_parameter_is_there_once_and_no_norm_decays(kind: str) -> None:
    model = tiny_policy(kind).module
    decay = decay_of(optimiser({"policy": model}, settings(weight_decay=0.1)))
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        quiet = "norm" in name or ".ln_" in name or name.endswith("bias")
        assert decay[id(parameter)] == (0.0 if quiet else 0.1), name


def test_frozen_parameters_are_left_out_and_shared_ones_come_once() -> None:
    first, second = two_layers(), two_layers()
    second["linear"] = first["linear"]
    first["embed"].requires_grad_(False)
    made = optimiser({"policy": first, "critic": second}, settings())
    parameters = [p for group in made.param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == 4 + 3  # norm and linear; embed and norm of the second
    assert id(first["embed"].weight) not in {id(p) for p in parameters}


def test_each_role_has_its_learning_rate_and_the_policys_is_that_of_the_rest() -> None:
    rates = {"policy": 1e-5, "critic": 3e-4}
    made = optimiser({"policy": tiny_policy().module, "critic": tiny_scalar().module}, settings(learning_rate=rates))
    assert {(g["role"], g["lr"]) for g in made.param_groups} == {("policy", 1e-5), ("critic", 3e-4)}
    assert role_rate(settings(learning_rate=rates), "scorer") == 1e-5
    assert role_rate(settings(learning_rate={"critic": 2e-4}), "critic") == 2e-4
    assert role_rate(settings(learning_rate=7e-6), "critic") == 7e-6


def test_adam_takes_its_moments_and_epsilon_from_the_settings() -> None:
    made = optimiser({"policy": two_layers()}, settings(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6))
    assert isinstance(made, torch.optim.AdamW)
    assert {(*g["betas"], g["eps"]) for g in made.param_groups} == {(0.8, 0.95, 1e-6)}


@pytest.mark.parametrize(
    ("name", "cls"),
    [("adamw_torch", "AdamW"), ("adam", "Adam"), ("sgd", "SGD"), ("RMSprop", "RMSprop"), ("NAdam", "NAdam")],
)
def test_optimisers_by_the_names_of_transformers_and_of_torch(name: str, cls: str) -> None:
    assert type(optimiser({"policy": two_layers()}, settings(optim=name))).__name__ == cls


def test_one_step_of_sgd_is_the_rate_times_the_gradient() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    made = optimiser({"policy": model}, settings(optim="sgd", learning_rate=0.1))
    model.weight.grad = torch.tensor([[3.0]])
    made.step()
    assert model.weight.item() == pytest.approx(2.0 - 0.1 * 3.0)


def test_an_unknown_optimiser_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"no optimiser 'adamw_torh'\n.*did you mean 'adamw_torch'\?\n.*known: .*sgd"):
        optimiser_class("adamw_torh")


# --- schedules ---


def rates_over(steps: int, **written: Any) -> list[float]:
    """The learning rate of each step."""
    written = settings(learning_rate=1.0, **written)
    made = optimiser({"policy": two_layers()}, written)
    plan = schedule(made, written, steps)
    rates = []
    for _ in range(steps):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        plan.step()
    return rates


def test_constant_and_linear_schedules_by_hand() -> None:
    assert rates_over(3) == [1.0, 1.0, 1.0]
    assert rates_over(4, lr_scheduler_type="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    # two steps up from 0, then down to 0 over the other four
    assert rates_over(6, lr_scheduler_type="linear", warmup_steps=2) == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25])


def test_warm_up_acts_on_the_constant_schedule_too() -> None:
    # the plain "constant" of transformers leaves warm-up out without a word
    assert rates_over(4, warmup_steps=2) == [0.0, 0.5, 1.0, 1.0]


def test_warm_up_may_be_a_share_of_the_steps_and_steps_win_over_the_share() -> None:
    assert rates_over(4, warmup_ratio=0.5) == [0.0, 0.5, 1.0, 1.0]
    assert rates_over(4, warmup_ratio=0.5, warmup_steps=1) == [0.0, 1.0, 1.0, 1.0]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rates_over(4, lr_scheduler_type="cosine")[2] == pytest.approx(0.5)


def test_every_role_follows_the_schedule_from_its_own_rate() -> None:
    written = settings(learning_rate={"policy": 1.0, "critic": 4.0}, lr_scheduler_type="linear")
    made = optimiser({"policy": two_layers(), "critic": two_layers()}, written)
    plan = schedule(made, written, 4)
    made.step()
    plan.step()
    assert {g["role"]: g["lr"] for g in made.param_groups} == {"policy": 0.75, "critic": 3.0}


def test_an_unknown_schedule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"no schedule 'cosin'\n.*did you mean 'cosine'\?"):
        schedule(optimiser({"policy": two_layers()}, settings()), settings(lr_scheduler_type="cosin"), 4)


def test_a_floor_keeps_the_cosine_above_a_share_of_the_rate() -> None:
    # half way down the cosine is 1/2; over a floor of 1/10 that is 1/10 + 9/10 · 1/2
    over = rates_over(4, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1})
    assert over[2] == pytest.approx(0.55)
    assert over[0] == 1.0
    assert min(rates_over(1000, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 0.1})) >= 0.1


def test_a_polynomial_of_power_1_is_the_line_to_its_end() -> None:
    # from 1 to 1/5 in four steps of 1/5
    written = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0.2, "power": 1.0}}
    assert rates_over(4, **written) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_a_floor_that_is_a_rate_is_the_policys_and_the_other_roles_fall_by_the_same_share() -> None:
    kwargs = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.5}}
    written = settings(learning_rate={"policy": 1.0, "critic": 4.0}, **kwargs)
    made = optimiser({"policy": two_layers(), "critic": two_layers()}, written)
    plan = schedule(made, written, 2)
    for _ in range(2):
        made.step()
        plan.step()
    assert {g["role"]: g["lr"] for g in made.param_groups} == {"policy": 0.5, "critic": 2.0}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rat": 0.1}},
            "no setting of schedule 'cosine_with_min_lr' 'min_lr_rat'\n    did you mean 'min_lr_rate'?",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            "no setting of schedule 'cosine' 'min_lr_rate'\n    known: num_cycles",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1, "min_lr": 1e-6}},
            "schedule 'cosine_with_min_lr': Only one of min_lr or min_lr_rate",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "schedule 'cosine_with_min_lr': One of min_lr or min_lr_rate"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": "low"}},
            "schedule 'cosine_with_min_lr': unsupported",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}, "learning_rate": 0.5},
            "schedule 'polynomial': lr_end (1.0) must be smaller",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "schedule 'warmup_stable_decay': "),
    ],
)
def test_what_a_schedule_does_not_take_is_refused_before_it_is_used(written: dict[str, Any], said: str) -> None:
    [problem] = schedule_problems(settings(**written))
    assert problem.text().startswith(said)
    assert problem.at[0] in ("lr_scheduler_kwargs", "lr_scheduler_type")


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "polynomial", "inverse_sqrt", "cosine_with_restarts"])
def test_a_schedule_that_follows_from_the_steps_alone_needs_no_settings(name: str) -> None:
    assert schedule_problems(settings(lr_scheduler_type=name, warmup_ratio=0.1)) == []
