"""The tables of `unified plan`, and below them what they assume and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified.console import duration
from unified.cost import Cost
from unified.devices import Hardware
from unified.memory import longest_row
from unified.pace import Pace, balance, pushes
from unified.scaling import short
from unified.work import Work

if TYPE_CHECKING:
    from unified.plan import Estimate, Place

UNKNOWN = "?"
_DOES = {
    "done": "skip",
    "depends": "run, if needed",
    "changed": "run",
    "interrupted": "resume",
    "new": "run",
}
#: ways to hand weights to servers -> how a table calls them
WAYS = {"adapter": "adapter folder", "folder": "safetensors folder", "network": "over the network"}


def print_plan(console: Console, made: Sequence[Estimate], place: Place) -> None:
    """What runs and why; work and cost; memory by part; with hardware, where time goes. Below them what was assumed."""
    runs = _table("What would run", ["stage", "will", "why"])
    for each in made:
        finding = each.finding
        why = "; ".join(finding.why) or "nothing that it depends on has changed"
        runs.add_row(*map(Text, (finding.stage.name, _DOES[finding.state], why)))
    console.print(runs)
    console.print(_work_table(made, place.on))
    console.print(_memory_table(made, place.on))
    if place.on is not None and any(_known(made)):
        console.print(_role_table(made))
        console.print(_step_table(made))
        if any(work.collects for _, work, _ in _known(made)):
            console.print(_server_table(made, place.on, place))
            console.print(_push_table(made, place.on, place))
    for line in [*does_not_fit(made, place), *notes(made, place)]:
        console.print(Text(line), soft_wrap=True)


def _known(made: Sequence[Estimate]) -> list[tuple[str, Work, Cost]]:
    """Stages whose work and cost are known."""
    return [(e.finding.stage.name, e.work, e.cost) for e in made if e.work is not None and e.cost is not None]


def _work_table(made: Sequence[Estimate], on: Hardware | None) -> Table:
    headings = ["stage", "steps", "prompts", "trained", "scored", "sampled", "FLOPs"]
    table = _table("Work, in tokens", [*headings, *(["time"] if on else [])])
    for each in made:
        work, cost = each.work, each.cost
        cells = [UNKNOWN] * 5
        if work is not None:
            tokens = [work.tokens(does) for does in ("train", "score", "generate")]
            cells = [str(work.steps), str(work.prompts), *("-" if not t else short(t) for t in tokens)]
        cells.append(f"{cost.flops:.2e}" if cost else UNKNOWN)
        if on:
            cells.append(_time(cost.seconds) if cost and cost.seconds is not None else UNKNOWN)
        table.add_row(*map(Text, (each.finding.stage.name, *cells)))
    todo = [e for e in made if e.finding.state != "done"]
    if len(made) > 1:
        known = [e.cost for e in todo if e.cost is not None]
        cells = ["at most", "", "", "", "", "", f"{sum(c.flops for c in known):.2e}"]
        cells += [_time(sum(c.seconds or 0.0 for c in known))] if on else []
        table.add_section()
        table.add_row(*map(Text, cells))
    return table


def _memory_table(made: Sequence[Estimate], on: Hardware | None) -> Table:
    headings = ["stage", "weights", "grads", "optim.", "activ.", "working", "cache", "peak"]
    table = _table("Memory of one device", [*headings, *(["fits"] if on else [])])
    for each in made:
        cells = [UNKNOWN] * (len(headings) - 1)
        fits = UNKNOWN
        if each.cost is not None:
            m = each.cost.memory
            parts = (m.weights, m.gradients, m.optimiser, m.activations, m.working, m.kv_cache, m.total)
            cells = [_bytes(value) for value in parts]
            fits = "yes" if on and m.total <= on.device.memory else "no"
        table.add_row(*map(Text, (each.finding.stage.name, *cells, *([fits] if on else []))))
    return table


def _role_table(made: Sequence[Estimate]) -> Table:
    table = _table("Memory of one device, by role", ["stage", "role", "weights", "gradients", "optimiser"])
    for name, _, cost in _known(made):
        for role in cost.memory.roles:
            cells = [_bytes(value) for value in (role.weights, role.gradients, role.optimiser)]
            table.add_row(*map(Text, (name, role.role, *cells)))
    return table


def _step_table(made: Sequence[Estimate]) -> Table:
    table = _table("Where the time of a step goes, percent", ["stage", "a step", *Pace.parts()])
    for name, work, cost in _known(made):
        if cost.pace is None or not cost.pace.total:
            continue
        total = cost.pace.total
        shares = [getattr(cost.pace, part) / total for part in Pace.parts()]
        cells = [f"{100 * s:.0f}" if s >= 0.005 else "-" for s in shares]
        table.add_row(*map(Text, (name, _time(total / max(work.steps, 1)), *cells)))
    return table


def _server_table(made: Sequence[Estimate], on: Hardware, place: Place) -> Table:
    """What servers of their own would do for stages that sample, whether or not the recipe has them."""
    headings = ["stage", "one server", "samples in", "trainer", "keep up", "one by one", "one ahead"]
    table = _table("Servers that sample: time of a collected batch", headings)
    device = place.servers.on.device.name if place.servers else on.device.name
    for name, work, cost in _known(made):
        found = balance(work, cost.sizes, on, place.spread, place.servers)
        if found is None:
            continue
        number = found.servers
        cells = [f"{found.devices} x {device}", _time(found.sampling), _time(found.training), str(number)]
        cells += [_time(found.batch_seconds(number, late)) for late in (0, 1)]
        table.add_row(*map(Text, (name, *cells)))
    return table


def _push_table(made: Sequence[Estimate], on: Hardware, place: Place) -> Table:
    table = _table("Servers that sample: time of one push of new weights", ["stage", *WAYS.values()])
    for name, work, cost in _known(made):
        found = pushes(work, cost.sizes, on, place.servers) if work.collects else {}
        if found:
            cells = [_time(found[way].seconds) if way in found else "-" for way in WAYS]
            table.add_row(*map(Text, (name, *cells)))
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    return Table(*headings, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _time(seconds: float) -> str:
    return "< 0.1 s" if seconds < 0.1 else duration(seconds)


def _bytes(value: float) -> str:
    return "-" if not value else size_text(value)


def does_not_fit(made: Sequence[Estimate], place: Place) -> list[str]:
    """Stages that need more memory than a device has, with the longest row that would fit."""
    lines: list[str] = []
    if place.on is None:
        return lines
    device = place.on.device
    for name, work, cost in _known(made):
        m = cost.memory
        if m.total <= device.memory:
            continue
        said = f"{name}: {size_text(m.total)} do not fit into the {size_text(device.memory)} of one {device.name}: "
        if m.fixed > device.memory:
            lines.append(f"{said}{size_text(m.fixed)} are needed whatever the length of rows. {_less_fixed(place)}")
            continue
        if m.kv_cache > m.activations + m.working:
            lines.append(f"{said}{size_text(m.kv_cache)} are kept for answers; lower `max_batch` of the engine.")
            continue
        fits = longest_row(work, cost.sizes, place.spread, device.memory)
        row = f"its longest row has {work.longest_row:.0f} tokens" if work.longest_row else "rows were not measured"
        lines.append(
            f"{said}{size_text(m.activations)} are activations of one forward. {fits} tokens fit ({row}); "
            f"{_shorter(work)} Rows cannot be split over devices: docs/scaling.md, Long rows."
        )
    return lines


def _less_fixed(place: Place) -> str:
    if not place.spread.weights:
        return "Share them out over more devices (`--launch fsdp2`, `zero3`), or train an `adapter`."
    return "Take more devices, or train an `adapter`."


def _shorter(work: Work) -> str:
    advice = [] if work.checkpointing else ["set `gradient_checkpointing: true`"]
    if work.micro_tokens > work.longest_row > 0:
        advice.append("lower `tokens_per_micro_batch`")
    return f"{' or '.join([*advice, 'lower `max_length`'])}."


def notes(made: Sequence[Estimate], place: Place) -> list[str]:
    """What the figures assume, and why some are missing."""
    lines = [
        "Tokens are those of all models together; answers to be sampled count as long as `max_tokens` allows.",
        "FLOPs: 2 per number of a matrix and token forward, 4 backward (2 beside an adapter; 2 more with activations",
        "recomputed), the read-out on answers alone, shared prompts once, and attention of half a row on average.",
        "Memory: models in float32; activations as transformers computes a Llama; the cache is that of keys and values",
        "while answers are sampled, never at the same time as activations. Working: weights in bfloat16, or gathered",
        "from other processes, gradients that are whole for a while, chunks of logits. Formulas: docs/scaling.md.",
    ]
    if place.on is not None:
        d = place.on.device
        lines.append(
            f"Time: {place.on}, {place.spread.name}: {place.spread.describe()}. {d.utilisation:.0%} of the peak "
            f"({d.bf16 / 1e12:g} TFLOP/s in bfloat16, {d.fp32 / 1e12:g} in float32), {d.bandwidth_used:.0%} of the "
            f"memory's bandwidth ({d.bandwidth / 1e12:g} TB/s), {place.on.rate / 1e9:g} GB/s between devices."
        )
        if any(work.collects for _, work, _ in _known(made)):
            lines.append(
                "Servers: `keep up` is how many sample a batch while the trainer learns from one; `one by one` is the "
                f"time of a batch with so many and max_staleness 0, `one ahead` with 1. Disk: {d.disk / 1e9:g} GB/s."
            )
    lines += [
        f"{stage.name}: models and data with another {' and '.join(sorted(stage.allowed))} are allowed."
        for stage in (e.finding.stage for e in made)
        if stage.allowed
    ]
    if any(e.work is None or e.cost is None for e in made):
        lines.append(
            f"{UNKNOWN}: the data of an earlier stage that has not run, a model or tokenizer that is not on this "
            "machine, or a kind of stage that does not tell its work."
        )
    return lines


def size_text(value: float) -> str:
    """Bytes as a person writes them, in powers of 1000: 3.2 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError
