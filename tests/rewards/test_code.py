"""The reward `code`: which programs pass, which answers hold one, and what is missing or refused."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.tools import SHARED
from unified import Answer, PromptGroup, UserError, call_named
from unified.settings import choose
from unified_plugins.rewards import _sandbox
from unified_plugins.rewards._guarded import guarded
from unified_plugins.rewards._sandbox import Limits, Program, Refused, Verdict
from unified_plugins.rewards.code import program_of

SHORT = Limits(timeout_s=3.0, cpu_s=2.0, memory_mb=128, processes=12)
ROW = {"test_list": ["assert f(2) == 4", "assert f(3) == 9"], "test_setup_code": "", "task_id": 7}


@pytest.fixture(scope="module")
def held() -> Limits:
    """Limits that are proven to hold here; the tests that run programs are skipped where no sandbox can be had."""
    try:
        _sandbox.prove(SHORT)
    except Refused as error:
        pytest.skip(f"no sandbox here: {' '.join(error.args)}")
    return SHORT


def judge(texts: list[str], columns: dict[str, Any] = ROW, **settings: Any) -> list[float | None]:
    chosen, problems = choose("reward", {"name": "code", **settings})
    assert chosen is not None, problems
    group = PromptGroup([0], [Answer([1], text) for text in texts], columns=columns)
    (found,) = call_named(chosen.part.judge, groups=[group], settings=chosen.settings)
    return list(found)


def run(text: str, *tests: str, limits: Limits = SHORT) -> Verdict:
    return _sandbox.run(Program(text, tuple(guarded(test) for test in tests)), limits)


# --- what is a passed test ---


def test_all_tests_or_their_share_make_the_reward(held: Limits) -> None:
    # x * x is right, 2 * x only for 2, x + 5 for neither
    texts = ["def f(x): return x * x", "def f(x): return 2 * x", "def f(x): return x + 5"]
    assert judge(texts) == [1.0, 0.0, 0.0]
    assert judge(texts, combine="share") == [1.0, 0.5, 0.0]


def test_tests_that_passed_before_the_program_hung_count_in_the_share(held: Limits) -> None:
    text = "def f(x):\n    while x == 3: pass\n    return x * x"
    assert judge([text], combine="share", timeout_s=1.0, cpu_s=1.0) == [0.5]
    assert judge([text], combine="all", timeout_s=1.0, cpu_s=1.0) == [0.0]


def test_a_row_without_tests_gives_no_judgement_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sandbox, "run", None)
    assert judge(["def f(x): return 1"], {}) == [None]
    assert judge(["def f(x): return 1"], {"test_list": []}) == [None]


def test_a_sandbox_that_fails_gives_no_judgement(held: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    right = "def f(x): return x * x"
    assert judge([right]) == [1.0]
    monkeypatch.setattr(_sandbox, "_launched", lambda job, patience: {"error": "no memory for a process"})
    assert judge([right]) == [None]


def test_humaneval_is_the_prompt_with_the_answer_behind_it(held: Limits) -> None:
    row = {
        "task_id": "HumanEval/x", "prompt": "import math\n\ndef up(x: float) -> int:\n    '''Round up.'''\n",
        "entry_point": "up",
        "test": "def check(candidate):\n    assert candidate(1.2) == 2\n    assert candidate(3) == 3\n",
    }  # fmt: skip
    whole = "I think:\n```python\ndef up(x):\n    return math.ceil(x)\n```\nDone."
    assert judge(["    return math.ceil(x)\n", whole, "    return round(x)\n"], row) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("x = 1", "x = 1"),
        ("First\n```\nx = 1\n```\nno:\n```python\nx = 2\n```\nYes.", "x = 2\n"),
        ("```python\nx = 3", "x = 3"),  # cut off
        ("```\nx = 1\n```\n```py\nx = 4\n", "x = 4\n"),
        ("x = 5\n[DONE]\nand more", "x = 5\n"),
        ("s = '''```'''", "s = '''```'''"),  # no line of its own
    ],
)
def test_the_program_is_the_last_block_or_all_of_the_answer(answer: str, program: str) -> None:
    assert program_of(answer) == program


def test_the_set_up_runs_between_program_and_tests_and_can_be_imports(held: Limits) -> None:
    program = "class Node:\n    def __init__(self, v): self.v = v\ndef value(n): return n.v"
    row = {"test_list": ["assert value(root) == 3"], "test_setup_code": "root = Node(3)"}
    assert judge([program], row) == [1.0]
    assert judge(["def f(x): return x"], {"test_list": ["assert f(math.pi) > 3"], "test_imports": ["import math"]}) == [
        1.0
    ]
    assert judge([program], {**row, "test_setup_code": "root = Leaf(3)"}) == [0.0]


def test_a_builtin_name_of_a_program_counts_only_where_it_is_what_is_tested(held: Limits) -> None:
    cheat = "def set(x): return 0\ndef f(x): return None"
    assert judge([cheat], {"test_list": ["assert set(f(2)) == set((1, 2))"]}) == [0.0]
    assert judge(["def sum(a, b): return a - b"], {"test_list": ["assert sum(5, 3) == 2"]}) == [1.0]


def test_values_of_classes_of_the_program_pass_where_they_do_not_answer_for_themselves(held: Limits) -> None:
    text = "from collections import Counter, namedtuple\nfrom fractions import Fraction\nP = namedtuple('P', 'x y')\n"
    text += "def f(): return P(1, 2)\ndef g(): return Counter('aa')\ndef h(): return Fraction(1, 2)\n"
    text += "def i(): return iter([1])"
    tests = ["assert f() == (1, 2)", "assert g() == {'a': 2}", "assert h() == 0.5", "assert list(i()) == [1]"]
    assert judge([text], {"test_list": tests}, combine="share") == [1.0]


def test_the_main_block_of_a_program_does_not_run(held: Limits) -> None:
    assert judge(["def f(x): return x * x\nif __name__ == '__main__':\n    f(input())"]) == [1.0]


def test_the_library_of_a_program_works_as_anywhere(held: Limits) -> None:
    text = """
import asyncio, dataclasses, enum, functools, logging, queue, re, subprocess, tempfile, threading, typing
Color = enum.Enum("Color", "RED GREEN")
T = typing.TypeVar("T")
class Point(typing.NamedTuple):
    x: int
@dataclasses.dataclass
class Pair:
    x: int = 3
async def slowly():
    await asyncio.sleep(0)
    return 4
def kinds(): return [Color.RED.name, Point(2).x, Pair().x, asyncio.run(slowly())]
def annotations(): return Pair.__annotations__
def logs(): return logging.warning("seen")
def threads():
    out = queue.Queue()
    threading.Thread(target=out.put, args=(5,)).start()
    return out.get()
def files():
    with tempfile.TemporaryFile("w+") as file:
        return file.write("six")
"""
    tests = ["assert kinds() == ['RED', 2, 3, 4]", "assert annotations() == {'x': int}", "assert logs() is None",
             "assert threads() == 5", "assert files() == 3"]  # fmt: skip
    assert judge([text], {"test_list": tests}, combine="share") == [1.0]


def test_the_order_of_a_set_of_words_is_the_same_in_every_run(held: Limits) -> None:
    words = "words = 'list({' + ', '.join(map(repr, 'abcdefghij')) + '})'\nprint(eval(words), flush=True)"
    shown = {run(words, f"assert {n} == {n}").shown for n in range(4)}
    assert len(shown) == 1
    assert "'a'" in shown.pop()


def test_results_keep_their_order_and_equal_programs_run_once(held: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    real: Callable[..., Verdict] = _sandbox.run
    judge(["def f(x): return x * x"])  # proven
    monkeypatch.setattr(_sandbox, "run", lambda one, limits: (ran.append(one.text), real(one, limits))[1])
    slow, fast = "import time\ntime.sleep(0.5)\ndef f(x): return x * x", "def f(x): return 0"
    assert judge([slow, fast, slow, fast], workers=4) == [1.0, 0.0, 1.0, 0.0]
    assert sorted(ran) == sorted([slow, fast])


def test_programs_are_judged_side_by_side(held: Limits) -> None:
    programs = [Program(f"import time\ntime.sleep(1)  # {n}", (("assert True", True),)) for n in range(4)]
    began = time.monotonic()
    found = _sandbox.run_all(programs, replace(held, timeout_s=1.5), workers=4)
    assert [v.why for v in found] == ["passed"] * 4
    assert time.monotonic() - began < sum(v.seconds for v in found)


# --- where programs are not run ---


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"this system is darwin\n    use a Linux machine"):
        judge(["x = 1"], timeout_s=3.25)  # limits of which nothing is proven yet


def test_an_interpreter_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="the interpreter /no/python cannot be run"):
        judge(["x = 1"], python="/no/python")


def test_a_test_that_is_no_python_names_its_row() -> None:
    with pytest.raises(UserError, match="the row of task 7: a test is no Python"):
        judge(["x = 1"], {"test_list": ["assert ("], "task_id": 7})


# --- the published rows ---


def _mbpp() -> list[dict[str, Any]]:
    path = SHARED / "data" / "code" / "mbpp.jsonl"
    if not path.exists():
        pytest.skip("the MBPP rows are not beside the checkout")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _failed(rows: list[dict[str, Any]]) -> list[int]:
    chosen, _ = choose("reward", {"name": "code", "timeout_s": 30, "cpu_s": 20, "workers": 4})
    assert chosen is not None
    groups = [PromptGroup([0], [Answer([1], row["code"])], columns=row) for row in rows]
    found = call_named(chosen.part.judge, groups=groups, settings=chosen.settings)
    return [row["task_id"] for row, one in zip(rows, found, strict=True) if one != [1.0]]


def test_the_reference_programs_of_forty_mbpp_rows_pass(held: Limits) -> None:
    assert _failed(_mbpp()[::12]) == []


@pytest.mark.slow
def test_the_reference_program_of_every_mbpp_row_passes(held: Limits) -> None:
    rows = _mbpp()
    assert len(rows) == 474
    assert _failed(rows) == []
