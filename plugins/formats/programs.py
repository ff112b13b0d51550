"""Rows that ask for a program and bring its tests: MBPP and HumanEval as they are published.

The reference program is the answer; all columns stay, and the reward `code` runs the tests in them.
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import cell, text


class MbppSettings(Settings):
    """How the task is put."""

    chat: bool = Field(True, description="the task is a user's message; if not, text that ends in the paper's [BEGIN]")


class HumanEvalSettings(Settings):
    """How the task is put."""

    chat: bool = Field(False, description="the prompt is a user's message; if not, code that the answer continues")


def is_mbpp(columns: frozenset[str]) -> bool:
    """A program with a list of tests, and the task as `text`, or as `prompt` in the sanitized edition."""
    return {"code", "test_list"} <= columns and bool({"text", "prompt"} & columns)


def is_humaneval(columns: frozenset[str]) -> bool:
    """The beginning of a program, the rest of it, and a test that calls an entry point."""
    return {"prompt", "canonical_solution", "test", "entry_point"} <= columns


def convert_mbpp(row: Mapping[str, Any], settings: MbppSettings) -> Example:
    r"""Rows of `text` (or `prompt`), `code`, `test_list`, as in MBPP: the task with its tests; `code` is the answer.

    The words of the prompt are the paper's; line ends \r\n become \n. Source: Austin et al. 2021, arXiv:2108.07732,
    section 3 (the prompt), section 2.1 (the data).
    """
    tests = cell(row, "test_list")
    if not isinstance(tests, (list, tuple)) or not tests or not all(isinstance(test, str) for test in tests):
        raise ValueError("column 'test_list' must be a list of asserts, with at least one")
    task = text(row, "text" if row.get("text") is not None else "prompt").strip()
    shown = "\n".join(tests).replace("\r\n", "\n")
    asked = f"You are an expert Python programmer, and here is your task: {task} Your code should pass these tests:\n\n"
    asked += f"{shown}\n"
    prompt = [{"role": "user", "content": asked}] if settings.chat else f"{asked}[BEGIN]\n"
    return Example(prompt, [text(row, "code").replace("\r\n", "\n")], columns=dict(row))


def convert_humaneval(row: Mapping[str, Any], settings: HumanEvalSettings) -> Example:
    """Rows of `prompt`, `canonical_solution`, `test`, `entry_point`, as in HumanEval: the answer continues the prompt.

    Source: Chen et al. 2021, arXiv:2107.03374, section 2.2.
    """
    for column in ("test", "entry_point"):
        text(row, column)
    asked = text(row, "prompt")
    prompt = [{"role": "user", "content": asked}] if settings.chat else asked
    return Example(prompt, [text(row, "canonical_solution")], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the formats as `format: mbpp` and `format: humaneval`."""
    return [
        DataFormat("mbpp", MbppSettings, recognises=is_mbpp, convert=convert_mbpp),
        DataFormat("humaneval", HumanEvalSettings, recognises=is_humaneval, convert=convert_humaneval),
    ]
