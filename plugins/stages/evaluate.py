"""A stage that measures: reward, accuracy, pass@k, perplexity, KL and win rate of a frozen policy on held-out rows.

Every mean over answers comes with the standard error of its mean over prompts, `..._se`: answers to one prompt are not
independent. pass@k: Chen et al. 2021, arXiv:2107.03374, section 2.1. The answers are kept in `data/answers.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import TYPE_CHECKING, Any, Literal

from unified import (
    Chosen,
    Field,
    Job,
    Measure,
    Problem,
    PromptGroup,
    Settings,
    StageContext,
    StageKind,
    StageResult,
    UserError,
    Work,
    choice,
    hookimpl,
    training,
)
from unified_plugins.stages._shared import as_example, name_source, reserve_of, source_of, write_rows
from unified_plugins.stages._work import answering, at_once, longest_of

if TYPE_CHECKING:
    from unified import Bench

Judged = list[float | None]


class EvaluateSettings(Settings):
    """What a measuring stage may set."""

    model: str = Field("base", description="what is measured: base (the recipe's model), stage:NAME, a path or hub id")
    data: Chosen = choice("dataset", description="rows that it is measured on")
    split: Literal["held_out", "train"] = Field("held_out", description="which of the rows")
    num_prompts: int | None = Field(None, ge=1, description="only so many, from the beginning; without, all")
    reward: Chosen | None = choice("reward", None, description="judges sampled answers; none: nothing is sampled")
    rewards: list[Chosen] = choice("reward", [], description="further rewards, each measured as eval/reward/NAME")
    samples: int = Field(1, ge=1, description="answers sampled per prompt")
    temperature: float = Field(1.0, ge=0, description="of sampling; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest tokens up to this mass; 1 keeps all")
    max_tokens: int = Field(256, ge=1, description="longest sampled answer, in tokens")
    source: Chosen | None = choice(
        "source", None, description="another way to get answers, in place of the four settings before"
    )
    engine: Chosen | None = choice("engine", None, description="what samples; without, `transformers` in process")
    pass_at: list[int] = Field([], description="k of pass@k, each at most `samples`: a right answer among k")
    correct_at: float | None = Field(
        None, description="lowest reward of a right answer; without, rewards must be 0 or 1"
    )
    perplexity: bool = Field(False, description="per token, of the answers in the rows (the best of several)")
    reference: str | None = Field(
        None, description="measure the KL to this model, in nats per answer: base, stage:NAME"
    )
    against: str | None = Field(
        None, description="measure the win rate over this model by the reward: base, stage:NAME"
    )
    max_length: int | None = Field(
        None, ge=1, description="longest prompt with answer, in tokens; without, the model's"
    )
    too_long: Literal["refuse", "drop"] = Field("refuse", description="rows over max_length: an error, or dropped")
    prompts_at_once: int = Field(256, ge=1, description="prompts handed to the engine together")
    tokens_per_micro_batch: int | None = Field(
        None, ge=1, description="token slots of one forward; without, 4096 on a CPU, else 8192"
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A `source` without a name is `rollouts`."""
        return name_source(data)


@dataclass
class Measured:
    """One prompt: its answers, what the rewards say of each (by name, "" for the first), and log p − log p_ref."""

    group: PromptGroup
    rewards: dict[str, Judged] = field(default_factory=dict)
    gap: list[float] = field(default_factory=list)

    def judged(self, name: str = "") -> list[float]:
        """The judgements that did not fail."""
        return [r for r in self.rewards[name] if r is not None]


def run(stage: StageContext, settings: EvaluateSettings) -> StageResult:
    """Measure; the numbers are the summary of the stage, with eval/ in front."""
    from unified import Bench

    about: dict[str, Any] = {
        "source": settings.source,
        "engine": settings.engine, "max_length": settings.max_length,
        "tokens_per_micro_batch": settings.tokens_per_micro_batch,
    }  # fmt: skip
    reference = stage.artifact(settings.reference) if settings.reference else None
    rewards = [settings.reward, *settings.rewards] if settings.reward else []
    bench = Bench(stage, stage.artifact(settings.model), reference=reference, rewards=rewards, **about)
    out: dict[str, float] = {}
    if settings.perplexity:
        out["perplexity"] = _perplexity(bench, settings)
    if settings.reward is not None:
        measured = _measured(bench, settings, "evaluate", keep=True)
        out |= summary_of(measured, settings)
        if settings.against is not None:
            del bench
            other = Bench(stage, stage.artifact(settings.against), rewards=rewards[:1], **about)
            theirs = _measured(other, settings, "against")
            out["against/reward"] = summary_of(theirs, settings)["reward"]
            out |= win_rate([m.judged() for m in measured], [m.judged() for m in theirs])
    return StageResult(summary={f"eval/{name}": value for name, value in out.items()})


def _measured(bench: Bench, settings: EvaluateSettings, label: str, *, keep: bool = False) -> list[Measured]:
    """Every prompt with its answers, judged by all rewards of the bench; in the order of the rows."""
    source = _source(settings)
    rows, prompts, _ = bench.rows(
        settings.data, settings.split, needs_answers=0 if source.part.online else 1, reserve=reserve_of(source),
        too_long=settings.too_long, limit=settings.num_prompts,
    )  # fmt: skip
    groups = bench.answer(
        prompts, source, label=label, at_once=settings.prompts_at_once,
        progress=lambda done, of: bench.stage.progress(done, of, {}),
    )  # fmt: skip
    mine = [Measured(group) for group in groups]
    for i, reward in reversed(list(enumerate(bench.rewards))):  # the first one last, so that its judgement stays
        bench.judge(groups, i)
        for one in mine:
            one.rewards[reward.name if i and reward else ""] = [a.total_reward for a in one.group.answers]
    if "reference" in bench.roles:
        logp = bench.log_probs(groups, ["policy", "reference"], source=source)
        for one, own, ref in zip(mine, logp["policy"], logp["reference"], strict=True):
            one.gap = [a - b for a, b in zip(own, ref, strict=True)]
    measured = bench.together(mine)
    if keep and bench.main:
        write_rows(
            bench.stage.folder / "data" / "answers.jsonl",
            [as_example(m.group, rows, bench.renderer.vocabulary) for m in measured],
        )
    return measured


def summary_of(measured: Sequence[Measured], settings: EvaluateSettings) -> dict[str, float]:
    """All that the judged answers tell, by name. UserError where the reward judged no answer."""
    out: dict[str, float] = {"prompts": len(measured)}
    for name in sorted(measured[0].rewards if measured else []):
        each = [judged for m in measured if (judged := m.judged(name))]
        if not each:
            raise UserError(f"the reward {name} judged no answer", "choose a `reward` that judges these answers")
        flat = [r for judged in each for r in judged]
        label = f"reward/{name}" if name else "reward"
        out |= _with_error(label, [fmean(judged) for judged in each], mean=fmean(flat))
        out[f"{label}_std"] = pstdev(flat)
        if not name:
            out |= _right(each, settings)
    answers = [a for m in measured for a in m.group.answers]
    out["missing"] = sum(r is None for m in measured for r in m.rewards.get("", []))
    out["length"] = fmean([len(a.ids) for a in answers])
    written = {name for m in measured for a in m.group.answers for name in a.columns.keys() - m.group.columns}
    out |= {name: fmean([a.columns[name] for a in answers if name in a.columns]) for name in sorted(written)}
    out["clipped_ratio"] = fmean([a.finish == "length" for a in answers])
    if any(m.gap for m in measured):
        flat = [g for m in measured for g in m.gap]
        out |= _with_error("kl", [fmean(m.gap) for m in measured if m.gap], mean=fmean(flat))
    return out


def _right(each: list[list[float]], settings: EvaluateSettings) -> dict[str, float]:
    """Accuracy, where it is known which answers are right, and pass@k of the prompts with k judged answers or more."""
    plain = all(r in (0.0, 1.0) for judged in each for r in judged)
    if settings.correct_at is None and not plain:
        if settings.pass_at:
            raise UserError("pass@k needs rewards of 0 or 1", "set `correct_at`: the lowest reward of a right answer")
        return {}
    lowest = 1.0 if settings.correct_at is None else settings.correct_at
    right = [(len(judged), sum(r >= lowest for r in judged)) for judged in each]
    out = _with_error("accuracy", [c / n for n, c in right])
    for k in settings.pass_at:
        enough = [pass_at(n, c, k) for n, c in right if n >= k]
        if enough:
            out |= _with_error(f"pass@{k}", enough)
    return out


def pass_at(n: int, c: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k): the chance that k of n answers, drawn without replacement, hold one of the c right.

    Unbiased for the chance that one of k fresh answers is right. Source: arXiv:2107.03374, section 2.1, eq. 1.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def win_rate(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float]:
    """Share of prompts where our mean reward is the higher one, ties a half; prompts without judgements left out."""
    both = [(fmean(a), fmean(b)) for a, b in zip(ours, theirs, strict=True) if a and b]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in both]
    return {**_with_error("win_rate", wins), "ties": fmean([a == b for a, b in both])} if both else {}


def _with_error(name: str, of_prompts: list[float], *, mean: float | None = None) -> dict[str, float]:
    """A mean and its standard error s / √n over prompts, s with n − 1; without the error where n is 1."""
    out = {name: fmean(of_prompts) if mean is None else mean}
    if len(of_prompts) > 1:
        out[f"{name}_se"] = stdev(of_prompts) / math.sqrt(len(of_prompts))
    return out


def _perplexity(bench: Bench, settings: EvaluateSettings) -> float:
    """exp of the mean −log p per token, over the best answer of every row."""
    _, groups, _ = bench.rows(
        settings.data, settings.split, needs_answers=1, too_long=settings.too_long, limit=settings.num_prompts
    )
    for group in groups:
        group.answers = [max(group.answers, key=lambda a: a.total_reward or 0.0)]
    mine = bench.answer(groups, None, label="")
    logp = bench.log_probs(mine, ["policy"])["policy"]
    # with an empty prompt the first token is context and has no probability
    sizes = [[len(a.ids) - (not g.prompt) for a in g.answers] for g in mine]
    pairs = bench.together(list(zip(logp, sizes, strict=True)))
    return math.exp(-sum(sum(nats) for nats, _ in pairs) / sum(sum(tokens) for _, tokens in pairs))


def _source(settings: EvaluateSettings) -> Chosen:
    return source_of(
        settings.source, group_size=settings.samples, temperature=settings.temperature, top_p=settings.top_p,
        max_tokens=settings.max_tokens,
    )  # fmt: skip


def uses(settings: EvaluateSettings) -> list[tuple[Any, ...]]:
    """The policy that is measured, those that it is compared with, and the models of the rewards.

    The reference reads its tokens. The other policy has its own; where the reward asks a model it reads both.
    """
    judges = [kind for part in (settings.reward, settings.source) for *_, kind in training.part_uses((), part)]
    out: list[tuple[Any, ...]] = [(("model",), settings.model, "policy")]
    if settings.reference is not None:
        out.append((("reference",), settings.reference, "policy", training.TOKENS))
    if settings.against is not None:
        out.append((("against",), settings.against, "policy", training.TOKENS if "scalar" in judges else ()))
    out += [*training.part_uses(("reward",), settings.reward), *training.part_uses(("source",), settings.source)]
    return out + [
        use for i, reward in enumerate(settings.rewards) for use in training.part_uses(("rewards", i), reward)
    ]


def measures(settings: EvaluateSettings) -> dict[str, str]:
    """What the settings measure; rewards and sources may write columns of their own, which nobody knows before."""
    if settings.reward is None:
        asked = "a `reward` measures it"
        return {"eval/perplexity": ""} | {f"eval/{name}": asked for name in ("reward", "accuracy", "length", "missing")}
    reference = "" if settings.reference else "a `reference` measures it"
    against = "" if settings.against else "`against` measures it"
    means = {"reward": "", "accuracy": "", "kl": reference, "win_rate": against}
    means |= {f"reward/{reward.name}": "" for reward in settings.rewards} | {f"pass@{k}": "" for k in settings.pass_at}
    out = {name: said for mean, said in means.items() for name in (mean, f"{mean}_se")}
    out |= {f"{name}_std": "" for name in ("reward", *(f"reward/{reward.name}" for reward in settings.rewards))}
    out |= dict.fromkeys(("prompts", "missing", "length", "clipped_ratio", "*"), "")
    out |= {"against/reward": against, "ties": against}
    out["perplexity"] = "" if settings.perplexity else "`perplexity: true` measures it"
    return {f"eval/{name}": said for name, said in out.items()}


def check(settings: EvaluateSettings, home: Path, seed: int, tokenizer: Any) -> list[Problem]:
    """Measurements that lack what they need, and sound data."""
    source = _source(settings)
    several = int(getattr(source.settings, "group_size", settings.samples))
    temperature = float(getattr(source.settings, "temperature", 1.0))
    problems = []
    if settings.reward is None:
        given = [key for key in ("rewards", "pass_at", "reference", "against") if getattr(settings, key)]
        shown = ("`unified list reward` shows them",)
        problems += [Problem(f"`{key}` needs a `reward`", (key,), shown) for key in given]
        if not settings.perplexity:
            hint = "write `reward: NAME`, `perplexity: true`, or both"
            problems.append(Problem("nothing is measured", (), (hint,)))
    names = [reward.name for reward in settings.rewards]
    if len(set(names)) < len(names):
        problems.append(
            Problem("two of `rewards` have one name", ("rewards",), ("measure one of them in another stage",))
        )
    problems += [
        Problem(f"pass@{k} needs {k} samples or more, there are {several}", ("pass_at", i), (f"set samples: {k}",))
        for i, k in enumerate(settings.pass_at)
        if not 1 <= k <= several
    ]
    if settings.reference is not None and (temperature == 0 or not source.part.online or _cuts(source)):
        hint = "sample with a temperature above 0, top_p: 1 and top_k: 0"
        problems.append(Problem("the KL is estimated from answers of the whole distribution", ("reference",), (hint,)))
    about: dict[str, Any] = {
        "home": home, "seed": seed, "tokenizer": tokenizer, "max_length": settings.max_length,
        "needed": 0 if source.part.online and not settings.perplexity else 1,
        "reserve": reserve_of(source) if settings.reward else 0, "too_long": settings.too_long,
    }  # fmt: skip
    return problems + training.check_rows(settings.data, settings.split, ("data",), **about)


def _cuts(source: Chosen) -> bool:
    kept = [getattr(source.settings, name, 0) for name in ("top_k", "min_p")]
    return getattr(source.settings, "top_p", 1.0) < 1.0 or any(number > 0 for number in kept)


def work(settings: EvaluateSettings, measure: Measure) -> Work | None:
    """Answers of the model and of the one it is compared with, and log-probs; None where the rows are not there yet."""
    rows, source = measure(settings.data, settings.split), _source(settings)
    if rows is None:
        return None
    prompts = min(settings.num_prompts or rows.rows, rows.rows)
    rewards = [settings.reward, *settings.rewards] if settings.reward else []
    jobs = answering(rows, prompts, source, settings.model, rewards) if rewards else []
    if settings.against is not None:
        jobs += answering(rows, prompts, source, settings.against, rewards[:1])
    tokens = float(prompts * getattr(source.settings, "group_size", 1)) * longest_of(rows, source)
    for role, model in (("policy", settings.model), ("reference", settings.reference)):
        if settings.reference is not None and model is not None:
            jobs.append(Job(role, model, "score", tokens))
    if settings.perplexity:
        jobs.append(Job("policy", settings.model, "score", prompts * (rows.prompt_tokens + rows.answer_tokens)))
    sampled = at_once(settings.engine, source) if rewards else 0
    return Work(prompts=prompts, jobs=jobs, at_once=sampled, longest=longest_of(rows, source))


@hookimpl
def unified_stages() -> list[StageKind]:
    """Offer measuring to recipes as `kind: evaluate`."""
    return [
        StageKind(
            "evaluate",
            EvaluateSettings,
            run=run,
            uses=uses,
            makes=lambda settings: None,
            check=check,
            work=work,
            measures=measures,
        )
    ]
