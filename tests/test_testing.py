"""The contract suite: every installed part passes it, and a stranger's broken part is caught by the right check."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner, Result

from tests.strangers import Plugin
from unified import (
    Algorithm,
    Batch,
    Field,
    Settings,
    UserError,
    catalogue,
    hookimpl,
    pairs,
)
from unified.cli import app
from unified.registry import Catalogue, using
from unified.testing import (
    CHECKS,
    check_algorithm,
    check_plugin,
)

READS = frozenset({"logp"})


# --- what is installed ---


@pytest.mark.parametrize("name", catalogue().names("algorithm"))
def test_every_installed_algorithm_keeps_the_contract(name: str) -> None:
    assert check_algorithm(name) == []


@pytest.mark.parametrize("kind", ["reward", "dataset", "source"])
def test_every_installed_part_of_the_other_kinds_that_needs_no_settings_keeps_the_contract(kind: str) -> None:
    results = {name: check_plugin(name).get((kind, name)) for name in catalogue().names(kind)}
    assert [found for found in results.values() if found] == []
    assert sum(found is not None for found in results.values()) >= 2


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpo", {"margin": "length_normalised", "link": "squared"}),
        ("grpo", {"kl_place": "reward", "entropy_weight": 0.1}),
        ("ppo", {"kl_place": "loss", "kl": "k3", "value_clip": None}),
        ("gkd", {"support": "teacher", "top_k": 4, "tail": "floor", "floor": -20.0}),
        ("distill_reverse", {"support": "student", "top_k": 4, "temperature": 2.0}),
        ("on_policy_distillation", {"advantage": {"name": "teacher", "gamma": 0.9}, "ratio": "clip"}),
        ("minillm", {"divergence": "forward_kl", "support": "teacher", "top_k": 4}),
    ],
)
def test_algorithms_keep_the_contract_under_other_settings(name: str, settings: dict[str, Any]) -> None:
    assert check_algorithm(name, settings) == []


# --- broken strangers: each is right but for one thing ---


class Weight(Settings):
    """One number."""

    weight: float = Field(1.0, gt=0, description="factor")


def likelihood(batch: Batch) -> Tensor:
    """Every token up by one."""
    return torch.ones(batch.size, dtype=torch.float64)


def algorithm(name: str = "stranger", **given: Any) -> Algorithm:
    """Imitation, with something in its place."""
    return Algorithm(
        name, **{"coefficient": likelihood, "loss": lambda batch: -batch.logp, "aggregation": "token", **given}
    )


def compared(batch: Batch) -> dict[str, Tensor]:
    """Reward above the mean of the prompt, by a formula whose rounding shows for equal rewards."""
    number = torch.zeros(batch.groups, dtype=batch.reward.dtype).index_add(
        0, batch.group, batch.counts.to(batch.reward)
    )
    total = torch.zeros_like(number).index_add(0, batch.group, batch.total_reward * batch.counts)
    return {"advantage": batch.total_reward - total[batch.group] * (1 / number.clamp(min=1))[batch.group]}


def best_of_the_batch(batch: Batch) -> Tensor:
    """1 on answers with the highest reward of all that are here, although the scope is an answer."""
    return (batch.reward == batch.reward.max()).double()


def first_is_best(batch: Batch) -> Tensor:
    """The first row of the batch is pushed twice as hard."""
    return 1.0 + (torch.arange(batch.size) == 0).double()


def shorter_rows(batch: Batch) -> Tensor:
    """Every token by one over the width of the batch."""
    return torch.full((batch.size,), 1.0 / batch.loss_mask.shape[1], dtype=torch.float64)


def by_all_rows(batch: Batch) -> Tensor:
    """One over the number of rows, empty or not."""
    return torch.full((batch.size,), 1.0 / batch.size, dtype=torch.float64)


def mean_by_length(batch: Batch) -> Tensor:
    """One over the tokens of an answer, of which an empty one has none."""
    return 1.0 / batch.lengths.double()


def in_place(batch: Batch) -> Tensor:
    """Doubles the reward that it was given."""
    batch.reward.mul_(2)
    return torch.ones(batch.size, dtype=torch.float64)


def half_of_pairs(batch: Batch) -> Tensor:
    """The loss of pairs, per prompt."""
    found = pairs(batch)
    total = (batch.logp * batch.loss_mask).sum(1)
    return found.per_group(-F.logsigmoid(total[found.better] - total[found.worse]), batch.groups)


def sharper(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy with a derivative twice too large."""
    loss = -(teacher.exp() * logits.log_softmax(-1)).sum(-1)
    return loss, 2 * (teacher.exp() - logits.softmax(-1))


def by_neighbours(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy over the mean of its chunk."""
    loss = -(teacher.exp() * logits.log_softmax(-1)).sum(-1)
    return loss / loss.mean()


ONLINE = {"credit": compared, "coefficient": lambda batch: batch.advantage, "loss": None, "aggregation": "sequence"}
BROKEN: list[tuple[str, str, Algorithm]] = [
    ("declaration", "reads names 'ref_logps', which is no field", algorithm(reads=frozenset({"ref_logps"}))),
    ("declaration", "it gives neither a coefficient, nor a loss", algorithm(coefficient=None, loss=None)),
    ("declaration", "no head (pushed by algorithm 'stranger') 'lopg'", algorithm(aggregation={"lopg": "token"})),
    ("declaration", "pushes 'logits' but gives no `distribution`", algorithm(aggregation={"logits": "token"})),
    (
        "shape",
        "the coefficient of logp is [16, 8] but loss_mask is [16, 7]",
        algorithm(coefficient=lambda batch: F.pad(batch.logp, (0, 1)), reads=READS),
    ),
    (
        "shape",
        "coefficient of algorithm 'stranger' raised ZeroDivisionError",
        algorithm(coefficient=lambda batch: 1 / 0),
    ),
    ("shape", "pushes 'value' but declares ['logp']", algorithm(loss=lambda batch: {"value": -batch.logp})),
    ("shape", "it must be unreduced", algorithm(loss=lambda batch: -batch.logp.mean())),
    ("shape", "credit: advantage is [3]", algorithm(**{**ONLINE, "credit": lambda: {"advantage": torch.zeros(3)}})),
    (
        "finite",
        "the coefficient of logp by algorithm 'stranger' is inf at answer 0, token 0",
        algorithm(coefficient=lambda batch: 1.0 / (batch.reward * 0)),
    ),
    (
        "mask",
        "no token of three random batches is pushed",
        algorithm(coefficient=lambda batch: batch.reward * 0, loss=None),
    ),
    (
        "closed_form",
        "the coefficient of logp and autograd of the loss differ by up to 1",
        algorithm(loss=lambda batch: -2 * batch.logp),
    ),
    ("padding", "padding changes the coefficient of logp", algorithm(coefficient=shorter_rows, loss=None)),
    ("order", "the order of rows changes the coefficient of logp", algorithm(coefficient=first_is_best, loss=None)),
    (
        "split",
        "scope is 'answer', but alone in a micro-batch one answer",
        algorithm(coefficient=best_of_the_batch, loss=None),
    ),
    (
        "split",
        "scope is 'answer', but alone in a micro-batch one answer",
        algorithm(coefficient=None, loss=half_of_pairs, reads=READS),
    ),
    (
        "short",
        "leaving out empty answers changes the coefficient of logp",
        algorithm(coefficient=by_all_rows, loss=None),
    ),
    ("equal_rewards", "equal rewards give advantages up to", algorithm(**ONLINE, answers=2)),
    (
        "reads",
        "this batch has no 'ref_logp': declare it in `reads`",
        algorithm(coefficient=lambda batch: batch.ref_logp, loss=None),
    ),
    (
        "reads",
        "metrics of algorithm 'stranger' raised AttributeError: this batch has no 'value'",
        algorithm(metrics=lambda batch: {"v": (batch.value.sum(), 1.0)}),
    ),
    (
        "through_ratio",
        "moving logp and old_logp by the same changes the coefficient of logp",
        algorithm(
            coefficient=lambda batch: batch.logp + 0 * batch.old_logp,
            loss=None,
            through_ratio=True,
            reads=frozenset({"logp", "old_logp"}),
        ),
    ),
    (
        "state",
        "the initial state holds more than numbers, text and tensors",
        algorithm(initial_state=lambda: {"f": Weight(weight=2.0)}),
    ),
    (
        "state",
        "update of algorithm 'stranger' raised KeyError: 'kl'",
        algorithm(initial_state=lambda: {"w": 1.0}, update=lambda state, totals: {"w": totals["kl"]}),
    ),
    ("metrics", "metric 'm' is float; it must be (sum, count)", algorithm(metrics=lambda batch: {"m": 0.5})),
    ("metrics", "metric 'm' is (nan, 1.0)", algorithm(metrics=lambda batch: {"m": (float("nan"), 1.0)})),
    ("pure", "reward of the batch is changed in place", algorithm(coefficient=in_place)),
    (
        "distribution",
        "the coefficient of the logits and autograd of the loss differ",
        algorithm(coefficient=None, loss=None, distribution=sharper, aggregation={"logits": "token"}),
    ),
    (
        "distribution",
        "the loss of a token changes by up to",
        algorithm(coefficient=None, loss=None, distribution=by_neighbours, aggregation={"logits": "token"}),
    ),
]


@pytest.mark.parametrize(("check", "message", "stranger"), BROKEN, ids=lambda x: x if isinstance(x, str) else "")
def test_a_broken_stranger_is_caught_by_the_right_check(check: str, message: str, stranger: Algorithm) -> None:
    found = check_algorithm(stranger)
    assert check in [f.check for f in found]
    assert any(f.check == check and message in f.message for f in found), found
    assert {f.part for f in found} == {"algorithm 'stranger'"}


def test_every_check_of_an_algorithm_catches_a_stranger() -> None:
    assert {check for check, _, _ in BROKEN} == set(CHECKS["algorithm"])


def test_a_sound_stranger_has_no_findings() -> None:
    assert check_algorithm(algorithm()) == []
    grouped = algorithm(
        coefficient=None, loss=half_of_pairs, reads=READS, scope="group", aggregation="group", answers=2
    )
    assert check_algorithm(grouped) == []


@pytest.mark.parametrize("name", ["imitate", "prefer", "clipped", "valued", "scored", "centred"])
def test_the_strangers_of_the_engines_tests_keep_the_contract_but_for_what_they_do_not_declare(name: str) -> None:
    with using(Catalogue({"stranger": Plugin()}, installed=False)):
        assert {f.check for f in check_algorithm(name)} <= {"reads"}


def test_wrong_settings_are_a_finding() -> None:
    found = check_algorithm(algorithm(settings=Weight), {"weigth": 2.0})
    assert [(f.check, f.message.splitlines()[0]) for f in found] == [
        ("settings", "no setting 'weigth' in algorithm 'stranger'")
    ]


def test_settings_may_be_given_as_such() -> None:
    assert check_algorithm(algorithm(settings=Weight), Weight(weight=3.0)) == []


def test_columns_that_the_settings_name_are_made_up() -> None:
    class Column(Settings):
        """A column of the data."""

        by: str = Field("hardness", description="a column")

    def by_column(batch: Batch, settings: Column) -> Tensor:
        return batch.columns[settings.by]

    stranger = algorithm(settings=Column, coefficient=by_column, loss=None)
    assert check_algorithm(stranger) == []
    assert check_algorithm(stranger, {"by": "length"}) == []


def test_an_unknown_name_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="did you mean 'dpo'"):
        check_algorithm("dpoo")


# --- the command ---


class TwoAlgorithms:
    """A plugin of one sound and one broken algorithm, and a rule kind that the suite does not cover."""

    @hookimpl
    def unified_algorithms(self) -> list[Algorithm]:
        """Both."""
        return [
            algorithm("sound"),
            algorithm("broken", coefficient=first_is_best, loss=None),
            algorithm("bare", coefficient=None),
        ]


def plugin_check(*arguments: str) -> Result:
    with using(Catalogue({"two": TwoAlgorithms()}, installed=False)):
        return CliRunner().invoke(app, ["plugin", "check", *arguments], catch_exceptions=False)


def test_the_command_lists_the_checks_of_a_sound_part_and_ends_with_0() -> None:
    result = plugin_check("sound")
    assert result.exit_code == 0
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in result.stdout.splitlines() if line.startswith("│")]
    assert [row[1] for row in cells] == list(CHECKS["algorithm"])
    assert {row[2] for row in cells} == {"ok"}
    assert result.stdout.splitlines()[-1] == "1 of 1 parts checked, 0 findings"


def test_the_command_ends_with_1_and_says_what_is_broken() -> None:
    result = plugin_check("broken")
    assert result.exit_code == 1
    assert "algorithm 'broken', order: the order of rows changes the coefficient of logp" in " ".join(
        result.stdout.split()
    )


def test_the_command_checks_all_parts_of_a_plugin() -> None:
    result = plugin_check("two")
    assert result.exit_code == 1
    assert "3 of 3 parts checked" in result.stdout
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in result.stdout.splitlines() if line.startswith("│")]
    assert ["algorithm sound", "all", "ok"] in rows
    assert ["algorithm broken", "order", "BROKEN"] in rows


def test_the_command_ends_with_2_for_a_name_that_nobody_knows() -> None:
    result = plugin_check("sond")
    assert result.exit_code == 2
    assert result.stderr.startswith("no part or plugin 'sond'\n    did you mean 'sound'?")


def test_the_command_takes_settings_of_the_part() -> None:
    result = CliRunner().invoke(app, ["plugin", "check", "dpo", "--set", "beta=-1"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "'beta' of algorithm 'dpo'" in result.stdout
