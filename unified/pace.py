"""Where the time of a stage goes on given hardware, and how many servers keep up with a trainer. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from unified.devices import Hardware
from unified.memory import BFLOAT16, FLOAT32, at_once, kv_bytes, learned, micro_batches
from unified.sizes import Size
from unified.spread import Spread
from unified.work import Job, Work

Sizes = Mapping[tuple[str, str], Size]
#: operations per number of a matrix and token: forward, backward (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)
FORWARD, BACKWARD = 2, 4
#: passes of an optimiser over a trained number, of 4 bytes each: weight and gradient read and weight written, and a
#: gradient read twice and written once to clip it; 2 more for each moment
PASSES = 6
#: share of a server's memory that weights, keys and values may fill, and answers that it decodes at once: the defaults
#: of `vllm serve` (gpu_memory_utilization, max_num_seqs)
SERVER_MEMORY, SERVER_ANSWERS = 0.9, 256


@dataclass(frozen=True)
class Servers:
    """Devices that sample, apart from those that train. A server is as many of them as its weights need."""

    on: Hardware

    def tensor_parallel(self, size: Size) -> int:
        """Devices of one server: the smallest power of two whose memory holds the weights twice over, in bfloat16.

        The other half is for keys and values.
        """
        needed = 2 * BFLOAT16 * size.parameters / (SERVER_MEMORY * self.on.device.memory)
        return int(2 ** max(0, math.ceil(math.log2(needed))))

    def number(self, size: Size) -> float:
        """Servers of that size; below 1 where there are fewer devices than one needs."""
        return self.on.count / self.tensor_parallel(size)

    def seconds(self, job: Job, size: Size, answers: float) -> float:
        """Time in which one server samples all the answers of a job, so many of them collected at a time."""
        devices = self.tensor_parallel(size)
        one = Hardware(devices, self.on.device)
        context = job.length - job.new_tokens / max(job.tokens / job.length, 1.0) / 2 if job.length else 0.0
        kept = kv_bytes(size, BFLOAT16)
        room = SERVER_MEMORY * devices * self.on.device.memory - BFLOAT16 * size.parameters
        fit = room / (kept * job.length) if job.length else SERVER_ANSWERS
        at_once = max(1.0, min(answers, fit, SERVER_ANSWERS))
        read = (BFLOAT16 * size.parameters + at_once * context * kept) / devices
        decoding = job.new_tokens / at_once * one.reading_seconds(read)
        return max(decoding, one.seconds(_forward(job, size), bf16=True))


@dataclass(frozen=True)
class Pace:
    """Seconds of a whole stage, by what they are spent on.

    waiting: for other processes, beyond what computing hides. sampling: where nothing overlaps it. push: of new weights
    to servers. ahead: seconds of sampling that overlap the rest, and are not part of the total but where they exceed it
    (`waiting` then has the difference).
    """

    forward: float = 0.0
    backward: float = 0.0
    scoring: float = 0.0
    sampling: float = 0.0
    update: float = 0.0
    push: float = 0.0
    waiting: float = 0.0
    ahead: float = 0.0

    @property
    def total(self) -> float:
        """Of all that does not overlap."""
        return sum(getattr(self, name) for name in self.parts())

    @staticmethod
    def parts() -> list[str]:
        """What the total is made of."""
        return [f.name for f in fields(Pace) if f.name != "ahead"]


def _forward(job: Job, size: Size) -> float:
    """Operations of the forward of a job.

    Attention reads half of a row on average: queries by keys, and weights by values, 2 operations a number each.
    """
    read = job.tokens if job.read_out is None else job.read_out
    attention = 2 * FORWARD * size.layers * size.query_width * job.length / 2
    return job.computed * (FORWARD * size.body + attention) + read * FORWARD * size.head


def _backward(job: Job, size: Size, work: Work) -> float:
    """Operations of the backward of a job, with what it computes again.

    Beside an adapter weights need no gradient: half of it, but not of attention's, which has none.
    """
    read = job.tokens if job.read_out is None else job.read_out
    attention = 2 * BACKWARD * size.layers * size.query_width * job.length / 2
    weights = BACKWARD / (2 if work.adapter is not None else 1)
    layers = job.computed * (weights * size.body + attention)
    if work.checkpointing:
        layers += job.computed * (FORWARD * size.body + attention / 2)
    return layers + read * (weights + (FORWARD if job.again else 0)) * size.head


def operations(job: Job, size: Size, work: Work) -> float:
    """Floating-point operations of a job."""
    return _forward(job, size) + (_backward(job, size, work) if job.does == "train" else 0.0)


def pace_of(work: Work, sizes: Sizes, on: Hardware, spread: Spread, servers: Servers | None = None) -> Pace:
    """Seconds of a stage; what processes send overlaps with computing as far as it can."""
    found = {"forward": 0.0, "backward": 0.0, "scoring": 0.0, "sampling": 0.0}
    away = 0.0
    for job in work.jobs:
        size = sizes[job.role, job.model]
        if job.does == "train":
            found["forward"] += on.seconds(_forward(job, size), bf16=work.bf16)
            found["backward"] += on.seconds(_backward(job, size, work), bf16=work.bf16)
        elif job.does == "score":
            found["scoring"] += on.seconds(_forward(job, size), bf16=work.bf16)
        elif work.remote:
            fleet = servers or Servers(Hardware(1, on.device))
            away += fleet.seconds(job, size, work.collected / max(fleet.number(size), 1.0)) / fleet.number(size)
        else:
            found["sampling"] += in_process(job, size, work, on, spread)
    numbers = sum(learned(work, sizes).values())
    passes = PASSES + 2 * work.optimiser_bytes / 4
    update = on.reading_seconds(FLOAT32 * passes * numbers / spread.part(spread.optimiser)) * work.steps
    computing = found["forward"] + found["backward"] + found["scoring"]
    waiting = max(0.0, _sent(work, sizes, spread) / on.rate - computing)
    push = pushes(work, sizes, on, servers)["network"].seconds * work.collects if work.remote else 0.0
    if work.max_staleness > 0:
        busy = computing + update + waiting + push
        return Pace(**found, update=update, push=push, waiting=waiting + max(0.0, away - busy), ahead=away)
    found["sampling"] += away
    return Pace(**found, update=update, push=push, waiting=waiting)


def in_process(job: Job, size: Size, work: Work, on: Hardware, spread: Spread) -> float:
    """Seconds in which the trainer samples by itself: weights and kept keys and values are read for every token."""
    factor = BFLOAT16 if work.bf16 else FLOAT32
    computing = on.seconds(_forward(job, size), bf16=work.bf16)
    number = max(at_once(work, spread), 1.0)
    read = factor * size.parameters + number * job.length / 2 * kv_bytes(size, factor)
    decoding = job.new_tokens / (number * on.count) * on.reading_seconds(read)
    gathered = 0.0
    if spread.weights and spread.count > 1:  # the copy that answers is brought up to date before each rollout
        gathered = spread.share * FLOAT32 * size.parameters / on.rate * max(work.collects, 1)
    return max(computing, decoding) + gathered


def _sent(work: Work, sizes: Sizes, spread: Spread) -> float:
    """Bytes that each process sends for training and scoring in a stage."""
    numbers = learned(work, sizes)
    each = spread.gathered(bf16=work.bf16)
    weights = float(sum(each * sizes[key].parameters for key in numbers))
    micros = micro_batches(work, spread)
    per_micro = max(work.micro_tokens, 1.0) * spread.count
    scored = [(j.computed, sizes[j.role, j.model]) for j in work.jobs if j.does == "score"]
    forwards = sum(max(tokens / per_micro, 1.0) * each * size.parameters for tokens, size in scored)
    learning = FLOAT32 * sum(numbers.values())
    return spread.sent(weights, learning, forwards=forwards, micros=micros, steps=work.steps)


@dataclass(frozen=True)
class Push:
    """One way to hand new weights to servers: bytes, and seconds of one push."""

    sent: float
    seconds: float


def pushes(work: Work, sizes: Sizes, on: Hardware, servers: Servers | None) -> dict[str, Push]:
    """What one push costs by each way: `adapter` and `folder` by a disk that all share, `network` without it.

    A folder is written by one process and read by every server, all from the same disk; weights are float32 as saved.
    By the network one device sends bfloat16 weights to all servers at once, at the pace of its own share of it.
    """
    writing = next((j for j in work.jobs if j.does == "generate"), None)
    if writing is None:
        return {}
    size = sizes[writing.role, writing.model]
    fleet = servers or Servers(Hardware(1, on.device))
    readers = max(1, round(fleet.number(size)))
    disk = min(on.device.disk, fleet.on.device.disk)
    whole = FLOAT32 * float(size.parameters)
    found = {"folder": Push(whole * (1 + readers), whole * (1 + readers) / disk)}
    rate = min(on.device.network, fleet.on.device.network)
    found["network"] = Push(BFLOAT16 * float(size.parameters), BFLOAT16 * size.parameters / rate)
    if work.adapter is not None:
        number = FLOAT32 * float(size.learning(work.adapter, scalar=False))
        found["adapter"] = Push(number * (1 + readers), number * (1 + readers) / disk)
        found["network"] = Push(number, number / rate)
    return found


@dataclass(frozen=True)
class Balance:
    """Servers and a trainer, for one collected batch.

    sampling: seconds of one server; training: of the trainer, its push included. devices: of one server.
    """

    sampling: float
    training: float
    devices: int

    @property
    def servers(self) -> int:
        """The fewest that sample a batch in the time in which the trainer learns from one."""
        return max(1, math.ceil(self.sampling / self.training - 1e-9)) if self.training else 1

    def batch_seconds(self, servers: int, max_staleness: int) -> float:
        """Of one batch: both after each other where samples may not be stale, both at once where they may."""
        sampling = self.sampling / servers
        return max(sampling, self.training) if max_staleness else sampling + self.training


def balance(work: Work, sizes: Sizes, on: Hardware, spread: Spread, servers: Servers | None) -> Balance | None:
    """What one server and the trainer need for a collected batch; None for a stage that does not sample."""
    if not work.collects:
        return None
    fleet = servers or Servers(Hardware(1, on.device))
    sampling, devices = 0.0, 1
    for job in work.jobs:
        if job.does == "generate":
            size = sizes[job.role, job.model]
            devices = fleet.tensor_parallel(size)
            sampling += fleet.seconds(job, size, work.collected)
    without = pace_of(work, sizes, on, spread, servers)
    push = pushes(work, sizes, on, servers)["network"].seconds * work.collects
    training = without.forward + without.backward + without.scoring + without.update + push
    training += max(0.0, _sent(work, sizes, spread) / on.rate - without.forward - without.backward - without.scoring)
    return Balance(sampling / work.collects, training / work.collects, devices)
