"""YAML as a tree that knows where each value was written, and the merging of such trees.

Scalars are read by the rules of YAML 1.2: only `true` and `false` are booleans (so that the keys `on` and `no` stay
words), and `1e-5` is a number. Keys are always text. A key that stands twice in one mapping is a mistake. Tags other
than those of plain values are refused, and so is what only serves to exhaust the reader: see the limits below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from unified.errors import Problem, UserError

#: limits of one text: characters, mappings and lists inside each other, and values with what aliases repeat written out
LONGEST, DEEPEST, MOST_VALUES = 1_000_000, 60, 50_000
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "int", "float", "str", "map", "seq"))


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written: a file with a line (from 1), or a part of the command line with line 0."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Node:
    """A value with its place. `value` is a dict of Nodes, a list of Nodes, or a scalar."""

    value: Any
    place: Place

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def get(self, key: str) -> Node | None:
        """The node under a key of a mapping; None where there is none."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def entry(self, index: int) -> Node | None:
        """The node at a place of a list; None where there is none."""
        return self.value[index] if isinstance(self.value, list) and index < len(self.value) else None

    def items(self) -> Iterator[tuple[str, Node]]:
        """Keys and nodes of a mapping; nothing for anything else."""
        return iter(self.value.items() if isinstance(self.value, dict) else ())

    def place_of(self, path: tuple[str | int, ...]) -> Place:
        """Where the value at `path` was written, or what of the path to it was."""
        node = self
        for part in path:
            below = node.get(part) if isinstance(part, str) else node.entry(part)
            if below is None:
                break
            node = below
        return node.place


def located(value: Any, place: Place) -> Node:
    """A plain value as a tree that was written in one place."""
    if isinstance(value, Mapping):
        return Node({str(key): located(item, place) for key, item in value.items()}, place)
    if isinstance(value, list):
        return Node([located(item, place) for item in value], place)
    return Node(value, place)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, which does not go deeper than it may."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node with what it holds; MarkedYAMLError below the deepest level."""
        self.depth += 1
        if self.depth > DEEPEST:
            problem = f"more than {DEEPEST} mappings and lists stand inside each other"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^[-+]?[0-9]+[eE][-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def read_yaml(text: str, source: str, problems: list[tuple[Place, Problem]], *, lines: bool = True) -> Node:
    """The tree of a YAML text. Duplicate keys are added to `problems` with both lines; the first one counts.

    With `lines` False (text from the command line) every place is `source` alone.
    Raises UserError with the line for text that is no YAML, or goes beyond the limits.
    """
    if len(text) > LONGEST:
        raise UserError(f"{source}: {len(text):,} characters are too many to read", f"at most {LONGEST:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark and lines else 0
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{Place(source, line)}: this is no YAML: {why}") from error
    except yaml.YAMLError as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{source}: this is no YAML: {why}") from error
    if node is None:
        return Node(None, Place(source, 1 if lines else 0))
    return _Reader(loader, source, problems, lines).read(node, None, ())


@dataclass
class _Reader:
    loader: _Loader
    source: str
    problems: list[tuple[Place, Problem]]
    lines: bool
    values: int = 0

    def place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1 if self.lines else 0)

    def read(self, node: yaml.Node, place: Place | None, above: tuple[int, ...]) -> Node:
        """`place` is that of the key under which the node stands; `above` the nodes that hold it."""
        place = place or self.place(node)
        if id(node) in above:
            raise UserError(f"{place}: an alias may not stand inside the mapping that it repeats")
        above = (*above, id(node))
        self.values += 1
        if self.values > MOST_VALUES:
            what = f"with what its aliases repeat, this is more than {MOST_VALUES:,} values"
            raise UserError(f"{place}: {what}", "a recipe of that size is a mistake, or an attack")
        if node.tag not in _PLAIN:
            raise UserError(f"{place}: the tag {node.tag[:80]} is not known here", "plain values need no tag")
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, above), place)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.read(item, None, above) for item in node.value], place)
        try:
            return Node(self.loader.construct_object(node), place)
        except (yaml.YAMLError, ValueError, LookupError) as error:
            raise UserError(f"{place}: cannot read the value '{node.value[:80]}'") from error

    def _mapping(self, node: yaml.MappingNode, above: tuple[int, ...]) -> dict[str, Node]:
        out: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{place}: a key must be a word")
            key = key_node.value
            if key in out:
                first = out[key].place
                where = f", first in line {first.line}" if first.line else ""
                self.problems.append((place, Problem(f"the key '{key}' stands twice in one mapping{where}")))
                continue
            out[key] = self.read(value_node, place, above)
        return out


def merge(base: Node, over: Node, *, is_part: bool = True) -> Node:
    """`over` laid on `base`: mappings merge key by key, anything else replaces.

    A mapping with another `name` chooses another part, so it replaces the old choice whole; a mapping without a name
    laid on the bare name of a part keeps the name and adds settings. Entries of a list are reached by their number.
    `is_part` False: these two mappings are no choice of a part, whatever their `name`.
    """
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        names = (base.get("name"), over.get("name"))
        if is_part and names[0] and names[1] and names[0].plain() != names[1].plain():
            return over
        merged = dict(base.value)
        for key, node in over.value.items():
            merged[key] = merge(merged[key], node) if key in merged else node
        return replace(base, value=merged)
    if isinstance(over.value, dict) and isinstance(base.value, str) and "name" not in over.value and _names_part(base):
        return Node({"name": base, **over.value}, base.place)
    if isinstance(base.value, list) and isinstance(over.value, dict) and _are_numbers(over, len(base.value)):
        entries = list(base.value)
        for key, node in over.value.items():
            entries[int(key)] = merge(entries[int(key)], node)
        return replace(base, value=entries)
    return over


def _names_part(node: Node) -> bool:
    from unified.registry import catalogue

    return any(catalogue().find(kind, node.value) is not None for kind in catalogue().kinds())


def _are_numbers(node: Node, length: int) -> bool:
    return all(key.isdecimal() and int(key) < length for key in node.value)


def parse_override(text: str, problems: list[tuple[Place, Problem]]) -> Node:
    """`a.b.c=VALUE` as a tree of nested mappings; VALUE is YAML. Its place is `--set a.b.c`.

    Raises UserError where there is no `=`, an empty key, or a VALUE that is no YAML.
    """
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise UserError(f"--set {text}: write it as KEY=VALUE or KEY.KEY=VALUE, for example stages.NAME.max_steps=10")
    place = Place(f"--set {'.'.join(keys)}")
    node = read_yaml(value, place.source, problems, lines=False)
    for key in reversed(keys):
        node = Node({key: node}, place)
    return node
