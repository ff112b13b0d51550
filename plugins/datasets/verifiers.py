"""The rows of an environment of the package `verifiers`, for `source: verifiers` with the same environment.

Its training rows are trained on. Held out are its evaluation rows; where it has none, a share of the training rows. The
columns of a row (`answer`, `info` and the rest) go with its prompt, which has the environment's system prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified import Dataset, Example, Field, Problem, Settings, UserError, hookimpl
from unified_plugins.datasets._examples import Rows
from unified_plugins.datasets.files import split_rows
from unified_plugins.rewards._user_function import file_and_name
from unified_plugins.sources._verifiers_package import check_name, files_of, load, problems


class VerifiersRowsSettings(Settings):
    """Which environment, as for the source, and which of its rows."""

    environment: str = Field(description="name of an installed one, package.module:function, or FILE.py:function")
    file: str | None = Field(None, description="the file with the function, relative to the recipe")
    arguments: dict[str, Any] = Field({}, description="arguments of the function that gives the environment")
    limit: int | None = Field(None, ge=1, description="only so many rows from the beginning")
    held_out: float = Field(0.1, ge=0, description="without evaluation rows: a share below 1, or a number of rows")
    held_out_seed: int = Field(0, description="draws the held-out rows; the same for all stages")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """FILE.py:function is `file` and `environment`, as for the source."""
        file, name = file_and_name(str(data.get("environment", "")))
        return {**data, "environment": name, "file": file} if file is not None and "file" not in data else data

    def model_post_init(self, _: Any) -> None:
        """ValueError for a name that can be none of an environment."""
        check_name(self.environment, self.file)


def open_rows(settings: VerifiersRowsSettings, split: str, folder: Path) -> Rows:
    """The rows of one split, in their order. UserError: no such environment, no rows, a prompt that is not text."""
    environment = load(settings.environment, settings.file, settings.arguments, folder)
    where = f"environment '{settings.environment}'"
    evaluation = environment.build_eval_dataset()
    if split == "held_out" and evaluation is not None:
        return _rows(evaluation, settings, where)
    training = environment.build_dataset()
    if training is None:
        raise UserError(f"{where} has no rows to train on", "its rows are for evaluation: name them as another dataset")
    rows = _rows(training, settings, where)
    if evaluation is not None or (split == "train" and not settings.held_out):
        return rows
    made = split_rows(rows, settings, split, where=where)
    assert isinstance(made, Rows)
    return made


class _Rows(Rows):
    """Rows of a table, whose columns are all the environment's."""

    def places(self) -> list[tuple[str, int]]:
        """Each example comes from a row of its own."""
        return [("", i) for i in range(len(self))]


def _rows(table: Any, settings: VerifiersRowsSettings, where: str) -> Rows:
    number = len(table) if settings.limit is None else min(settings.limit, len(table))
    return _Rows([_example(dict(table[i]), where, i + 1) for i in range(number)], {}, format="verifiers")


def _example(row: dict[str, Any], where: str, number: int) -> Example:
    prompt = row.pop("prompt")
    try:
        made = prompt if isinstance(prompt, str) else [_message(message) for message in prompt]
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}, row {number}: the prompt holds more than messages of text: {error}") from error
    return Example(made, columns=row)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty: a table has every key in every row."""
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return {**{key: value for key, value in message.items() if value is not None}, "content": text}


def check(settings: VerifiersRowsSettings, home: Path) -> list[Problem]:
    """No package, or no such environment, as far as can be seen without running it."""
    return problems(settings.environment, settings.file, home)


def files(settings: VerifiersRowsSettings, home: Path) -> dict[str, Path]:
    """The file of the module that gives the environment."""
    return files_of(settings.environment, settings.file, home)


@hookimpl
def unified_datasets() -> list[Dataset]:
    """Offer its rows as `data: {name: verifiers, environment: words.py:load_environment}`."""
    return [Dataset("verifiers", VerifiersRowsSettings, open=open_rows, remote=True, check=check, files=files)]
