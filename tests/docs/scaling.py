"""Writes the tables of docs/scaling.md: `python -m tests.docs.scaling`; a test compares them.

A table stands between `<!-- figures: NAME -->` and `<!-- end -->`. They come from the functions of `unified plan
--hardware`, for models of round shapes and rows of stated lengths in place of a recipe's; the comparison with this
machine from benchmarks/predictions.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from benchmarks.cases import CASES
from benchmarks.predictions import predicted
from tests.docs.snippets import ROOT
from unified.console import duration
from unified.cost import Cost, cost_of
from unified.devices import DEVICES, Hardware, hardware
from unified.estimate import work_of_training
from unified.memory import activations, kept_per_token, kv_bytes, learned, longest_row, memory_of
from unified.pace import Pace, Servers, balance, pushes
from unified.plan_page import WAYS, size_text
from unified.scaling import short
from unified.settings import parse
from unified.sizes import Size, size_of
from unified.spread import Spread, spread_of
from unified.stage import ModelSettings, TrainSettings
from unified.work import Job, Rows, Work

PAGE = ROOT / "docs" / "scaling.md"
MEASURED = ROOT / "benchmarks" / "predictions.json"
FIGURES = re.compile(r"(<!-- figures: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.S)


@dataclass(frozen=True)
class Shape:
    """A dense Llama: its name, its configuration, and the devices that the page gives it."""

    name: str
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    devices: int


#: published shapes: Llama 2 7B (arXiv:2307.09288), Llama 3 70B and Llama 3.1 405B (arXiv:2407.21783, table 3)
SHAPES = (
    Shape("7B", 32_000, 4096, 11_008, 32, 32, 32, 8),
    Shape("70B", 128_256, 8192, 28_672, 80, 64, 8, 64),
    Shape("400B", 128_256, 16_384, 53_248, 126, 128, 8, 512),
)
#: Llama 2 13B and 70B (arXiv:2307.09288, appendix A.2)
MIDDLE, LARGE = Shape("13B", 32_000, 5120, 13_824, 40, 40, 40, 64), Shape("70B", 32_000, 8192, 28_672, 80, 64, 8, 64)
#: rows of the page: prompts and answers, in tokens; 1024 prompts a step, 8 answers to each where answers are sampled
PROMPT, ANSWER, PROMPTS, GROUP = 512, 1024, 1024, 8
ROWS = Rows(PROMPTS * 10, 2.0, PROMPT, ANSWER, PROMPT + ANSWER, PROMPT)
STAGE: dict[str, Any] = {
    "data": "random_walks", "batch_size": PROMPTS, "max_steps": 10, "bf16": True, "gradient_checkpointing": True,
}  # fmt: skip
ONLINE = {"source": {"name": "rollouts", "group_size": GROUP, "max_tokens": ANSWER}, "reward": "random_walks"}
STAGES: dict[str, dict[str, Any]] = {
    "SFT": {"algorithm": "sft"},
    "DPO": {"algorithm": "dpo"},
    "PPO": {"algorithm": {"name": "ppo", "kl_weight": 0.05}, **ONLINE},
    "GRPO": {"algorithm": {"name": "grpo", "kl_weight": 0.04}, **ONLINE},
}
LORA = {"adapter": {"r": 16}}


@cache
def size(shape: Shape, scalar: bool = False) -> Size:
    """As `unified plan` finds it from a configuration."""
    new = {
        "model_type": "llama", "vocab_size": shape.vocabulary, "hidden_size": shape.hidden,
        "intermediate_size": shape.inner, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "tie_word_embeddings": False,
    }  # fmt: skip
    found = size_of(ModelSettings(path=None, new=new, tokenizer=None), ROOT, scalar=scalar)
    assert found is not None
    return found


def work(stage: str, *, remote: bool = True, **more: Any) -> Work:
    """The work of 10 steps of a stage; PPO is judged by a reward model, as large as the policy."""
    settings, problems = parse(TrainSettings, {**STAGE, **STAGES[stage], **more}, owner="the stage")
    assert not problems, problems
    rows = replace(ROWS, answers=1.0) if stage == "SFT" else ROWS
    made = work_of_training(settings, lambda data, split: rows if split == "train" else None)
    assert made is not None
    if stage == "PPO":
        judged = next(job for job in made.jobs if job.does == "generate")
        read = Job("reward model", "base", "score", judged.tokens, scalar=True, read_out=0.0, length=judged.length)
        made.jobs.append(read)
    return replace(made, remote=remote and bool(made.collects))


def cost(shape: Shape, made: Work, on: Hardware, spread: Spread, servers: Servers | None = None) -> Cost:
    found = cost_of(made, lambda reference, scalar: size(shape, scalar), on, spread, servers)
    assert found is not None
    return found


def h100(shape: Shape) -> Hardware:
    return hardware(f"{shape.devices}xH100")


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    lines = [headings, ["---", *(["---:"] * (len(headings) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def amount(value: float) -> str:
    return size_text(value) if value else "–"


def took(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def devices() -> str:
    """What the shipped devices are taken to be."""
    headings = ["device", "bfloat16, TFLOP/s", "float32, TFLOP/s", "memory, GB", "its bandwidth, TB/s"]
    headings += ["link, GB/s", "network, GB/s"]
    rows = []
    for name, d in DEVICES.items():
        numbers = (d.bf16 / 1e12, d.fp32 / 1e12, d.memory / 1e9, d.bandwidth / 1e12, d.link / 1e9, d.network / 1e9)
        rows.append([name, *(f"{number:.4g}" for number in numbers)])
    return table(headings, rows)


def models() -> str:
    """Sizes that everything else follows from."""
    headings = ["model", "parameters", "weights, float32", "weights, bfloat16", "state of AdamW training"]
    headings += ["keys and values of a token", "kept of a token, all layers", "the same, recomputed"]
    rows = []
    for shape in SHAPES:
        s = size(shape)
        n = s.parameters
        kept = kept_per_token(s, bf16=True) * s.layers
        again = activations(s, replace(work("SFT"), checkpointing=True), 1.0)
        values = (4 * n, 2 * n, 16 * n, kv_bytes(s, 2), kept, again)
        rows.append([shape.name, short(n), *map(size_text, values)])
    return table(headings, rows)


def _ways(shape: Shape) -> list[tuple[str, Spread, dict[str, Any]]]:
    n = shape.devices
    return [
        ("DDP (`gpus`)", spread_of("gpus", n), {}),
        ("`zero2`", spread_of("zero2", n), {}),
        ("`zero3`", spread_of("zero3", n), {}),
        ("`fsdp2`", spread_of("fsdp2", n), {}),
        ("DDP, LoRA", spread_of("gpus", n), LORA),
        ("`fsdp2`, LoRA", spread_of("fsdp2", n), LORA),
    ]


def roles() -> str:
    """Memory of one device in PPO, by role."""
    headings = ["model, devices, way", "policy", "critic", "reference", "reward model"]
    headings += ["activations", "working", "peak", "fits"]
    rows = []
    for shape in SHAPES:
        for name, spread, more in _ways(shape):
            m = cost(shape, work("PPO", **more), h100(shape), spread).memory
            held = {r.role: r.weights + r.gradients + r.optimiser for r in m.roles}
            names = ("policy", "critic", "reference", "reward model")
            cells = [amount(held.get(role, 0.0)) for role in names]
            cells += [amount(v) for v in (m.activations, m.working, m.total)]
            fits = "yes" if m.total <= DEVICES["H100"].memory else "no"
            rows.append([f"{shape.name}, {shape.devices} x H100, {name}", *cells, fits])
    return table(headings, rows)


def sent() -> str:
    """What a process sends in a step of SFT, and how that compares with computing."""
    headings = ["model, devices, way", "micro-batches", "sent in a step", "sending", "computing"]
    rows = []
    for shape in SHAPES:
        for name, spread, more in _ways(shape):
            made = work("SFT", **more)
            found = cost(shape, made, h100(shape), spread)
            numbers = learned(made, found.sizes)
            learning, whole = 4.0 * sum(numbers.values()), spread.gathered(bf16=made.bf16) * size(shape).parameters
            from unified.memory import micro_batches

            micros = micro_batches(made, spread)
            bytes_sent = spread.sent(whole, learning, forwards=0.0, micros=micros, steps=1.0)
            pace = found.pace
            assert pace is not None
            busy = (pace.forward + pace.backward) / made.steps
            label = f"{shape.name}, {shape.devices} x H100, {name}"
            seconds = took(bytes_sent / h100(shape).rate)
            rows.append([label, str(micros), size_text(bytes_sent), seconds, took(busy)])
    return table(headings, rows)


def step() -> str:
    """Where the time of a step goes, with as many devices that sample as devices that train."""
    headings = ["model, stage", "a step", *(f"{part}, %" for part in Pace.parts())]
    rows = []
    for shape in SHAPES:
        for stage in STAGES:
            made = work(stage)
            on = h100(shape)
            pace = cost(shape, made, on, spread_of("fsdp2", on.count), Servers(on)).pace
            assert pace is not None
            shares = [100 * getattr(pace, part) / pace.total for part in Pace.parts()]
            cells = [f"{share:.0f}" if share >= 0.5 else "–" for share in shares]
            rows.append([f"{shape.name}, {stage}", took(pace.total / made.steps), *cells])
    return table(headings, rows)


def push() -> str:
    """One push of new weights to as many devices as train, by each way."""
    headings = ["model, to", *WAYS.values()]
    rows = []
    for shape in SHAPES:
        on = h100(shape)
        fleet = Servers(on)
        found = pushes(work("GRPO"), {("policy", "base"): size(shape)}, on, fleet)
        found["adapter"] = pushes(work("GRPO", **LORA), {("policy", "base"): size(shape)}, on, fleet)["adapter"]
        number = round(fleet.number(size(shape)))
        label = f"{shape.name}, {number} servers of {fleet.tensor_parallel(size(shape))} x H100"
        rows.append([label, *(f"{size_text(found[way].sent)}, {took(found[way].seconds)}" for way in WAYS)])
    return table(headings, rows)


def servers() -> str:
    """How many servers feed a trainer of GRPO."""
    headings = ["model, trainer", "one server", "samples a batch in", "trainer learns in", "servers that keep up"]
    headings += ["their devices", "a batch, `max_staleness: 0`", "a batch, `max_staleness: 1`"]
    rows = []
    for shape in SHAPES:
        on = h100(shape)
        spread = spread_of("fsdp2", on.count)
        made = work("GRPO")
        found = balance(made, cost(shape, made, on, spread).sizes, on, spread, Servers(on))
        assert found is not None
        number = found.servers
        cells = [f"{found.devices} x H100", took(found.sampling), took(found.training), str(number)]
        cells += [str(number * found.devices), *(took(found.batch_seconds(number, late)) for late in (0, 1))]
        rows.append([f"{shape.name}, {on.count} x H100", *cells])
    return table(headings, rows)


def long_rows() -> str:
    """The longest row of SFT that fits one device, under FSDP2."""
    names = ("A100", "H100", "H200", "B200", "MI300X")
    rows = []
    for shape in SHAPES:
        for recomputed in (False, True):
            made = work("SFT", gradient_checkpointing=recomputed, tokens_per_micro_batch=1)
            made = replace(made, micro_tokens=1.0, longest_row=0.0, step_tokens=1.0)
            cells = []
            for name in names:
                sizes = {("policy", "base"): size(shape)}
                spread = spread_of("fsdp2", shape.devices)
                found = longest_row(made, sizes, spread, DEVICES[name].memory)
                cells.append(f"{found:,}" if found else "none")
            how = "recomputed" if recomputed else "kept"
            rows.append([f"{shape.name}, {shape.devices} devices, activations {how}", *cells])
    return table(["model", *names], rows)


def attention() -> str:
    """What share of the operations of a token attention is, by the length of its row."""
    lengths = (2_048, 8_192, 32_768, 131_072)
    rows = []
    for shape in SHAPES:
        s = size(shape)
        shares = [4 * s.layers * s.query_width * n / 2 for n in lengths]
        rows.append([shape.name, *(f"{100 * a / (a + 2 * (s.body + s.head)):.0f} %" for a in shares)])
    return table(["model", *(f"{n:,}" for n in lengths)], rows)


def here() -> str:
    """What was predicted for a CPU and what was measured on it."""
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    headings = ["case", "a step, predicted", "measured", "measured / predicted", "share of the peak"]
    headings += ["memory of a step, predicted", "measured", "measured / predicted"]
    rows = []
    peak = found["peaks"][found["options"]["precision"]]
    for title, m in found["cases"].items():
        p = predicted(CASES[title], found["peaks"], bf16=found["options"]["precision"] == "bf16")
        share = p["flops"] / m["seconds"] / peak
        cells = [f"{p['seconds']:.2f} s", f"{m['seconds']:.2f} s", f"{m['seconds'] / p['seconds']:.2f}", f"{share:.0%}"]
        cells += [size_text(p["bytes"]), size_text(m["bytes"]), f"{m['bytes'] / p['bytes']:.2f}"]
        rows.append([title, *cells])
    peaks = found["peaks"]
    said = (
        f"{found['machine']}, one thread; {peaks['bf16'] / 1e9:.0f} GFLOP/s in bfloat16, {peaks['fp32'] / 1e9:.0f} in "
        f"float32, {peaks['bandwidth'] / 1e9:.0f} GB/s; torch {found['versions']['torch']}, "
        f"{found['options']['precision']}, load {found['load']:.1f} at the start, {found['date']}.\n\n"
    )
    return said + table(headings, rows)


BLOG = "PyTorch blog, Maximizing training throughput using PyTorch FSDP, 2024"
#: (what, shape, devices, tokens of a row, recomputed, tokens a second and device, where it is published)
PUBLISHED = (
    (
        "7B, 128 x A100",
        SHAPES[0],
        "128xA100",
        4096,
        False,
        3700,
        BLOG,
    ),
    ("13B, 64 x A100", MIDDLE, "64xA100", 4096, False, 2162, "torchtitan, docs/performance.md"),
    ("70B (Llama 2), 64 x A100", LARGE, "64xA100", 4096, True, 353, "the same"),
    ("70B (Llama 3), 64 x A100", SHAPES[1], "64xA100", 8192, True, 331, "the same"),
)


def published() -> str:
    """What was predicted for machines of others, and what they published."""
    headings = ["model, devices", "tokens of a row", "predicted", "published", "published / predicted", "source"]
    rows = []
    for what, shape, devices_, length, recomputed, said, source in PUBLISHED:
        on = hardware(devices_)
        read = on.count * length
        job = Job("policy", "base", "train", read, read_out=read, length=length)
        made = Work(1, on.count, [job], micro_tokens=length, step_tokens=read, bf16=True, checkpointing=recomputed)
        pace = cost(shape, made, on, spread_of("fsdp2", on.count)).pace
        assert pace is not None
        busy = pace.forward + pace.backward
        found = length / busy
        rows.append([what, f"{length:,}", f"{found:,.0f}", f"{said:,}", f"{said / found:.2f}", source])
    return table(headings, rows)


TABLES: dict[str, Callable[[], str]] = {
    "devices": devices, "models": models, "roles": roles, "sent": sent, "step": step, "push": push,
    "servers": servers, "long rows": long_rows, "attention": attention, "here": here, "published": published,
}  # fmt: skip


def renewed(text: str) -> str:
    """The page with its tables as they should be. KeyError for a table that nobody makes."""
    return FIGURES.sub(lambda m: f"{m[1]}{TABLES[m['name']]()}\n{m[3]}", text)


def memory(shape: Shape, stage: str, way: str, **more: Any) -> float:
    """Bytes of one device at its peak, for the tests of what the page says."""
    made = work(stage, **more)
    spread = spread_of(way, shape.devices)
    return memory_of(made, cost(shape, made, h100(shape), spread).sizes, spread).total


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
