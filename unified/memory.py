"""What the work of a stage keeps in the memory of one device, by part and by role.

Imports no torch. Figures are of this engine: float32 weights, products in bfloat16 under autocast, logits in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unified.sizes import Size
from unified.spread import Spread
from unified.work import Work

FLOAT32, BFLOAT16 = 4, 2
#: a weight of 4 bits with its scales: 0.127 bits each (Dettmers et al. 2023, arXiv:2305.14314, section 3)
NF4 = (4 + 0.127) / 8
#: layers with another multiple of inputs stay in float32; see lora.quantise
NF4_BLOCK = 64
#: bytes that a layer whose matrices are not known keeps per token and hidden unit for the backward pass, in 16 bit,
#: with fused attention: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1 (its term 5·a·s/h is not kept then)
ACTIVATION_BYTES = 34
#: numbers in one chunk of logits on a CPU and elsewhere, as in unified.chunks (which loads torch). Of those that are
#: read at a time (PIECE_NUMBERS on a CPU, all elsewhere) there are a logit and its exponential in float32 besides.
CHUNK_NUMBERS, CHUNK_ELSEWHERE, PIECE_NUMBERS = 16_777_216, 67_108_864, 1_048_576

Sizes = Mapping[tuple[str, str], Size]


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of one role's model on one device, there all the time."""

    role: str
    weights: float
    gradients: float
    optimiser: float


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. Of weights, gradients and optimiser state it holds its share of every model.

    activations: of all models that learn, whose forwards one backward follows.

    working: what a forward and backward hold beside activations: weights in bfloat16 or gathered from other processes,
    a gradient of the head, chunks of logits. accumulates: whether gradients are there before a forward: from the
    micro-batch before it, or because a wrapper keeps room for them.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    kv_cache: float
    working: float = 0.0
    roles: tuple[RoleMemory, ...] = ()
    accumulates: bool = True

    @property
    def fixed(self) -> float:
        """What is there whatever the length of rows."""
        held = self.gradients if self.accumulates else 0.0
        return self.weights + self.optimiser + max(held + self.working, self.gradients)

    @property
    def total(self) -> float:
        """The most at one time: activations are gone before all gradients of a single micro-batch are there.

        Nothing of both is there while answers are sampled.
        """
        held = self.gradients if self.accumulates else 0.0
        learning = max(held + self.activations + self.working, self.gradients)
        return self.weights + self.optimiser + max(learning, self.kv_cache)


def memory_of(work: Work, sizes: Sizes, spread: Spread) -> Memory:
    """The memory of one process of a stage."""
    learning = learned(work, sizes)
    roles = tuple(_role(work, spread, key, size, learning.get(key)) for key, size in sizes.items())
    if spread.weights and spread.count > 1:  # whoever answers needs a whole copy
        roles += tuple(
            RoleMemory(f"copy of the {j.role} that answers", FLOAT32 * sizes[j.role, j.model].parameters, 0.0, 0.0)
            for j in {j.role: j for j in work.jobs if j.does == "generate" and not work.remote}.values()
        )
    writers = [] if work.remote else [sizes[j.role, j.model] for j in work.jobs if j.does == "generate"]
    factor = BFLOAT16 if work.bf16 else FLOAT32
    cache = max((kv_bytes(s, factor) * at_once(work, spread) * work.longest for s in writers), default=0.0)
    tokens = micro_tokens(work, spread)
    return Memory(
        weights=sum(r.weights for r in roles),
        gradients=sum(r.gradients for r in roles),
        optimiser=sum(r.optimiser for r in roles),
        activations=sum(activations(sizes[key], work, tokens) for key in learning),
        kv_cache=cache,
        working=sum(working(sizes[key], work, spread) for key in learning),
        roles=roles,
        accumulates=micro_batches(work, spread) > 1 or (spread.count > 1 and (spread.master or not spread.gradients)),
    )


def learned(work: Work, sizes: Sizes) -> dict[tuple[str, str], int]:
    """(role, model) of what is trained -> numbers that learn."""
    return {
        (j.role, j.model): sizes[j.role, j.model].learning(work.adapter, scalar=j.scalar)
        for j in work.jobs
        if j.does == "train"
    }


def micro_tokens(work: Work, spread: Spread) -> float:
    """Tokens of one forward with gradients of one process: a row longer than the budget goes alone."""
    own = work.step_tokens / spread.count if work.step_tokens else work.micro_tokens
    return max(min(work.micro_tokens, own), work.longest_row)


def at_once(work: Work, spread: Spread) -> float:
    """Answers that one process samples at the same time."""
    return min(float(work.at_once), max(work.collected / spread.count, 1.0)) if work.collected else float(work.at_once)


def micro_batches(work: Work, spread: Spread) -> int:
    """Forwards with gradients of one process in an optimiser step."""
    own = work.step_tokens / spread.count
    return max(1, math.ceil(own / micro_tokens(work, spread))) if own else 1


def _role(work: Work, spread: Spread, key: tuple[str, str], size: Size, learning: int | None) -> RoleMemory:
    number = learning or 0
    held = weight_bytes(size, work, trained=learning is not None)
    held += FLOAT32 * number if work.adapter is not None else 0
    master = FLOAT32 * number / spread.part(spread.optimiser) if spread.master else 0.0
    gradients = FLOAT32 * number / spread.part(spread.gradients)
    if spread.count > 1 and not spread.gradients:
        gradients *= 2  # DistributedDataParallel sums them in buckets, a copy of all
    optimiser = work.optimiser_bytes * number / spread.part(spread.optimiser)
    return RoleMemory(key[0], held / spread.part(spread.weights), gradients, optimiser + master)


def weight_bytes(size: Size, work: Work, *, trained: bool) -> float:
    """Bytes of a whole model, its linear layers in 4 bits where a trained one stands still so."""
    number = 0
    if trained and _is_quantised(work):
        number = sum(i * o for _, i, o in size.matrices if i % NF4_BLOCK == 0)
    return FLOAT32 * (size.parameters - number) + NF4 * number


def _is_quantised(work: Work) -> bool:
    return work.adapter is not None and work.adapter.quantization is not None


def kv_bytes(size: Size, factor: int) -> float:
    """Keys and values of one token."""
    return 2 * size.layers * size.key_width * factor


def activations(size: Size, work: Work, tokens: float) -> float:
    """What the forward of so many tokens keeps for the backward pass; logits are never held whole."""
    one_layer = tokens * kept_per_token(size, bf16=work.bf16)
    if not work.checkpointing:
        return one_layer * size.layers
    return tokens * FLOAT32 * size.width * size.layers + one_layer  # the input of each layer, and one layer whole


def kept_per_token(size: Size, *, bf16: bool) -> float:
    """Bytes that one layer keeps of a token.

    As a Llama is computed under autocast: the stream before each norm in float32; every linear layer's input, cast
    for each; queries and keys turned in float32, values and the result of attention; three
    tensors of the width of a gated unit (two where it is not gated).
    """
    if not size.matrices:
        return ACTIVATION_BYTES * size.width * (1 if bf16 else 2)
    low = BFLOAT16 if bf16 else FLOAT32
    norms = 2 * FLOAT32 * size.width
    cast = sum(i for _, i, _ in size.matrices) / max(size.layers, 1)
    inputs = low * (cast if bf16 else 2 * size.width + size.query_width + size.inner)
    attention = (FLOAT32 + low) * (size.query_width + size.key_width)
    return norms + inputs + attention + low * (3 if size.gated else 2) * size.inner


def working(size: Size, work: Work, spread: Spread) -> float:
    """What a forward and backward hold beside activations, of a model that learns."""
    head = size.head
    layer = size.body / max(size.layers, 1)
    low = BFLOAT16 if work.bf16 and not _is_quantised(work) else 0
    whole = spread.weights and spread.count > 1
    cast = low * (head + layer * (1 if work.checkpointing else size.layers))  # kept by each product for the backward
    if whole and spread.casts:
        cast = 0.0  # gathered as they are read, and let go of with what was gathered
    each = spread.gathered(bf16=work.bf16)
    gathered = each * (2 * layer + head) if whole else 0.0  # this layer and the next, and the head
    learns = FLOAT32 * head if work.adapter is None else 0.0  # the head's gradient is summed beside the others
    return cast + gathered + learns + (chunk_bytes(micro_tokens(work, spread) * size.vocabulary, work) if head else 0.0)


def chunk_bytes(numbers: float, work: Work) -> float:
    """Bytes of the chunks in which so many logits are made."""
    held = min(numbers, CHUNK_NUMBERS if work.on_cpu else CHUNK_ELSEWHERE)
    read = min(held, PIECE_NUMBERS) if work.on_cpu else held
    return (BFLOAT16 if work.bf16 else FLOAT32) * held + 2 * FLOAT32 * read


def longest_row(work: Work, sizes: Sizes, spread: Spread, memory: float) -> int:
    """Tokens of the longest row whose forward and backward fit into so many bytes; 0 where not even none does."""
    room = memory - memory_of(work, sizes, spread).fixed
    each = sum(activations(sizes[key], work, 1.0) for key in learned(work, sizes))
    return max(0, int(room / each)) if each else 0
