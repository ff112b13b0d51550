"""What is learned of a conversation is what the assistant says and the token that ends its turn, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.templates.families import FAMILIES, ends, tokenizer
from unified import Example, PromptGroup
from unified.render import Renderer, render_rows

Turns = list[dict[str, Any]]
NAMES = list(FAMILIES)
#: users and tools speak in capitals, the assistant in small letters; "_" stands in neither, nor in a template
THEIRS, OURS = "ABC É漢?!", "abc é語.:\n"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}


def said(alphabet: str) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def conversations(draw: st.DrawFn) -> Turns:
    """One to three questions with their answers."""
    turns: Turns = []
    for _ in range(draw(st.integers(1, 3))):
        turns += [{"role": "user", "content": draw(said(THEIRS))}, {"role": "assistant", "content": draw(said(OURS))}]
    return turns


def rendered(name: str, turns: Turns, **columns: Any) -> tuple[PromptGroup, dict[str, int]]:
    """A conversation of which all but the first turn is the answer, and what was counted."""
    begin = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    renderer = Renderer(tokenizer(name), 10**6, ends(name))
    groups, counts = render_rows(renderer, [Example(turns[:begin], [turns[begin:]], columns=columns)], needs_answers=1)
    return groups[0], counts


def spans(group: PromptGroup) -> list[list[int]]:
    """The runs of tokens that carry a gradient, over all rows."""
    out: list[list[int]] = []
    for answer in group.answers:
        before = False
        for token, learned in zip(answer.ids, answer.loss_mask or [True] * len(answer.ids), strict=True):
            if learned:
                out += [] if before else [[]]
                out[-1].append(token)
            before = learned
    return out


def words(name: str, turns: Turns) -> list[str]:
    """What the assistant says in each turn, with the token that ends it."""
    return [t["content"].strip() + FAMILIES[name].turn_end for t in turns if t["role"] == "assistant"]


def decoded(name: str, ids: list[int]) -> str:
    """The text of ids; white space at its ends, and before an end token, is the template's."""
    end = FAMILIES[name].turn_end
    text = tokenizer(name).decode(ids)
    return text.removesuffix(end).strip() + (end if tokenizer(name).decode(ids[-1:]) == end else "")


def whole(name: str, turns: Turns, **more: Any) -> list[int]:
    ids: list[int] = tokenizer(name).apply_chat_template(turns, tokenize=True, return_dict=False, **more)
    return ids


def test_there_are_twelve_families_and_two_of_them_rewrite_their_past() -> None:
    assert len(FAMILIES) == 12
    assert [name for name, family in FAMILIES.items() if family.rewrites] == ["qwen-3", "deepseek-r1"]


@pytest.mark.parametrize("name", [n for n in NAMES if not FAMILIES[n].rewrites])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(turns=conversations())
def test_the_learned_tokens_are_the_assistants_words_and_the_rest_is_the_templates_own(name: str, turns: Turns) -> None:
    group, counts = rendered(name, turns)
    (answer,) = group.answers
    assert [decoded(name, ids) for ids in spans(group)] == words(name, turns)
    assert answer.loss_mask is None or len(answer.loss_mask) == len(answer.ids)
    expected = whole(name, turns)
    ids = group.prompt + answer.ids
    if expected[: len(group.prompt)] == group.prompt:  # no token stands across the end of the prompt
        assert ids == expected[: len(ids)]
    else:  # only where words begin with a space that the template wrote
        assert name == "vicuna"
    assert tokenizer(name).decode(expected).startswith(tokenizer(name).decode(ids))
    assert counts == {"rows": 1, "kept": 1, "dropped_too_long": 0}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(turns=conversations())
def test_no_character_of_a_user_is_ever_learned(name: str, turns: Turns) -> None:
    group, _ = rendered(name, turns)
    learned = spans(group)
    assert len(learned) == len(turns) // 2
    assert not any(set(tokenizer(name).decode(ids, skip_special_tokens=True)) & set("ABCÉ漢") for ids in learned)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(turns=conversations())
def test_a_prompt_is_what_is_served_before_the_turn(name: str, turns: Turns) -> None:
    renderer = Renderer(tokenizer(name), 10**6, ends(name))
    assert renderer.prompt_ids(turns[:1]) == whole(name, turns[:1], add_generation_prompt=True)
    group, _ = rendered(name, turns)
    if not FAMILIES[name].rewrites:
        assert group.prompt == renderer.prompt_ids(turns[:1])


@pytest.mark.parametrize("name", [n for n in NAMES if FAMILIES[n].system])
def test_a_system_message_is_context(name: str) -> None:
    turns = [{"role": "system", "content": "BAC"}, {"role": "user", "content": "CAB"},
             {"role": "assistant", "content": "abc"}]  # fmt: skip
    group, _ = rendered(name, turns)
    assert "BAC" in tokenizer(name).decode(group.prompt)
    thought = "<think>\n\n</think>\n\n" if name == "qwen-3" else ""  # not in the opening, so the model must say it
    assert [decoded(name, ids) for ids in spans(group)] == [thought + says for says in words(name, turns)]


def test_stripped_reasoning_makes_one_row_per_turn_each_as_it_is_served_and_one_answer() -> None:
    thought = ["<think>\nab\n</think>\n\nc", "<think>\nba\n</think>\n\ncc"]
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": thought[0]},
             {"role": "user", "content": "B"}, {"role": "assistant", "content": thought[1]}]  # fmt: skip
    for name in ("qwen-3", "deepseek-r1"):
        group, counts = rendered(name, turns)
        assert counts["cut_by_turn"] == 1
        assert {a.trajectory for a in group.answers} == {"0-0"}
        assert [a.text for a in group.answers] == thought
        opened = "" if name == "qwen-3" else "<think>\n"  # DeepSeek's opening has said it before the model speaks
        for answer, served, says in zip(group.answers, (turns[:1], turns[:3]), thought, strict=True):
            mask = answer.loss_mask or [True] * len(answer.ids)
            context = group.prompt + [i for i, m in zip(answer.ids, mask, strict=True) if not m]
            assert context == whole(name, served, add_generation_prompt=True)
            learned = [i for i, m in zip(answer.ids, mask, strict=True) if m]
            assert opened + tokenizer(name).decode(learned) == says + FAMILIES[name].eos
    assert "<think>" not in tokenizer("qwen-3").decode(group.answers[1].ids[:5])  # of the first turn, it is gone


def test_words_that_a_template_drops_from_even_the_last_turn_are_put_back_and_counted() -> None:
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "ab\n</think>\n\nc"}]
    group, counts = rendered("deepseek-r1", turns)
    assert counts["words_put_back"] == 1
    assert tokenizer("deepseek-r1").decode(group.prompt).endswith("<｜Assistant｜><think>\n")
    assert tokenizer("deepseek-r1").decode(group.answers[0].ids) == "ab\n</think>\n\nc<｜end▁of▁sentence｜>"


def test_an_answer_behind_another_opening_than_is_served_is_counted_and_left_out_where_answers_are_sampled() -> None:
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "c"}]
    group, counts = rendered("deepseek-r1", turns)
    assert counts["opened_otherwise"] == 1
    assert tokenizer("deepseek-r1").decode(group.prompt).endswith("<｜Assistant｜>")
    assert tokenizer("deepseek-r1").decode(group.answers[0].ids) == "c<｜end▁of▁sentence｜>"
    renderer = Renderer(tokenizer("deepseek-r1"), 1000)
    groups, counts = render_rows(renderer, [Example(turns[:1], ["c"])], needs_answers=0, reserve=5)
    assert (groups[0].answers, counts["answers_left_out"]) == ([], 1)
    assert groups[0].prompt == whole("deepseek-r1", turns[:1], add_generation_prompt=True)


@pytest.mark.parametrize("name", [n for n in NAMES if FAMILIES[n].tools])
def test_a_call_is_learned_and_what_the_tool_writes_is_not(name: str) -> None:
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
             {"role": "tool", "name": "add", "content": "BBB"}, {"role": "tool", "name": "add", "content": "CCC"},
             {"role": "assistant", "content": "ab"}]  # fmt: skip
    group, counts = rendered(name, turns, tools=[TOOL])
    learned = [tokenizer(name).decode(ids) for ids in spans(group)]
    assert len(learned) == 2
    assert '"add"' in learned[0]
    assert "BBB" not in "".join(learned)
    assert "CCC" not in "".join(learned)
    assert [text.endswith(FAMILIES[name].eos) for text in learned] == [True, True]
    assert ("tools_left_out" in counts) == (name == "mistral")  # that small template writes calls, but no schemas
    if name == "qwen-2.5":
        assert '"parameters"' in tokenizer(name).decode(group.prompt)
        assert group.prompt + group.answers[0].ids == whole(name, turns, tools=[TOOL])[:-1]  # a line break follows


def test_a_template_that_writes_no_calls_is_told_with_the_name_of_the_tool() -> None:
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    with pytest.raises(ValueError, match="does not write the call of tool 'add'"):
        rendered_alone("chatml", turns)


def test_a_template_that_refuses_the_roles_says_which() -> None:
    turns = [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(ValueError, match="refuses the turns user, user: turns must alternate"):
        rendered_alone("gemma", turns)


def rendered_alone(name: str, turns: Turns) -> PromptGroup:
    begin = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    return Renderer(tokenizer(name), 10**6).group(Example(turns[:begin], [turns[begin:]]))


@pytest.mark.parametrize("name", ["chatml", "zephyr", "qwen-2.5"])
def test_turns_of_one_role_that_follow_each_other_are_learned_each(name: str) -> None:
    turns = [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}, {"role": "assistant", "content": "a"},
             {"role": "assistant", "content": "b"}]  # fmt: skip
    group, _ = rendered(name, turns)
    assert [decoded(name, ids) for ids in spans(group)] == words(name, turns)


@pytest.mark.parametrize("name", [n for n in NAMES if "bos_token" in FAMILIES[n].template])
def test_a_template_that_writes_a_beginning_token_gets_no_second_one(name: str) -> None:
    made = tokenizer(name)
    ids = Renderer(made, 1000).prompt_ids([{"role": "user", "content": "A"}])
    assert ids.count(made.bos_token_id) == 1


def test_an_end_that_is_not_among_the_models_gets_the_tokenizers_own_behind_it() -> None:
    # llama-3's turn ends with <|eot_id|>; a model that knows only <|end_of_text|> must still learn to stop
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "a"}]
    made = tokenizer("llama-3")
    group = Renderer(made, 1000).group(Example(turns[:1], ["a"]))
    assert made.decode(group.answers[0].ids) == "a<|eot_id|><|end_of_text|>"
    group = Renderer(made, 1000, ends("llama-3")).group(Example(turns[:1], ["a"]))
    assert made.decode(group.answers[0].ids) == "a<|eot_id|>"


def test_the_generation_markers_of_a_template_mark_the_same_tokens() -> None:
    made = tokenizer("chatml")
    marked = made.chat_template.replace(
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}"
        "{% endif %}",
    )
    assert "generation %}" in marked
    turns = [{"role": "user", "content": "A B"}, {"role": "assistant", "content": "ab c"},
             {"role": "user", "content": "C"}, {"role": "assistant", "content": "cab"}]  # fmt: skip
    theirs = made.apply_chat_template(
        turns, chat_template=marked, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    group, _ = rendered("chatml", turns)
    (answer,) = group.answers
    mask = [False] * len(group.prompt) + list(answer.loss_mask or [])
    assert [bool(m) for m in theirs["assistant_masks"]][: len(mask)] == mask
    assert sum(mask) == sum(theirs["assistant_masks"])
