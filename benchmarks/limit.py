"""The hand-written loop: what each case needs and nothing else, no trainer, no sharing of prompts between answers.

Rows are packed into one stream, weights are cast once per pass by autocast, log-probs never hold [tokens, vocabulary],
and known coefficients are pushed in the forward pass. A person who needs one algorithm for one model could write it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.cases import LEARNING_RATE, Case, reward
from benchmarks.limit_parts import KnownPush, LogProb, logprob_step, sample, stream
from benchmarks.material import end_ids, read_rows
from benchmarks.worker import Serve, loop

BETA = 0.1
#: of PPO, as this project's defaults have them
KL, LAMBDA, CLIP, VALUE, EPOCHS = 0.05, 0.95, 0.2, 0.5, 2


class Loop:
    """Models, optimiser, and a step for each kind of case; `step()` gives the tokens processed."""

    def __init__(self, case: Case, folder: Path, models: Path, *, bf16: bool) -> None:
        self.case, self.dtype = case, torch.bfloat16 if bf16 else torch.float32
        self.autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        self.tokens = AutoTokenizer.from_pretrained(models / "policy")
        load = AutoModelForSequenceClassification if case.kind == "rm" else AutoModelForCausalLM
        self.model = _owned(load.from_pretrained(models / ("scalar" if case.kind == "rm" else "policy")))
        trained = list(self.model.parameters())
        self.critic: Any = None
        if case.kind == "ppo":
            self.critic, self.read = copy.deepcopy(self.model.model), torch.nn.Linear(case.size[1], 1, bias=False)
            trained += [*self.critic.parameters(), *self.read.parameters()]
        if case.kind in ("dpo", "ppo"):
            self.reference = copy.deepcopy(self.model).requires_grad_(False).to(self.dtype)
        if case.kind in ("grpo", "ppo", "rollout"):
            self.sampler = copy.deepcopy(self.model).requires_grad_(False).to(self.dtype)
        self.optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.rows = self._encoded(read_rows(folder))
        self.loss = 0.0
        self.steps: dict[str, Callable[[list[Any]], int]] = {
            "sft": self.sft, "rm": self.rm, "dpo": self.dpo, "grpo": self.grpo, "ppo": self.ppo, "rollout": self.rollout
        }  # fmt: skip

    def step(self) -> int:
        """One optimiser step (of PPO: one collected batch)."""
        return self.steps[self.case.kind]([next(self.rows) for _ in range(self.case.rows)])

    def _encoded(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        def ids(text: str) -> list[int]:
            return list(self.tokens(text, add_special_tokens=False)["input_ids"])

        end = [self.tokens.eos_token_id]
        if self.case.kind == "sft":
            made: list[Any] = [ids(row["text"]) + end for row in rows]
        elif self.case.kind in ("rm", "dpo"):
            made = [(ids(r["prompt"]), ids(r["chosen"]) + end, ids(r["rejected"]) + end) for r in rows]
        else:
            made = [ids(row["prompt"]) for row in rows]
        return itertools.cycle(made)

    def sft(self, rows: list[list[int]]) -> int:
        """Every token but the first, equally hard."""
        pack = Pack(rows, [1] * len(rows))
        hidden = self.hidden(self.model, pack)
        push = torch.full((len(hidden),), 1 / len(hidden))
        self.learn(KnownPush.apply(hidden, self.model.lm_head.weight, pack.target, push))
        return pack.size

    def rm(self, rows: list[tuple[list[int], ...]]) -> int:
        """Pairs of scores at the last tokens."""
        both = [r[0] + r[1] for r in rows] + [r[0] + r[2] for r in rows]
        pack = Pack(both, [len(r) - 1 for r in both])
        with self.autocast():
            hidden = stream(self.model, pack.ids, pack.lengths)[torch.tensor(pack.lengths).cumsum(0) - 1]
        better, worse = (hidden.float() @ self.model.score.weight.T)[:, 0].chunk(2)
        self.learn(-F.logsigmoid(better - worse).mean())
        return pack.size

    def dpo(self, rows: list[tuple[list[int], ...]]) -> int:
        """Log-probs of whole answers, and those of the reference."""
        both = [r[0] + r[1] for r in rows] + [r[0] + r[2] for r in rows]
        pack = Pack(both, [len(r[0]) for r in rows] * 2)
        with torch.no_grad():
            old = pack.sums(self.logp(self.reference, pack))
        better, worse = (pack.sums(self.logp(self.model, pack)) - old).chunk(2)
        self.learn(-F.logsigmoid(BETA * (better - worse)).mean())
        return pack.size

    def grpo(self, prompts: list[list[int]]) -> int:
        """Sampled answers, pushed by their reward against that of the other answers; on policy, hence known before."""
        answers, credit = self._sampled(prompts)
        worth = credit.view(len(prompts), -1)
        worth = ((worth - worth.mean(1, keepdim=True)) / (worth.std(1, keepdim=True) + 1e-4)).view(-1)
        pack = Pack([p + a for p, a in answers], [len(p) for p, _ in answers])
        hidden = self.hidden(self.model, pack)
        push = (worth / pack.sums(torch.ones(len(hidden))) / len(worth))[pack.row]
        self.learn(KnownPush.apply(hidden, self.model.lm_head.weight, pack.target, push))
        return sum(len(a) for _, a in answers)

    def rollout(self, prompts: list[list[int]]) -> int:
        """Sampling alone."""
        found = sample(self.sampler, prompts, self.case.answers, self.case.answer, end_ids(self.case))
        return sum(len(a) for a, _ in found)

    def ppo(self, prompts: list[list[int]]) -> int:
        """One answer to each prompt, generalised advantages, two passes over them."""
        answers, credit = self._sampled(prompts)
        pack = Pack([p + a for p, a in answers], [len(p) for p, _ in answers])
        with torch.no_grad():
            old, reference = self.logp(self.model, pack), self.logp(self.reference, pack)
            value = self.value(pack)
            advantage, returns = self._advantage(pack, credit, KL * (old - reference), value)
        for _ in range(EPOCHS):
            ratio = (self.logp(self.model, pack) - old).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            now = self.value(pack)
            near = value + (now - value).clamp(-CLIP, CLIP)
            error = torch.maximum((now - returns) ** 2, (near - returns) ** 2).mean()
            self.learn(-torch.minimum(ratio * advantage, clipped * advantage).mean() + VALUE * error)
        return sum(len(a) for _, a in answers)

    def _sampled(self, prompts: list[list[int]]) -> tuple[list[tuple[list[int], list[int]]], Tensor]:
        for low, weight in zip(self.sampler.parameters(), self.model.parameters(), strict=True):
            low.data.copy_(weight.data)
        found = sample(self.sampler, prompts, self.case.answers, self.case.answer, [self.tokens.eos_token_id])
        texts = self.tokens.batch_decode([a for a, _ in found], skip_special_tokens=True)
        own = [p for p in prompts for _ in range(self.case.answers)]
        return [(p, a) for p, (a, _) in zip(own, found, strict=True)], torch.tensor(reward(texts))

    def _advantage(self, pack: Pack, credit: Tensor, penalty: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Generalised advantage estimation with gamma 1, whitened; the reward stands at the last token."""
        counts = pack.sums(torch.ones(len(value))).long().tolist()
        paid, values = (-penalty).tolist(), value.tolist()
        out, at = [0.0] * len(values), 0
        for i, number in enumerate(counts):
            carry = following = 0.0
            paid[at + number - 1] += float(credit[i])
            for t in reversed(range(at, at + number)):
                carry = paid[t] + following - values[t] + LAMBDA * carry
                following = values[t]
                out[t] = carry
            at += number
        advantage = torch.tensor(out)
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8), advantage + value

    def hidden(self, model: Any, pack: Pack) -> Tensor:
        """Of the slots that predict a token of an answer, [tokens, hidden]."""
        with self.autocast():
            return stream(model, pack.ids, pack.lengths)[pack.before].to(self.dtype)

    def logp(self, model: Any, pack: Pack) -> Tensor:
        """[tokens of answers], nats."""
        return LogProb.apply(self.hidden(model, pack), model.lm_head.weight, pack.target)

    def value(self, pack: Pack) -> Tensor:
        """[tokens of answers]."""
        with self.autocast():
            hidden = stream(_Trunk(self.critic), pack.ids, pack.lengths)[pack.before]
        return self.read(hidden.float())[:, 0]

    def learn(self, loss: Tensor) -> None:
        """Backward, clip, step."""
        loss.backward()
        weights = [p for group in self.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.loss = float(loss.detach())


class Pack:
    """Rows one behind the other; `starts`: the first token of each that counts."""

    def __init__(self, rows: list[list[int]], starts: list[int]) -> None:
        self.ids, self.lengths = [t for row in rows for t in row], [len(row) for row in rows]
        self.size = len(self.ids)
        row = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(self.lengths))
        place = torch.cat([torch.arange(n) for n in self.lengths])
        own = (place >= torch.tensor(starts)[row]).nonzero()[:, 0]
        self.before, self.row, self.number = own - 1, row[own], len(rows)
        self.target = torch.tensor(self.ids)[own]

    def sums(self, x: Tensor) -> Tensor:
        """[tokens] -> [rows]."""
        return torch.zeros(self.number).index_add(0, self.row, x)


class _Trunk:
    """A trunk alone, where a whole model is expected."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config


def _owned(model: Any) -> Any:
    """Weights in torch's own memory; loaded ones may be mapped from the file."""
    for parameter in model.parameters():
        parameter.data = parameter.data.float().clone()
    return model.train()


def run(serve: Serve, case: Case, asked: Mapping[str, Any]) -> None:
    """Load, say ready, and step when told to."""
    bf16 = asked["precision"] == "bf16"
    if case.kind == "logprob":
        return loop(serve, logprob_step(case, _whole(torch.bfloat16 if bf16 else torch.float32)))
    made = Loop(case, Path(asked["folder"]), Path(asked["models"]), bf16=bf16)

    def step() -> int:
        tokens = made.step()
        serve.loss = made.loss
        return tokens

    return loop(serve, step)


def _whole(dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The plain way: all logits at once."""

    def objective(h: Tensor, w: Tensor, t: Tensor, push: Tensor) -> Tensor:
        logp = (h.to(dtype) @ w.to(dtype).T).float().log_softmax(1).gather(1, t[:, None])[:, 0]
        return (logp * push).sum()

    return objective
