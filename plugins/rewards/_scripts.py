"""The scripts that words are written in, by the names that Unicode gives to letters."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

#: language -> scripts that its words are written in; every language that is not here is written in LATIN
SCRIPTS: dict[str, frozenset[str]] = {
    "zh": frozenset({"CJK"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "ko": frozenset({"HANGUL"}),
    **dict.fromkeys(("be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "tg", "tt", "uk"), frozenset({"CYRILLIC"})),
    **dict.fromkeys(("ar", "fa", "ku", "ps", "sd", "ug", "ur"), frozenset({"ARABIC"})),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), frozenset({"DEVANAGARI"})),
    **dict.fromkeys(("he", "yi"), frozenset({"HEBREW"})),
    **dict.fromkeys(("as", "bn"), frozenset({"BENGALI"})),
    "am": frozenset({"ETHIOPIC"}),
    "el": frozenset({"GREEK"}),
    "gu": frozenset({"GUJARATI"}),
    "hy": frozenset({"ARMENIAN"}),
    "ka": frozenset({"GEORGIAN"}),
    "km": frozenset({"KHMER"}),
    "kn": frozenset({"KANNADA"}),
    "lo": frozenset({"LAO"}),
    "ml": frozenset({"MALAYALAM"}),
    "my": frozenset({"MYANMAR"}),
    "pa": frozenset({"GURMUKHI"}),
    "si": frozenset({"SINHALA"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
}
LATIN = frozenset({"LATIN"})

#: written without spaces: each of their letters counts as a word
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KHMER", "LAO", "MYANMAR", "THAI"}
#: first words of Unicode names that are another script's
_SAME = {"FULLWIDTH": "LATIN", "HALFWIDTH": "KATAKANA", "IDEOGRAPHIC": "CJK", "KATAKANA-HIRAGANA": "KATAKANA"}
#: letters with the marks that stand on them
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['’]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff])*")


def scripts_of(language: str) -> frozenset[str]:
    """The scripts of a language, given by its ISO 639-1 code."""
    return SCRIPTS.get(language, LATIN)


def words_by_script(text: str) -> Counter[str]:
    """How many words of a text are written in each script; a run of letters that changes script is several words."""
    found: Counter[str] = Counter()
    for word in _WORD.findall(text):
        before = ""
        for letter in word:
            script = script_of(letter)
            if script and (script != before or script in _UNSPACED):
                found[script] += 1
            before = script or before
    return found


@lru_cache(maxsize=1 << 16)
def script_of(letter: str) -> str:
    """The script of a letter: LATIN, CJK, HANGUL, ...; "" for what is no letter."""
    if not letter.isalpha():
        return ""
    first = unicodedata.name(letter, "").partition(" ")[0]
    return _SAME.get(first, first)
