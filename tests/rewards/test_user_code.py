"""A function or class of the user's is found wrong by the check, and what is found is not run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from unified import UserError
from unified.check import check_recipe
from unified.drafts import draft_of
from unified.recipe import load_recipe

CODE = """
import json
from os.path import join as put
raise SystemExit("the file was run")
LIMIT = 3
NAMES: list = []


def right(answer, columns):
    return 1.0


async def later(answer):
    return 1.0


def needs_more(completions, solution, **kwargs):
    return []


def keyed(answer, key):
    return 1.0


def strange(text):
    return 1.0


if LIMIT:
    def hidden(answer):
        return 1.0
else:
    def other(answer):
        return 1.0
try:
    with open("x") as handle:
        loaded = handle
except OSError:
    fallback = right


class Game:
    def step(self, text):
        return {}

    @staticmethod
    def score(answer):
        return 1.0


class Child(Game):
    pass
"""
RECIPE = """\
name: a
model:
  new: {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}}
  tokenizer: random_walks
stages:
  rl:
    algorithm: grpo
    data: {{name: files, path: rows.jsonl, held_out: 1}}
{part}"""
REWARD = """\
    reward:
      name: python
      function: {name}
"""
SOURCE = """\
    reward: given
    source:
      name: environment
      environment: {name}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("mine.py", "deep/er/code.py", "loose_ends.py"):
        (tmp_path / name).write_text(CODE)
    for name in ("deep/__init__.py", "deep/er/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('the package was imported')")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "h"}\n' * 3)
    (tmp_path / "broken.py").write_text("def right(answer):\n    return (1\n")
    (tmp_path / "open.py").write_text("from json import *\n")
    return tmp_path


def said(home: Path, part: str, name: str, *more: str) -> str:
    text = RECIPE.format(part=part.format(name=name))
    (home / "r.yaml").write_text(text + "".join(f"      {line}\n" for line in more))
    known = set(sys.modules)
    try:
        check_recipe(load_recipe(home / "r.yaml"))
    except UserError as error:
        return str(error).replace(f"{home}/", "").replace(str(home), "HOME").partition("\n1 problem")[0]
    finally:
        assert not {"mine", "deep", "loose_ends"} & (set(sys.modules) - known)
    return ""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mine.py:rihgt", "there is no 'rihgt' in mine.py\n    did you mean 'right'?\n    it defines: "),
        ("mien.py:right", "there is no file mien.py\n    did you mean 'mine.py'?\n    relative paths start at HOME"),
        ("deep/er/kode.py:right", "there is no file deep/er/kode.py\n    did you mean 'deep/er/code.py'?"),
        ("mine.py:LIMIT", "'LIMIT' in mine.py is a value, not a function"),
        ("mine.py:NAMES", "'NAMES' in mine.py is a value, not a function"),
        ("mine.py:Game.scroe", "there is no 'scroe' in Game of mine.py\n    did you mean 'score'?"),
        ("mine.py:strange", "strange names none of the arguments that say how it is to be called"),
        ("mine.py:keyed", "keyed needs the argument 'key'\n    what else it needs stands in `arguments`"),
        (
            "mine.py:needs_more",
            "needs_more needs the argument 'solution'\n    what else it needs stands in `arguments`",
        ),
        ("broken.py:right", "broken.py, line 2: no Python that can be read: '(' was never closed"),
        ("loose_ends:rigth", "there is no 'rigth' in module loose_ends\n    did you mean 'right'?"),
        ("loose_end.right", "there is no module loose_end\n    did you mean 'loose_ends'?\n    install it, or put it"),
        ("deep.er.cod:right", "there is no module deep.er.cod\n    did you mean 'deep.er.code'?"),
        ("deep.re.code:right", "there is no module deep.re"),
        ("deep.er.code.rigth", "there is no 'rigth' in module deep.er.code\n    did you mean 'right'?"),
        ("loose_ends.right.x", "there is no module loose_ends.right: loose_ends is a file, not a package"),
        ("json:dump_it", "there is no 'dump_it' in module json\n    did you mean 'dump'?"),
    ],
)
def test_a_function_that_is_not_there_is_told_with_its_line_and_the_nearest_one(
    home: Path, name: str, told: str
) -> None:
    assert said(home, REWARD, name).startswith(f"r.yaml:11: stage 'rl': {told}")


@pytest.mark.parametrize(
    "name",
    [
        "mine.py:right", "mine.py:later", "mine.py:hidden", "mine.py:other", "mine.py:fallback", "mine.py:Game.score",
        "loose_ends.right", "deep.er.code:right", "mine.py:put",
        "mine.py:Child.score",  # in the base class: not looked into
        "open.py:whatever",  # a star may bring anything
        "os.path:join", "time:time",  # a module that `os` brings; one without a text
    ],
)  # fmt: skip
def test_a_function_that_is_or_may_be_there_is_let_through_and_nothing_is_run(home: Path, name: str) -> None:
    assert not re.search("there is no|is a value|no Python", said(home, REWARD, name))


def test_arguments_that_a_recipe_gives_are_held_against_those_that_a_function_takes(home: Path) -> None:
    assert said(home, REWARD, "mine.py:keyed", "arguments: {key: 1}") == ""
    assert said(home, REWARD, "mine.py:needs_more", "arguments: {solution: 1, other: 2}") == ""
    told = said(home, REWARD, "mine.py:right", "arguments: {limit: 1}")
    assert told.startswith("r.yaml:12: stage 'rl': right does not take the argument 'limit'\n    it takes: answer, col")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mine.py:Gmae", "there is no 'Gmae' in mine.py\n    did you mean 'Game'?"),
        ("mine.py:right", "'right' in mine.py is a function, not a class"),
        ("loose_ends:Gam", "there is no 'Gam' in module loose_ends\n    did you mean 'Game'?"),
        ("games.py:Game", "there is no file games.py"),
    ],
)
def test_an_environment_that_is_not_there_is_told_with_its_line(home: Path, name: str, told: str) -> None:
    assert said(home, SOURCE, name).startswith(f"r.yaml:12: stage 'rl': {told}")
    assert said(home, SOURCE, "mine.py:Game") == ""


@pytest.mark.parametrize(("part", "name"), [(REWARD, "deep.er.code:right"), (SOURCE, "deep.er.code:Game")])
def test_a_function_or_class_named_by_its_module_makes_the_file_of_the_module_an_input(
    home: Path, part: str, name: str
) -> None:
    def draft() -> tuple[str, dict[str, str]]:
        assert said(home, part, name) == ""
        plan = check_recipe(load_recipe(home / "r.yaml"))
        made = draft_of(plan.recipe, plan.stages[0], {})
        return made.fingerprint, made.files

    before, files = draft()
    assert list(files) == ["rows.jsonl", "module deep.er.code"]
    (home / "deep" / "er" / "code.py").write_text(CODE + "\n# another reward\n")
    assert draft()[0] != before
