"""A verifier of final answers: the last one that stands in an answer, compared with the one in the data.

Read as numbers where both are numbers ("1,200", "$5", "0.50", "3/4", "1 1/2", "2e-3", "40%" as 40), else as text
without white space. Numbers may differ by `absolute`, or by `relative` times the right one, whichever is more.
Source: the checks of GSM8K ("#### 42", Cobbe et al. 2021, arXiv:2110.14168) and MATH (\\boxed{42}, Hendrycks et al.
2021, arXiv:2103.03874); something for a wrong number: Luong et al. 2024, arXiv:2401.08967, section 3.1.
"""

import re
from fractions import Fraction
from typing import Any

from unified import Field, Problem, PromptGroup, Reward, Settings, hookimpl
from unified_plugins.rewards._columns import lacking, nothing_in

#: \boxed{...} with braces up to three deep, or what follows #### on its line
_MARKED = r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}|####[ \t]*([^\n]+)"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:/[0-9]+|[eE][+-]?[0-9]{1,3})?")
_MIXED = re.compile(r"([+-]?)([0-9]{1,40})\s+([0-9]{1,40}/[0-9]{1,40})")
#: a number in running text; a minus behind a word or number joins and does not negate
_LOOSE = re.compile(
    r"(?:(?<![\w.)])[+-])?(?<![\w.])(?:\\?\$)?"
    r"(?:\\d?frac\{[0-9]+\}\{[0-9]+\}|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"(?:/[0-9]+|[eE][+-]?[0-9]{1,3}|\s+[0-9]+/[0-9]+)?)"
)


class FinalAnswerSettings(Settings):
    """Where the answers stand, and what a wrong one is worth."""

    column: str = Field("answer", description="column of the right answer, bare or marked; or of a list of right ones")
    pattern: str = Field(_MARKED, description="regular expression; its first group that matched is the final answer")
    unmarked: bool = Field(False, description="where nothing matches the pattern, the last number in the answer counts")
    relative: float = Field(0.0, ge=0, description="how far a number may be from the right one, as a share of this")
    absolute: float = Field(0.0, ge=0, description="the same as a number")
    right: float = Field(1.0, description="reward of the right answer")
    wrong_number: float = Field(0.0, description="of a wrong number, where the right answer is a number")
    wrong: float = Field(0.0, description="of all else: another wrong answer, or none")

    def model_post_init(self, _: Any) -> None:
        """ValueError for a pattern that is no regular expression, or has no group."""
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from error
        if not groups:
            raise ValueError("pattern needs a group, as in '#### (.+)'")


def check(settings: FinalAnswerSettings, columns: frozenset[str] | None) -> list[Problem]:
    """A column that no row has."""
    return lacking(settings.column, columns)


def judge(groups: list[PromptGroup], settings: FinalAnswerSettings) -> list[list[float | None]]:
    """right, wrong_number or wrong for every answer; missing where the row has no right answer."""
    pattern = re.compile(settings.pattern)
    out: list[list[float | None]] = []
    for group in groups:
        given = group.columns.get(settings.column)
        right = given if isinstance(given, list) else [] if given is None else [given]
        wanted = [_last(pattern, str(one)) or str(one) for one in right]
        if not wanted:
            nothing_in(group, settings.column)
        out.append([_worth(pattern, a.text, wanted, settings) if wanted else None for a in group.answers])
    return out


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    """The final answer in a text; None where there is none."""
    found = None
    for match in pattern.finditer(text):
        found = next((group for group in match.groups() if group is not None), found)
    return found


def _worth(pattern: re.Pattern[str], text: str, wanted: list[str], settings: FinalAnswerSettings) -> float:
    found = _last(pattern, text)
    if found is None and settings.unmarked:
        found = next((match[0] for match in reversed(list(_LOOSE.finditer(text)))), None)
    if found is None:
        return settings.wrong
    if any(_same(found, one, settings) for one in wanted):
        return settings.right
    numbers = _number(found) is not None and any(_number(one) is not None for one in wanted)
    return settings.wrong_number if numbers else settings.wrong


def _same(found: str, wanted: str, settings: FinalAnswerSettings) -> bool:
    """Whether two final answers are (nearly) the same number, or, where one of them is none, read the same."""
    ours, right = _number(found), _number(wanted)
    if ours is None or right is None:
        return _plain(found) == _plain(wanted)
    share, most = Fraction(str(settings.relative)), Fraction(str(settings.absolute))  # as written: 0.1 is a tenth
    return abs(ours - right) <= max(most, share * abs(right))


def _plain(text: str) -> str:
    return "".join(text.split()).strip("$").removesuffix(".")


def _number(text: str) -> Fraction | None:
    """The number that a text is, units of money and per cent aside; None where it is none."""
    mixed = _MIXED.fullmatch(text.strip())
    if mixed is not None:
        part = _number(mixed[3])
        return None if part is None else (int(mixed[2]) + part) * (-1 if mixed[1] == "-" else 1)
    bare = _plain(text).replace("\\$", "").replace("$", "").replace(",", "").removesuffix("%").removesuffix("\\")
    try:
        return Fraction(bare) if _NUMBER.fullmatch(bare) and "./" not in bare else _over(bare)
    except (ValueError, ZeroDivisionError):
        return None


def _over(text: str) -> Fraction | None:
    r"""\frac{a}{b} of whole numbers, also \dfrac; None for all else. ZeroDivisionError for b = 0."""
    match = re.fullmatch(r"(-?)\\d?frac\{(-?[0-9]+)\}\{(-?[0-9]+)\}", text)
    return Fraction(int(match[2]), int(match[3])) * (-1 if match[1] else 1) if match else None


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the verifier as `reward: final_answer`."""
    return [Reward("final_answer", FinalAnswerSettings, judge=judge, check=check)]
