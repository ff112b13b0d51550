r"""Language consistency: the share of the words of an answer that are in the wanted language.

`by: script` looks at letters alone: exact between Chinese, Japanese, Korean, Russian, Arabic, ... and the languages
written in Latin letters, blind between two of these; in scripts without spaces each letter is a word. `by: sentence`
lets a library name the language of every sentence; one that it cannot name does not count. Code, formulas, tags and
words like \frac do not count.
Source: DeepSeek-AI 2025, arXiv:2501.12948, section 2.3.2 of its first version (the proportion of words in the target
language; how a word's language is told is not published there).
"""

import re
from typing import Any, Literal

from unified import Field, Problem, PromptGroup, Reward, Settings, hookimpl
from unified_plugins.rewards._columns import lacking
from unified_plugins.rewards._language import checked_language, language_of
from unified_plugins.rewards._scripts import LATIN, SCRIPTS, scripts_of, words_by_script

#: what has letters and is in no language: code, formulas, commands of LaTeX, addresses, tags and special tokens
_NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+|https?://\S+|<[^<>\n]{1,40}>",
    re.DOTALL,
)
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]*")


class LanguageSettings(Settings):
    """Which language, and how it is told."""

    language: str | None = Field(None, description="ISO 639-1 code, as `en` or `zh`; without, that of the prompt")
    column: str | None = Field(
        None, description="column with the text that stands for the prompt; without, the prompt as the model reads it"
    )
    by: Literal["script", "sentence"] = Field(
        "script", description="script: by letters; sentence: by the library langdetect (the extra `language`)"
    )

    def model_post_init(self, _: Any) -> None:
        """ValueError for a language that is none, or that the library does not know."""
        if self.language is not None:
            if not re.fullmatch(r"[a-z]{2}", self.language):
                raise ValueError(f"language is a code of two small letters, as `en` or `zh`, not '{self.language}'")
            if self.by == "sentence":
                checked_language(self.language)


def check(settings: LanguageSettings, columns: frozenset[str] | None) -> list[Problem]:
    """A column that no row has."""
    return lacking(settings.column, columns) if settings.column is not None else []


def judge(groups: list[PromptGroup], settings: LanguageSettings) -> list[list[float | None]]:
    """The share, in [0, 1], and 0 for an answer without a word; missing where the prompt's language cannot be told."""
    return [_shares(group, settings) for group in groups]


def _shares(group: PromptGroup, settings: LanguageSettings) -> list[float | None]:
    prompt = _prose(str(group.columns.get(settings.column, "")) if settings.column else group.text)
    texts = [_prose(answer.text) for answer in group.answers]
    if settings.by == "sentence":
        wanted = settings.language or language_of(prompt)
        return [None if wanted is None else _share_of_sentences(text, wanted) for text in texts]
    scripts = scripts_of(settings.language) if settings.language else main_scripts(prompt)
    return [None if scripts is None else _share_of_scripts(text, scripts) for text in texts]


def main_scripts(text: str) -> frozenset[str] | None:
    """The scripts of the language that most words of a text may be in; None for a text without words.

    Of equally many the one that is not Latin, as chat templates and names bring Latin words into any text.
    """
    found = words_by_script(text)
    if not found:
        return None
    kana = found["HIRAGANA"] + found["KATAKANA"]
    if kana:  # Chinese has none: what stands among them is Japanese
        found["HIRAGANA"] = kana + found.pop("CJK", 0)
        found.pop("KATAKANA", None)
    most = max(found, key=lambda script: (found[script], script != "LATIN", script))
    known = [LATIN, *SCRIPTS.values()]
    return next((scripts for scripts in known if most in scripts), frozenset({most}))


def _share_of_scripts(text: str, scripts: frozenset[str]) -> float:
    found = words_by_script(text)
    return sum(found[script] for script in scripts) / found.total() if found else 0.0


def _share_of_sentences(text: str, wanted: str) -> float:
    """Words of sentences in the wanted language / words of those whose language can be told."""
    right = told = 0
    for sentence in _SENTENCE.findall(text):
        words = words_by_script(sentence).total()
        language = language_of(sentence) if words else None
        if language is not None:
            told += words
            right += words if language == wanted else 0
    return right / told if told else 0.0


def _prose(text: str) -> str:
    """The text without what is in no language."""
    return _NO_LANGUAGE.sub(" ", text)


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: language`."""
    return [Reward("language", LanguageSettings, judge=judge, check=check)]
