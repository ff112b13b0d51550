"""What every package of `unified plugin new` has, whatever its kind: pyproject.toml, README, head of the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """A kind's module and tests.

    hook: what offers the part. use: the line of a recipe that names it. needs: settings that must be given to check it.
    """

    hook: str
    use: str
    module: str
    tests: str
    needs: tuple[tuple[str, str], ...] = ()


#: head of the tests; $IMPORTS are the public names that they use
TESTS = '''
"""$NAME, on numbers worked by hand, and through the contract that every $KIND keeps."""

$STANDARD

import $MODULE as plugin

from unified import $IMPORTS
from unified.testing import check_part

(PART,) = plugin.$HOOK()


def test_it_keeps_the_contract_of_its_kind() -> None:
    assert check_part("$KIND", PART$NEEDS) == []


def test_the_package_has_one_entry_point_which_is_this_module() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert list(project["entry-points"]["unified"].values()) == [plugin.__name__]

'''

PYPROJECT = """
[build-system]
requires = ["setuptools>=70.1"]
build-backend = "setuptools.build_meta"

[project]
name = "$PACKAGE"
version = "0.1.0"
description = "The $KIND $NAME for unified"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["unified-post-training"]

[project.entry-points.unified]
$MODULE = "$MODULE"

[tool.setuptools]
py-modules = ["$MODULE"]

[tool.pytest.ini_options]
pythonpath = ["."]
testpaths = ["tests"]
"""

README = """
# $PACKAGE

The $KIND `$NAME` for `unified`. Say here what it does, and where it comes from.

    pip install .
    unified plugin check $NAME$SETS
    python -m pytest

A recipe uses it by name: `$USE`. For an editor that completes and checks recipes while you write, run
`unified schema > recipe.schema.json` beside them, and let their first line be
`# yaml-language-server: $$schema=recipe.schema.json`.
"""

#: beside an algorithm: two steps of it, to see that it is found and trains
RECIPE = """
# Random weights and an embedded task: nothing is fetched. `unified run recipe.yaml`
name: try-$PACKAGE
model:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
  tokenizer: random_walks
stages:
  train:
    algorithm: {name: $NAME, scale: 1.0}
    data: {name: random_walks, view: prompts}
    reward: random_walks
    source: {group_size: 4, max_tokens: 12}
    batch_size: 4
    max_steps: 2
    learning_rate: 1e-3
"""
