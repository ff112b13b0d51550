"""Functions of a user's own, and functions as they are written for TRL."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.judging import judged, refusal
from unified import Answer, PromptGroup, Reward, UserError, call_named, catalogue

FUNCTIONS = '''
import asyncio
import re

with open(__file__ + ".log", "a") as log:
    log.write("run ")


def short(answer, columns):
    """Ours: one answer."""
    return None if "limit" not in columns else float(len(answer) <= columns["limit"])


def by_token(ids, prompt, finish):
    return [len(prompt) + i for i in ids] if finish == "stop" else None


async def waits(answer, base=0):
    await asyncio.sleep(0)
    return base + len(answer)


def keyed(answer, key):
    return 1.0


def numbers(text):
    return 1.0


def broken(answer):
    return 1 / 0


# --- as they are written for TRL ---

def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]


def format_reward(completions, **kwargs):
    """Whether a conversational completion keeps the form."""
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, content) else 0.0 for content in contents]


def accuracy(prompts, completions, solution, answer, log_extra=None, trainer_state=None, **kwargs):
    log_extra("solution", solution)
    found = [re.search(r"\\\\boxed\\{(.*?)\\}", completion) for completion in completions]
    return [None if s is None else float(m is not None and m[1] == s) for m, s in zip(found, solution)]


def longest_ids(completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]


async def async_reward(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [1.0 if prompt in completion else 0.0 for prompt, completion in zip(prompts, completions)]


def seen(prompts, completions, **kwargs):
    SEEN.append((prompts, completions, sorted(kwargs)))
    return [0.0] * len(completions)


def too_few(completions, **kwargs):
    return [1.0]


SEEN = []
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    return tmp_path


def group(*texts: str, prompt: str = "p", **columns: Any) -> PromptGroup:
    return PromptGroup([1], [Answer([7] * len(t), t) for t in texts], prompt, columns)


def by(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": "python", "function": f"rewards.py:{name}", **settings}


def own_module(folder: Path) -> Any:
    """The module that the file of functions became."""
    (found,) = [
        m for n, m in list(sys.modules.items()) if n.startswith("rewards_") and m.__file__ == str(folder / "rewards.py")
    ]
    return found


# --- one answer at a time ---


def test_a_function_that_names_answer_is_called_for_each_and_none_is_missing(folder: Path) -> None:
    groups = [group("abc", "abcdef", limit=4), group("abc")]
    assert judged(by("short"), groups, folder) == [[1.0, 0.0], [None]]


def test_it_may_give_one_number_per_token(folder: Path) -> None:
    groups = [PromptGroup([1], [Answer([3, 4]), Answer([3], finish="length")], "ab")]
    assert judged(by("by_token"), groups, folder) == [[[5.0, 6.0], None]]


def test_an_async_function_is_awaited_and_arguments_are_handed_on(folder: Path) -> None:
    assert judged(by("waits", arguments={"base": 10}), [group("a", "abc")], folder) == [[11.0, 13.0]]


# --- all answers at once, as TRL calls it ---


def test_a_length_reward_written_for_trl_runs_unchanged(folder: Path) -> None:
    # |20 - 5| = 15, |20 - 20| = 0
    assert judged(by("reward_len"), [group("a" * 5), group("a" * 20, "a" * 22)], folder) == [[-15.0], [0.0, -2.0]]


def test_a_format_reward_written_for_trl_reads_messages_where_the_prompt_is_a_conversation(folder: Path) -> None:
    turns = [{"role": "user", "content": "What is 1 + 2?"}]
    said = ("<think>one and two</think><answer>3</answer>", "3")
    in_prompt = group(*said)
    in_prompt.columns["prompt"] = turns
    assert judged(by("format_reward"), [in_prompt], folder) == [[1.0, 0.0]]
    assert judged(by("format_reward"), [group(*said, messages=turns)], folder) == [[1.0, 0.0]]
    assert judged(by("format_reward", completions="messages"), [group(*said)], folder) == [[1.0, 0.0]]


def test_an_accuracy_reward_written_for_trl_is_given_the_columns_it_names(folder: Path) -> None:
    groups = [group(r"\boxed{2}", r"\boxed{6}", solution="2", answer=0), group("2", solution=None, answer=0)]
    assert judged(by("accuracy"), groups, folder) == [[1.0, 0.0], [None]]


def test_token_ids_alone_are_enough_to_be_called_for_all_at_once(folder: Path) -> None:
    assert judged(by("longest_ids"), [group("ab", ""), group("abc")], folder) == [[2.0, 0.0], [3.0]]


def test_an_async_function_for_all_answers_is_awaited_also_beside_a_running_loop(folder: Path) -> None:
    import asyncio

    groups = [group("yes p", "no", prompt="p")]
    assert judged(by("async_reward"), groups, folder) == [[1.0, 0.0]]

    async def as_in_a_notebook() -> list[list[Any]]:
        return judged(by("async_reward"), groups, folder)

    assert asyncio.run(as_in_a_notebook()) == [[1.0, 0.0]]


def test_prompts_are_repeated_for_each_answer_and_columns_are_lists_of_the_same_length(folder: Path) -> None:
    judged(by("seen"), [group("a", "b", prompt="x", task=1), group("c", prompt="y", level=2)], folder)
    prompts, completions, names = own_module(folder).SEEN[-1]
    assert (prompts, completions) == (["x", "x", "y"], ["a", "b", "c"])
    assert names == ["completion_ids", "level", "log_extra", "log_metric", "task", "trainer_state"]


def test_the_answers_of_the_data_are_no_part_of_the_prompt(folder: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    judged(by("seen"), [group("Hey", messages=turns)], folder)
    prompts, completions, _ = own_module(folder).SEEN[-1]
    assert (prompts, completions) == ([turns[:1]], [[{"role": "assistant", "content": "Hey"}]])


def test_a_wrong_number_of_rewards_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="too_few gave 1 rewards for 2 answers"):
        judged(by("too_few"), [group("a", "b")], folder)
    assert judged(by("too_few"), [PromptGroup([1])], folder) == [[]]  # no answers, no call


# --- finding the function ---


def test_a_file_is_run_once_and_relative_to_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(by("reward_len"), [group("a" * 20)], folder) == [[0.0]]
    assert judged(by("short"), [group("a", limit=1)], folder) == [[1.0]]
    assert (folder / "rewards.py.log").read_text() == "run "
    monkeypatch.chdir(folder)
    assert judged(by("short"), [group("a", limit=1)]) == [[1.0]]  # without a recipe: the working directory


@pytest.mark.parametrize("written", ["own_package.inner:worth", "own_package.inner.worth"])
def test_a_module_beside_the_recipe_is_found_by_either_way_to_write_it(tmp_path: Path, written: str) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "inner.py").write_text("def worth(answer):\n    return 3\n")
    try:
        assert judged({"name": "python", "function": written}, [group("a")], tmp_path) == [[3.0]]
    finally:
        for name in [n for n in sys.modules if n.startswith("own_package")]:
            del sys.modules[name]
        sys.path.remove(str(tmp_path))


def test_the_file_is_a_setting_of_its_own_so_that_a_run_sees_when_it_changes() -> None:
    from unified.settings import choose

    chosen, _ = choose("reward", by("short"))
    assert chosen is not None
    assert chosen.as_dict() == {**by("short"), "file": "rewards.py", "function": "short", "arguments": {},
                                "completions": "auto"}  # fmt: skip
    settings = type(chosen.settings)(function="rewards.py:short")
    part: Reward = catalogue().get("reward", "python")
    with pytest.raises(UserError, match=r"no file .*rewards\.py"):
        call_named(part.judge, groups=[group("a")], settings=settings, folder=Path("/nowhere"))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("rewards.py:shrt", "did you mean 'short'"),
        ("other.py:short", "there is no file"),
        ("no_such_module:short", "there is no module no_such_module"),
        ("rewards.py:SEEN", "is list, not a function"),
        ("rewards.py:numbers", "names none of the arguments"),
        ("rewards.py:keyed", "needs the argument 'key'"),
        ("faulty.py:short", "cannot be imported: SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_called_is_said(folder: Path, function: str, said: str) -> None:
    (folder / "faulty.py").write_text("def (")
    with pytest.raises(UserError) as raised:
        judged({"name": "python", "function": function}, [group("a")], folder)
    assert said in str(raised.value)


def test_an_answer_on_which_the_function_raises_is_missing_and_the_group_says_why(folder: Path) -> None:
    asked = group("a")
    assert judged(by("broken"), [asked], folder) == [[None]]
    assert re.fullmatch(r"ZeroDivisionError: division by zero \(rewards\.py:\d+\)", asked.reasons[0])


def test_an_argument_that_the_function_does_not_take_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match="does not take the argument 'size'"):
        judged(by("short", arguments={"size": 3}), [group("a", limit=1)], folder)


@pytest.mark.parametrize("function", ["short", "a b:c", "rewards.py:", ":short", "", "a.b:c:d"])
def test_what_can_be_no_name_of_a_function_is_refused(function: str) -> None:
    assert "function is written" in refusal({"name": "python", "function": function})
