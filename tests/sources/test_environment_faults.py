"""Environments that go wrong, settings that make no sense, calls that cannot be read: named, missing, refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sources import games
from tests.sources.test_environment import ASKED, CALL, HERE, Script, play, row, turns_of
from tests.templates.families import tokenizer
from tests.tools import train_settings
from unified import PromptGroup, UserError, call_named, catalogue
from unified.manifest import files_named
from unified.settings import parse
from unified_plugins.sources._environment_calls import calls_in


def faulty(how: str, **written: Any) -> list[PromptGroup]:
    about = {"arguments": {"how": how}, "max_failed": 1.0, **written}
    return play("Faulty", Script(tokenizer("chatml"), ["abc", "cba"]), row("chatml"), **about)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "step 1 raised ZeroDivisionError: at play"),
        ("late", "step 1 took longer than 0.05 s"),
        ("nothing", "step 1 gave NoneType where a Turn, or a mapping with its keys, is needed"),
        ("number", "step 1 gave int where a Turn"),
        ("key", "step 1 gave the unknown key 'rewrad'; known: observation, done, reward, metrics"),
        ("reward", "step 1 gave the reward 'much'; it must be a finite number, or None"),
        ("nan", "step 1 gave the reward nan"),
        ("metrics", "step 1 gave the metrics {'a': 'b'}; they must be finite numbers by name"),
        ("silent", "step 1 gave no observation, and the episode is not done"),
        ("speaks", "step 1 gave a message of the role `assistant`"),
        ("message", "step 1 gave a message without a text `role` and `content`: {'role': 'user'}"),
        ("observation", "step 1 gave an observation of the type int"),
        ("done", "step 1 gave done='yes'; it must be true or false"),
    ],
)
def test_an_episode_that_goes_wrong_is_named_and_has_no_reward_and_no_token_that_counts(how: str, said: str) -> None:
    (found,) = faulty(how, timeout_s=0.05 if how == "late" else 20)
    answer = found.answers[0]
    assert found.reasons[0].startswith(said)
    assert (answer.reward, answer.columns["failed"], answer.finish) == (None, 1, "length")
    assert answer.ids  # what was sampled is there to be read
    assert answer.loss_mask == [False] * len(answer.ids)
    with pytest.raises(
        UserError, match=r"environment 'tests.sources.games:Faulty' failed in 1 of 1 episodes"
    ) as caught:
        faulty(how, timeout_s=0.05 if how == "late" else 20, max_failed=0.5)
    assert f"first in one of row 5: {said}" in str(caught.value)


def test_an_environment_that_does_not_begin_leaves_an_answer_without_a_token_that_counts() -> None:
    (found,) = faulty("reset")
    answer = found.answers[0]
    assert found.reasons == ["reset raised LookupError: no board"]
    assert (answer.reward, answer.loss_mask, answer.text) == (None, [False], "")
    assert found.prompt == row("chatml").prompt


def test_the_other_episodes_of_a_prompt_go_on_when_one_goes_wrong() -> None:
    (found,) = faulty("raises", group_size=12, arguments={"how": "raises", "every": False})
    failed = [a.reward is None for a in found.answers]
    assert 0 < sum(failed) < 12
    for answer in found.answers:
        assert (answer.reward, any(answer.loss_mask or [])) in ((None, False), (1.0, True))
    assert found.reasons == ["step 1 raised ZeroDivisionError: at play"] * sum(failed)


def test_every_instance_is_closed_but_those_whose_step_is_still_running() -> None:
    games.Faulty.closed = 0
    faulty("raises", group_size=3)
    assert games.Faulty.closed == 3
    faulty("late", timeout_s=0.05)
    assert games.Faulty.closed == 3


def test_environments_step_side_by_side() -> None:
    # four steps that wait for each other end only if all run at the same time
    script = Script(tokenizer("chatml"), ["abc"])
    (found,) = play("Together", script, row("chatml"), group_size=4, threads=4)
    assert [a.reward for a in found.answers] == [1.0] * 4


def test_all_episodes_of_a_batch_are_sampled_in_one_call_a_turn() -> None:
    script = Script(tokenizer("chatml"), ["abc", "cba"])
    play("Echo", script, row("chatml"), row("chatml"), group_size=3, arguments={"turns": 2}, top_p=0.5, turn_tokens=9)
    assert [len(asked) for asked in script.asked] == [6, 6]
    assert [(s.temperature, s.top_p, s.top_k, s.max_tokens) for s in script.samplings] == [(1.0, 0.5, 0, 9)] * 2


def refused(environment: str, prompt: Any = ASKED, name: str = "chatml", **written: Any) -> str:
    with pytest.raises(UserError) as caught:
        play(environment, Script(tokenizer(name), ["abc", "cba"]), row(name, prompt, answer=5), **written)
    return str(caught.value)


def test_a_class_that_cannot_be_played_is_refused_before_anything_is_sampled() -> None:
    assert "has no method `step`" in refused("NoStep")
    assert "is a function, not a class" in refused("factory")
    assert "`step` asks for 'action'\n    it may ask for: text, calls, finish, turn" in refused("AsksForMore")
    assert "there is no 'Clculator'" in refused("Clculator")
    assert "did you mean 'Calculator'?" in refused("Clculator")
    said = refused("Echo", arguments={"word": "x"})
    assert "does not take these `arguments`: got an unexpected keyword argument 'word'" in said


def test_tools_that_could_not_be_shown_are_refused_unless_the_prompt_is_to_tell_of_them() -> None:
    assert "row 5 has a prompt of text, in which no chat template writes the tools" in refused("Calculator", "ABC")
    assert "the chat template of this tokenizer writes no tools" in refused("Calculator")
    script = Script(tokenizer("chatml"), [CALL, "so 5"])
    (found,) = play("Calculator", script, row("chatml", answer=5), show_tools=False)
    assert found.prompt == row("chatml").prompt
    assert found.answers[0].reward == 1.0


def test_a_role_that_the_template_refuses_is_said() -> None:
    said = refused("Echo", name="gemma", arguments={"role": "system"})
    assert "the chat template refuses the turns user, assistant, system" in said


@pytest.mark.parametrize("written", ["Calculator", "a b:C", "games.py:", "a.b:c:d", ""])
def test_what_can_be_no_name_of_a_class_is_refused(written: str) -> None:
    part = catalogue().get("source", "environment")
    _, problems = parse(part.settings, {"environment": written}, owner="source")
    assert "environment is written package.module:Class, or FILE.py:Class" in problems[0].text()


def test_a_class_in_a_file_is_found_beside_the_recipe_and_the_file_is_an_input_of_the_stage() -> None:
    source = {"name": "environment", "environment": "games.py:Echo", "group_size": 2, "arguments": {"turns": 1}}
    made = train_settings(algorithm="grpo", data="arithmetic", reward="given", source=source)
    assert list(files_named(made, HERE)) == ["games.py"]
    assert made.source is not None
    about = {"settings": made.source.settings, "sample": Script(tokenizer("chatml"), ["abc"]), "seed": 0}
    (found,) = call_named(made.source.part.collect, prompts=[row("chatml")], folder=HERE, **about)
    assert [a.columns["turns"] for a in found.answers] == [1, 1]


# --- calls ---


def read(text: str, how: str = "hermes") -> list[tuple[str, dict[str, Any], str]]:
    """Name, arguments and what the call gives."""
    return [(c.name, c.arguments, c.run()["content"]) for c in calls_in(text, how, {"add": games.add})]


def test_calls_are_read_wherever_they_stand_in_the_turn_in_their_order() -> None:
    text = (
        f'first {CALL} then\n<tool_call>\n{{"name": "add", "arguments": "{{\\"a\\": 1, \\"b\\": 1}}"}}\n</tool_call>.'
    )
    assert read(text) == [("add", {"a": 2, "b": 3}, "5"), ("add", {"a": 1, "b": 1}, "2")]
    assert read(CALL.removesuffix("</tool_call>")) == [("add", {"a": 2, "b": 3}, "5")]  # cut off behind the call
    assert read("5") == []
    assert read(CALL, "none") == []


def test_a_turn_that_is_all_json_is_a_call_where_json_is_looked_for() -> None:
    call = '{"name": "add", "parameters": {"a": 2, "b": 3}}'
    assert read(call, "json") == [("add", {"a": 2, "b": 3}, "5")]
    assert read(f"[{call}, {call}]", "json") == [("add", {"a": 2, "b": 3}, "5")] * 2
    assert [read(text, "json") for text in (f"so {call}", "5", "[]", '{"a": 2}', CALL)] == [[]] * 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<tool_call>add(2, 3)</tool_call>", "error: the call is no JSON"),
        ("<tool_call>[1]</tool_call>", 'error: a call is {"name": ..., "arguments": {...}}'),
        ('<tool_call>{"name": "add", "arguments": [2, 3]}</tool_call>', "error: the arguments are no JSON object"),
        ('<tool_call>{"name": "sub", "arguments": {}}</tool_call>', "error: there is no tool 'sub'"),
        ('<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>', "error: TypeError: add() missing 1 required"),
        ('<tool_call>{"name": "add", "arguments": {"a": 2, "b": "x"}}</tool_call>', "error: TypeError: unsupported"),
    ],
)
def test_a_call_that_fails_tells_the_assistant_why_and_is_counted(text: str, said: str) -> None:
    ((_, _, content),) = read(text)
    assert content.startswith(said)
    (found,) = play("Calculator", Script(tokenizer("qwen-2.5"), [text, "5"]), row("qwen-2.5", answer=5))
    answer = found.answers[0]
    assert (answer.columns["tool_calls"], answer.columns["failed_calls"], answer.columns["failed"]) == (1, 1, 0)
    theirs = [i for i, on in zip(answer.ids, answer.loss_mask or [], strict=True) if not on]
    assert said in tokenizer("qwen-2.5").decode(theirs)
    assert len(turns_of(answer)) == 2
