"""1 where the whole answer is the text that stands in a column, or one of several, else 0.

With `normalise: squad` both are compared in small letters, without punctuation, without the articles a, an and the,
and with single spaces. Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1, and its evaluation script.
"""

import re
import string
from typing import Any, Literal

from unified import Field, Problem, PromptGroup, Reward, Settings, hookimpl
from unified_plugins.rewards._columns import lacking, nothing_in

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class ExactMatchSettings(Settings):
    """What does not count in the comparison."""

    column: str = Field("answer", description="column of the right answer, or of a list of right ones")
    strip: bool = Field(True, description="white space around an answer does not count")
    ignore_case: bool = Field(False, description="capital letters do not count")
    ignore_punctuation: bool = Field(False, description="the punctuation marks of ASCII do not count")
    normalise: Literal["none", "squad"] = Field("none", description="squad: as the evaluation of SQuAD, see above")


def check(settings: ExactMatchSettings, columns: frozenset[str] | None) -> list[Problem]:
    """A column that no row has."""
    return lacking(settings.column, columns)


def judge(groups: list[PromptGroup], settings: ExactMatchSettings) -> list[list[float | None]]:
    """1 or 0 for every answer; missing where the row has no right answer."""
    out: list[list[float | None]] = []
    for group in groups:
        right = {normal(str(one), settings) for one in right_answers(group.columns.get(settings.column))}
        if not right:
            nothing_in(group, settings.column)
        out.append([float(normal(a.text, settings) in right) if right else None for a in group.answers])
    return out


def right_answers(given: Any) -> list[Any]:
    """What a column holds, as a list: [] where it is empty."""
    listed = given if isinstance(given, (list, tuple)) else [given]
    return [one for one in listed if one is not None]


def normal(text: str, settings: ExactMatchSettings) -> str:
    """The text without what does not count."""
    squad = settings.normalise == "squad"
    if squad or settings.ignore_case:
        text = text.lower()
    if squad or settings.ignore_punctuation:
        text = text.translate(_NO_PUNCTUATION)
    if squad:
        return " ".join(_ARTICLES.sub(" ", text).split())
    return text.strip() if settings.strip else text


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the rule as `reward: exact_match`."""
    return [Reward("exact_match", ExactMatchSettings, judge=judge, check=check)]
