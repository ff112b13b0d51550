"""Where the steps of an answer end, in tokens: exact also where a token reaches over the end of a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unified import Answer, PromptGroup, UserError, call_named, catalogue
from unified_plugins.sources.step_ends import _by_offsets, _by_reading, split_ends, token_ends


def byte_level(*merges: tuple[str, str]) -> Any:
    """A byte-level tokenizer that joins only the pairs given, and has a token that ends an answer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *("".join(pair) for pair in merges), "</s>"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


LINE = "Ċ"  # a line break, as a byte-level vocabulary writes it
PLAIN, MERGED = byte_level(), byte_level((".", LINE), (LINE, "b"))


def marked(tokenizer: Any, text: str, labels: Any, columns: dict[str, Any] | None = None, **settings: Any) -> Answer:
    part = catalogue().get("source", "step_ends")
    ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    group = PromptGroup([1], [Answer(ids, text)], columns={"labels": labels, **(columns or {})}, key=4)
    sample = SimpleNamespace(tokenizer=tokenizer)
    (found,) = call_named(part.collect, prompts=[group], settings=part.settings(**settings), sample=sample, seed=0)
    return found.answers[0]  # type: ignore[no-any-return]


def ends(answer: Answer, tokenizer: Any) -> list[str]:
    """The tokens that carry a label, as they read."""
    assert answer.loss_mask is not None
    return [tokenizer.decode([i]) for i, on in zip(answer.ids, answer.loss_mask, strict=True) if on]


@pytest.mark.parametrize(
    ("tokenizer", "text", "tokens"),
    [
        (PLAIN, "a.\nb.\n", [".", "."]),
        (MERGED, "a.\nb.\n", [".\n", ".\n"]),  # the token that holds the full stop holds the line break as well
        (MERGED, "a\nb\n", ["a", "\nb"]),  # "\nb" holds the separator, but belongs to the second step
    ],
)
def test_a_step_ends_at_the_token_of_its_last_character(tokenizer: Any, text: str, tokens: list[str]) -> None:
    answer = marked(tokenizer, text, [True, False], separator="\n")
    assert ends(answer, tokenizer) == tokens
    assert [reward for reward in answer.reward if reward] == [1.0]  # type: ignore[union-attr]
    told = marked(tokenizer, text, [True, False], {"step_ends": split_ends(text, "\n")})
    assert told == answer


def test_the_step_of_a_search_or_label_counts_tokens_up_to_its_end() -> None:
    answer = marked(PLAIN, "a.\nb.\n", [1, 0.5], separator="\n")
    assert answer.steps == [(2, 1.0), (5, 0.5)]  # a . | line break b .


def test_steps_that_end_in_one_token_have_the_lowest_label() -> None:
    answer = marked(MERGED, "a.\n", [1, 0], {"step_ends": [2, 3]})  # "." and the line break are one token
    assert (ends(answer, MERGED), answer.reward) == ([".\n"], [0, 0, 0])
    assert answer.loss_mask == [False, True, False]


@pytest.mark.parametrize(("text", "separator", "found"), [
    ("a\nb\n", "\n", [1, 3]), ("a \n\nb", "\n", [1, 5]), ("a. Then b.", ". ", [1, 10]), ("\n \n", "\n", []),
])  # fmt: skip
def test_blank_steps_are_none_and_white_space_behind_a_step_is_not_its_end(
    text: str, separator: str, found: list[int]
) -> None:
    assert split_ends(text, separator) == found


@given(st.lists(st.text("ab.\nä€ ", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=5), st.booleans())
def test_both_ways_of_finding_an_end_agree_and_the_token_holds_the_last_character(
    steps: list[str], joined: bool
) -> None:
    tokenizer = MERGED if joined else PLAIN
    text = "".join(step + "\n" for step in steps)
    places, at = [], 0
    for step in steps:
        places.append(at + len(step.rstrip()))
        at += len(step) + 1
    ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    found = token_ends(ids, text, places, tokenizer)
    for place, token in zip(places, found, strict=True):
        assert tokenizer.decode(ids[: token + 1]).startswith(text[:place])
        assert not tokenizer.decode(ids[:token]).startswith(text[:place])
    before = len(text) - len(text.lstrip())
    body, inside = text.strip(), [place - before for place in places]
    assert _by_reading(ids, body, inside, tokenizer) == found
    assert _by_offsets(ids, body, inside, tokenizer) == found


def test_text_that_a_template_puts_around_the_answer_does_not_move_the_ends() -> None:
    ids = [*PLAIN("think: a.\nb.").input_ids, PLAIN.eos_token_id]  # the template cut the last line break away
    assert token_ends(ids, "a.\nb.\n", [2, 5], PLAIN) == [8, 11]


def test_characters_that_the_tokenizer_does_not_know_do_not_hide_the_ends() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert token_ends([1, 0, 0, 1, 2], "a +\n- a\n", [3, 7], tokenizer) == [1, 3]
    with pytest.raises(ValueError, match="the tokens of the answer read"):
        token_ends([0, 1, 1, 2], "a +\n- a\n", [3, 7], tokenizer)  # neither its ids nor its text


@pytest.mark.parametrize(
    ("labels", "columns", "settings", "said"),
    [
        ([1], {}, {"separator": "\n"}, r"row 4: column 'labels' holds 1 labels for 2 steps\n.*ends at '\\n'"),
        (None, {"step_ends": [2]}, {}, "holds no list of labels for 1 steps"),
        ([1], {}, {}, "row 4: no `separator` is set, and the row has no column `step_ends`"),
    ],
)
def test_labels_and_steps_that_do_not_fit_are_refused(labels: Any, columns: Any, settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        marked(PLAIN, "a.\nb.\n", labels, columns, **settings)
