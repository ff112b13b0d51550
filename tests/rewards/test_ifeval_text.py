"""Words, words in capitals and sentences, as verifiable instructions count them."""

from __future__ import annotations

import pytest

from unified_plugins.rewards._ifeval_text import count_capital_words, count_sentences, count_words


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One. Two! Three?", 3),
        ("all in small letters. so is this one. and this", 3),
        ("no mark at all", 1),
        ("A headline\n\nand what goes on below it.", 1),  # a line break ends no sentence
        ("Really?! Yes!! I see... Now go.", 4),
        ("", 0),
        (" \n***\n--- . !", 0),  # neither a letter nor a digit
        ("Well done. 🎉", 1),
        ("今天很好。明天呢？好！", 3),
        ("「好。」他说。", 2),
    ],
)
def test_a_sentence_ends_at_its_mark_and_has_a_letter_or_a_digit(text: str, number: int) -> None:
    assert count_sentences(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Dr. Smith met Mrs. Jones. They talked.", 2),
        ("It has fruit, e.g. Apples, i.e. Sweet ones.", 1),
        ("J. K. Rowling wrote it. So did I. And you?", 3),
        ("Tea, coffee, etc. are here. Tea, coffee, etc. Both are here.", 3),
        ("We met at 5 p.m. in the U.S. embassy. We left at 6 p.m. Nobody saw us.", 3),
        ("It works for Acme Inc.", 1),
        ("It is No. 5 of Fig. 2. Is it? No. It is not.", 4),
        ("Pi is 3.14 and example.com is a name.", 1),
        ("It was 1999. Then came 2000.", 2),
    ],
)
def test_a_full_stop_that_belongs_to_a_word_ends_no_sentence_unless_a_capital_letter_follows(
    text: str, number: int
) -> None:
    assert count_sentences(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('"Stop!" he said. "Why?" She left.', 3),
        ("“Go.” They went. (They ran.) Then they slept.", 4),
        ("This is **bold.** This is *not.* End", 3),
        ("I wondered ... and so … did you. Well ... Yes.", 3),
        ("To do:\n1. Eggs and milk.\n2. Bread\na) Butter.", 2),  # "1." is no sentence, Bread ends with the butter
        ("The answer:\n4.", 1),  # a number alone on its line is no item
    ],
)
def test_quotes_dots_and_items_of_lists_end_a_sentence_only_where_one_ends(text: str, number: int) -> None:
    assert count_sentences(text) == number


def test_sentences_of_two_texts_add_up() -> None:
    parts = ["One ends here. ", 'Dr. A. Bee said: "No!" ', "Why? ", "It costs 3.50 dollars. "]
    each = [count_sentences(part) for part in parts]
    assert each == [1, 1, 1, 1]
    assert count_sentences("".join(parts)) == sum(each)


def test_a_long_run_of_marks_is_counted_in_a_moment() -> None:
    assert count_sentences("." * 200_000) == 0
    assert count_sentences("a." * 100_000) == 1  # one word
    assert count_sentences("a! " * 100_000) == 100_000


def test_words_are_runs_of_letters_and_digits() -> None:
    assert count_words("Don't stop: well-known, 3.5 words") == 8  # Don t stop well known 3 5 words
    assert count_words(" \n*** ") == 0


def test_a_word_in_capitals_is_one_word_with_what_stands_inside_it() -> None:
    assert count_capital_words("I SAW the U.S.A. and a WELL-KNOWN DON'T at COVID-19, R&D") == 7
    assert count_capital_words("Mixed small 1234 iPhone don't") == 0
    assert count_capital_words("**LOUD** “LOUD” LOUD!") == 3
