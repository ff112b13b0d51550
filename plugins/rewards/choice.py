r"""A verifier of multiple choice: the letter that an answer settles on, compared with the one in the data.

Patterns are tried in order; of the first one that finds a letter its last find counts. Without patterns of its own a
recipe has: \boxed{B}; "Answer: B", "the answer is (B)"; "(B)"; and a capital letter or digit that stands alone, where
an A before a small word, and I, are words. Source: the answer forms of MMLU, Hendrycks et al. 2021, arXiv:2009.03300,
appendix B, and of models that were asked for reasons first.
"""

import re
from typing import Any

from unified import Field, Problem, PromptGroup, Reward, Settings, hookimpl
from unified_plugins.rewards._columns import lacking, nothing_in
from unified_plugins.rewards.exact_match import right_answers

#: a small letter counts only where it is no word: before a bracket, a mark, or the end of the line
_LETTER = r"([A-Z0-9]|[a-z](?=[ \t]*(?:[).:,*\n]|\Z)))(?!\w|\.[0-9])"
PATTERNS = [
    r"\\boxed\{\s*(?:\\(?:text|mathrm|mathbf|textbf)\{\s*)?\(?\s*(\w)(?!\w)",
    r"(?i:\b(?:answer|(?:correct|right|best)\s+(?:option|choice))\b)(?i:\s+is\b)?[\s:=*_$(]*" + _LETTER,
    r"\(\s*(\w)\s*\)",
    r"(?<![\w'’])(?<![0-9]\.)(?!A\s+[a-z]|I(?![.)]))([A-Z0-9])(?![\w'’]|\.[0-9])",
]


class ChoiceSettings(Settings):
    """Which letters there are, and how an answer says one."""

    letters: str = Field("ABCD", min_length=2, description="the letters (or digits) of the choices, in order")
    column: str = Field("answer", description="column of the right one: its letter, or its number counted from 0")
    patterns: list[str] = Field(
        PATTERNS, min_length=1, description="regular expressions, tried in order; the first group is the letter"
    )
    right: float = Field(1.0, description="reward of the right letter")
    wrong: float = Field(0.0, description="of another letter, or none")

    def model_post_init(self, _: Any) -> None:
        """ValueError for letters that stand twice, and for a pattern that is none or has no group."""
        if len(set(self.letters.upper())) != len(self.letters):
            raise ValueError(f"letters must differ, capital or small, not '{self.letters}'")
        for pattern in self.patterns:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"'{pattern}' in patterns is no regular expression: {error}") from error
            if not groups:
                raise ValueError(f"'{pattern}' in patterns needs a group, as in 'Answer: (.)'")


def check(settings: ChoiceSettings, columns: frozenset[str] | None) -> list[Problem]:
    """A column that no row has."""
    return lacking(settings.column, columns)


def judge(groups: list[PromptGroup], settings: ChoiceSettings) -> list[list[float | None]]:
    """right or wrong for every answer; missing where the row names none of the letters."""
    out: list[list[float | None]] = []
    for group in groups:
        given = right_answers(group.columns.get(settings.column))
        wanted = {letter for one in given if (letter := _named(one, settings.letters.upper())) is not None}
        if not wanted:
            nothing_in(group, settings.column, f"letter of {settings.letters}")
        out.append([_worth(a.text, wanted, settings) if wanted else None for a in group.answers])
    return out


def _worth(text: str, wanted: set[str], settings: ChoiceSettings) -> float:
    return settings.right if chosen(text, settings) in wanted else settings.wrong


def chosen(text: str, settings: ChoiceSettings) -> str | None:
    """The letter that an answer settles on, as a capital; None where it names none."""
    letters = settings.letters.upper()
    for pattern in settings.patterns:
        found = [match[1].upper() for match in re.finditer(pattern, text) if match[1]]
        named = [letter for letter in found if len(letter) == 1 and letter in letters]
        if named:
            return named[-1]
    return None


def _named(given: Any, letters: str) -> str | None:
    """The letter that a row names: itself, perhaps in brackets or with a full stop, or its number from 0."""
    if isinstance(given, int) and not isinstance(given, bool):
        return letters[given] if 0 <= given < len(letters) and str(given) not in letters else _of(str(given), letters)
    return _of(str(given).strip().strip("().").upper(), letters)


def _of(text: str, letters: str) -> str | None:
    return text if len(text) == 1 and text in letters else None


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the verifier as `reward: choice`."""
    return [Reward("choice", ChoiceSettings, judge=judge, check=check)]
