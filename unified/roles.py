"""All models of a stage as children of one module, whose forward gives every head asked of every role (DESIGN 5.5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unified.attention import packed_masks
from unified.distribution import Divergence, TeacherChunk, divergence, likeliest, log_prob_chunks
from unified.layout import Kind, Layout, Row, lay_out
from unified.logprob import read_distribution, weighted_logprob
from unified.lora import without_adapter
from unified.models import scalar_head
from unified.parts import STATISTICS

#: size of the logits on which `head_is_linear` tries a model; caps in use are around 30
LOUD = 200.0
#: what to compute: role -> heads
Asks = Mapping[str, frozenset[str]]


class Roles(nn.Module):
    """Policy, critic, reference, scorer and reward models of a stage.

    Roles: "policy" gives logp, entropy, collision_logp, the `logits` heads, and value where it carries the value head;
    "reference" and "teacher" logp, the latter also top_ids and top_logp [batch, time, top_k]; "critic" value; "scorer"
    (a scalar model in training) and "judge-N" (reward models) give score.

    own_reference: the reference is the policy without its adapter, and no model by itself.
    """

    #: how many of the teacher's likeliest tokens a score pass stores
    top_k: int = 0

    def __init__(
        self,
        models: Mapping[str, Any],
        *,
        value_head: nn.Linear | None = None,
        bf16: bool = False,
        own_reference: bool = False,
    ) -> None:
        super().__init__()
        self.own_reference = own_reference
        self.models = nn.ModuleDict(dict(models))
        self.value_head = value_head
        self.bf16 = bf16
        self.plain_head = {r: head_is_linear(m) for r, m in models.items() if r in ("policy", "reference", "teacher")}

    def forward(
        self,
        layout: Layout,
        asks: Asks,
        temperature: float = 1.0,
        visits: Mapping[str, Divergence] | None = None,
        push: Tensor | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """Heads of the rows in `layout`: role -> head -> [batch, time], 0 outside the loss mask.

        temperature: divides the logits of policy, reference and teacher. visits: what the `logits` heads compute.
        push: [batch, time], what stands before the gradient of the policy's logp, where nothing else of it is asked;
            then the sum of both is its head `objective` (a number), and its logp carries no gradient.
        """
        visits = visits or {}
        with torch.autocast(layout.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            if push is not None:
                return {"policy": self._pushed(layout, push, temperature)}
            # in one order in every process, whatever that of the asks: shared-out weights are gathered as they are used
            asked = [role for role in (*self.models, "reference") if asks.get(role)]
            return {role: self._role(role, layout, asks[role], temperature, visits) for role in dict.fromkeys(asked)}

    @property
    def has_reference(self) -> bool:
        """Whether there is a frozen reference to ask."""
        return self.own_reference or "reference" in self.models

    def _role(
        self, role: str, layout: Layout, heads: frozenset[str], temperature: float, visits: Mapping[str, Divergence]
    ) -> dict[str, Tensor]:
        if role == "reference" and self.own_reference:
            with torch.no_grad(), without_adapter(self.models["policy"]):
                return self._heads("policy", layout, heads, temperature, visits)
        return self._heads(role, layout, heads, temperature, visits)

    def _heads(
        self, role: str, layout: Layout, heads: frozenset[str], temperature: float, visits: Mapping[str, Divergence]
    ) -> dict[str, Tensor]:
        model = self.models[role]
        out: dict[str, Tensor] = {}
        hidden = None
        if heads & {"value", "score"} or self.plain_head.get(role):
            hidden = trunk(model, layout)
        if heads - {"value", "score"}:
            out |= self._vocabulary(role, layout, hidden, heads, temperature, visits)
        for head, index in (("value", layout.before), ("score", layout.after)):
            if head in heads:
                assert hidden is not None
                read = self.value_head if role == "policy" else scalar_head(model)
                assert read is not None, f"role {role} carries no {head}"
                at = hidden[index]
                with torch.autocast(at.device.type, enabled=False):
                    out[head] = layout.scatter(_read_out(at, read))
        return out

    def _vocabulary(
        self,
        role: str,
        layout: Layout,
        hidden: Tensor | None,
        heads: frozenset[str],
        temperature: float,
        visits: Mapping[str, Divergence],
    ) -> dict[str, Tensor]:
        """What is read from the distribution over the vocabulary, chunk by chunk."""
        at, weight, bias, dtype = self._before_softmax(role, layout, hidden)
        out: dict[str, Tensor] = {}
        if heads & {"logp", "entropy", *STATISTICS}:
            read = read_distribution(
                at, weight, bias, layout.target, temperature=temperature, dtype=dtype,
                entropy="entropy" in heads, collision="collision_logp" in heads,
            )  # fmt: skip
            out |= {name: layout.scatter(getattr(read, name)) for name in read._fields if name in heads | {"logp"}}
        if heads & {"top_ids", "top_logp"}:
            best = likeliest(log_prob_chunks(at, weight, bias, temperature, dtype), len(at), self.top_k)
            out |= {"top_ids": layout.scatter(best[0]), "top_logp": layout.scatter(best[1])}
        asked = {name: visits[name] for name in sorted(heads & visits.keys())}
        teacher = self._teacher(layout, temperature) if any(v.runs_teacher for v in asked.values()) else None
        for name, visit in asked.items():
            chunks = teacher if visit.runs_teacher else visit.stored_chunk
            assert chunks is not None
            head = divergence(at, weight, bias, visit, chunks, temperature=temperature, dtype=dtype)
            out[name] = layout.scatter(head)
        return out

    def _pushed(self, layout: Layout, push: Tensor, temperature: float) -> dict[str, Tensor]:
        """The policy's logp and the sum of all of them times their push, from logits that are computed once."""
        hidden = trunk(self.models["policy"], layout) if self.plain_head["policy"] else None
        at, weight, bias, dtype = self._before_softmax("policy", layout, hidden)
        of_token = push[layout.row, layout.time]
        total, logp = weighted_logprob(at, weight, bias, layout.target, of_token, temperature=temperature, dtype=dtype)
        return {"objective": total, "logp": layout.scatter(logp)}

    def _before_softmax(
        self, role: str, layout: Layout, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, torch.dtype | None]:
        """(hidden states [n, hidden], weight, bias, dtype of the product); else (logits [n, vocab], ...)."""
        model: Any = self.models[role]
        if hidden is None or not self.plain_head[role]:
            return own_logits(model, layout), None, None, None
        head = model.get_output_embeddings()
        return hidden[layout.before], head.weight, head.bias, torch.bfloat16 if self.bf16 else None

    @torch.no_grad()
    def _teacher(self, layout: Layout, temperature: float) -> Callable[[slice], TeacherChunk]:
        """The teacher's log-probs of any slice of the answer tokens, from one pass through its trunk."""
        hidden = trunk(self.models["teacher"], layout) if self.plain_head["teacher"] else None
        at, weight, bias, dtype = self._before_softmax("teacher", layout, hidden)
        return log_prob_chunks(at, weight, bias, temperature, dtype)


def _read_out(at: Tensor, head: nn.Linear) -> Tensor:
    """[n] numbers from hidden states [n, hidden], in float32 or what is wider."""
    wide = torch.promote_types(head.weight.dtype, torch.float32)
    bias = None if head.bias is None else head.bias.to(wide)
    return nn.functional.linear(at.to(wide), head.weight.to(wide), bias)[:, 0]


def trunk(model: Any, layout: Layout) -> Tensor:
    """Hidden states of the last layer, [streams * slots, hidden]."""
    inputs: dict[str, Any] = {"input_ids": layout.input_ids, "position_ids": layout.position_ids, "use_cache": False}
    if layout.segments is None:
        hidden = model.base_model(**inputs, attention_mask=layout.attention_mask).last_hidden_state
    else:
        with packed_masks():
            hidden = model.base_model(**inputs, segments=layout.segments).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])


def own_logits(model: Any, layout: Layout) -> Tensor:
    """[n, vocab] from the model's own head, for models that scale or cap their logits."""
    slots = layout.input_ids.shape[1]
    columns, place = torch.unique(layout.before % slots, return_inverse=True)
    inputs: dict[str, Any] = {
        "input_ids": layout.input_ids, "position_ids": layout.position_ids,
        "use_cache": False, "logits_to_keep": columns,
    }  # fmt: skip
    if layout.segments is None:
        logits = model(**inputs, attention_mask=layout.attention_mask).logits
    else:
        with packed_masks():
            logits = model(**inputs, segments=layout.segments).logits
    return logits[layout.before // slots, place]


@torch.no_grad()
def head_is_linear(model: Any) -> bool:
    """Whether the model's logits are its output embedding times the last hidden state, tried on a few tokens.

    The hidden states are made so large for the trial that logits reach LOUD: a cap on the logits does not show in those
    of a fresh model, which are near 0, but would as it learns.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    plain: list[Tensor] = []

    def amplify(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        hidden = hidden * (LOUD / head(hidden).abs().max().clamp(min=1e-6))
        plain.append(head(hidden))
        output["last_hidden_state"] = hidden
        return output

    was_training = model.training
    model.eval()
    hook = model.base_model.register_forward_hook(amplify)
    try:
        ids = torch.arange(min(4, head.weight.shape[0]), device=head.weight.device)[None]
        own = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return len(plain) == 1 and bool(torch.allclose(plain[0], own.to(plain[0].dtype), rtol=1e-4, atol=1e-3))
    finally:
        hook.remove()
        model.train(was_training)


def packing_is_exact(model: Any) -> bool:
    """Whether packed rows give the hidden states of rows alone.

    False for models that look at the tokens before them in other ways than attention (recurrent and hybrid ones), and
    for attention that a stream without a mask does not compute (in chunks, or within a window that is not passed on).
    """
    return _gives_the_same(model, "packed")


def sharing_is_exact(model: Any) -> bool:
    """Whether answers behind one shared prompt give the hidden states of rows alone; windows are counted by position.

    False besides for models that measure distances in the stream.
    """
    return _gives_the_same(model, "prefix-shared")


@torch.no_grad()
def _gives_the_same(model: Any, kind: Kind) -> bool:
    """Whether a layout gives the hidden states of rows alone, tried on a prompt with three answers and one with two."""
    size = model.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    rows = []
    for i, n in enumerate((2, 5, 4, 3, 1)):
        prompt, answer = [7 * (i // 3) + j for j in range(3)], [5 * i + 3 * j + 1 for j in range(n)]
        rows.append(Row([t % size for t in prompt], [t % size for t in answer], [True] * n))
    was_training = model.training
    model.eval()
    try:
        laid, alone = lay_out(rows, kind).to(device), lay_out(rows, "padded").to(device)
        together, apart = (trunk(model, x)[torch.cat([x.before, x.after])] for x in (laid, alone))
        return bool(torch.allclose(together, apart, rtol=1e-3, atol=1e-4))
    except (RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(was_training)
