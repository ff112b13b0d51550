"""The language of a text: which one, always the same one, and what is said where it cannot be told."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import langdetect
import pytest

from unified import UserError
from unified_plugins.rewards import _language
from unified_plugins.rewards._language import checked_language, known_languages, language_of

SAID = {
    "en": "The weather was cold this morning, so we stayed at home and read a book together.",
    "de": "Das Wetter war heute Morgen kalt, deshalb sind wir zu Hause geblieben und haben gelesen.",
    "fr": "Il faisait froid ce matin, alors nous sommes restés à la maison pour lire un livre.",
    "zh": "今天早上天气很冷，所以我们待在家里一起看书。",
    "ja": "今朝は寒かったので、家で一緒に本を読みました。",
    "ko": "오늘 아침은 추워서 우리는 집에서 함께 책을 읽었습니다.",
    "ru": "Сегодня утром было холодно, поэтому мы остались дома и читали книгу.",
    "ar": "كان الطقس باردا هذا الصباح لذلك بقينا في المنزل وقرأنا كتابا معا",
    "hi": "आज सुबह मौसम ठंडा था इसलिए हम घर पर रहे और साथ में एक किताब पढ़ी।",
}


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _language._factory.cache_clear()
    monkeypatch.setitem(sys.modules, "langdetect", None)
    yield
    _language._factory.cache_clear()


@pytest.mark.parametrize(("code", "text"), SAID.items(), ids=list(SAID))
def test_the_language_of_a_sentence_is_told(code: str, text: str) -> None:
    assert language_of(text) == code
    assert code in known_languages()


def test_both_ways_to_write_chinese_have_one_code() -> None:
    assert language_of("這是一個用繁體字寫的中文句子，我們今天在家裡讀書。") == "zh"


def test_a_text_in_capitals_has_the_language_of_its_small_letters() -> None:
    # of words in capitals the library reads the first letters alone, and takes this for German
    shouted = "EVERY DAY, SHE WOULD GO SEARCHING FOR NEW CLOTHES THAT SHE COULD WEAR."
    assert language_of(shouted) == language_of(shouted.lower()) == "en"
    assert language_of("HEUTE GEHEN WIR IN DEN PARK UND SPIELEN FUSSBALL.") == "de"


@pytest.mark.parametrize("text", ["", " \n", "123 456", "!?*** ---", "\ud800"])
def test_a_text_without_letters_is_in_no_language(text: str) -> None:
    assert language_of(text) is None


def test_a_text_that_could_be_several_languages_gets_the_same_one_every_time() -> None:
    text = "ok no a la de"  # torn between languages: with other draws the library says another one
    first = language_of(text)
    for seed in range(20):
        random.seed(seed)
        assert language_of(text) == first
    assert langdetect.DetectorFactory.seed is None  # others who use the library draw as before


def test_a_code_is_known_in_any_case_and_with_a_region_or_refused_by_name() -> None:
    assert (checked_language("EN"), checked_language("zh-CN"), checked_language("pt_BR")) == ("en", "zh", "pt")
    with pytest.raises(ValueError, match=r"no language 'xx', known: af, ar"):
        checked_language("xx")


@pytest.mark.usefixtures("without_library")
def test_without_the_library_it_says_what_to_install() -> None:
    for ask in (lambda: language_of("some words"), known_languages, lambda: checked_language("en")):
        with pytest.raises(UserError, match=r"(?s)langdetect, which is not installed.*\[language\]"):
            ask()
