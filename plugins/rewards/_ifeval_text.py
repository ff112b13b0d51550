"""What verifiable instructions count in a text: words, words in capitals, sentences."""

import re

_WORD = re.compile(r"\w+")
#: a word with what may stand inside it: "don't", "well-known", "U.S", "R&D"
_WHOLE_WORD = re.compile(r"\w+(?:['’.&/-]\w+)*")
_WIDE_END = re.compile(r"([。！？｡]+[」』”’）】]*)")
_MARKS = ".!?…"
_CLOSING = "\"'”’»)]}*_`"
_OPENING = "\"'“‘«([{*_`¿¡"
#: the number or letter in front of an item of a list
_ITEM = re.compile(r"\(?(?:\d{1,3}|[A-Za-z])[.)]")
_DOTTED = re.compile(r"[^\W\d_](?:\.[^\W\d_]+)+")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


#: written with a full stop that never ends a sentence
_INSIDE = _set("mr mrs ms mx dr prof rev hon messrs mme st mt capt sgt lt col cmdr gov vs cf viz ca approx e.g i.e")
#: written with a full stop that ends a sentence where a capital letter, or nothing, follows
_PERHAPS = _set(
    "etc sq ft inc ltd corp co bros jr sr esq dept est al ave blvd rd jan feb apr jun jul aug sept oct nov dec"
)
#: words of their own, and abbreviations in front of a number
_BEFORE_NUMBERS = _set("no nos fig figs vol p pp ch sec art eq op ed")


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores: "don't" is two, "well-known" is two."""
    return sum(1 for _ in _WORD.finditer(text))


def count_capital_words(text: str) -> int:
    """Words without a small letter and with a capital one: "A", "NASA", "COVID-19", "DON'T" are one each."""
    return sum(word[0].isupper() for word in _WHOLE_WORD.finditer(text))


def count_sentences(text: str) -> int:
    """Sentences, as an English reader would count them; each has a letter or a digit.

    A sentence ends at a word that ends in . ! ? or … (closing quotes, brackets and stars may follow) and at 。！？
    anywhere; what is left over at the end is one as well. Line breaks end none. A full stop ends none in a title or
    Latin abbreviation ("Dr.", "e.g."), after a single letter other than I ("J. Smith"), in front of an item of a list
    ("1. Eggs"), and where a small letter goes on after an abbreviation ("etc. and"), after dots ("so ... no") or after
    a closing quote ("'Go!' he said").
    """
    text = _WIDE_END.sub(r"\1 ", text)
    words: list[str] = []
    for line in text.splitlines():
        in_line = line.split()
        words += in_line[1:] if len(in_line) > 1 and _ITEM.fullmatch(in_line[0]) else in_line
    count, said = 0, False
    for here, after in zip(words, [*words[1:], ""], strict=False):
        said = said or any(c.isalnum() for c in here)
        if said and _ends(here, after):
            count, said = count + 1, False
    return count + said


def _ends(word: str, after: str) -> bool:
    """Whether a sentence ends with a word, of which the next one is known ("" for none)."""
    if _WIDE_END.search(word):
        return True
    bare = word.rstrip(_CLOSING)
    stem = bare.rstrip(_MARKS)
    if bare == stem:
        return False
    follows = after.lstrip(_OPENING)[:1]
    if bare != word and word[len(bare)] in "\"'”’»" and follows.islower():
        return False
    mark = bare[len(stem) :]
    if mark != "." and set(mark) <= set(".…"):
        return not follows.islower()
    return mark != "." or not _abbreviated(stem.lstrip(_OPENING), follows)


def _abbreviated(stem: str, follows: str) -> bool:
    """Whether the full stop behind a stem belongs to it alone, and ends no sentence before a word so begun."""
    small = stem.lower()
    if small in _INSIDE:
        return bool(follows)
    if small in _PERHAPS or _DOTTED.fullmatch(stem):
        return bool(follows) and not follows.isupper()
    if small in _BEFORE_NUMBERS:
        return follows.isdigit()
    return len(stem) == 1 and stem.isalpha() and small != "i" and stem.isascii() and bool(follows)
