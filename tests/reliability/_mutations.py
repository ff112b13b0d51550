"""What makes a sound recipe, or a sound data file, hostile: strategies of hypothesis over values, trees and bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

#: texts that mean something to a reader, a shell, a path or a template
NASTY = (
    "", " ", "\t", "\n", "\r\n", "\x00", "\x1b[2J", "\u202e", "\ufeff", "\U0001f600", "e\u0301", "\ud800",
    "a" * 3000, "stage:", "stage:one", "stage:nowhere", "stage:../one", "base", "input", "self", "~", "~nobody",
    ".", "..", "../../etc/passwd", "/", "/dev/zero", "/proc/self/environ", "*", "**/*", "[", "rows.jsonl", "rows",
    "name", "none", "null", "true", "1e5", "-1", "nan", ".inf", "1_000", "0x10", "{}", "[]", "{{ 7 * 7 }}", "{% for %}",
    "%s%n", "$HOME", "`ls`", "<script>", "--set", "-", "?", "&a", "*a", "!!python/object:os.system", "file.py:f",
    "os.path", "os:system", "(a+)+$", "http://user:pass@host/", "file:///etc/passwd", "hf_abcdefghijklmnopqrstuvwxyz",
    "CON", "user/repo",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e-300, 1e300, 5e-324)
FLOATS = (float("nan"), float("inf"), float("-inf"))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(FLOATS),
    st.sampled_from(NASTY),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6) | st.sampled_from(NASTY), inner, max_size=3)
    ),
    max_leaves=6,
)
OPERATIONS = ("replace", "replace", "delete", "rename", "copy", "insert", "wrap", "deepen", "many")
#: (operation, which place, another place, value, key); places are shares of all that there are
changes = st.tuples(
    st.sampled_from(OPERATIONS),
    st.floats(0, 0.999),
    st.floats(0, 0.999),
    values,
    st.text(max_size=8) | st.sampled_from(NASTY),
)
BYTES = (
    b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\x85", b"\x1f\x8b", b"PAR1", b"ARROW1",
    b"\r", b"\n", b"\n\n\n", b"\t", b'"', b"'", b"{", b"}", b"[", b",", b": ", b"? ", b"# ", b"|\n", b"---\n", b"...\n",
    b"[" * 3000, b'{"a":' * 3000, b"- " * 500, b"&a [*a, *a]", b"<<: *x", b"!!python/name:os.system ", b"%YAML 9.9\n",
    b"NaN", b"-Infinity", b"9" * 5000, b"1e99999", b"\\ud800", b"\\u0000",
)  # fmt: skip
BYTE_OPERATIONS = ("cut", "drop", "insert", "insert", "flip", "repeat", "utf-16", "bom", "empty", "front")
#: (operation, where, how much, what); places are shares of the length
byte_changes = st.tuples(
    st.sampled_from(BYTE_OPERATIONS),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(BYTES) | st.binary(min_size=1, max_size=6),
)


def changed(tree: Any, many: list[Any]) -> Any:
    """The tree with every change made, one after the other."""
    tree = copy.deepcopy(tree)
    for operation, share, other, value, key in many:
        places = list(_places(tree))
        if not places:
            return value
        holder, at = places[int(share * len(places))]
        elsewhere, there = places[int(other * len(places))]
        value = copy.deepcopy(value)
        _CHANGES[operation](holder, at, value, key, copy.deepcopy(elsewhere[there]))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(mapping or list, key or index) of everything inside a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for at, child in list(inner):
        yield tree, at
        yield from _places(child)


def _replace(holder: Any, at: Any, value: Any, key: str, other: Any) -> None:
    holder[at] = value


def _delete(holder: Any, at: Any, value: Any, key: str, other: Any) -> None:
    del holder[at]


def _rename(holder: Any, at: Any, value: Any, key: str, other: Any) -> None:
    if isinstance(holder, dict):
        holder[key] = holder.pop(at)
    else:
        holder.reverse()


def _copy(holder: Any, at: Any, value: Any, key: str, other: Any) -> None:
    holder[at] = other


def _insert(holder: Any, at: Any, value: Any, key: str, other: Any) -> None:
    if isinstance(holder, dict):
        holder[key] = value
    else:
        holder.insert(at, value)


def _wrap(holder: Any, at: Any, value: Any, key: str, other: Any) -> None:
    holder[at] = [holder[at], other] if isinstance(value, bool) else {key: holder[at]}


def _deepen(holder: Any, at: Any, value: Any, key: str, other: Any) -> None:
    for _ in range(200):
        value = {key: value} if isinstance(value, str) else [value]
    holder[at] = value


def _many(holder: Any, at: Any, value: Any, key: str, other: Any) -> None:
    holder[at] = [value] * 400 if isinstance(holder, list) else {f"{key}{i}": other for i in range(60)}


_CHANGES: dict[str, Callable[[Any, Any, Any, str, Any], None]] = {
    "replace": _replace, "delete": _delete, "rename": _rename, "copy": _copy, "insert": _insert, "wrap": _wrap,
    "deepen": _deepen, "many": _many,
}  # fmt: skip


def bytes_changed(data: bytes, many: list[Any]) -> bytes:
    """The bytes with every change made, one after the other."""
    for operation, share, length, what in many:
        at = int(share * len(data))
        end = min(len(data), at + 1 + int(length * 200))
        if operation == "cut":
            data = data[:at]
        elif operation == "drop":
            data = data[:at] + data[end:]
        elif operation == "insert":
            data = data[:at] + what + data[at:]
        elif operation == "flip":
            data = data[:at] + what[:1] + data[at + 1 :]
        elif operation == "repeat":
            data = data[:at] + data[at:end] * 30 + data[end:]
        elif operation == "utf-16":
            data = data.decode("utf-8", errors="replace").encode("utf-16")
        elif operation == "empty":
            data = b"" if length < 0.2 else data[:at].strip()
        else:
            data = (b"\xef\xbb\xbf" if operation == "bom" else what) + data
    return data
