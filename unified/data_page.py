"""What `unified data` prints: the findings of `look` as a page for a person, or as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from unified.data_columns import Column
from unified.data_rows import MARKS, page, plainly
from unified.data_tool import Lengths, Looked

#: longest bar of a histogram, in characters
BAR = 40


def show(console: Console, looked: Looked) -> None:
    """The page; on a terminal what is learned is green."""
    for line in [*_head(looked), *(_body(looked) if looked.recognised is not None else _needs(looked))]:
        console.print(Text(plainly(line)), soft_wrap=True)
    if not looked.shown:
        return
    coloured = console.is_terminal and console.color_system is not None
    how = "in green" if coloured else f"between {MARKS[0]} and {MARKS[1]}"
    what = (
        "rows as the model sees them" if looked.unit == "tokens" else "rows as text (no chat template without --model)"
    )
    console.print(Text(f"\n{what}; what is learned stands {how}:"), soft_wrap=True)
    for one in looked.shown:
        console.print(page(one, coloured=coloured), soft_wrap=True)


def _head(looked: Looked) -> Iterator[str]:
    yield f"{looked.file}: dataset {looked.dataset['name']}"
    if looked.recognised is None:
        yield f"format: not known; {looked.why}"
    else:
        yield f"format: {looked.recognised}{f' ({looked.why})' if looked.why else ''}"
        if looked.about:
            yield f"    {looked.about}"
    yield "columns:"
    yield from _columns(looked.columns, looked)
    for source in looked.sources:
        yield f"source {source.dataset}"
        yield f"    format: {source.recognised}{f' ({source.why})' if source.why else ''}"
        yield from _columns(source.columns, looked)


def _columns(columns: list[Column], looked: Looked) -> Iterator[str]:
    wide = max((len(column.name) for column in columns), default=0)
    for column in columns:
        means = " and ".join(column.becomes) or ("stays a column" if looked.recognised is not None else column.holds)
        nobody = ", which no format names" if column.name in looked.unplaced else ""
        yield f"    {column.name:<{wide}}  {means}{nobody}"


def _needs(looked: Looked) -> Iterator[str]:
    """For columns that nobody can place."""
    yield f"not placed: {', '.join(looked.unplaced) or 'none; but no format takes these together'}"
    for how, line in zip(("in a recipe", "here"), looked.advice, strict=False):
        yield f"    try {how}: {line}"
    yield "`--columns WANTED=COLUMN` says which column is which, `--format NAME` which format it is; what they take:"
    for name, what in looked.needs.items():
        yield f"    {name}: {what}"


def _body(looked: Looked) -> Iterator[str]:
    yield f"rows: {looked.rows}, with {looked.answers} answers"
    yield from _not_kept(looked)
    if looked.repeated_prompts:
        yield (
            f"repeated: {looked.repeated} rows say what an earlier one says; "
            f"{looked.repeated_prompts} have the prompt of an earlier one"
        )
    if looked.system:
        yield f"system messages: {_share(looked.system, looked.rows)} of the prompts; {looked.empty_system} are empty"
    for place in looked.places:
        yield f"    {place}"
    without = "" if looked.unit == "tokens" else "; --model gives tokens"
    yield f"\nlengths in {looked.unit}{without}:"
    yield f"    {'':<8}{'number':>9}{'min':>8}{'median':>8}{'p90':>8}{'p99':>8}{'max':>8}"
    both = [(name, found) for name, found in (("prompts", looked.prompt), ("answers", looked.answer)) if found]
    for name, one in both:
        numbers = (one.least, one.median, one.p90, one.p99, one.most)
        yield f"    {name:<8}{one.number:>9}{''.join(f'{number:>8}' for number in numbers)}"
    if looked.tokens:
        yield f"    learned: {looked.trained} of {looked.tokens} tokens ({_share(looked.trained or 0, looked.tokens)})"
    for name, one in both:
        yield f"{name}:"
        yield from _bars(one)


def _not_kept(looked: Looked) -> Iterator[str]:
    """Rows that a stage would leave out, or change."""
    if looked.left_out:
        yield f"left out or changed: {', '.join(f'{name} {number}' for name, number in looked.left_out.items())}"
    if looked.limit is None:
        return
    if not looked.over:
        yield f"too long: none; the limit is {looked.limit} tokens"
        return
    cut = ", ".join(f"{looked.over[way]} with `{way}`" for way in ("cut_prompt", "cut_answer"))
    yield (
        f"too long: {looked.over['rows']} rows have more than {looked.limit} tokens: an error, "
        f"left out with `too_long: drop`, or cut: {cut} (those that cannot be are left out)"
    )


def _bars(one: Lengths) -> Iterator[str]:
    most = max(number for _, _, number in one.histogram)
    names = [str(low) if low == high else f"{low}-{high}" for low, high, _ in one.histogram]
    wide = max(map(len, names))
    for name, (_, _, number) in zip(names, one.histogram, strict=True):
        yield f"    {name:>{wide}}  {number:>8}  {'#' * (-(-BAR * number // most))}".rstrip()


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
