"""Text becomes tokens once: special tokens, chat templates, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from unified import Answer, Example, TokenRow, UserError
from unified.edges import vocabulary_hash
from unified.render import Renderer, TooLong, render_rows

SHARED = Path(__file__).parents[2] / "shared" / "models"
WORDS = ["<pad>", "<unk>", "</s>", "<s>", *"abcdefgh", "User", "Assistant", ":", "\n", " "]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'][0] + ']' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token + 'b' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[a]' }}{% endif %}"
)


def characters(*, adds_bos: bool = False, template: str | None = None, extra: str = "") -> Any:
    """A tokenizer of single characters: a is 4, b is 5, ..."""
    words = [*WORDS, *extra]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    out = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )
    out.chat_template = template
    return out


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_tokenizer_that_adds_a_beginning_token_gets_it_once_before_a_prompt():
    render = Renderer(characters(adds_bos=True), 20)
    assert render.prompt_ids("ab") == [3, 4, 5]
    assert render.prompt_ids("<s>ab") == [3, 4, 5]
    assert render.prompt_ids("") == [3]


def test_a_tokenizer_that_adds_none_gets_none_though_it_has_a_beginning_token():
    render = Renderer(characters(), 20)
    assert render.prompt_ids("ab") == [4, 5]
    assert render.prompt_ids("") == []


def test_an_answer_in_text_has_no_special_token_but_the_end():
    assert Renderer(characters(adds_bos=True), 20).answer_ids("ab", "cd") == [6, 7, 2]
    assert Renderer(characters(), 20).answer_ids("ab", "") == [2]


def test_a_tokenizer_without_an_end_is_refused_with_what_to_do():
    tokenizer = characters()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"(?s)no end-of-sequence token.*set tokenizer\.eos_token"):
        Renderer(tokenizer, 20)


def test_messages_end_with_the_opening_of_the_assistant_and_the_answer_is_what_comes_behind():
    tokenizer = characters(template=TEMPLATE, extra="[]u")
    render = Renderer(tokenizer, 40)
    assert tokenizer.decode(render.prompt_ids(user("a"))) == "<s>[u]a[a]"
    # the template goes on with eos and "b"; "b" is no white space, so the turn did not end there: one more end
    assert tokenizer.decode(render.answer_ids(user("a"), "cd")) == "cd</s>b</s>"


def test_what_the_template_writes_behind_the_end_is_no_part_of_the_answer():
    tokenizer = characters(template=TEMPLATE.replace("eos_token + 'b'", "eos_token + '\\n'"), extra="[]u")
    assert tokenizer.decode(Renderer(tokenizer, 40).answer_ids(user("a"), "cd")) == "cd</s>"


def test_an_end_is_put_behind_an_answer_whose_template_writes_none():
    tokenizer = characters(template=TEMPLATE.replace("eos_token + 'b'", "''"), extra="[]u")
    assert tokenizer.decode(Renderer(tokenizer, 40).answer_ids(user("a"), "cd")) == "cd</s>"


def test_other_tokens_that_end_a_turn_count_as_its_end():
    tokenizer = characters(template=TEMPLATE.replace("eos_token + 'b'", "'h\\n'"), extra="[]u")
    assert tokenizer.decode(Renderer(tokenizer, 40, eos_ids=[11]).answer_ids(user("a"), "cd")) == "cdh"  # h is 11


def test_without_a_template_messages_read_user_and_assistant():
    tokenizer = characters(adds_bos=True, extra="Usrit")
    tokenizer.add_tokens(["User", "Assistant"])
    render = Renderer(tokenizer, 40)
    asked = [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    assert render.text(asked) == "User: a\nAssistant: b</s>\nUser: c\nAssistant: "
    assert render.prompt_ids(asked)[0] == 3
    assert render.prompt_ids(asked).count(3) == 1
    assert tokenizer.decode(render.answer_ids(asked, "d")) == "d</s>"


def test_a_template_that_rewrites_the_prompt_is_refused():
    rewriting = TEMPLATE.replace("{{ bos_token }}", "{{ 'g' if add_generation_prompt else 'h' }}")
    with pytest.raises(ValueError, match="writes a prompt differently once an answer follows"):
        Renderer(characters(template=rewriting, extra="[]u"), 40).answer_ids(user("a"), "b")


def test_rewards_and_numbers_of_the_row_reach_each_answer_and_all_columns_the_group():
    example = Example("a", ["b", "c"], [1.0, 0.0], {"weight": 2, "right": True, "name": "x"})
    group = Renderer(characters(), 20).group(example, row=7)
    assert [a.reward for a in group.answers] == [1.0, 0.0]
    assert [a.columns for a in group.answers] == [{"weight": 2.0, "right": 1.0}] * 2
    assert (group.columns, group.key, group.text) == (example.columns, 7, "a")
    assert [a.text for a in group.answers] == ["b", "c"]


def test_the_longest_answer_decides_whether_a_row_is_too_long():
    # prompt 2, answers "c" + end = 2 and "cde" + end = 4: 6 tokens
    example = Example("ab", ["c", "cde"])
    assert len(Renderer(characters(), 6).group(example, row=3).answers) == 2
    with pytest.raises(TooLong, match="row 3 has 6 tokens, the limit is 5") as caught:
        Renderer(characters(), 5).group(example, row=3)
    assert (caught.value.row, caught.value.tokens, caught.value.limit) == (3, 6, 5)


def test_with_a_reserve_only_the_prompt_counts():
    example = Example("ab", ["cdefgh"])
    assert Renderer(characters(), 5).group(example, reserve=3).prompt == [4, 5]
    with pytest.raises(TooLong, match="has 6 tokens"):
        Renderer(characters(), 5).group(example, reserve=4)


def test_rows_over_the_limit_are_dropped_and_counted_or_refused_by_number():
    rows = [Example("a", ["b"]), Example("a", ["bcdefgh"]), Example("c", ["d"])]
    groups, counts = render_rows(Renderer(characters(), 5), rows, needs_answers=1, too_long="drop")
    assert [g.key for g in groups] == [0, 2]
    assert counts == {"rows": 3, "kept": 2, "dropped_too_long": 1}
    with pytest.raises(UserError, match=r"(?s)row 1 has 9 tokens; the limit is 5.*set too_long: drop, or a larger max"):
        render_rows(Renderer(characters(), 5), rows, needs_answers=1, too_long="refuse")


def test_a_row_that_knows_its_file_and_line_is_named_by_them():
    rows = [Example("a", ["bcdefgh"], columns={"file": "x.jsonl", "row": 4})]
    with pytest.raises(UserError, match=r"^x\.jsonl:4: row 0 has 9 tokens"):
        render_rows(Renderer(characters(), 5), rows, needs_answers=1)


def test_a_row_with_too_few_answers_is_refused_by_number():
    rows = [Example("a", ["b", "c"]), Example("a", ["b"])]
    with pytest.raises(UserError, match="row 1 has 1 answers, this stage needs 2 or more"):
        render_rows(Renderer(characters(), 9), rows, needs_answers=2)


def test_no_rows_and_no_rows_left_are_errors():
    with pytest.raises(UserError, match="the dataset has no rows"):
        render_rows(Renderer(characters(), 9), [], needs_answers=0)
    with pytest.raises(UserError, match="all 1 rows have more than 3 tokens"):
        render_rows(Renderer(characters(), 3), [Example("abcd")], needs_answers=0, too_long="drop")


def merging(pair: str) -> Any:
    """A tokenizer of single characters in which one pair of them is one token."""
    words = ["<pad>", "<unk>", "</s>", "<s>", *"abcdefgh[]suvw\n", pair]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[(pair[0], pair[1])], unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    out = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )
    out.chat_template = TEMPLATE.replace("eos_token + 'b'", "eos_token + '\\n'")
    return out


def said(tokenizer: Any, answer: Answer) -> list[str]:
    """The tokens of an answer, "_" for those that carry no gradient."""
    mask = answer.loss_mask or [True] * len(answer.ids)
    return [tokenizer.decode([i]) if m else "_" for i, m in zip(answer.ids, mask, strict=True)]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_of_a_conversation_the_turns_of_the_assistant_and_their_ends_are_learned():
    tokenizer = merging("vw")
    group = Renderer(tokenizer, 40).group(Example(user("a"), [[*assistant("cd"), *user("e"), *assistant("f")]]))
    # <s>[u]a[a] cd</s> and the line break, [u]e[a] f</s>
    assert tokenizer.decode(group.prompt) == "<s>[u]a[a]"
    assert said(tokenizer, group.answers[0]) == ["c", "d", "</s>", *"________", "f", "</s>"]
    assert group.answers[0].text == "cd</s>\n[u]e[a]f"


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("]c", ["d", "</s>"]),  # "]" is the template's, so the token is
        ("cd", ["cd", "</s>"]),
    ],
)
def test_a_token_across_the_edge_of_a_turn_is_learned_if_its_first_character_is_the_assistants(pair, expected):
    tokenizer = merging(pair)
    group = Renderer(tokenizer, 40).group(Example(user("a"), [[*assistant("f"), *user("e"), *assistant("cd")]]))
    assert [token for token in said(tokenizer, group.answers[0]) if token != "_"] == ["f", "</s>", *expected]
    whole = tokenizer.apply_chat_template(
        [*user("a"), *assistant("f"), *user("e"), *assistant("cd")], tokenize=True, return_dict=False
    )
    assert [*group.prompt, *group.answers[0].ids] == whole[:-1]  # a line break is left


def test_behind_the_prompt_a_conversation_is_tokenised_as_if_it_were_sampled():
    tokenizer = merging("]c")  # ids of the prompt end with "]"; "]c" would not be what is served
    group = Renderer(tokenizer, 40).group(Example(user("a"), [[*assistant("cd"), *user("e"), *assistant("cd")]]))
    assert tokenizer.decode(group.prompt[-1:]) == "]"
    assert [t for t in said(tokenizer, group.answers[0]) if t != "_"] == ["c", "d", "</s>", "d", "</s>"]


def test_a_template_that_ends_no_turn_makes_a_row_of_each_so_that_every_turn_learns_to_end():
    tokenizer = merging("vw")
    tokenizer.chat_template = TEMPLATE.replace("eos_token + 'b'", "'\\n'")
    rows = [Example(user("a"), [[*assistant("c"), *user("e"), *assistant("f")]], [0.5])]
    groups, counts = render_rows(Renderer(tokenizer, 40), rows, needs_answers=1)
    assert [said(tokenizer, a) for a in groups[0].answers] == [
        ["c", "\n", "</s>"], [*"_________", "f", "\n", "</s>"],
    ]  # fmt: skip
    assert counts["cut_by_turn"] == 1
    assert [(a.trajectory, a.reward) for a in groups[0].answers] == [("0-0", 0.5)] * 2


def test_an_answer_of_messages_needs_a_prompt_of_messages_and_begins_with_the_assistant():
    render = Renderer(merging("vw"), 40)
    with pytest.raises(ValueError, match="needs a prompt of messages"):
        render.group(Example("a", [assistant("b")]))
    with pytest.raises(ValueError, match="must begin with a turn of the assistant"):
        render.group(Example(user("a"), [user("b")]))


def test_an_answer_of_one_message_is_the_answer_in_text():
    render = Renderer(merging("vw"), 40)
    one, other = (render.group(Example(user("a"), [answer])) for answer in ("cd", assistant("cd")))
    assert one == other


def test_many_rows_at_once_are_as_each_alone():
    tokenizer = merging("]c")
    turns = [*assistant("cd"), *user("e"), *assistant("ca")]
    rows = [Example(user("a"), ["c", "d"]), Example("ab", ["c"]), Example(user("c"), [turns, "a"]), Example(user("d"))]
    render = Renderer(tokenizer, 40)
    groups, _ = render_rows(render, rows * 400, needs_answers=0)  # more than one chunk
    assert len(groups) == 1600
    for i, group in enumerate(groups):
        assert group == render.group(rows[i % 4], row=i)


def test_cut_prompt_drops_the_oldest_turns_of_a_conversation_but_not_the_systems():
    tokenizer = merging("vw")
    system = [{"role": "system", "content": "h"}]
    asked = [*system, *user("a"), *assistant("b"), *user("c")]
    # <s> [s]h [u]a [a]b</s>\n [u]c [a] is 1 + 4 + 4 + 6 + 4 + 3 = 22, the answer d</s> 2; without a and b 14
    for limit, expected in ((24, "<s>[s]h[u]a[a]b</s>\n[u]c[a]"), (23, "<s>[s]h[u]c[a]"), (13, "<s>[u]c[a]")):
        groups, counts = render_rows(
            Renderer(tokenizer, limit), [Example(asked, ["d"])], needs_answers=1, too_long="cut_prompt"
        )
        assert tokenizer.decode(groups[0].prompt) == groups[0].text == expected
        assert counts.get("cut_prompt", 0) == (limit < 24)
        assert said(tokenizer, groups[0].answers[0]) == ["d", "</s>"]


def test_cut_prompt_takes_tokens_from_the_left_where_turns_do_not_suffice_and_keeps_the_beginning():
    tokenizer = merging("vw")
    groups, counts = render_rows(
        Renderer(tokenizer, 9), [Example(user("abcdef"), ["d"])], needs_answers=1, too_long="cut_prompt"
    )
    assert tokenizer.decode(groups[0].prompt) == groups[0].text == "<s>def[a]"  # 1 + 6, and d</s>
    assert counts == {"rows": 1, "kept": 1, "dropped_too_long": 0, "cut_prompt": 1}
    render = Renderer(characters(adds_bos=True), 5)
    groups, _ = render_rows(render, [Example("abcd", ["ef"])], needs_answers=1, too_long="cut_prompt")
    assert (groups[0].prompt, groups[0].answers[0].ids) == ([3, 7], [8, 9, 2])
    groups, _ = render_rows(render, [Example("abcd")], needs_answers=0, too_long="cut_prompt", reserve=2)
    assert groups[0].prompt == [3, 6, 7]


def test_cut_prompt_drops_the_oldest_turns_of_an_answer_that_is_a_conversation():
    tokenizer = merging("vw")
    turns = [*assistant("b"), *user("c"), *assistant("d"), *user("e"), *assistant("f")]
    # <s>[u]a[a] 8, b</s>\n 3, [u]c[a] 7, d</s>\n 3, [u]e[a] 7, f</s> 2: 30; without the first two turns 20
    groups, counts = render_rows(
        Renderer(tokenizer, 29), [Example(user("a"), [turns])], needs_answers=1, too_long="cut_prompt"
    )
    assert tokenizer.decode(groups[0].prompt) == "<s>[u]c[a]"
    assert [t for t in said(tokenizer, groups[0].answers[0]) if t != "_"] == ["d", "</s>", "f", "</s>"]
    assert len(groups[0].prompt) + len(groups[0].answers[0].ids) == 20
    assert counts["cut_prompt"] == 1


def test_cut_answer_takes_tokens_from_the_right_and_then_there_is_no_end():
    rows = [Example("ab", ["c", "cdef"], [1.0, 0.0])]  # 2 and 2, 2 and 5
    groups, counts = render_rows(Renderer(characters(), 5), rows, needs_answers=2, too_long="cut_answer")
    assert [(a.ids, a.finish, a.text) for a in groups[0].answers] == [
        ([6, 2], "stop", "c"),
        ([6, 7, 8], "length", "cde"),
    ]
    assert counts == {"rows": 1, "kept": 1, "dropped_too_long": 0, "cut_answer": 1}


def test_a_row_that_cannot_be_cut_as_the_policy_says_is_dropped_and_counted():
    rows = [Example("a", ["b"]), Example("abcdef", ["b"]), Example("a", ["bcdefgh"])]
    for policy, kept in (("cut_prompt", [0, 1]), ("cut_answer", [0, 2])):
        groups, counts = render_rows(Renderer(characters(), 5), rows, needs_answers=1, too_long=policy)
        assert [g.key for g in groups] == kept
        assert counts == {"rows": 3, "kept": 2, "dropped_too_long": 1, policy: 1}


@pytest.mark.parametrize("policy", ["cut_prompt", "cut_answer", "drop"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_the_policy_every_row_fits_or_is_counted_and_has_something_to_learn(policy, data):
    words = st.text("abcdefgh", min_size=1, max_size=9)
    rows = [
        Example(user(a), [[*assistant(b), *user(c), *assistant(d)]])
        for a, b, c, d in data.draw(st.lists(st.tuples(words, words, words, words), min_size=1, max_size=4))
    ]
    limit = data.draw(st.integers(12, 50))
    try:
        groups, counts = render_rows(Renderer(merging("vw"), limit), rows, needs_answers=1, too_long=policy)
    except UserError:
        assert policy != "cut_prompt" or limit < 30
        return
    assert counts["kept"] + counts["dropped_too_long"] == len(rows)
    for group in groups:
        assert all(len(group.prompt) + len(a.ids) <= limit for a in group.answers)
        assert all(any(a.loss_mask or [True]) for a in group.answers)
        cut = any(a.finish == "length" for a in group.answers)
        assert cut or group.answers[-1].ids[-1] == 2


def _sampled(example: Example, tokenizer: Any, *answers: Answer) -> Example:
    """The example as a sampling stage leaves it: with the tokens that a model wrote."""
    example.tokens = TokenRow(vocabulary_hash(tokenizer), example.digest(), [4, 4], list(answers))
    return example


def test_an_answer_that_a_model_wrote_is_never_tokenised_again():
    # the model wrote c and d and was cut off: no end token is put behind, and the prompt is the one that it saw
    answer = Answer([6, 7], loss_mask=[True, False], finish="length", steps=[(1, 0.5)])
    row = _sampled(Example("ab", ["cd"], [0.5], {"level": 2}), characters(), answer)
    group = Renderer(characters(), 20).group(row, row=3)
    assert (group.prompt, group.text, group.key) == ([4, 4], "ab", 3)
    (read,) = group.answers
    assert (read.ids, read.loss_mask, read.finish, read.steps) == ([6, 7], [True, False], "length", [(1, 0.5)])
    assert (read.text, read.reward, read.columns) == ("cd", 0.5, {"level": 2.0})


def test_tokens_of_another_vocabulary_or_of_text_that_was_changed_are_not_used():
    for change in ("vocabulary", "prompt", "answer"):
        row = _sampled(Example("ab", ["cd"]), characters(), Answer([6]))
        tokenizer = characters(extra="[") if change == "vocabulary" else characters()
        row.prompt = "ba" if change == "prompt" else row.prompt
        row.answers = ["dc"] if change == "answer" else row.answers
        group = Renderer(tokenizer, 20).group(row)
        assert group.prompt == Renderer(tokenizer, 20).prompt_ids(row.prompt)
        assert group.answers[0].ids == Renderer(tokenizer, 20).answer_ids(row.prompt, row.answers[0])


def test_a_conversation_that_was_sampled_is_shown_with_its_turns():
    row = _sampled(Example(user("ab"), ["cd"]), characters(template=TEMPLATE), Answer([6, 7, 2]))
    group = Renderer(characters(template=TEMPLATE), 20).group(row)
    assert group.messages == user("ab")
    assert group.text == Renderer(characters(template=TEMPLATE), 20).text(user("ab"))


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real models beside the checkout")
def test_text_behind_a_prompt_gets_no_space_from_a_tokenizer_that_puts_one_before_everything():
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "tinyllamas-stories260k")
    render = Renderer(tokenizer, 512)
    prompt, answer = render.prompt_ids("Once upon a time, there"), render.answer_ids("Once upon a time, there", " was")
    assert prompt[0] == tokenizer.bos_token_id
    assert [*prompt, *answer[:-1]] == tokenizer("Once upon a time, there was").input_ids
    assert render.answer_ids("time", "s")[:-1] == tokenizer.convert_tokens_to_ids(["s"])  # "times", not "time s"


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real models beside the checkout")
@pytest.mark.parametrize("name", ["tinyllamas-stories260k", "tinystories-656k"])
def test_a_real_chat_template_gives_its_own_ids_up_to_the_end_of_the_turn(name):
    tokenizer = AutoTokenizer.from_pretrained(SHARED / name)
    render = Renderer(tokenizer, 512)
    asked = user("Tell me a story about a cat.")
    whole = [*asked, {"role": "assistant", "content": "A cat sat."}]
    expected = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
    ids = render.prompt_ids(asked) + render.answer_ids(asked, "A cat sat.")
    assert ids == expected[: len(ids)]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(expected[len(ids) :]).strip() == ""
