"""The share of words in the wanted language."""

from __future__ import annotations

import pytest

from tests.rewards.judging import judged_texts, refusal
from unified_plugins.rewards._scripts import words_by_script


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't stop, naïve café", {"LATIN": 4}),
        ("cafe\u0301s", {"LATIN": 1}),  # an accent of its own is part of the word
        ("привет мир", {"CYRILLIC": 2}),
        ("你好 world", {"CJK": 2, "LATIN": 1}),
        ("これはペンです", {"HIRAGANA": 5, "KATAKANA": 2}),
        ("안녕 세계", {"HANGUL": 2}),
        ("hello世界hello", {"LATIN": 2, "CJK": 2}),
        ("مرحبا بالعالم", {"ARABIC": 2}),
        ("नमस्ते दुनिया", {"DEVANAGARI": 2}),
        ("ＡＢＣ 12 + 3 _", {"LATIN": 1}),
        ("", {}),
    ],
)
def test_words_are_counted_by_their_script(text: str, words: dict[str, int]) -> None:
    assert dict(words_by_script(text)) == words


def test_the_share_is_that_of_words_in_the_prompts_script() -> None:
    said = ["all in English", "three words 你", "你好", "42"]
    assert judged_texts("language", said, prompt="What is it?") == [1.0, pytest.approx(2 / 3), 0.0, 0.0]
    # the words of the template are fewer than those of the question
    assert judged_texts("language", ["你好", "你 ok"], prompt="User: 这是什么 Assistant:") == [1.0, 0.5]


def test_han_letters_are_japanese_where_the_prompt_has_kana_and_chinese_where_not() -> None:
    assert judged_texts("language", ["日本語です"], prompt="これは何ですか") == [1.0]
    assert judged_texts("language", ["日本語です"], prompt="这是什么") == [pytest.approx(3 / 5)]


def test_a_set_language_goes_before_the_prompts_and_needs_none() -> None:
    rule = {"name": "language", "language": "ru"}
    assert judged_texts(rule, ["да", "yes", "да yes"], prompt="") == [1.0, 0.0, 0.5]
    assert judged_texts("language", ["да"], prompt="12 + 3 =") == [None]  # nothing tells the language


def test_a_column_may_stand_for_the_prompt() -> None:
    rule = {"name": "language", "column": "question"}
    assert judged_texts(rule, ["你好"], prompt="System: You are a helpful model. 你好", question="你好吗") == [1.0]
    assert judged_texts(rule, ["你好"], prompt="Hello") == [None]


def test_code_formulas_tags_and_addresses_are_in_no_language() -> None:
    formulas = "$x + y$ \\(a\\) \\frac{1}{2}"
    code = "`code` ```python\nprint(1)\n```"
    said = f"<think>这是</think> {formulas} {code} https://example.org/page <|end|>"
    assert judged_texts({"name": "language", "language": "zh"}, [said]) == [1.0]


def test_sentences_are_told_apart_where_letters_cannot() -> None:
    english = "The weather is very nice today and we will all go to the beach. "
    german = "Das Wetter ist heute sehr schön und wir gehen alle zusammen an den Strand. "
    rule = {"name": "language", "by": "sentence"}
    # 14 English words; 14 German ones
    assert judged_texts(rule, [english, german, english + german], prompt=english) == [1.0, 0.0, 0.5]
    assert judged_texts({**rule, "language": "de"}, [german, english], prompt="") == [1.0, 0.0]
    assert judged_texts("language", [german], prompt=english) == [1.0]  # by letters both are one


def test_what_is_no_language_is_refused() -> None:
    assert "a code of two small letters" in refusal({"name": "language", "language": "English"})
    assert "no language 'xx'" in refusal({"name": "language", "language": "xx", "by": "sentence"})
