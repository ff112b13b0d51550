"""Models at rest: how a stage that does not train samples, judges and measures, with the verbs of the training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, TypeVar

from accelerate.utils import gather_object

from unified.accelerating import make_accelerator
from unified.data import Example, PromptGroup
from unified.fit import Policy
from unified.judges import judges_of, load_judges
from unified.left_out import Counts, told
from unified.models import Artifact
from unified.precision import use_fast_float32
from unified.processes import Processes
from unified.pushed_weights import policy_sampler
from unified.registry import call_named
from unified.render import render_rows
from unified.roles import Roles
from unified.running import Run, heads_without_gradient, tabulate
from unified.set_up import choose_layout, make_renderer
from unified.settings import Chosen
from unified.stage import StageContext, TrainSettings
from unified.stream import NoSampler, Stream, seed_all, seed_of

T = TypeVar("T")


class Bench:
    """A policy, perhaps a reference, and the rewards' own models, none of which learns.

    Work is shared between processes: `answer`, `judge` and `log_probs` are given and give this process's part, and
    `together` puts the parts of all in the order of the rows again.
    """

    def __init__(
        self,
        stage: StageContext,
        policy: Artifact,
        *,
        reference: Artifact | None = None,
        rewards: Sequence[Chosen | None] = (),
        source: Chosen | None = None,
        engine: Chosen | None = None,
        max_length: int | None = None,
        tokens_per_micro_batch: int | None = None,
    ) -> None:
        """Load the models. UserError for one that is not there or not of the kind that is needed."""
        self.stage, self.rewards = stage, list(rewards)
        self.tokenizer = policy.tokenizer()
        settings = TrainSettings(
            algorithm=None, engine=engine, max_length=max_length, tokens_per_micro_batch=tokens_per_micro_batch
        )
        models: dict[str, Any] = {"policy": policy.load("policy")}
        if reference is not None:
            models["reference"] = reference.load("policy")
        judges, named = load_judges(stage, [*self.rewards, source])
        models |= judges
        self.renderer = make_renderer(self.tokenizer, models, max_length)
        accelerator = make_accelerator()
        use_fast_float32(accelerator.device)
        for model in models.values():
            model.requires_grad_(False).eval()
        roles = Roles(models).to(accelerator.device)
        self.run = Run(
            stage, settings, accelerator, Processes(accelerator), roles, roles, self.tokenizer, [], None, None, 0,
            choose_layout(settings, models), judges=named,
        )  # fmt: skip

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return bool(self.run.accelerator.is_main_process)

    @property
    def roles(self) -> list[str]:
        """What is loaded: "policy", perhaps "reference", and "judge-N" for the models of rewards and source."""
        return list(self.run.roles.models)

    def rows(
        self,
        data: Chosen,
        split: str,
        *,
        needs_answers: int = 0,
        reserve: int = 0,
        too_long: Policy = "refuse",
        limit: int | None = None,
    ) -> tuple[Sequence[Example], list[PromptGroup], Counts]:
        """The first `limit` rows of a split as text and as tokens (a group's `key` finds its row), and what is counted.

        Rows that stay in their file are there as text only when one is asked for.

        reserve: tokens kept free for a sampled answer. UserError for rows that do not fit.
        """
        where = {"split": split, "seed": self.stage.seed, "folder": self.stage.home}
        examples: Sequence[Example] = call_named(data.part.open, settings=data.settings, **where)
        first = examples if limit is None or limit >= len(examples) else examples[:limit]
        groups, counts = render_rows(
            self.renderer, first, needs_answers=needs_answers, too_long=too_long, reserve=reserve
        )
        found = Counts({**getattr(examples, "counts", {}), **counts}, counts.problems)
        if first is not examples:
            found.problems = [*getattr(examples, "problems", ()), *found.problems]
        for line in told(found, f"{self.stage.name}: rows ({split})"):
            self.stage.say(line)
        return first, groups, found

    def answer(
        self,
        rows: Sequence[PromptGroup],
        source: Chosen | None,
        *,
        label: str,
        at_once: int = 256,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[PromptGroup]:
        """This process's share of the rows with the answers that the source gives them (None: their own), not judged.

        label: goes into the seed, with that of the stage. at_once: prompts handed to the source together.
        """
        stream = self._stream(source, None)
        processes = self.run.processes
        if not stream.online:
            given = stream.collect(list(rows), NoSampler(self.tokenizer), seed_of(label, self.stage.seed))
            return processes.mine(given)
        mine = processes.mine([replace(group, draw=number) for number, group in enumerate(rows)])
        place = ("answers", self.stage.seed, label)
        sampler = policy_sampler(self.run, place)
        out: list[PromptGroup] = []
        # a source may ask a model, and all processes must ask it equally often
        most = processes.most(-(-len(mine) // at_once))
        for start in range(0, most * at_once, at_once):
            part = mine[start : start + at_once]
            out += stream.collect(part, sampler, seed_of("source", label, self.stage.seed))
            if progress is not None:
                progress(start + len(part), len(mine))
        return out

    def judge(self, groups: list[PromptGroup], reward: int = 0) -> None:
        """Write the judgement of the reward of that number into the answers; None where it failed."""
        seed_all("judge", self.stage.name, self.stage.seed, reward, self.run.processes.rank)
        self._stream(None, self.rewards[reward]).judge(groups)
        self.stage.notify("groups_judged", stage=self.stage.name, step=0, groups=groups)

    def log_probs(
        self, groups: list[PromptGroup], roles: Sequence[str], *, source: Chosen | None = None
    ) -> dict[str, list[list[float]]]:
        """Role ("policy", "reference") -> one list per group: Σ log p of every answer, in nats.

        Of softmax(logits / T), T the temperature at which the source sampled; 1 without a source.
        """
        table = tabulate(self.run, self._stream(source, None), groups)
        asks = {role: frozenset({"logp"}) for role in roles}
        heads = heads_without_gradient(self.run, table, list(range(len(table.rows))), asks)
        out = {}
        for role in roles:
            each = iter(heads[role]["logp"].double().sum(1).tolist())
            out[role] = [[next(each) for _ in group.answers] for group in groups]
        return out

    def call(self, chosen: Chosen, function: str, **arguments: Any) -> Any:
        """Call a function of a part; what it raises is attributed to the part and the stage."""
        return self._stream(None, None).call(chosen, function, **arguments)

    def together(self, mine: Sequence[T]) -> list[T]:
        """What all processes made of their shares, in the order of the rows."""
        processes = self.run.processes
        if processes.count == 1:
            return list(mine)
        parts: list[tuple[int, list[T]]] = gather_object([(processes.rank, list(mine))])
        shares = [iter(part) for _, part in sorted(parts, key=lambda part: part[0])]
        out: list[T] = []
        for number in count():
            item = next(shares[number % processes.count], None)
            if item is None:
                return out
            out.append(item)
        return out

    def _stream(self, source: Chosen | None, reward: Chosen | None) -> Stream:
        """A stream without rows or terms, for its verbs."""
        judges = partial(judges_of, self.run)
        return Stream(self.stage.name, [], source, reward, [], self.stage.seed, folder=self.stage.home, judges=judges)
