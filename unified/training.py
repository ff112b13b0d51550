"""What the training stage promises and refuses, without loading a model: what its stage kind is made of."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unified.edges import TOKENS as TOKENS
from unified.errors import PluginError, Problem, UserError, unknown_name
from unified.fit import Policy
from unified.foreign import engine_problems
from unified.made import is_to_come
from unified.measured import best_model_problem, of_training
from unified.parts import AGGREGATIONS, HEADS, Algorithm
from unified.registry import call_named
from unified.settings import Settings, choose
from unified.stage import StageContext, StageResult, TermSettings, TrainSettings
from unified.trackers import tracker_problems
from unified.work import Measure, Work

Path_ = tuple[str | int, ...]
#: names, in the models of a reward or source, the policy of the stage as it is now
SELF = "self"


def train_stage(stage: StageContext, settings: TrainSettings) -> StageResult:
    """Train as the settings say; loads torch and the engine."""
    from unified.loop import train_stage as run

    return run(stage, settings)


def work(settings: TrainSettings, measure: Measure) -> Work | None:
    """What the stage computes; None where its rows cannot be counted yet. Loads torch."""
    from unified.estimate import work_of_training

    return work_of_training(settings, measure)


def written_terms(settings: TrainSettings) -> list[tuple[Path_, Any]]:
    """(path of keys, choice of algorithm) of every term."""
    if settings.terms:
        return [(("terms", i, "algorithm"), t.algorithm) for i, t in enumerate(settings.terms)]
    return [(("algorithm",), settings.algorithm)] if settings.algorithm is not None else []


def pushed(settings: TrainSettings) -> frozenset[str]:
    """Heads that the terms push."""
    return frozenset(h for _, a in written_terms(settings) for h in a.part.aggregations(a.settings))


def makes(settings: TrainSettings) -> str:
    """A stage that pushes `score` leaves a scalar model, every other a policy."""
    return "scalar" if "score" in pushed(settings) else "policy"


def measures(settings: TrainSettings) -> dict[str, str]:
    """What the stage measures, by name."""
    return of_training(settings, online=bool(written_terms(settings)) and samples_online(settings))


def uses(settings: TrainSettings) -> list[tuple[Any, ...]]:
    """Every model reference in the settings, with the kind of model it must be ("any": a policy or a scalar model).

    Reference, teacher and critic read the tokens of the model that is trained; weights are mixed into a reference that
    is renewed.
    """
    heads = pushed(settings)
    out: list[tuple[Any, ...]] = [(("model",), settings.model, "any" if heads == {"score"} else "policy")]
    if settings.reference != "input":
        renewed = {"architecture"} if settings.ref_sync_steps else set()
        out.append((("reference",), settings.reference, "policy", TOKENS | renewed))
    if settings.teacher is not None:
        out.append((("teacher",), settings.teacher, "policy", TOKENS))
    if settings.critic.model is not None and "value" in heads:
        out.append((("critic",), settings.critic.model, "any", TOKENS))
    for path, part in judging_parts(settings):
        out += part_uses(path, part)
    return out


def judging_parts(settings: TrainSettings) -> list[tuple[Path_, Any]]:
    """(path, choice) of every reward and source of the stage, those of the algorithms included."""
    return [*_rewards(settings), *(_sources(settings) if written_terms(settings) else [])]


def part_uses(path: Path_, part: Any) -> list[tuple[Path_, str, str]]:
    """The model references of a chosen reward or source that judges by models, as `uses` gives them; [] for others."""
    found = call_named(part.part.models, settings=part.settings) if part and part.part.models else {}
    for reference, kind in found.items():
        if reference == "input" or (reference == SELF and kind == "scalar"):
            raise UserError(
                f"{part.part.kind} '{part.name}' cannot ask '{reference}' for a score",
                "name a scalar model: stage:NAME, a path or a hub id",
            )
    return [(path, reference, kind) for reference, kind in found.items() if reference != SELF]


def check(settings: TrainSettings, home: Path, seed: int, tokenizer: Any) -> list[Problem]:
    """Combinations that make no sense, and data that is missing, empty or does not fit; no model is loaded."""
    terms = written_terms(settings)
    if not terms:
        return [
            Problem(
                "a training stage needs `algorithm`, or `terms`", (), ("`unified list algorithm` shows what there is",)
            )
        ]
    if settings.terms and settings.algorithm is not None:
        return [Problem("give `algorithm` or `terms`, not both", ("terms",))]
    problems = _check_terms(settings)
    problems += _check_models(settings)
    problems += _check_optimiser(settings)
    problems += engine_problems(settings)
    problems += tracker_problems(settings)
    if not problems:
        problems += _check_data(settings, home, seed, tokenizer)
    return problems


def _check_terms(settings: TrainSettings) -> list[Problem]:
    problems = []
    if settings.terms and settings.terms[0].data is not None:
        problems.append(
            Problem("the first term uses the stage's own rows", ("terms", 0, "data"), ("write `data` at the stage",))
        )
    for i, term in enumerate(settings.terms):
        if term.aggregation is not None and term.aggregation not in AGGREGATIONS:
            problems.append(unknown_name("aggregation", term.aggregation, AGGREGATIONS, at=("terms", i, "aggregation")))
        elif term.aggregation == "constant" and term.constant_length is None:
            problems.append(
                Problem(
                    "aggregation 'constant' needs `constant_length`", ("terms", i, "aggregation"), ("set L, in tokens",)
                )
            )
    for path, chosen in written_terms(settings):
        problems += [p.under(*path) for p in check_algorithm(chosen.part, chosen.settings)]
    for (path, reward), algorithm in zip(_rewards(settings), _stream_algorithms(settings), strict=False):
        if reward is None and algorithm.reward == "required":
            hint = "write `reward: NAME`; `unified list reward` shows them"
            problems.append(Problem(f"algorithm '{algorithm.name}' needs a `reward`", path[:-1], (hint,)))
    return problems


def check_algorithm(algorithm: Algorithm, settings: Settings) -> list[Problem]:
    """Whether an algorithm pushes what there is, and couples answers only under a normaliser that allows it."""
    what = f"head (pushed by algorithm '{algorithm.name}')"
    problems = [unknown_name(what, head, HEADS) for head in algorithm.aggregations(settings) if head not in HEADS]
    if "logits" in algorithm.aggregations(settings) and algorithm.distribution is None:
        problems.append(Problem(f"algorithm '{algorithm.name}' pushes 'logits' but gives no `distribution`"))
    try:
        from unified.coefficient import Term

        Term(algorithm, settings)
    except (UserError, PluginError) as error:
        problems.append(Problem(str(error).splitlines()[0], (), tuple(x.strip() for x in str(error).splitlines()[1:])))
    return problems


def _check_models(settings: TrainSettings) -> list[Problem]:
    problems = []
    heads = pushed(settings)
    if "score" in heads and len(heads) > 1:
        problems.append(
            Problem(
                f"one stage cannot push 'score' together with {sorted(heads - {'score'})}",
                ("terms",),
                ("use two stages",),
            )
        )
    if settings.critic.trunk == "shared" and settings.critic.model:
        hint = "drop `model`, or drop `trunk: shared` to give the critic a model of its own"
        problems.append(
            Problem("a critic on the policy's trunk cannot start from another model", ("critic", "model"), (hint,))
        )
    read = frozenset(
        n for _, a in written_terms(settings) for n in a.part.names_read(a.settings) | a.part.names_credited(a.settings)
    )
    problems += _check_teacher(settings)
    coupled = read & {"ref_logp", "old_logp", "teacher_logp", "old_value"}
    problems += _check_dropout(settings, coupled)
    if settings.adapter is not None:
        problems += _check_adapter(settings)
    if settings.ref_sync_steps and "ref_logp" not in read:
        hint = "drop it, or give the KL a weight above 0"
        problems.append(Problem("`ref_sync_steps` without a reference: nothing reads it", ("ref_sync_steps",), (hint,)))
    for path, source in _sources(settings):
        kept = [getattr(source.settings, name, 0) for name in ("top_k", "min_p")]
        sampled = getattr(source.settings, "top_p", 1.0) < 1.0 or any(number > 0 for number in kept)
        if source.part.online and sampled and "old_logp" in read:
            hint = "set top_p: 1, top_k: 0 and min_p: 0, or a ratio rule that reads no old log-probs"
            problems.append(
                Problem("a ratio of log-probs is biased when sampling leaves out tokens (top_p, ...)", path, (hint,))
            )
        if source.part.online and getattr(source.settings, "temperature", 1.0) == 0:
            problems.append(
                Problem("temperature 0 samples one answer only", (*path, "temperature"), ("use a temperature above 0",))
            )
    return problems


def _check_dropout(settings: TrainSettings, coupled: frozenset[str]) -> list[Problem]:
    """Dropout makes log-probs differ by chance. coupled: what is read and compared with the policy's own."""
    problems: list[Problem] = []
    adapter = settings.adapter.lora_dropout if settings.adapter is not None else 0.0
    for name, at, p in (
        ("dropout", ("dropout",), settings.dropout or 0.0),
        ("lora_dropout", ("adapter", "lora_dropout"), adapter),
    ):
        if p and coupled:
            hint = f"drop `{name}`: these log-probs would differ from the policy's own by chance"
            problems.append(Problem(f"{name} is {p:g}, but {', '.join(sorted(coupled))} is compared", at, (hint,)))
        if p and settings.layout == "prefix-shared":
            hint = f"drop `{name}`, or write `layout: packed`"
            problems.append(
                Problem(f"{name} is {p:g}, but all answers share one pass of a prompt", ("layout",), (hint,))
            )
    return problems


def _check_adapter(settings: TrainSettings) -> list[Problem]:
    """Whether an adapter can be trained here at all."""
    problems = []
    if find_spec("peft") is None:
        hint = "pip install 'unified-post-training[peft]'"
        problems.append(Problem("`adapter` needs peft, which is not installed", ("adapter",), (hint,)))
    if settings.quantised and find_spec("bitsandbytes") is None:
        hint, at = "pip install 'unified-post-training[qlora]'", ("adapter", "quantization")
        problems.append(Problem("`quantization` needs bitsandbytes, which is not installed", at, (hint,)))
    if settings.ref_sync_steps:
        hint = "drop `ref_sync_steps`, or write rounds: each goes on from what the one before has made"
        what = "the weights beside an adapter stand still, so that no reference can follow them"
        problems.append(Problem(what, ("ref_sync_steps",), (hint,)))
    for name in ("target_modules", "exclude_modules"):
        written, at = getattr(settings.adapter, name), ("adapter", name)
        if written in ("", []):
            problems.append(Problem(f"`{name}` names no layer", at, ("all-linear, names in a list, or a pattern",)))
        elif isinstance(written, str):
            try:
                re.compile(written)
            except re.error as error:
                problems.append(Problem(f"`{name}` is no regular expression: {error}", at, ("or names in a list",)))
    return problems


def _check_teacher(settings: TrainSettings) -> list[Problem]:
    """A stage names a teacher exactly when some term asks one."""
    from unified.distribution import needs_teacher

    asking = [(path, a.name) for path, a in written_terms(settings) if needs_teacher(a.part, a.settings)]
    if asking and settings.teacher is None:
        hint = "write `teacher:` with stage:NAME, a path or a hub id"
        return [Problem(f"algorithm '{asking[0][1]}' needs a `teacher`", asking[0][0][:-1], (hint,))]
    if settings.teacher is not None and not asking:
        return [Problem("no term of this stage asks a teacher", ("teacher",), ("drop `teacher`",))]
    return []


def _check_optimiser(settings: TrainSettings) -> list[Problem]:
    from unified.optim import optimiser_class, schedule_problems

    problems = schedule_problems(settings)
    try:
        optimiser_class(settings.optim)
    except UserError as error:
        first, *hints = str(error).splitlines()
        problems.append(Problem(first, ("optim",), tuple(h.strip() for h in hints)))
    unmeasured = best_model_problem(settings, online=samples_online(settings))
    problems += [unmeasured] if unmeasured is not None else []
    if settings.metric_for_best_model and settings.evaluation is None:
        hint = "`evaluation: {}` measures the held-out rows, `evaluation: {reward: NAME}` samples answers to them"
        problems.append(Problem("`metric_for_best_model` needs `evaluation`", ("metric_for_best_model",), (hint,)))
    roles = ("policy", "critic", "scorer")
    rates = settings.learning_rate if isinstance(settings.learning_rate, dict) else {}
    problems += [unknown_name("role", r, roles, at=("learning_rate", r)) for r in rates if r not in roles]
    return problems


def _check_data(settings: TrainSettings, home: Path, seed: int, tokenizer: Any) -> list[Problem]:
    """Open every dataset, and render it where the tokenizer is known: every row must fit before anything runs."""
    if settings.data is None:
        return [Problem("a training stage needs `data`", (), ("write `data: NAME` or the path of a file",))]
    problems = []
    opened: list[tuple[Path_, Any, str]] = [(("data",), settings.data, "train")]
    opened += [(("terms", i, "data"), t.data, "train") for i, t in enumerate(settings.terms) if t.data is not None]
    if settings.evaluation is not None:
        own = settings.evaluation.data
        opened.append((("evaluation", "data") if own else ("data",), own or settings.data, "held_out"))
    online = dict(_sources(settings))
    for path, data, split in opened:
        source = online.get((*path[:-1], "source"), online.get(("source",)))
        sampled = source is not None and source.part.online
        needed = 0 if sampled else max(a.answers for a in _algorithms_on(settings, path))
        reserve = int(getattr(source.settings, "max_tokens", 0)) if sampled and source is not None else 0
        problems += check_rows(
            data, split, path, home=home, seed=seed, tokenizer=tokenizer, needed=needed, reserve=reserve,
            max_length=settings.max_length, too_long=settings.too_long,
        )  # fmt: skip
    return problems


def check_rows(
    data: Any,
    split: str,
    path: Path_,
    *,
    home: Path,
    seed: int,
    tokenizer: Any,
    needed: int = 0,
    reserve: int = 0,
    max_length: int | None = None,
    too_long: Policy = "refuse",
) -> list[Problem]:
    """What is wrong with the rows of one split of a dataset; [] for one that is yet to be written, or fetched.

    path: of keys, where the problems are shown. needed: fewest answers of a row. reserve: tokens of a sampled answer.
    The rows are rendered where the tokenizer is known, and held against max_length or, without one, against the
    model's context (the tokenizer's `context`, in tokens).
    """
    from unified.lazy import is_streaming
    from unified.render import CHUNK, Renderer, render_rows

    if is_to_come(data):
        return []
    try:
        rows = call_named(data.part.open, settings=data.settings, split=split, seed=seed, folder=home)
        limit = max_length or getattr(tokenizer, "context", None)
        if is_streaming(rows):  # the others are looked at when they are drawn
            rows = rows[:CHUNK]
        if tokenizer is not None and limit is not None:
            renderer = Renderer(tokenizer, limit)
            render_rows(renderer, rows, needs_answers=needed, too_long=too_long, reserve=reserve)
        elif len(rows) == 0:
            return [Problem(f"dataset '{data.name}' has no rows ({split})", path)]
        elif any(len(r.answers) < needed for r in rows):
            bad = next(i for i, r in enumerate(rows) if len(r.answers) < needed)
            return [Problem(f"row {bad} has {len(rows[bad].answers)} answers, this stage needs {needed} or more", path)]
    except UserError as error:
        first, *hints = str(error).splitlines()
        return [Problem(first, path, tuple(h.strip() for h in hints))]
    return []


def _algorithms_on(settings: TrainSettings, path: Path_) -> list[Algorithm]:
    """The algorithms that learn from the rows at `path`: a term with rows of its own learns from no others."""
    if path[0] == "terms":
        return [settings.terms[int(path[1])].algorithm.part]
    shared = [t.algorithm.part for t in settings.terms if t.data is None]
    return shared or [written_terms(settings)[0][1].part]


def samples_online(settings: TrainSettings) -> bool:
    """Whether the rows that drive the stage are prompts whose answers are sampled from the policy."""
    return any(path == ("source",) and source.part.online for path, source in _sources(settings))


def _rewards(settings: TrainSettings) -> list[tuple[Path_, Any]]:
    """(path, choice or None) of the stage's reward, those of terms with rows of their own, and the evaluation's."""
    out: list[tuple[Path_, Any]] = [(("reward",), settings.reward)]
    out += [(("terms", i, "reward"), t.reward) for i, t in enumerate(settings.terms) if t.data is not None]
    if settings.evaluation is not None:
        out.append((("evaluation", "reward"), settings.evaluation.reward))
    return out


def _stream_algorithms(settings: TrainSettings) -> list[Algorithm]:
    """The algorithm that says which reward a stream needs, in the order of `_rewards`."""
    first = written_terms(settings)[0][1].part
    return [first, *(t.algorithm.part for t in settings.terms if t.data is not None)]


def _sources(settings: TrainSettings) -> list[tuple[Path_, Any]]:
    """(path, choice) of the stage's source and those of terms with rows of their own, defaults filled in."""

    def chosen(written: Any, algorithm: Algorithm) -> Any:
        return written if written is not None else choose("source", algorithm.source)[0]

    terms: list[tuple[int, TermSettings]] = [(i, t) for i, t in enumerate(settings.terms) if t.data is not None]
    pairs: list[tuple[Path_, Any]] = [(("source",), chosen(settings.source, written_terms(settings)[0][1].part))]
    pairs += [(("terms", i, "source"), chosen(t.source, t.algorithm.part)) for i, t in terms]
    return [(path, source) for path, source in pairs if source is not None]
