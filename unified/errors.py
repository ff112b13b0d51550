"""What a user can get wrong, said once: where, what, and what to do. Such an error ends a command with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: characters of one message or hint: longer than any that a name of sensible length gives
LONGEST = 4000


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name nearest to a misspelt one, or None when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    swapped = [other for other in near if sorted(other) == sorted(name)]  # "wdith" is "width"
    return next(iter(swapped or near), None)


def cut_short(text: str, longest: int = 400) -> str:
    """A text as a message may hold it: cut, with its length, where it would hide the message."""
    return text if len(text) <= longest else f"{text[:longest]} ... ({len(text):,} characters)"


def first_of(texts: Sequence[str], longest: int = 40_000) -> list[str]:
    """As many of the texts of problems as a person may read, at least one; how many more there are."""
    kept: list[str] = []
    for text in texts:
        if kept and sum(map(len, kept)) + len(text) > longest:
            return [*kept, f"... and {len(texts) - len(kept)} more like these"]
        kept.append(text)
    return kept


def shown(value: object) -> str:
    """A value as a message shows it: its repr, cut short."""
    return cut_short(repr(value), 200)


@dataclass(frozen=True)
class Problem:
    """One mistake: what is wrong, the path of keys that leads to it, and lines of advice."""

    message: str
    at: tuple[str | int, ...] = ()
    hints: tuple[str, ...] = ()

    def under(self, *prefix: str | int) -> Problem:
        """The same mistake, seen from further up."""
        return Problem(self.message, (*prefix, *self.at), self.hints)

    def text(self, where: str = "") -> str:
        """The message with its place in front and its hints indented below; each as long as a message may be."""
        head = f"{where}: {self.message}" if where else self.message
        return "\n".join([cut_short(head, LONGEST), *(f"    {cut_short(hint, LONGEST)}" for hint in self.hints)])


def unknown_name(
    what: str, name: str, known: Iterable[str], *, at: Sequence[str | int] = (), advice: str = ""
) -> Problem:
    """A name that nobody knows: with the nearest one, all the known ones, and what else to do."""
    names = sorted(known)
    near = did_you_mean(name, names)
    hints = [f"did you mean '{near}'?"] if near else []
    hints.append(f"known: {', '.join(names) or 'none'}")
    if advice:
        hints.append(advice)
    return Problem(f"no {what} '{name}'", tuple(at), tuple(hints))


class UserError(Exception):
    """A mistake that the user can mend. The command line prints it without a traceback and exits with 2."""

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__("\n".join([message, *(f"    {hint}" for hint in hints)]))


class LostEngine(UserError):  # noqa: N818 - it is away, which is nobody's mistake
    """What samples is away. The run writes a checkpoint and stops; the same command goes on from there."""


class FormatError(UserError):
    """No format fits the columns of a dataset, or several do.

    row: the first row, by column. needs: format -> what it takes, of those that fit, or of all where none does.
    """

    def __init__(self, message: str, *hints: str, row: Mapping[str, object], needs: Mapping[str, str]) -> None:
        super().__init__(message, *hints)
        self.row, self.needs = dict(row), dict(needs)


class PluginError(Exception):
    """A plugin's function raised. The message names the plugin, the part, and where in the run it was called."""
