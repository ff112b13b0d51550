"""Conversations of any of the usual forms become a prompt and what the assistant says after it."""

from __future__ import annotations

from typing import Any

import pytest

from unified import Example, call_named, catalogue

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def convert(row: dict[str, Any], **settings: Any) -> Example:
    part = catalogue().get("format", "messages")
    out: Example = call_named(part.convert, row=row, settings=part.settings(**settings))
    return out


def turns(*said: str) -> list[dict[str, str]]:
    """User and assistant in turns."""
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(said)]


def test_the_answer_is_the_conversation_from_the_first_turn_of_the_assistant_on():
    said = turns("a", "b", "c", "d")
    example = convert({"messages": said})
    assert (example.prompt, example.answers) == (said[:1], [said[1:]])


def test_one_turn_of_the_assistant_is_an_answer_in_text():
    assert convert({"messages": turns("a", "b")}).answers == ["b"]


def test_only_the_last_turn_is_the_answer_where_the_setting_says_so():
    example = convert({"messages": turns("a", "b", "c", "d")}, train_on="last")
    assert (example.prompt, example.answers) == (turns("a", "b", "c"), ["d"])


def test_a_conversation_that_ends_with_the_user_is_a_prompt():
    assert convert({"messages": turns("a", "b", "c")}) == Example(
        turns("a", "b", "c"), columns={"messages": turns("a", "b", "c")}
    )


def test_a_greeting_before_the_first_question_is_context():
    greeting = {"role": "assistant", "content": "hi"}
    example = convert({"messages": [greeting, *turns("a", "b")]})
    assert (example.prompt, example.answers) == ([greeting, *turns("a")], ["b"])


def test_a_call_without_content_and_what_the_tool_gave_belong_to_the_answer():
    call = {"id": "7", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            *turns("a"),
            {"role": "assistant", "content": None, "tool_calls": [call], "name": None},
            {"role": "tool", "tool_call_id": "7", "name": "add", "content": "2"},
            {"role": "assistant", "content": "two"},
        ],
        "tools": [TOOL],
    }
    (answer,) = convert(row).answers
    assert answer == [
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "7", "type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "2", "tool_call_id": "7", "name": "add"},
        {"role": "assistant", "content": "two"},
    ]  # fmt: skip
    assert convert(row, train_on="last").answers == ["two"]


def test_the_call_of_a_single_turn_is_not_lost():
    calls = [{"function": {"name": "add", "arguments": "{}"}}]
    (answer,) = convert(
        {"messages": [*turns("a"), {"role": "assistant", "content": None, "tool_calls": calls}]}
    ).answers
    assert answer[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {}}


def test_calls_and_observations_of_the_other_form_read_the_same():
    row = {"conversations": [
        {"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "two"},
    ]}  # fmt: skip
    example = convert(row)
    assert example.prompt == turns("a")
    assert example.answers == [[
        {"role": "assistant", "content": "",
         "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"},
    ]]  # fmt: skip


@pytest.mark.parametrize("form", ["list", "text", "bare", "filled"])
def test_tools_are_schemas_whatever_their_form(form):
    given = {
        "list": [TOOL],
        "text": '[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]',
        "bare": [TOOL["function"]],
        "filled": [{**TOOL, "function": {"name": "add", "parameters": {"type": "object", "properties": None}}}],
    }[form]
    assert convert({"messages": turns("a", "b"), "tools": given}).columns["tools"] == [TOOL]


def test_no_tools_leave_no_column():
    assert "tools" not in convert({"messages": turns("a", "b"), "tools": None}).columns


def test_the_parts_of_a_content_are_one_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert convert({"messages": [{"role": "user", "content": parts}, *turns("", "c")[1:]]}).prompt == turns("ab")


def test_turns_of_one_role_stay_or_are_joined():
    said = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, *turns("", "c")[1:]]
    assert convert({"messages": said}).prompt == said[:2]
    assert convert({"messages": said}, join_turns=True).prompt == turns("a\n\nb")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "assistant", "content": "b"}]}, "no turn before it"),
        ({"messages": [{"role": "assistant", "content": "b"}] * 2}, "nobody but the assistant speaks"),
        ({"messages": [{"role": "robot", "content": "b"}]}, "a message needs `role` and `content`"),
        ({"messages": [{"role": "user", "content": None}]}, "a message needs `role` and `content`"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts of text alone, not of 'image'"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "needs the `name` of a function"),
        ({"messages": [{"from": "function_call", "value": "add(1)"}]}, "a tool call must be JSON, got 'add"),
        ({"messages": turns("a", "b"), "tools": "add, sub"}, "'tools' must be a list of JSON schemas"),
        ({"messages": turns("a", "b"), "tools": ["add"]}, "'tools' must be a list of JSON schemas"),
    ],
)
def test_a_row_that_is_no_conversation_says_why(row, said):
    with pytest.raises(ValueError, match=said):
        convert(row)


def test_answers_of_messages_are_written_as_rows_and_read_again():
    from unified_plugins.formats.groups import row_of

    example = Example(turns("a"), [turns("", "b", "c", "d")[1:], "e"], [1.0, 0.0])
    part = catalogue().get("format", "groups")
    assert call_named(part.convert, row=row_of(example), settings=part.settings()) == example
