"""Prompt groups of rows that stay in their file: rendered when they are drawn, and not kept. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, overload

from unified.data import Example, PromptGroup
from unified.errors import UserError
from unified.fit import Policy
from unified.left_out import Counts, Places, settled
from unified.render import CHUNK, Renderer


def is_streaming(examples: Sequence[Example]) -> bool:
    """Whether a dataset says of its rows (`streaming`) that they stay where they are."""
    return bool(getattr(examples, "streaming", False))


class LazyRows:
    """Rows of one dataset, each rendered when it is asked for; what `render_rows` counts is counted then.

    Args: those of `render_rows`, which renders all of them at once.
    counts: {"rows"} and what the dataset itself left out, with its first places.
    """

    def __init__(
        self,
        renderer: Renderer,
        examples: Sequence[Example],
        *,
        needs_answers: int,
        too_long: Policy = "refuse",
        reserve: int = 0,
    ) -> None:
        """UserError where there are no rows."""
        if not len(examples):
            raise UserError("the dataset has no rows", "give a file or a setting that leaves at least one")
        self._renderer, self._examples = renderer, examples
        self._needs, self._too_long, self._reserve = needs_answers, too_long, reserve
        own = {"rows": len(examples), **getattr(examples, "counts", {})}
        self.counts = Counts(own, getattr(examples, "problems", ()))

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> PromptGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[PromptGroup]: ...
    def __getitem__(self, index: int | slice) -> PromptGroup | list[PromptGroup]:
        """One row, rendered now; UserError where it is too long. Of a slice those that are not."""
        if isinstance(index, slice):
            return [group for group in self.take(range(*index.indices(len(self))))[0] if group is not None]
        (group,), counts = self.take([range(len(self))[index]])
        if group is None:
            raise UserError(*counts.problems)
        return group

    def take(self, rows: Sequence[int]) -> tuple[list[PromptGroup | None], Counts]:
        """The rows of these numbers in this order, through one call of the tokenizer; None for one that is too long.

        UserError for a row over the limit where too_long is "refuse", with too few answers, or that cannot be rendered.
        """
        examples = [self._examples[row] for row in rows]
        made = self._renderer.groups(examples, numbers=rows, reserve=self._reserve, too_long=self._too_long)
        done: Counter[str] = Counter()
        places, groups = Places(), list[PromptGroup | None]()
        for row, example, one in zip(rows, examples, made, strict=True):
            about: dict[str, Any] = {"needs_answers": self._needs, "too_long": self._too_long, "reserve": self._reserve}
            groups.append(settled(row, example, one, done, places, **about))
        return groups, Counts(done, places.lines)

    def first(self, n: int) -> tuple[list[PromptGroup], Counts]:
        """The first n rows that are not too long, and what was counted until then. UserError where there are none."""
        groups: list[PromptGroup] = []
        done, problems = Counter(self.counts), list(self.counts.problems)
        size = min(CHUNK, max(n, 16))
        for begin in range(0, len(self), size):
            if len(groups) >= n:
                break
            taken, counts = self.take(range(begin, min(begin + size, len(self))))
            groups += [group for group in taken if group is not None]
            done.update(counts)
            problems += counts.problems
        if not groups:
            raise UserError(
                f"all {len(self)} rows have more than {self._renderer.max_length} tokens",
                "set a larger max_length, or other data",
            )
        return groups[:n], Counts({**done, "kept": len(groups[:n])}, problems)
