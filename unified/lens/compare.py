"""Several algorithms on the same answers: for each a training stage is set up, looked at, and forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unified.bench import Bench
from unified.data import Answer, Example, PromptGroup
from unified.errors import PluginError, UserError
from unified.layout import Row
from unified.lens.look import Looked, changed, look, name_of, token_texts
from unified.lens.picture import Column, Picture, Seen, Shown
from unified.models import Artifact
from unified.parts import Algorithm, Dataset, DataSource, NoSettings, Reward
from unified.registry import catalogue
from unified.running import Run
from unified.set_up import set_up
from unified.settings import Chosen, choose
from unified.stage import StageContext, TrainSettings
from unified.stream import NoSampler, seed_of

NAME = "lens"
#: rewards that an algorithm takes from elsewhere; every other name is a part of its own
FROM_ROWS = ("given", "required")


@dataclass
class Asked:
    """What is looked at, and with which models.

    model: the policy (or scalar model) as it is. reference: None for the model itself. old: the policy that sampled the
    answers; None for the model itself. reward: judges the answers; None takes the rewards of the rows. home: where
    relative paths start.
    """

    model: Artifact
    algorithms: list[Chosen]
    reference: Artifact | None = None
    old: Artifact | None = None
    teacher: Artifact | None = None
    reward: Chosen | None = None
    home: Path = field(default_factory=Path.cwd)
    seed: int = 0
    models: Callable[[str], Artifact] | None = None
    say: Callable[[str], None] = lambda _: None

    def stage(self) -> StageContext:
        """Surroundings of a training stage that writes nothing."""
        known = {"base": self.model, "reference": self.reference, "teacher": self.teacher}

        def artifact(name: str) -> Artifact:
            found = known.get(name)
            if found is None and self.models is not None:
                found = self.models(name)
            if found is None:
                raise UserError(f"there is no model '{name}' here")
            return found

        quiet = (lambda *_, **__: None, lambda *_: None, self.say)
        return StageContext(NAME, self.home, self.home, self.seed, artifact, *quiet)


def in_memory(examples: Sequence[Example]) -> Chosen:
    """Rows at hand as a dataset."""
    return Chosen(Dataset("rows at hand", open=lambda: list(examples)), NoSettings())


def compare(asked: Asked, groups: list[PromptGroup], tokenizer: Any) -> Picture:
    """What each algorithm does to the answers of some judged groups; what it cannot judge is said in words.

    UserError only where there is no answer at all.
    """
    flat = [(g, a) for g in groups for a in g.answers]
    if not flat:
        raise UserError("there are no answers to look at", "give rows with answers, or an algorithm that samples")
    shown = [_shown(n, g, a, tokenizer) for n, g in enumerate(groups) for a in g.answers]
    picture = Picture([g.text for g in groups], shown, [], notes=_notes(asked))
    policy = replace(asked.model, module=asked.model.load(asked.model.kind), own_tokenizer=tokenizer)
    asked = replace(asked, model=policy)
    names = _labels(asked.algorithms)
    for chosen, name in zip(asked.algorithms, names, strict=True):
        try:
            column = _column(asked, chosen, groups)
        except (UserError, PluginError) as error:
            picture.silent[name] = _plain(error)
            continue
        column.name = name
        picture.columns.append(column)
    return picture


def answered(
    asked: Asked, data: Chosen, *, split: str = "train", rows: int = 4, samples: int = 4, max_tokens: int = 64
) -> tuple[list[PromptGroup], Any, list[str]]:
    """The first rows of a dataset as judged groups, the tokenizer, and what was done in words.

    Rows without answers get `samples` of them where some algorithm samples, and are left out where none does.
    """
    source = next((_sampling(c.part, samples, max_tokens) for c in asked.algorithms if _is_online(c.part)), None)
    bench = Bench(asked.stage(), asked.model, rewards=[asked.reward], source=source)
    given = bench.rows(data, split, limit=rows, too_long="drop")[1]
    groups, empty = [g for g in given if g.answers], [g for g in given if not g.answers]
    notes = []
    if empty and source is not None:
        prompts = bench.rows(data, split, limit=rows, too_long="drop", reserve=max_tokens)[1]
        without = {g.key for g in empty}
        groups += bench.answer([g for g in prompts if g.key in without], source, label=NAME)
        notes.append(f"{len(empty)} of {len(given)} rows had no answers: the model sampled them, seed {asked.seed}")
    elif empty:
        notes.append(f"{len(empty)} of {len(given)} rows have no answers, and no algorithm here samples: left out")
    groups.sort(key=lambda g: g.key)
    if asked.reward is not None:
        bench.judge(groups)
        missing = sum(a.reward is None for g in groups for a in g.answers)
        if missing:
            why = next((f": {g.reasons[0]}" for g in groups if g.reasons), "")
            notes.append(f"reward '{asked.reward.name}' could not judge {missing} answers{why}")
    return groups, bench.tokenizer, notes


def _column(asked: Asked, chosen: Chosen, groups: list[PromptGroup]) -> Column:
    """One algorithm. UserError or PluginError with the reason for which it says nothing."""
    part: Algorithm = chosen.part
    judged = part.reward in FROM_ROWS
    _refuse(part, groups, judged=judged)
    run = set_up(asked.stage(), _settings(asked, chosen))
    stream, term = run.streams[0], run.streams[0].terms[0]
    numbered = [replace(group, draw=number) for number, group in enumerate(groups)]
    mine = stream.collect(numbered, NoSampler(run.tokenizer), seed_of(NAME, asked.seed))
    _refuse_without_probes(chosen, mine)
    if not judged:
        stream.judge(mine)
    kept, counts = stream.select(mine)
    left = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
    if not kept:
        raise UserError(f"no row is left for it: {left}")
    found = look(run, stream, kept, _with_old(run, asked.old) if asked.old is not None else None)
    column = Column(
        name_of(term, [term]), changed(term), term.aggregations, _aligned(groups, found.answers),
        found.losses[0] if math.isfinite(found.losses[0]) else None,
    )  # fmt: skip
    if left:
        column.notes.append(f"left out: {left}")
    run.accelerator.free_memory()
    return column


def _refuse(part: Algorithm, groups: list[PromptGroup], *, judged: bool) -> None:
    """UserError for rows of which it can be seen at once that the algorithm has no use for them."""
    most = max(len(group.answers) for group in groups)
    if most < part.answers:
        raise UserError(f"it needs {part.answers} answers to a prompt; these rows have {most} at most")
    if judged and all(a.reward is None for g in groups for a in g.answers):
        raise UserError("it needs rewards: these rows carry none", "give --reward NAME")
    if "sampling_logp" in _reads(part) and all(a.sampling_logp is None for g in groups for a in g.answers):
        raise UserError("it reads the log-probs with which answers were sampled, and these answers stand in the rows")


def _refuse_without_probes(chosen: Chosen, groups: list[PromptGroup]) -> None:
    """UserError for rows without the probes that the credit compares answers with."""
    part: Algorithm = chosen.part
    wanted = part.credit is not None and "probe" in part.names_credited(chosen.settings)
    if wanted and not any(a.probe for g in groups for a in g.answers):
        what = "it compares answers with a probe to the same prompt, one that is not learned from (a greedy answer)"
        raise UserError(f"{what}; these rows hold none")


def _reads(part: Algorithm) -> frozenset[str]:
    settings = part.settings()
    return part.names_read(settings) | (part.names_credited(settings) if part.credit else frozenset())


def _settings(asked: Asked, chosen: Chosen) -> TrainSettings:
    """A training stage with this algorithm whose rows are handed over as tokens: set_up is given a stand-in."""
    part: Algorithm = chosen.part
    source = None if not _is_online(part) else Chosen(DataSource("rows at hand", collect=_as_they_are), NoSettings())
    reward = Chosen(Reward("rewards at hand", judge=_no_judge), NoSettings()) if part.reward in FROM_ROWS else None
    return TrainSettings(
        algorithm=chosen,
        data=in_memory([Example("-", ["-"] * max(part.answers, 1))]),
        source=source,
        reward=reward,
        reference="reference" if asked.reference is not None else "input",
        teacher="teacher" if asked.teacher is not None else None,
        layout="padded",  # the others are tried out first, and give the same numbers
    )


def _with_old(run: Run, old: Artifact) -> Callable[[], None] | None:
    """Give the policy the old weights; the function that is returned puts the present ones back."""
    if "policy" not in run.roles.models:
        return None
    policy = run.roles.models["policy"]
    now = {name: value.clone() for name, value in policy.state_dict().items()}
    try:
        policy.load_state_dict(old.load("policy").state_dict())
    except RuntimeError as error:
        policy.load_state_dict(now)
        raise UserError("the old policy is of another shape than the model", "give one of the same run") from error

    def put_back() -> None:
        policy.load_state_dict(now)

    return put_back


def _aligned(groups: list[PromptGroup], answers: list[Looked]) -> list[Seen | None]:
    """What was seen of each answer of the groups; None where the algorithm had no part in it."""
    found: dict[tuple[int, tuple[int, ...]], list[Seen]] = {}
    for one in answers:
        if not one.shown.probe:
            found.setdefault((one.key, tuple(one.shown.ids)), []).append(one.seen[0])
    out: list[Seen | None] = []
    for group in groups:
        for answer in group.answers:
            seen = found.get((group.key, tuple(answer.ids)))
            out.append(seen.pop(0) if seen else None)
    return out


def _shown(number: int, group: PromptGroup, answer: Answer, tokenizer: Any) -> Shown:
    mask, texts = Row.of(group, answer).mask, token_texts(tokenizer, answer.ids)
    return Shown(number, list(answer.ids), texts, list(mask), answer.total_reward, answer.finish, answer.probe)


def _labels(algorithms: Sequence[Chosen]) -> list[str]:
    """Names, with what differs from the defaults where one algorithm stands there more than once."""
    names = [chosen.name for chosen in algorithms]
    out: list[str] = []
    for chosen in algorithms:
        label = chosen.name
        if names.count(chosen.name) > 1:
            written = chosen.settings.model_dump(mode="json")
            own = [f"{key}={value}" for key, value in written.items() if key in chosen.settings.model_fields_set]
            label += f" ({', '.join(own) or 'defaults'})"
        out.append(label if label not in out else f"{label} #{len(out) + 1}")
    return out


def _notes(asked: Asked) -> list[str]:
    out = []
    if asked.reference is None:
        out.append("the reference is the model itself: log-ratios to it are 0")
    if asked.old is None:
        out.append("the model is taken to have sampled the answers itself: every ratio is 1")
    return [*out, "weights and statistics are those of one optimiser step on these rows alone; temperature 1"]


def _is_online(part: Algorithm) -> bool:
    source: Any = catalogue().find("source", part.source)
    return source is not None and bool(source.online)


def _sampling(part: Algorithm, samples: int, max_tokens: int) -> Chosen:
    """The algorithm's own source, with so many answers of so many tokens."""
    source: Any = catalogue().get("source", part.source)
    wanted = {"group_size": samples, "max_tokens": max_tokens}
    known = {key: value for key, value in wanted.items() if key in source.settings.model_fields}
    found, problems = choose("source", {"name": part.source, **known})
    if found is None:
        raise UserError(problems[0].text())
    return found


def _as_they_are(prompts: list[PromptGroup]) -> list[PromptGroup]:
    return prompts


def _no_judge(groups: list[PromptGroup]) -> list[list[float | None]]:
    return [[answer.total_reward for answer in group.answers] for group in groups]


def _plain(error: Exception) -> str:
    """What was raised, in one line, without the name of the stage."""
    text = "; ".join(line.strip() for line in str(error).splitlines())
    return text.removeprefix(f"stage '{NAME}': ").removeprefix(f"stage '{NAME}', step 1: ")


def all_algorithms() -> list[Chosen]:
    """Every installed algorithm whose settings need nothing written."""
    found = (choose("algorithm", name)[0] for name in catalogue().names("algorithm"))
    return [chosen for chosen in found if chosen is not None]
