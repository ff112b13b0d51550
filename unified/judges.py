"""Models that judge: what rewards and sources may ask of the models that they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from unified.data import Answer, PromptGroup, Sampling, Text
from unified.models import context_length
from unified.registry import call_named
from unified.render import Renderer
from unified.settings import Chosen
from unified.stream import Sampler, Stream, in_process
from unified.training import SELF, part_uses

if TYPE_CHECKING:
    from unified.running import Run
    from unified.stage import StageContext

#: (reference, kind) of a model that judges -> its role, and the tokenizer of one that answers
Named = dict[tuple[str, str], tuple[str, Any]]


@dataclass(frozen=True)
class Judge:
    """One model that a part named: a scalar model scores, a policy answers. Nothing that it does has a gradient."""

    run: Run
    role: str
    tokenizer: Any
    asked: Counter[object] = field(default_factory=Counter, compare=False)

    def score(self, groups: Sequence[PromptGroup]) -> list[list[float | None]]:
        """A scalar model's reading after the last token of each answer; None for an answer without a token.

        Every process must ask equally often; one without groups asks with an empty list.
        """
        return [[each[-1] if each else None for each in answers] for answers in self.score_tokens(groups)]

    def score_tokens(self, groups: Sequence[PromptGroup]) -> list[list[list[float]]]:
        """The same after every token: for each answer as many numbers as it has tokens, those of a tool included.

        With an empty prompt the first token is context: it reads 0, and an answer of this token alone gives [].
        """
        from unified.running import heads_without_gradient, tabulate

        whole = [replace(g, answers=[replace(a, loss_mask=None, reward=None) for a in g.answers]) for g in groups]
        table = tabulate(self.run, Stream(self.run.stage.name, whole, None, None, [], 0), whole)
        asks = {self.role: frozenset({"score"})}
        scores = heads_without_gradient(self.run, table, list(range(len(table.rows))), asks)[self.role]["score"]
        read = iter(zip(scores.tolist(), table.rows, strict=True))
        found = (values[: len(row.answer)] if any(row.mask) else [] for values, row in read)
        return [[next(found) for _ in g.answers] for g in groups]

    def answer(
        self, prompts: Sequence[Text], sampling: Sampling, n: int = 1, draws: Sequence[int] | None = None
    ) -> list[list[Answer]]:
        """n answers of a policy to each prompt, which is rendered with its own tokenizer and chat template.

        draws: a number for each prompt from which the seeds of its answers follow, of the group that it is about
            (`PromptGroup.draw`) for example; prompts of one number are told apart by their order. Without, each prompt
            stands for itself by its words.
        [] for a prompt that, with the longest answer, does not fit into the model's context.
        """
        model: Any = self.run.answering(self.role)
        renderer = Renderer(self.tokenizer, context_length(model.config))
        numbers = [-1] * len(prompts) if draws is None else draws
        rendered = [PromptGroup(renderer.prompt_ids(p), draw=k) for p, k in zip(prompts, numbers, strict=True)]
        fits = [
            i for i, g in enumerate(rendered) if g.prompt and len(g.prompt) + sampling.max_tokens <= renderer.max_length
        ]
        out: list[list[Answer]] = [[] for _ in prompts]
        if fits:
            place = ("judge", self.run.stage.seed, self.run.stage.name, self.role, self.run.step, self.run.iteration)
            sampler = Sampler(
                in_process(self.run.settings.engine), model, self.tokenizer, self.run.step, place,
                self.run.roles.bf16, self.asked,
            )  # fmt: skip
            for i, answers in zip(fits, sampler([rendered[i] for i in fits], n, sampling), strict=True):
                out[i] = answers
        return out


def load_judges(stage: StageContext, parts: Sequence[Chosen | None]) -> tuple[dict[str, Any], Named]:
    """The models that rewards and sources name: role -> model, and which role each has."""
    models: dict[str, Any] = {}
    named: Named = {}
    for part in parts:
        for _, reference, kind in part_uses((), part):
            if (reference, kind) not in named:
                artifact, role = stage.artifact(reference), f"judge-{len(named)}"
                models[role] = artifact.load("scalar" if kind == "scalar" else "policy")
                named[reference, kind] = (role, None if kind == "scalar" else artifact.tokenizer())
    return models, named


def judges_of(run: Run, part: Chosen) -> Mapping[str, Judge]:
    """The models that a part named, by their references; "self" is the policy of the stage as it is now."""
    wanted = call_named(part.part.models, settings=part.settings) if part.part.models else {}
    if SELF in wanted:
        run.make_whole()
    out = {}
    for reference, kind in wanted.items():
        role, tokenizer = ("policy", None) if reference == SELF else run.judges[reference, kind]
        out[reference] = Judge(run, role, tokenizer or run.tokenizer)
    return out
