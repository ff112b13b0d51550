"""A verifier of programs: an answer is run against the tests of its row, in a sandbox.

The program is the last ``` block of an answer, else all of it, up to a line [DONE]. Rows with `test_list` (MBPP): the
program, then `test_setup_code` or `test_imports`, then each assert is a test. Rows with `test` and `entry_point`
(HumanEval): the row's prompt with the program behind it, and `check(entry_point)` as the one test. A program that
fails, hangs, or goes over a limit fails its tests; where the sandbox itself fails, or a row has no tests, the reward is
missing. What the sandbox holds, and which cheating it does not see: docs of `unified_plugins.rewards._sandbox`.
Source: Austin et al. 2021, arXiv:2108.07732, section 2 (MBPP); Chen et al. 2021, arXiv:2107.03374, sections 2.1 to 2.3
(HumanEval, why a sandbox); as a reward Le et al. 2022, arXiv:2207.01780, section 3.3.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from unified import Field, Problem, PromptGroup, Reward, Settings, UserError, hookimpl
from unified_plugins.rewards._columns import listed
from unified_plugins.rewards._guarded import guarded
from unified_plugins.rewards._sandbox import Limits, Program, Refused, run_all

_TESTS = "they stand in a column `test_list`, or in `test` beside `entry_point`"
_FENCE = re.compile(r"^[ \t]*```[^\n`]*$\n?", re.MULTILINE)


class CodeSettings(Settings):
    """What passing is worth, and what a program may use."""

    combine: Literal["all", "share"] = Field("all", description="all: 1 if all tests pass, else 0; share: of the tests")
    isolation: Literal["namespaces", "limits"] = Field(
        "namespaces", description="limits: without namespaces; it can read and write what this user can"
    )
    timeout_s: float = Field(8.0, gt=0, le=3600, description="seconds for a program and all its tests")
    cpu_s: float = Field(4.0, gt=0, le=3600, description="seconds of processor time, of all its processes")
    memory_mb: int = Field(512, ge=64, le=1 << 20, description="megabytes of memory, of all its processes")
    disk_mb: int = Field(16, ge=1, le=1 << 16, description="megabytes of files (limits: of each file)")
    processes: int = Field(16, ge=4, le=512, description="processes and threads at a time")
    open_files: int = Field(64, ge=16, le=1024, description="open files of a process")
    output_kb: int = Field(256, ge=1, le=1 << 16, description="kilobytes written to standard output and error")
    python: str | None = Field(None, description="interpreter of the programs, without its packages; none: this one")
    workers: int | None = Field(
        None, ge=1, le=1024, description="programs at a time; none: half of the CPUs, at least 2"
    )


def check(settings: CodeSettings, columns: frozenset[str] | None) -> list[Problem]:
    """Rows none of which has tests."""
    if columns is None or "test_list" in columns or {"test", "entry_point"} <= columns:
        return []
    return [Problem("no row of the data has tests for reward 'code'", (), (_TESTS, listed(columns)))]


def judge(groups: list[PromptGroup], settings: CodeSettings) -> list[list[float | None]]:
    """1 or 0, or the share of passed tests, for every answer; None where there is nothing to judge by.

    Raises UserError where this system cannot hold programs, or a row's tests are no Python.
    """
    programs = [[_program(a.text, g.columns, settings.combine == "all") for a in g.answers] for g in groups]
    for group, row in zip(groups, programs, strict=True):
        if row and row[0] is None:
            group.reasons.append(f"the row has no tests: {_TESTS}")
    flat = [program for row in programs for program in row if program is not None]
    if not flat:
        return [[None] * len(row) for row in programs]
    limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})
    try:
        found = iter(run_all(flat, limits, workers=settings.workers or max(2, (os.cpu_count() or 2) // 2)))
    except Refused as error:
        raise UserError(*error.args) from error
    verdicts = [[None if program is None else next(found) for program in row] for row in programs]
    worth = (lambda passed: float(all(passed))) if settings.combine == "all" else (lambda p: sum(p) / len(p))
    for group, of_group in zip(groups, verdicts, strict=True):
        group.reasons += [f"the sandbox failed: {v.error or v.why}" for v in of_group if v is not None and not v.known]
    return [[worth(v.passed) if v is not None and v.known else None for v in row] for row in verdicts]


def program_of(answer: str) -> str:
    """The program that an answer is or holds: its last ``` block, closed or not; else the whole answer."""
    marks = list(_FENCE.finditer(answer))
    if marks:
        opening = marks[-1] if len(marks) % 2 else marks[-2]
        closing = len(answer) if len(marks) % 2 else marks[-1].start()
        return answer[opening.end() : closing]
    return re.split(r"^\[DONE\]", answer, maxsplit=1, flags=re.MULTILINE)[0]


def _program(answer: str, columns: Mapping[str, Any], stop_at_first: bool) -> Program | None:
    """What is run for an answer; None where the row has no tests."""
    text = program_of(answer)
    try:
        if isinstance(columns.get("test_list"), (list, tuple)):
            tests = tuple(guarded(str(test)) for test in columns["test_list"])
            lines = [*(columns.get("test_imports") or []), columns.get("test_setup_code") or ""]
            return Program(text, tests, "\n".join(lines), stop_at_first) if tests else None
        if isinstance(columns.get("test"), str) and columns.get("entry_point"):
            entry = str(columns["entry_point"])
            tests = (guarded(f"{columns['test']}\n\ncheck({entry})\n", entry=entry),)
            return Program(f"{columns.get('prompt') or ''}{text}\n", tests, "", stop_at_first)
    except ValueError as error:
        task = columns.get("task_id", "without task_id")
        raise UserError(f"reward 'code': the row of task {task!r}: {error}", "mend or leave out the row") from error
    return None


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the verifier as `reward: code`."""
    return [Reward("code", CodeSettings, judge=judge, check=check)]
