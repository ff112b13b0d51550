"""All models of a stage as children of one module, whose forward gives every head asked of every role (DESIGN 5.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unified.attention import packed_masks
from unified.layout import Layout, Row, lay_out
from unified.logprob import token_logprobs
from unified.models import scalar_head

#: size of the logits on which `head_is_linear` tries a model; caps in use are around 30
LOUD = 200.0
#: what to compute: role -> heads
Asks = Mapping[str, frozenset[str]]


class Roles(nn.Module):
    """Policy, critic, reference, scorer and reward models of a stage.

    Roles: "policy" gives logp, entropy, and value where it carries the value head; "reference" gives logp; "critic" gives
    value; "scorer" (a scalar model in training) and "judge-N" (reward models) give score.
    """

    def __init__(self, models: Mapping[str, Any], *, value_head: nn.Linear | None = None, bf16: bool = False) -> None:
        super().__init__()
        self.models = nn.ModuleDict(dict(models))
        self.value_head = value_head
        self.bf16 = bf16
        self.plain_head = {r: head_is_linear(m) for r, m in models.items() if r in ("policy", "reference")}

    def forward(self, layout: Layout, asks: Asks, temperature: float = 1.0) -> dict[str, dict[str, Tensor]]:
        """Heads of the rows in `layout`: role -> head -> [batch, time], 0 outside the loss mask.

        temperature: divides the policy's and reference's logits.
        """
        with torch.autocast(layout.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            return {role: self._role(role, layout, heads, temperature) for role, heads in asks.items() if heads}

    def _role(self, role: str, layout: Layout, heads: frozenset[str], temperature: float) -> dict[str, Tensor]:
        model = self.models[role]
        out: dict[str, Tensor] = {}
        hidden = None
        if heads - {"logp", "entropy"} or self.plain_head.get(role):
            hidden = trunk(model, layout)
        if heads & {"logp", "entropy"}:
            logp, entropy = self._logp(role, model, layout, hidden, temperature, "entropy" in heads)
            out["logp"] = layout.scatter(logp)
            if entropy is not None:
                out["entropy"] = layout.scatter(entropy)
        for head, index in (("value", layout.before), ("score", layout.after)):
            if head in heads:
                assert hidden is not None
                read = self.value_head if role == "policy" else scalar_head(model)
                assert read is not None, f"role {role} carries no {head}"
                at = hidden[index]
                with torch.autocast(at.device.type, enabled=False):
                    out[head] = layout.scatter(read(at.to(read.weight.dtype))[:, 0])
        return out

    def _logp(
        self, role: str, model: Any, layout: Layout, hidden: Tensor | None, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        if hidden is not None and self.plain_head[role]:
            head = model.get_output_embeddings()
            dtype = torch.bfloat16 if self.bf16 else None
            return token_logprobs(
                hidden[layout.before], head.weight, head.bias, layout.target,
                temperature=temperature, entropy=entropy, dtype=dtype,
            )  # fmt: skip
        log_p = own_logits(model, layout)
        log_p = (log_p.float() if log_p.dtype in (torch.bfloat16, torch.float16) else log_p).div(temperature).log_softmax(-1)
        chosen = log_p.gather(1, layout.target[:, None])[:, 0]
        return chosen, -(log_p.exp() * log_p).sum(-1) if entropy else None


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
        "input_ids": layout.input_ids, "position_ids": layout.position_ids, "use_cache": False, "logits_to_keep": columns,
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

    The hidden states are made so large for the trial that logits reach LOUD: a cap on the logits does not show in those of
    a fresh model, which are near 0, but would as it learns.
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
        own = model(input_ids=ids, use_cache=False).logits
        return len(plain) == 1 and bool(torch.allclose(plain[0], own.to(plain[0].dtype), rtol=1e-4, atol=1e-3))
    finally:
        hook.remove()
        model.train(was_training)


@torch.no_grad()
def packing_is_exact(model: Any) -> bool:
    """Whether packed rows give the hidden states of rows alone, tried on three short rows.

    False for models that look at the tokens before them in other ways than attention (recurrent and hybrid ones).
    """
    size = model.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    rows = [Row([(7 * i + j) % size for j in range(3)], [(5 * i + 3 * j + 1) % size for j in range(n)], [True] * n)
            for i, n in enumerate((2, 5, 3))]  # fmt: skip
    was_training = model.training
    model.eval()
    try:
        packed, alone = lay_out(rows, "packed").to(device), lay_out(rows, "padded").to(device)
        together, apart = trunk(model, packed)[packed.after], trunk(model, alone)[alone.after]
        return bool(torch.allclose(together, apart, rtol=1e-3, atol=1e-4))
    except (RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(was_training)
