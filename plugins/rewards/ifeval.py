"""Verifiable instructions: whether an answer obeys what its row asks of its form, for the 25 instructions of IFEval.

Rows are used as they are published: a list of ids and, in the same order, a list of their arguments. With the settings
as they are the mean reward over rows is the prompt-level strict accuracy; `strictness: loose` gives the loose one.
Source: Zhou et al. 2023, arXiv:2311.07911, section 3 (accuracies), table 1 and appendix (instructions).
"""

from typing import Literal

from unified import Field, Problem, PromptGroup, Reward, Settings, UserError, hookimpl
from unified_plugins.rewards._columns import lacking
from unified_plugins.rewards._ifeval_rows import Instruction, Unreadable, instructions_of


class IFEvalSettings(Settings):
    """How strictly an answer is read, how its instructions are put together, and where a row keeps them."""

    strictness: Literal["strict", "loose"] = Field(
        "strict",
        description="loose: also obeyed where it is without the first line, the last one, both, or the stars",
    )
    combine: Literal["all", "share"] = Field(
        "all", description="all: 1 where every instruction is obeyed, else 0; share: the share that is obeyed"
    )
    instructions: str = Field("instruction_id_list", description="column of the ids of the instructions")
    arguments: str = Field("kwargs", description="column of their arguments, one object for each")
    prompt: str = Field(
        "prompt", description="column of what combination:repeat_prompt repeats, if its arguments lack it"
    )


def readings(text: str, *, strictness: str) -> list[str]:
    """The texts of which one has to obey: the answer; loosely also without its first line, last line, both and stars.

    The eight of section 3.2, those that are equal once.
    """
    if strictness == "strict":
        return [text]
    lines = text.split("\n")
    shorter = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*shorter, *(one.replace("*", "") for one in shorter)]))


def check(settings: IFEvalSettings, columns: frozenset[str] | None) -> list[Problem]:
    """Columns that no row has."""
    named = {"instructions": settings.instructions, "arguments": settings.arguments}
    return [problem for key, name in named.items() for problem in lacking(name, columns, key=key)]


def judge(groups: list[PromptGroup], settings: IFEvalSettings) -> list[list[float | None]]:
    """1 or 0, or the share, for every answer; missing where the row has an empty list of instructions.

    Writes 1 or 0 for each instruction into the columns of the answer, under its id; where a row has an id twice, 1 says
    that both are obeyed.

    Raises UserError: a row without the columns, or one that cannot be read; the library for languages is not installed.
    """
    out: list[list[float | None]] = []
    for group in groups:
        asked = _asked(group, settings)
        row: list[float | None] = []
        for answer in group.answers:
            read = readings(answer.text, strictness=settings.strictness)
            obeyed = [any(one.obeyed(text) for text in read) for one in asked]
            answer.columns |= {one.name: 1.0 for one in asked}
            answer.columns |= {one.name: 0.0 for one, result in zip(asked, obeyed, strict=True) if not result}
            whole = float(all(obeyed)) if settings.combine == "all" else sum(obeyed) / max(1, len(obeyed))
            row.append(whole if asked else None)
        if not asked:
            group.reasons.append(f"column '{settings.instructions}' of the row lists no instruction")
        out.append(row)
    return out


def _asked(group: PromptGroup, settings: IFEvalSettings) -> list[Instruction]:
    """The instructions of a row. Raises UserError with the place of the row."""
    columns = group.columns
    where = f"{columns['file']}:{columns.get('row')}" if "file" in columns else f"the row of prompt {group.text!r:.60}"
    for setting, name in (("instructions", settings.instructions), ("arguments", settings.arguments)):
        if name not in columns:
            raise UserError(
                f"{where}: no column '{name}', which reward 'ifeval' reads its {setting} from",
                f"the row has: {', '.join(columns) or 'no columns'}",
                f"`{setting}: NAME` in the settings of the reward says which column has them",
            )
    try:
        return instructions_of(
            columns[settings.instructions], columns[settings.arguments], columns.get(settings.prompt)
        )
    except Unreadable as error:
        raise UserError(f"{where}: {error}", *error.hints) from error


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the verifier as `reward: ifeval`."""
    return [Reward("ifeval", IFEvalSettings, judge=judge, check=check)]
