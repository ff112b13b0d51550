"""Mathematical equivalence, judged in processes of their own."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import pytest

from tests.rewards.judging import judged, judged_texts
from unified import Answer, PromptGroup
from unified_plugins.rewards._math_pool import POOL, Pool


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("so $0.5$ of it", r"\frac{1}{2}"),
        (r"thus \boxed{(x+1)^2}", "x^2+2x+1"),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{2, 1}", r"\{1, 2\}"),
        ("The answer is 1234.", "1,234"),
        (r"first \boxed{3}, no: \boxed{\frac{8}{2}}. Sure.", "4"),
        (r"either $\boxed{3}$ and $\boxed{4}$", r"\{3, 4\}"),
        (r"\boxed{12}", "12%"),
        (r"\boxed{18}", "a long way\n#### 18"),
        ("48 + 16 = <<48+16=64>>64 points.\n#### 66", "66"),
        (r"\boxed{7}", r"Since $x = 7$ we get $\boxed{7}$."),
        (r"\boxed{7}", ["6", 7]),
    ],
)
def test_an_answer_is_right_where_it_is_the_same_mathematics(said: str, right: Any) -> None:
    assert judged_texts("math", [said], answer=right) == [1.0]


def test_another_value_another_form_and_no_answer_are_wrong() -> None:
    said = [r"\boxed{41}", "it is forty-two", "", r"\boxed{0.3333}"]
    assert judged_texts({"name": "math", "wrong": -1}, said, answer=r"\frac{1}{3}") == [-1.0] * 4
    assert judged_texts("math", [r"\boxed{1}, no: \boxed{\frac{1}{"], answer="1") == [0.0]  # cut off in its answer
    assert judged_texts({"name": "math", "digits": 3}, [r"\boxed{0.3333}"], answer=r"\frac{1}{3}") == [1.0]


def test_a_right_answer_that_cannot_be_read_gives_no_judgement() -> None:
    for given in (r"\frac{1}{", "", None, []):
        assert judged_texts("math", [r"\boxed{1}"], answer=given) == [None]
    assert judged_texts("math", [r"\boxed{1}", "2"], answer=[r"\frac{1}{", "1"]) == [1.0, 0.0]  # one of both can


def test_an_answer_that_takes_too_long_is_missing_and_the_next_ones_are_judged() -> None:
    # a number of 369 million digits: Python cannot be interrupted while it is made
    groups = [
        PromptGroup([0], [Answer([5], t) for t in (r"\boxed{9^{9^{9}}}", r"\boxed{3}", "4")], "", {"answer": "3"})
    ]
    start = monotonic()
    assert judged({"name": "math", "seconds": 0.5}, groups) == [[None, 1.0, 0.0]]
    assert judged({"name": "math", "seconds": 0.5, "late": "wrong"}, groups) == [[0.0, 1.0, 0.0]]
    assert monotonic() - start < 15


def test_a_thread_may_judge_as_well_as_the_main_one() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(judged_texts("math", [r"\boxed{1/2}"], answer="0.5")))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_judgements_keep_their_places_when_several_processes_judge() -> None:
    groups = [
        PromptGroup([0], [Answer([5], rf"\boxed{{{i + k}}}") for k in range(4)], "", {"answer": str(i + 1)})
        for i in range(10)
    ]
    assert judged({"name": "math", "workers": 2}, groups) == [[0.0, 1.0, 0.0, 0.0]] * 10


def test_processes_are_kept_for_the_next_batch_and_end_with_the_program() -> None:
    pool = Pool()
    job = {"golds": ["1"], "text": r"\boxed{1}", "digits": 6, "seconds": 5.0}
    assert pool.ask([job], workers=1) == ["right"]
    first = pool._idle.get_nowait()
    pool._idle.put(first)
    assert pool.ask([job], workers=1) == ["right"]
    again = pool._idle.get_nowait()
    pool._idle.put(again)
    assert again is first
    pool.end()
    assert not first.alive


def test_nothing_is_started_where_there_is_nothing_to_judge() -> None:
    before = POOL._idle.qsize()
    assert judged("math", [PromptGroup([0], [], "", {"answer": "1"})]) == [[]]
    assert judged_texts("math", ["1"]) == [None]
    assert POOL._idle.qsize() == before
