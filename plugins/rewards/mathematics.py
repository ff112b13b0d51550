r"""A verifier of mathematics: the expression that an answer ends on, compared with the one in the data.

Equal is what the library math-verify holds for equal: 1/2 and 0.5, (x + 1)^2 and x^2 + 2x + 1, sets in any order,
x = 5 and 5, 12% and both 12 and 0.12. What stands in \boxed{} goes before what stands behind ####, this before a
formula, and this before bare numbers; the last one counts, with what a comma or `and` joins to it. Answers are judged
in processes of their own, each within a limit of processor time that also holds where Python cannot be interrupted (as
in 9^(9^9)).
Source: the library's own account of its reading, https://github.com/huggingface/Math-Verify.
"""

from typing import Any, Literal

from unified import Field, Problem, PromptGroup, Reward, Settings, hookimpl
from unified_plugins.rewards._columns import lacking, nothing_in
from unified_plugins.rewards._extras import needs
from unified_plugins.rewards._math_pool import POOL
from unified_plugins.rewards.exact_match import right_answers


class MathSettings(Settings):
    """Where the right answer stands, and how long may be thought about an answer."""

    column: str = Field("answer", description="column of the right answer, bare or marked; or of a list of right ones")
    right: float = Field(1.0, description="reward of the right answer")
    wrong: float = Field(0.0, description="of another answer, or none")
    digits: int = Field(6, ge=0, description="decimals to which decimal numbers must agree")
    seconds: float = Field(5.0, gt=0, description="processor time for one answer")
    late: Literal["missing", "wrong"] = Field("missing", description="what an answer is that takes longer")
    workers: int = Field(4, ge=1, description="processes at most; no more than cores, and one for every 16 answers")

    def model_post_init(self, _: Any) -> None:
        """ValueError where the library is not installed."""
        needs("math_verify", extra="math")


def check(settings: MathSettings, columns: frozenset[str] | None) -> list[Problem]:
    """A column that no row has."""
    return lacking(settings.column, columns)


def judge(groups: list[PromptGroup], settings: MathSettings) -> list[list[float | None]]:
    """right or wrong for every answer; missing where the row has no right answer that can be read, or it failed."""
    jobs = []
    for group in groups:
        golds = [str(one) for one in right_answers(group.columns.get(settings.column))]
        limits = {"digits": settings.digits, "seconds": settings.seconds}
        jobs += [{"golds": golds, "text": answer.text, **limits} for answer in group.answers]
    said = iter(POOL.ask([job for job in jobs if job["golds"]], workers=settings.workers))
    verdicts = iter([next(said) if job["golds"] else "no gold" for job in jobs])
    worth = {"right": settings.right, "wrong": settings.wrong}
    if settings.late == "wrong":
        worth["late"] = settings.wrong
    given = [[next(verdicts) for _ in group.answers] for group in groups]
    for group, said_of in zip(groups, given, strict=True):
        if "no gold" in said_of:
            nothing_in(group, settings.column, "right answer that can be read")
        others = (one for one in said_of if one not in worth and one != "no gold")
        group.reasons += [f"the comparison took more than {settings.seconds:g} s" if v == "late" else v for v in others]
    return [[worth.get(verdict) for verdict in said_of] for said_of in given]


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the verifier as `reward: math`."""
    return [Reward("math", MathSettings, judge=judge, check=check)]
