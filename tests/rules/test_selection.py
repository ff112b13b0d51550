"""Selection: which of a prompt's judged answers are kept, worked by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from unified import Answer, PromptGroup, catalogue


class Fixed:
    """A random.Random whose numbers are known."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = iter(numbers)

    def random(self) -> float:
        return next(self.numbers)

    def choice(self, items: list[Any]) -> Any:
        return items[int(next(self.numbers) * len(items))]


def group(*rewards: float | None) -> PromptGroup:
    """One prompt with answers "0", "1", ... of these rewards."""
    return PromptGroup([3], [Answer([4], str(i), reward=r) for i, r in enumerate(rewards)])


def kept(name: str, groups: list[PromptGroup], draw: Any = None, **settings: Any) -> list[str]:
    """Per group the texts of the answers that stay, in order."""
    rule = catalogue().get("selection", name)
    given = {**rule.settings().model_dump(), **settings}
    named = {"groups": groups, "draw": draw, **given}
    wanted = rule.value.__code__.co_varnames[: rule.value.__code__.co_argcount]
    return ["".join(a.text for a in g.answers) for g in rule.value(**{k: v for k, v in named.items() if k in wanted})]


def test_best_keeps_the_first_of_the_highest_and_k_of_them_in_falling_order() -> None:
    groups = [group(0.2, 0.9, 0.1, 0.9), group(3.0, 5.0)]
    assert kept("best", groups) == ["1", "1"]
    assert kept("best", groups, k=3) == ["130", "10"]


def test_neither_a_failed_judgement_nor_a_probe_is_ever_best_or_worst() -> None:
    one = group(None, -2.0, 7.0, -1.0)
    one.answers[2].probe = True
    assert kept("best", [one]) == ["3"]
    assert kept("best_worst", [one]) == ["31"]
    assert kept("threshold", [one], at_least=-5.0) == ["13"]
    assert kept("all", [one]) == ["013"]


def test_a_threshold_is_met_by_the_reward_itself_and_a_prompt_without_such_an_answer_is_left_out() -> None:
    assert kept("threshold", [group(0.4, 0.5, 0.6), group(0.1)], at_least=0.5) == ["12"]


def test_an_answer_is_accepted_where_the_draw_is_below_exp_of_its_distance_to_the_best() -> None:
    # beta 1/2: exp((r - 1) / beta) is 1 at r = 1, 1/2 at r = 1 - ln 2 / 2, exp(-2) = 0.135 at r = 0
    one = group(1.0, 1 - math.log(2) / 2, 0.0)
    assert kept("statistical", [one], Fixed(0.999, 0.499, 0.135)) == ["012"]
    assert kept("statistical", [one], Fixed(0.999, 0.501, 0.136)) == ["0"]


def test_with_a_number_the_best_of_what_is_left_sets_the_measure_anew() -> None:
    # round 1: best 1 is taken, exp(-2) < 0.9 refuses the other; round 2: it is the best itself and taken for certain
    one = group(0.0, 1.0)
    assert kept("statistical", [one], Fixed(0.9, 0.9, 0.9), number=2) == ["10"]
    assert kept("statistical", [one], Fixed(0.9, 0.9), number=1) == ["1"]
    assert kept("statistical", [one], Fixed(0.1, 0.9), number=1) == ["0"]  # accepted first, then enough


def test_accepted_answers_follow_the_optimum_of_the_kl_regularised_reward() -> None:
    # q is uniform over r = 0 and r = 1; p ~ q exp(r / beta) at beta 1: p(0) = 1 / (1 + e) = 0.2689
    draw = random.Random(0)
    texts = "".join(kept("statistical", [group(0.0, 1.0)] * 20_000, draw, beta=1.0))
    share, n = texts.count("0") / len(texts), len(texts)
    assert share == pytest.approx(1 / (1 + math.e), abs=4 * math.sqrt(0.2 / n))


def test_pairs_have_the_better_answer_first_and_equal_ones_make_none_unless_asked_for() -> None:
    groups = [group(0.1, 0.8, 0.0), group(0.5, 0.5), group(1.0)]
    assert kept("best_worst", groups) == ["12"]
    assert kept("best_worst", groups, drop_equal=False) == ["12", "01"]


def test_the_random_partner_of_the_best_is_drawn_from_all_answers_of_lower_reward() -> None:
    # by falling reward: 1 and 3 (0.8), 0 (0.1), 2 (0.0); lower than the best are 0 and 2
    one = group(0.1, 0.8, 0.0, 0.8)
    assert kept("best_random", [one], Fixed(0.0)) == ["10"]
    assert kept("best_random", [one], Fixed(0.99)) == ["12"]
    assert kept("best_random", [one], Fixed(0.0), drop_equal=False) == ["13"]
    assert kept("best_random", [group(1.0, 1.0)], Fixed()) == []


def test_prompts_come_in_the_order_of_the_variance_of_their_rewards_with_all_their_answers() -> None:
    # variances: 0; ((1)^2 + (1)^2) / 2 = 1; 1/4; 0 of one answer; 0
    groups = [group(5.0, 5.0), group(0.0, 2.0), group(0.0, 1.0), group(9.0), group(0.7, 0.7, 0.7)]
    for key, one in enumerate(groups):
        one.key = key
    rule = catalogue().get("selection", "by_variance")
    ordered = rule.value(groups)
    assert [g.key for g in ordered] == [1, 2, 0, 3, 4]  # equal ones as they came; 0.7 three times is exactly 0
    assert [len(g.answers) for g in ordered] == [2, 2, 2, 1, 3]
    assert [g.key for g in groups] == [0, 1, 2, 3, 4]


def test_the_variance_is_that_of_judged_answers_and_leaves_probes_out() -> None:
    quiet, loud = group(1.0, None, 1.0, 50.0), group(0.0, 0.1)
    quiet.answers[3].probe = True
    assert kept("by_variance", [quiet, loud]) == ["01", "012"]


def test_a_selection_that_compares_rewards_says_so() -> None:
    rule = catalogue().get("selection", "by_variance")
    assert "reward" in rule.names_read(rule.settings())
