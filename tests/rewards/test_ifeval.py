"""Verifiable instructions: what obeys each of the 25, how they make a reward, and how rows are read and refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from unified import Answer, Example, PromptGroup, UserError, call_named, catalogue
from unified.settings import choose, parse
from unified_plugins.rewards import _language
from unified_plugins.rewards._ifeval_checks import CHECKS
from unified_plugins.rewards._ifeval_rows import instructions_of
from unified_plugins.rewards.ifeval import readings

SHARED = Path(__file__).parents[3] / "shared" / "data" / "ifeval" / "input_half_a.jsonl"
ENGLISH = "the weather was cold this morning, so we stayed at home and read a book together."
GERMAN = "Das Wetter war heute Morgen kalt, deshalb sind wir zu Hause geblieben."

Case = tuple[str, dict[str, Any], list[str], list[str]]

#: (instruction, its arguments, what obeys, what does not)
CASES: list[Case] = [
    ("keywords:existence", {"keywords": ["tea", "c++"]}, ["Tea and C++", "teapot, c++11"], ["tea", "tea and c"]),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"},
     ["tea, Tea", "tea teapot TEA"], ["tea", "none"]),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, ["tea", "none"], ["tea, Tea"]),
    ("keywords:forbidden_words", {"forbidden_words": ["die", "c++"]}, ["the diet of c", "soldier"],
     ["to Die.", "c++ is", "(die)"]),
    ("keywords:letter_frequency", {"letter": "M", "let_frequency": 3, "let_relation": "at least"}, ["mMm"], ["mM"]),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}, ["a!"], ["a!!"]),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH, "12345"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     ["One. Two.", "One. Two. Three."], ["One.", "Dr. One."]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["One."], ["One. Two."]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b c"], ["a b"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b"], ["a b c", "don't go"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["one\n***\ntwo", "***\none *** two\n***"], ["one\n\ntwo", "one *** *** two", "a *** b *** c", "one"]),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Send"},
     ["one\n\nsend it", "one\n\n\"SEND, now\"", "one\n\nSend\n\n"],
     ["one\n\nsending it", "send\n\none", "one\n\nsend\n\nthree", "one send", "one\n\n!", "\n\none\n\nsend"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b]", "[a][b] [c]"],
     ["[a]", "[a] b]", "[a [b", "[a\n] [b]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Hi.\nP.S. you", "p. s. you"], ["PS you", "Hi."]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["p. p. s you", "P.P.S. you"], ["P.S. you"]),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, ["so\nn.b. this"], ["so nxb this"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\ntext\n  * b"],
     ["* a", "* a\n* b\n- c", "* a\n** b", "a * b\n* c", "* a\n*"]),
    ("detectable_format:constrained_response", {}, ["My answer is yes.", " My answer is maybe. Or no."],
     ["My answer is yes", "yes.", "my answer is no."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and *b*", "**a** and *b*"],
     ["*a*", "**a**", "*a\n* b", "* * and ** **"]),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2},
     ["PART 1\na\nPART 2\nb", "PART1 PART 2 PART 3"], ["PART 1", "Part 1 Part 2", "PART A PART B"]),
    ("detectable_format:json_format", {}, ['{"a": [1, null]}', '```json\n{"a": 1}\n```', "```\n[]\n```"],
     ["{'a': 1}", '{"a": 1} so', '{"a": 1', "[" * 100_000]),
    ("detectable_format:title", {}, ["<<A tale>>\nonce", "so << b >> it"], ["<A tale>", "<<>>", "<< >>", "<<a\n>>"]),
    ("combination:two_responses", {}, ["one******two", "******\none\n******\ntwo\n******"],
     ["one", "one******one ", "a******b******c", "one************two", "one***two"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, ["Say it. No.", " say it.\nNo."],
     ["No. Say it.", "Say, it."]),
    ("startend:end_checker", {"end_phrase": "Peace!"}, ["and peace!", '"So, Peace!" \n'], ["Peace! Out", "peace"]),
    ("startend:end_checker", {"end_phrase": 'he said "no"'}, ['then he said "no"'], ["then he said no"]),
    ("startend:quotation", {}, ['"all of it"', ' "a" and "b"\n'], ['"half', '"', "'all'", 'so "it"']),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     ["I SAW it", "NASA, COVID-19"], ["I saw", "iPhone Two"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"},
     ["I saw"], ["I SAW it"]),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper(), "123", ENGLISH.upper() + " a"]),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.upper(), GERMAN.lower(), "123", ENGLISH + " A"]),
    ("punctuation:no_comma", {}, ["no comma; none"], ["one, two"]),
]  # fmt: skip
TITLE, BULLET = "detectable_format:title", "detectable_format:number_bullet_lists"


def obeys(name: str, arguments: dict[str, Any], text: str) -> bool:
    (one,) = instructions_of([name], [arguments])
    return one.obeyed(text)


def judge(texts: list[str], row: dict[str, Any], **settings: Any) -> tuple[list[Any], list[dict[str, float]]]:
    """The rewards of answers to one row, and the columns that they were given."""
    chosen, problems = choose("reward", {"name": "ifeval", **settings})
    assert chosen is not None, problems
    group = PromptGroup([0], [Answer([5], text) for text in texts], "Write it.", columns=row)
    (found,) = call_named(chosen.part.judge, groups=[group], settings=chosen.settings)
    return found, [answer.columns for answer in group.answers]


def row(*asked: tuple[str, dict[str, Any] | None], **columns: Any) -> dict[str, Any]:
    return {"instruction_id_list": [name for name, _ in asked], "kwargs": [given for _, given in asked], **columns}


# --- the instructions ---


def test_there_are_25_instructions_and_every_one_has_cases_of_both_kinds() -> None:
    assert len(CHECKS) == 25
    assert {name for name, *_ in CASES} == set(CHECKS)
    assert all(good and bad for _, _, good, bad in CASES)


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES, ids=[name for name, *_ in CASES])
def test_an_instruction_is_obeyed_by_what_it_describes_and_by_nothing_else(
    name: str, arguments: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    assert [text for text in good if not obeys(name, arguments, text)] == []
    assert [text for text in bad if obeys(name, arguments, text)] == []


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_blank_answer_obeys_nothing(name: str) -> None:
    arguments = next(given for other, given, *_ in CASES if other == name)
    assert not obeys(name, arguments, "")
    assert not obeys(name, arguments, " \n\t")


def test_at_least_and_less_than_are_each_others_opposite() -> None:
    name = "length_constraints:number_words"
    for words in range(1, 6):
        least, less = ({"num_words": 3, "relation": relation} for relation in ("at least", "less than"))
        assert obeys(name, least, "a " * words) == (words >= 3)
        assert obeys(name, less, "a " * words) == (words < 3)


def test_a_long_answer_that_repeats_itself_is_judged_in_a_moment() -> None:
    # a quadratic search over 200,000 characters would take minutes
    for text in ("<" * 200_000, "[" * 200_000, "\n" * 200_000 + "a", "*" * 200_001, "SECTION " * 25_000):
        for name, arguments, *_ in CASES:
            if not name.startswith(("language:", "change_case:english")):
                obeys(name, arguments, text)


# --- the reward ---


def test_all_must_be_obeyed_or_the_share_that_is_counts() -> None:
    two = row((TITLE, {}), (BULLET, {"num_bullets": 1}))
    texts = ["<<A>>\n* b", "<<A>>", "a"]
    assert judge(texts, two)[0] == [1.0, 0.0, 0.0]
    rewards, columns = judge(texts, two, combine="share")
    assert rewards == [1.0, 0.5, 0.0]
    assert columns == [{TITLE: 1.0, BULLET: 1.0}, {TITLE: 1.0, BULLET: 0.0}, {TITLE: 0.0, BULLET: 0.0}]


def test_an_instruction_given_twice_is_obeyed_in_its_column_where_both_are() -> None:
    kind = "keywords:existence"
    twice = row((kind, {"keywords": ["tea"]}), (kind, {"keywords": ["milk"]}))
    rewards, columns = judge(["tea", "milk", "tea, milk"], twice, combine="share")
    assert rewards == [0.5, 0.5, 1.0]
    assert [one[kind] for one in columns] == [0.0, 0.0, 1.0]


def test_the_loose_readings_are_the_eight_of_the_paper() -> None:
    assert readings("a*\nb\nc*", strictness="strict") == ["a*\nb\nc*"]
    assert set(readings("a*\nb\nc*", strictness="loose")) == {
        "a*\nb\nc*", "b\nc*", "a*\nb", "b", "a\nb\nc", "b\nc", "a\nb",
    }  # fmt: skip
    # above "b" is both the middle and the middle without stars; here no two are equal
    assert len(readings("*a*\n*b*\n*c*", strictness="loose")) == 8


def test_loosely_an_answer_passes_without_its_first_line_its_last_one_both_or_its_stars() -> None:
    quoted = row(("startend:quotation", {}))
    texts = ['Sure:\n"it"', '"it"\nBye', 'Sure:\n"it"\nBye', '*"it"*', 'Sure:\n*"it"*\nBye', 'Oh\nsure:\n"it"', ""]
    assert judge(texts, quoted)[0] == [0.0] * 7
    assert judge(texts, quoted, strictness="loose")[0] == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_loosely_each_instruction_may_be_obeyed_in_another_reading() -> None:
    # the title is in the first line, and without that line the rest is in small letters
    both = row((TITLE, {}), ("change_case:english_lowercase", {}))
    answer = [f"<<The Weather>>\n{ENGLISH}"]
    assert judge(answer, both)[0] == [0.0]
    assert judge(answer, both, strictness="loose")[0] == [1.0]


def test_what_passes_strictly_passes_loosely() -> None:
    found = [
        judge([text], row((name, given)), strictness=strictness)[0]
        for name, given, good, _ in CASES
        for text in good
        for strictness in ("strict", "loose")
    ]
    assert len(found) > 100
    assert set(map(tuple, found)) == {(1.0,)}


def test_a_row_that_asks_for_nothing_gives_no_judgement() -> None:
    assert judge(["a", "b"], row()) == ([None, None], [{}, {}])


# --- the rows ---


def test_arguments_that_are_null_are_as_if_they_were_not_there() -> None:
    full = {"num_bullets": 1, "keywords": None, "relation": None}
    assert judge(["* a"], row((BULLET, full), ("punctuation:no_comma", None)))[0] == [1.0]
    assert judge(["* a"], row((BULLET, {"num_bullets": 1.0})))[0] == [1.0]  # a table of numbers with gaps has floats


def test_the_prompt_is_repeated_where_no_argument_says_what() -> None:
    repeat = ("combination:repeat_prompt", {})
    texts = ["Name a tea. Mint.", "Mint."]
    assert judge(texts, row(repeat, prompt="Name a tea."))[0] == [1.0, 0.0]
    assert judge(texts, row(repeat, ask="Name a tea."), prompt="ask")[0] == [1.0, 0.0]
    said = row(("combination:repeat_prompt", {"prompt_to_repeat": "Mint"}), prompt="Name a tea.")
    assert judge(texts, said)[0] == [0.0, 1.0]
    with pytest.raises(UserError, match="lacks its argument 'prompt_to_repeat'"):
        judge(texts, row(repeat, prompt=[{"role": "user", "content": "Name a tea."}]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([("detectable_format:titel", {})], r"no instruction 'detectable_format:titel'\n.*'detectable_format:title'\?"),
        ([(3, {})], r"no instruction '3'\n    known: change_case"),
        ([(BULLET, {"num_bulets": 1})], r"has no argument 'num_bulets'\n.*'num_bullets'\?\n.*has: num_bullets"),
        ([(BULLET, {})], r"lacks its argument 'num_bullets'\n    detectable_format:number_bullet_lists has: num_b"),
        ([(TITLE, {"title": "A"})], r"has no argument 'title'\n    detectable_format:title has: no arguments"),
        ([(BULLET, {"num_bullets": -1})], r"num_bullets is -1: input should be greater than or equal to 0"),
        ([(BULLET, {"num_bullets": "two"})], r"num_bullets is 'two': input should be a valid integer"),
        ([("keywords:existence", {"keywords": []})], r"keywords is \[\]: list should have at least 1 item"),
        ([("keywords:existence", {"keywords": [" "]})], r"string should have at least 1 character"),
        (
            [("length_constraints:number_words", {"num_words": 3, "relation": "at most"})],
            r"relation is 'at most': input should be 'at least' or 'less than'",
        ),
        ([("language:response_language", {"language": "xx"})], r"language is 'xx': no language 'xx', known: af, ar"),
        ([(TITLE, [1])], r"the arguments of detectable_format:title must be an object, not \[1\]"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_with_its_place(asked: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)^rows\.jsonl:17: .*{message}"):
        judge(["a"], row(*asked, file="rows.jsonl", row=17))


def test_a_row_without_the_columns_is_refused_and_other_names_are_read() -> None:
    with pytest.raises(UserError, match=r"(?s)'Write it.': no column 'kwargs'.*instruction_id_list.*`arguments: NAME`"):
        judge(["a"], {"instruction_id_list": []})
    with pytest.raises(UserError, match=r"(?s)no column 'instruction_id_list'.*no columns.*`instructions: NAME`"):
        judge(["a"], {})
    with pytest.raises(UserError, match="2 instruction ids have 1 objects of arguments"):
        judge(["a"], {"instruction_id_list": [TITLE, TITLE], "kwargs": [{}]})
    with pytest.raises(UserError, match="the instruction ids must be a list, not 'detectable_format:title'"):
        judge(["a"], {"instruction_id_list": TITLE, "kwargs": [{}]})
    renamed = {"ids": [TITLE], "given": [{}]}
    assert judge(["<<a>>"], renamed, instructions="ids", arguments="given")[0] == [1.0]


def test_only_rows_that_ask_for_a_language_need_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    _language._factory.cache_clear()
    monkeypatch.setitem(sys.modules, "langdetect", None)
    try:
        assert judge(["<<a>>"], row((TITLE, {})))[0] == [1.0]
        for name, given in (("language:response_language", {"language": "de"}), ("change_case:english_lowercase", {})):
            with pytest.raises(UserError, match="langdetect"):
                judge(["a"], row((name, given)))
    finally:
        _language._factory.cache_clear()


def opened(path: Path) -> list[Example]:
    part = catalogue().get("dataset", "files")
    settings, problems = parse(part.settings, {"path": path.name, "held_out": 0}, owner="dataset 'files'")
    assert not problems
    return list(call_named(part.open, settings=settings, split="train", seed=0, folder=path.parent))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_published_rows_load_by_path_alone_and_are_judged(tmp_path: Path, kind: str) -> None:
    rows = [
        {"key": 1, "prompt": "p", "instruction_id_list": [TITLE, BULLET], "kwargs": [{}, {"num_bullets": 1}]},
        {"key": 2, "prompt": "q", "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["a"]}]},
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    else:  # here every object of arguments has every key, most of them null
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    examples = opened(path)
    assert [(e.prompt, e.answers) for e in examples] == [("p", []), ("q", [])]
    assert [judge(["<<a>>\n* b"], e.columns)[0] for e in examples] == [[1.0], [1.0]]
    assert [judge(["b"], e.columns)[0] for e in examples] == [[0.0], [0.0]]


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data beside the checkout")
def test_every_published_row_is_read_and_every_instruction_occurs() -> None:
    examples = opened(SHARED)
    assert len(examples) == 271
    asked = [instructions_of(e.columns["instruction_id_list"], e.columns["kwargs"]) for e in examples]
    assert {one.name for many in asked for one in many} == set(CHECKS)
    assert [len(many) for many in asked] == [len(e.columns["instruction_id_list"]) for e in examples]
    for example in examples:
        (reward,), (columns,) = judge([str(example.prompt)], example.columns, combine="share")
        ids = example.columns["instruction_id_list"]
        assert set(columns) == set(ids)
        if len(columns) == len(ids):  # one row has an instruction twice, with two bounds
            assert reward == sum(columns.values()) / len(ids)
