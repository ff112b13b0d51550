"""Trees of replies: `prompt` is a message with `replies`, each with its own; each user's turn is an example.

The prompt of an example is the way from the root to the turn. Replies of the assistant with a `rank` (0 is best) get as
reward the number of replies that they are ranked above; one reply, or replies without any rank, are to be imitated.
A reply without a rank among ranked ones is left out; the column `unranked` counts these. A user's turn without a reply
gives no example. Source of the form: Köpf et al. 2023, arXiv:2304.07327 (OpenAssistant).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import cell, said

_ROLES = {"prompter": "user", "user": "user", "assistant": "assistant"}


class TreesSettings(Settings):
    """Which turns of a tree become examples."""

    ranked: bool = Field(False, description="only turns with two or more ranked replies")
    deleted: bool = Field(False, description="messages marked as deleted are used as well, with what replies to them")


def recognises(row: Mapping[str, Any]) -> bool:
    """A message with replies."""
    root = row.get("prompt")
    return isinstance(root, Mapping) and isinstance(root.get("replies"), list)


def convert(row: Mapping[str, Any], settings: TreesSettings) -> list[Example]:
    """An example for each user's turn that has replies, from the root down. ValueError for what is no such tree.

    Columns are those of the row but for the tree, and of the turn: `message_id`, `lang`, `synthetic` where it has them.
    """
    columns = {key: value for key, value in row.items() if key != "prompt"}
    return list(_examples(cell(row, "prompt"), [], columns, settings))


def _examples(
    node: Any, before: list[dict[str, str]], columns: Mapping[str, Any], settings: TreesSettings
) -> Iterator[Example]:
    turn = _turn(node)
    if before and turn["role"] == before[-1]["role"]:
        raise ValueError(f"column 'prompt' is no tree of replies: '{turn['role']}' replies to '{turn['role']}'")
    way = [*before, turn]
    replies = [one for one in _replies(node) if settings.deleted or not one.get("deleted")]
    if turn["role"] == "user" and replies:
        own = {key: node[key] for key in ("message_id", "lang", "synthetic") if key in node}
        example = _example(way, replies, {**columns, **own}, settings)
        if example is not None:
            yield example
    for reply in replies:
        yield from _examples(reply, way, columns, settings)


def _example(
    way: list[dict[str, str]], replies: list[Mapping[str, Any]], columns: dict[str, Any], settings: TreesSettings
) -> Example | None:
    if any(_turn(one)["role"] != "assistant" for one in replies):
        raise ValueError("column 'prompt' is no tree of replies: 'user' replies to 'user'")
    ranked = [one for one in replies if one.get("rank") is not None]
    if len(replies) > 1 and len(ranked) > 1:
        if not all(isinstance(one["rank"], (int, float)) for one in ranked):
            raise ValueError("column 'prompt': the rank of a reply must be a number, 0 for the best")
        ranked.sort(key=lambda one: float(one["rank"]))
        rewards = [float(sum(other["rank"] > mine["rank"] for other in ranked)) for mine in ranked]
        columns["unranked"] = len(replies) - len(ranked)
        return Example(list(way), [_turn(one)["content"] for one in ranked], rewards, columns)
    return None if settings.ranked else Example(list(way), [_turn(one)["content"] for one in replies], None, columns)


def _turn(node: Any) -> dict[str, str]:
    role = _ROLES.get(str(node.get("role"))) if isinstance(node, Mapping) else None
    if role is None:
        raise ValueError("column 'prompt' must be a message with `role` (prompter or assistant), `text` and `replies`")
    return {"role": role, "content": said(node.get("text", node.get("content")), "prompt.text")}


def _replies(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(one, Mapping) for one in replies):
        raise ValueError("column 'prompt': `replies` must be a list of messages")
    return replies


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: trees`."""
    return [DataFormat("trees", TreesSettings, recognises=recognises, convert=convert)]
