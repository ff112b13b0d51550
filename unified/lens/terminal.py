"""A picture at the terminal: tokens with their number behind them, in colours that say the same as the signs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified.lens.picture import Column, Picture, Seen, alike, by_token

#: (red, green, blue) of a token that is raised or lowered most
UP, DOWN = (31, 97, 173), (168, 84, 0)
#: ends of the colour scale that a token of a small number still has
FAINT = 0.15
#: a sum that is a smaller part of its summands counts as 0
EXACT = 1e-6
#: tokens in a list of the most blamed
FEW = 4


def show(console: Console, picture: Picture, *, most: int = 12) -> None:
    """Print a picture: answers, sums, the tokens that are blamed, and what says nothing. most: answers in all."""
    for note in picture.notes:
        console.print(Text(f"note: {note}", "dim"))
    first = alike(picture.columns)
    drawn = [n for n, same in enumerate(first) if same == n]
    prompt = -1
    for number, shown in enumerate(picture.answers[:most]):
        if shown.row != prompt:
            prompt = shown.row
            console.print(Text(f"\n{picture.prompts[prompt]}", "bold"))
        reward = "no reward" if shown.reward is None else f"reward {shown.reward:g}"
        console.print(Text(f"\n  {''.join(shown.tokens).strip()}  ({reward})"))
        for n in drawn:
            column, seen = picture.columns[n], picture.columns[n].seen[number]
            for head in column.aggregation:
                console.print(_line(column, head, seen, shown.tokens, shown.mask))
    if len(picture.answers) > most:
        console.print(Text(f"\n({len(picture.answers) - most} answers more are in the page)", "dim"))
    console.print(_sums(picture, first))
    for name, why in picture.silent.items():
        console.print(Text(f"{name} says nothing of these rows: {why}", "dim"))


def _line(column: Column, head: str, seen: Seen | None, tokens: Sequence[str], mask: Sequence[bool]) -> Text:
    name = column.name if head == "logp" else f"{column.name} ({head})"
    line = Text(f"    {name:<14} ", "bold")
    if seen is None or head not in seen.heads:
        return line.append("has no part in this answer", "dim")
    pushes, cut = seen.pushes(head), seen.clipped.get(head, [])
    scale = max((abs(p) for one in column.seen if one for p in one.pushes(head)), default=0.0)
    for t, (token, on, push) in enumerate(zip(tokens, mask, pushes, strict=True)):
        word = token.strip() or repr(token)
        if not on:
            line.append(f"{word}[.]", "dim").append(" ")
            continue
        mark = "x" if t < len(cut) and cut[t] else ""
        line.append(f"{word}{signed(push)}{mark}", _style(push, scale)).append(" ")
    return line


def signed(value: float) -> str:
    """Two digits, with the sign in front.

    >>> signed(0.0642), signed(-0.5), signed(0.0)
    ('+0.064', '-0.5', '0')
    """
    return f"{value:+.2g}" if value else "0"


def _style(push: float, scale: float) -> str:
    if not push or not scale:
        return ""
    strength = FAINT + (1 - FAINT) * abs(push) / scale
    red, green, blue = (round(c * strength) for c in (UP if push > 0 else DOWN))
    return f"#ffffff on #{red:02x}{green:02x}{blue:02x}"


def _sums(picture: Picture, first: Sequence[int]) -> Table:
    """One line per algorithm and head; those that are alike share one."""
    table = Table("algorithm", "head", "w", "raised", "lowered", "sum", "clipped", "lowers most", "raises most")
    for n, column in enumerate(picture.columns):
        if first[n] != n:
            continue
        same = [c.name for m, c in enumerate(picture.columns) if first[m] == n]
        for head, how in column.aggregation.items():
            sums, words = column.sums(head), by_token(picture, column, head)
            size = EXACT * (sums["raised"] - sums["lowered"])  # what cancels leaves the end of its digits
            words = [word for word in words if abs(word[1]) > size]
            sums["sum"] = sums["sum"] if abs(sums["sum"]) > size else 0.0
            down = " ".join(f"{t} {signed(v)}" for t, v, _ in words[:FEW] if v < 0)
            up = " ".join(f"{t} {signed(v)}" for t, v, _ in reversed(words[-FEW:]) if v > 0)
            there = [one.clipped[head] for one in column.seen if one and head in one.clipped]
            cells = [signed(sums[name]) for name in ("raised", "lowered", "sum")]
            cut = str(sum(map(sum, there))) if there else "-"
            table.add_row(*map(Text, (" = ".join(same), head, how, *cells, cut, down or "-", up or "-")))
    return table
