"""What `unified plugin new` writes, for each kind of part: a module, and what its tests say of it.

$NAME is the part's name in recipes, $MODULE the module, $CLASS the beginning of its classes' names.
"""

from __future__ import annotations

from unified.plugin_package import Template

_ALGORITHM = Template(
    "unified_algorithms",
    "algorithm: $NAME",
    '''
"""$NAME: say in one line what it does to the model, and give its formula.

GC = scale * r for every token of an answer, r its reward. Source: name the paper and the section.
"""

from torch import Tensor

from unified import Algorithm, Batch, Field, Settings, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1


class ${CLASS}Settings(Settings):
    """What a recipe may set."""

    scale: float = Field(1.0, gt=0, description="factor on the reward")


def coefficient(batch: Batch, settings: ${CLASS}Settings) -> Tensor:
    """GC of logp, [batch]: one number for all tokens of an answer; positive raises their probability."""
    return settings.scale * batch.total_reward


def loss(batch: Batch, settings: ${CLASS}Settings) -> Tensor:
    """The published objective, to be minimised, [batch, time]; the contract holds GC against its derivative."""
    return -coefficient(batch, settings)[:, None] * batch.logp


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: $NAME`."""
    return [Algorithm("$NAME", ${CLASS}Settings, coefficient, loss, source="rollouts", reward="required")]
''',
    """
def test_the_coefficient_is_the_scaled_reward() -> None:
    with using(Catalogue({"$MODULE": plugin}, installed=False)):
        seen = examine("$NAME", {"logp": [[-1.0, -2.0], [-1.0, -1.0]], "reward": [1.0, 0.5]}, ["scale=2"])
    assert seen.coefficient["logp"].tolist() == [[2.0, 2.0], [1.0, 1.0]]
""",
)

_REWARD = Template(
    "unified_rewards",
    "reward: $NAME",
    '''
"""$NAME: say in one line what it rewards.

1 where the answer has the word, else 0.
"""

from unified import Field, PromptGroup, Reward, Settings, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1


class ${CLASS}Settings(Settings):
    """What a recipe may set."""

    word: str = Field("yes", min_length=1, description="what an answer must have")


def judge(groups: list[PromptGroup], settings: ${CLASS}Settings) -> list[list[float | None]]:
    """One number an answer; None for one that could not be judged."""
    return [[float(settings.word in answer.text) for answer in group.answers] for group in groups]


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it to recipes as `reward: $NAME`."""
    return [Reward("$NAME", ${CLASS}Settings, judge=judge)]
''',
    """
def test_an_answer_with_the_word_is_worth_one() -> None:
    groups = [PromptGroup([1], [Answer([2], "oh yes"), Answer([3], "no")])]
    assert plugin.judge(groups, plugin.${CLASS}Settings()) == [[1.0, 0.0]]
""",
)

_DATASET = Template(
    "unified_datasets",
    "data: $NAME",
    '''
"""$NAME: say in one line what its rows are.

A letter is to be said again.
"""

from unified import Dataset, Example, Field, Settings, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ${CLASS}Settings(Settings):
    """What a recipe may set."""

    held_out: int = Field(6, ge=1, lt=26, description="letters that are kept for measuring")


def rows(settings: ${CLASS}Settings, split: str) -> list[Example]:
    """Rows of the split "train" or "held_out"; the same ones whenever they are asked for."""
    cut = len(LETTERS) - settings.held_out
    letters = LETTERS[:cut] if split == "train" else LETTERS[cut:]
    return [Example(letter, [letter], columns={"wanted": letter}) for letter in letters]


@hookimpl
def unified_datasets() -> list[Dataset]:
    """Offer it to recipes as `data: $NAME`."""
    return [Dataset("$NAME", ${CLASS}Settings, open=rows)]
''',
    """
def test_no_row_is_in_both_splits() -> None:
    train, held_out = (plugin.rows(plugin.${CLASS}Settings(), split) for split in ("train", "held_out"))
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
""",
)

_FORMAT = Template(
    "unified_formats",
    "data: {name: files, path: rows.jsonl, format: $NAME}",
    '''
"""$NAME: say in one line which rows it reads.

{"task": ..., "attempts": [...], "passed": [...]}: every attempt is an answer, worth 1 where it passed.
"""

from typing import Any

from unified import DataFormat, Example, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1


def recognises(columns: frozenset[str]) -> bool:
    """Whether rows with these columns are of this form; no other format may say yes to them."""
    return {"task", "attempts", "passed"} <= columns


def convert(row: dict[str, Any]) -> Example:
    """One row as a prompt with its answers. ValueError with what is wrong for a row that does not fit."""
    missing = {"task", "attempts", "passed"} - row.keys()
    if missing:
        raise ValueError(f"the row has no {', '.join(sorted(missing))}")
    if len(row["attempts"]) != len(row["passed"]):
        raise ValueError(f"there are {len(row['attempts'])} attempts but {len(row['passed'])} verdicts")
    return Example(row["task"], list(row["attempts"]), [float(p) for p in row["passed"]], dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer it to recipes as `format: $NAME`."""
    return [DataFormat("$NAME", recognises=recognises, convert=convert)]
''',
    """
def test_an_attempt_that_passed_is_worth_one() -> None:
    example = plugin.convert({"task": "1+1", "attempts": ["2", "3"], "passed": [True, False]})
    assert (example.answers, example.rewards) == (["2", "3"], [1.0, 0.0])
""",
)

_SOURCE = Template(
    "unified_sources",
    "source: $NAME",
    '''
"""$NAME: say in one line how prompts get their answers.

Answers of the policy as it is now.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from unified import DataSource, Field, PromptGroup, Sampling, Settings, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1


class ${CLASS}Settings(Settings):
    """What a recipe may set."""

    group_size: int = Field(8, ge=1, description="answers per prompt")
    temperature: float = Field(1.0, gt=0, description="divides the logits")
    max_tokens: int = Field(64, ge=1, description="longest answer, in tokens")


def collect(
    prompts: list[PromptGroup], settings: ${CLASS}Settings, sample: Callable[..., Any]
) -> list[PromptGroup]:
    """The prompts with answers, which it does not judge."""
    sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
    drawn = sample(prompts, settings.group_size, sampling)
    return [replace(prompt, answers=answers) for prompt, answers in zip(prompts, drawn, strict=True)]


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer it to recipes as `source: $NAME`."""
    return [DataSource("$NAME", ${CLASS}Settings, collect=collect, online=True)]
''',
    """
def test_every_prompt_gets_as_many_answers_as_asked_for() -> None:
    def sample(prompts: list[PromptGroup], n: int, sampling: Sampling) -> list[list[Answer]]:
        return [[Answer([k], str(k)) for k in range(n)] for _ in prompts]

    made = plugin.collect([PromptGroup([1]), PromptGroup([2])], plugin.${CLASS}Settings(group_size=3), sample)
    assert [len(group.answers) for group in made] == [3, 3]
""",
)

_FILTER = Template(
    "unified_rules",
    "filters: [$NAME]",
    '''
"""$NAME: say in one line which groups go on to be learned from.

Prompts of which at least one answer is good enough.
"""

from unified import Field, PromptGroup, Rule, Settings, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1


class ${CLASS}Settings(Settings):
    """What a recipe may set."""

    reward: float = Field(0.5, description="least reward of a prompt's best answer")


def keep(groups: list[PromptGroup], *, reward: float) -> list[PromptGroup]:
    """The groups that stay, in order; the settings come as keywords."""
    return [group for group in groups if any((a.total_reward or 0.0) >= reward for a in group.answers)]


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer it to recipes as `filters: [$NAME]`."""
    return [Rule("$NAME", ${CLASS}Settings, of="filter", value=keep)]
''',
    """
def test_a_prompt_without_a_good_answer_is_dropped() -> None:
    good, bad = (PromptGroup([1], [Answer([2], "x", reward=r)]) for r in (1.0, 0.25))
    assert plugin.keep([good, bad], reward=0.5) == [good]
""",
)

_ENGINE = Template(
    "unified_engines",
    "engine: $NAME",
    '''
"""$NAME: say in one line what it samples with.

Tokens drawn evenly from the vocabulary: a floor for other engines.
"""

import math
from typing import Any

import torch

from unified import Answer, RolloutEngine, Sampling, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1


def generate(tokenizer: Any, sampling: Sampling, seeds: list[list[int]]) -> list[list[Answer]]:
    """An answer for each seed, up to the end-of-sequence token or max_tokens; drawn from that seed alone."""
    return [[_draw(tokenizer, sampling.max_tokens, seed) for seed in own] for own in seeds]


def _draw(tokenizer: Any, longest: int, seed: int) -> Answer:
    ids = torch.randint(len(tokenizer), (longest,), generator=torch.Generator().manual_seed(seed)).tolist()
    ended = tokenizer.eos_token_id in ids
    ids = ids[: ids.index(tokenizer.eos_token_id) + 1] if ended else ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    logp = [-math.log(len(tokenizer))] * len(ids)
    return Answer(ids, text, sampling_logp=logp, finish="stop" if ended else "length")


@hookimpl
def unified_engines() -> list[RolloutEngine]:
    """Offer it to recipes as `engine: $NAME`."""
    return [RolloutEngine("$NAME", generate=generate)]
''',
    """
class Tokenizer:
    eos_token_id = 0

    def __len__(self) -> int:
        return 4

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join("abcd"[i] for i in ids)


def test_an_answer_ends_with_the_end_of_sequence_token_or_at_max_tokens() -> None:
    (answers,) = plugin.generate(Tokenizer(), Sampling(max_tokens=3), [list(range(20))])
    assert {a.finish for a in answers} == {"stop", "length"}
    assert all((a.ids[-1] == 0) == (a.finish == "stop") for a in answers)
""",
)

_STAGE = Template(
    "unified_stages",
    "kind: $NAME",
    '''
"""$NAME: say in one line what such a stage of a recipe does.

It counts the rows of a dataset and makes no model.
"""

from unified import Chosen, Field, Settings, StageContext, StageKind, StageResult, call_named, choice, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1


class ${CLASS}Settings(Settings):
    """What a recipe may set."""

    data: Chosen = choice("dataset", description="whose rows are counted")
    split: str = Field("train", description="train or held_out")


def run(stage: StageContext, settings: ${CLASS}Settings) -> StageResult:
    """Write the number to `rows.txt` in the stage's folder."""
    where = {"split": settings.split, "seed": stage.seed, "folder": stage.home}
    rows = call_named(settings.data.part.open, settings=settings.data.settings, **where)
    (stage.folder / "rows.txt").write_text(f"{len(rows)}\\n")
    return StageResult(summary={"rows": len(rows)})


@hookimpl
def unified_stages() -> list[StageKind]:
    """Offer it to recipes as `kind: $NAME`."""
    return [StageKind("$NAME", ${CLASS}Settings, run=run)]
''',
    """
def test_it_counts_the_rows(tmp_path: Path) -> None:
    class Rows:
        @hookimpl
        def unified_datasets(self) -> list[Dataset]:
            return [Dataset("three", open=lambda: ["a", "b", "c"])]

    stage = SimpleNamespace(seed=0, home=tmp_path, folder=tmp_path)
    with using(Catalogue({"rows": Rows()}, installed=False)):
        result = plugin.run(stage, plugin.${CLASS}Settings(data="three"))
    assert result.summary == {"rows": 3}
    assert (tmp_path / "rows.txt").read_text() == "3\\n"
""",
    (("data", "random_walks"),),
)

#: kind -> what is written for it
TEMPLATES: dict[str, Template] = {
    "algorithm": _ALGORITHM,
    "dataset": _DATASET,
    "engine": _ENGINE,
    "filter": _FILTER,
    "format": _FORMAT,
    "reward": _REWARD,
    "source": _SOURCE,
    "stage": _STAGE,
}
