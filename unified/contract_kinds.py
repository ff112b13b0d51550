"""What holds for every format, filter, engine and stage kind; the checks of `unified.testing`, on made-up input."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from unified.contract_parts import PartUnderTest, made_up
from unified.data import Answer, Example, NewWeights, PromptGroup, Sampling
from unified.manifest import sha256
from unified.models import new_policy, save_model
from unified.registry import call_named

# --- formats ---


def recognises_its_own(subject: PartUnderTest) -> Iterator[str]:
    """It says yes or no to the columns of a file, and no to a file without columns."""
    if subject.part.recognises is None:
        return
    for columns in (frozenset[str](), frozenset({"a column", "of nobody"})):
        given = call_named(subject.part.recognises, columns=columns, row=dict.fromkeys(columns, ""))
        if not isinstance(given, bool):
            yield f"recognises gave {given!r}; it must be True or False"
        elif given:
            yield f"it recognises a file with the columns {sorted(columns)}"


def refuses_with_a_reason(subject: PartUnderTest) -> Iterator[str]:
    """A row that does not fit becomes Examples, or is refused by a ValueError that says why."""
    for row in ({}, {"a column": 1, "of nobody": None}):
        try:
            given = call_named(subject.part.convert, row=dict(row), settings=subject.settings)
        except ValueError as error:
            if not str(error).strip():
                yield "it refuses a row without saying why"
            continue
        except (KeyError, TypeError, AttributeError) as error:
            yield f"a row of {sorted(row)} raises {type(error).__name__}: {error}; it must raise ValueError: why"
            continue
        for example in given if isinstance(given, list) else [given]:
            if not isinstance(example, Example):
                yield f"a row became {type(example).__name__}; it must be an Example, or a list of them"


FORMAT = (recognises_its_own, refuses_with_a_reason)

# --- filters ---


def judged() -> list[PromptGroup]:
    """The made-up groups with rewards; a missing one, and a prompt whose answers are all the same, among them."""
    groups = made_up()
    for i, group in enumerate(groups):
        for k, answer in enumerate(group.answers):
            answer.reward = None if (i, k) == (0, 2) else float(k) if i == 0 else 0.5
    return groups


def keeps_in_order(subject: PartUnderTest) -> Iterator[str]:
    """It gives groups that it was given, in their order, and invents no answer."""
    groups = judged()
    given = call_named(subject.part.value, groups=copy.deepcopy(groups), **subject.settings.model_dump())
    if not isinstance(given, list) or not all(isinstance(g, PromptGroup) for g in given):
        yield f"it gave {type(given).__name__}; a filter gives the list of the PromptGroups that stay"
        return
    keys, known = [g.key for g in given], [g.key for g in groups]
    if [k for k in known if k in keys] != keys:
        yield f"of the groups {known} it gave {keys}; those that stay must be some of them, in order"
    answers = {g.key: len(g.answers) for g in groups}
    yield from (
        f"it gave group {g.key} with {len(g.answers)} answers, of {answers[g.key]}"
        for g in given
        if g.key in answers and len(g.answers) > answers[g.key]
    )


def filters_without_a_trace(subject: PartUnderTest) -> Iterator[str]:
    """It changes nothing in the groups that it is given, and says the same of them twice."""
    groups, settings = judged(), subject.settings.model_dump()
    first = copy.deepcopy(call_named(subject.part.value, groups=groups, **settings))
    if groups != judged():
        yield "it changes the groups that it is given"
    elif call_named(subject.part.value, groups=groups, **settings) != first:
        yield "it keeps other groups when it is asked again"


FILTER = (keeps_in_order, filters_without_a_trace)

# --- engines ---

LONGEST = 5
PROMPTS = ([5, 6, 7], [8])
SEEDS = ([11, 12, 13], [14, 15, 16])


def _sampled(subject: PartUnderTest, prompts: Any, seeds: Any, max_tokens: int = LONGEST) -> list[list[Answer]]:
    tokenizer = _letters()
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = new_policy({"model_type": "llama", **config}, tokenizer, 0).module
    with TemporaryDirectory() as folder:
        receipt = _pushed(subject, model, tokenizer, Path(folder)) if subject.part.push is not None else None
        return list(
            call_named(
                subject.part.generate, model=model, tokenizer=tokenizer, prompts=[list(p) for p in prompts],
                n=len(seeds[0]), sampling=Sampling(max_tokens=max_tokens), settings=subject.settings,
                seeds=[list(s) for s in seeds], receipt=receipt,
            )
        )  # fmt: skip


@torch.no_grad()
def _pushed(subject: PartUnderTest, model: Any, tokenizer: Any, folder: Path) -> Any:
    """The receipt of an engine with weights of its own, for those of the model."""
    probe = tuple(range(3, 3 + 2 * LONGEST))
    logp = model(torch.tensor([probe])).logits[0, :-1].log_softmax(-1)[torch.arange(len(probe) - 1), list(probe[1:])]
    save_model(model, tokenizer, folder / "v0")
    digest = sha256(folder / "v0" / "model.safetensors")
    weights = NewWeights(folder / "v0", 0, digest, False, probe, tuple(logp.tolist()))
    return call_named(subject.part.push, weights=weights, settings=subject.settings)


def _letters() -> Any:
    """A tokenizer of one token a character."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *"abcdefghijklmnop"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def samples(subject: PartUnderTest) -> Iterator[str]:
    """n answers a prompt, each with a log-probability for every token, no longer than asked, ended as it says."""
    given = _sampled(subject, PROMPTS, SEEDS)
    if [len(answers) for answers in given] != [3, 3]:
        yield f"it gave {[len(answers) for answers in given]} answers where 3 were asked for to each of 2 prompts"
        return
    for answer in (a for answers in given for a in answers):
        if not isinstance(answer, Answer):
            yield f"it gave {type(answer).__name__}; it must be an Answer"
            return
        if not 0 < len(answer.ids) <= LONGEST:
            yield f"an answer has {len(answer.ids)} tokens, where at most {LONGEST} were asked for"
        if answer.sampling_logp is None or len(answer.sampling_logp) != len(answer.ids):
            yield "an answer has no sampling_logp for each token"
        elif not all(math.isfinite(x) and x <= 1e-6 for x in answer.sampling_logp):
            yield f"sampling_logp {answer.sampling_logp} are no log-probabilities"


def draws_from_the_seed_alone(subject: PartUnderTest) -> Iterator[str]:
    """An answer does not depend on the other prompts and answers of the call."""
    whole = _sampled(subject, PROMPTS, SEEDS)
    for i, k in ((1, 0), (0, 2)):
        (alone,) = _sampled(subject, [PROMPTS[i]], [[SEEDS[i][k]]])
        if alone[0].ids != whole[i][k].ids:
            yield f"answer {k} to prompt {i} is {whole[i][k].ids}, but {alone[0].ids} when it is sampled alone"


ENGINE = (samples, draws_from_the_seed_alone)

# --- stage kinds ---


def tells_of_itself(subject: PartUnderTest) -> Iterator[str]:
    """It can be run, and says in the words of the contract which models it uses and what it makes."""
    part = subject.part
    if part.run is None:
        yield "it has no `run`"
    uses = call_named(part.uses, settings=subject.settings) if part.uses else []
    for use in uses:
        if len(use) not in (3, 4) or use[2] not in ("policy", "scalar", "any"):
            yield f"uses gave {use!r}; it must be (path of keys, reference, 'policy', 'scalar' or 'any')"
    makes = call_named(part.makes, settings=subject.settings) if part.makes else None
    if makes not in ("policy", "scalar", "dataset", None):
        yield f"makes gave {makes!r}; it must be 'policy', 'scalar', 'dataset' or None"


STAGE = (tells_of_itself,)
