"""The dataset types of the best-known library, standard and conversational, run under its own column names.

Language modelling, prompt-only, prompt-completion, preference with an implicit and an explicit prompt, unpaired
preference, stepwise supervision. What is asserted of each: the format, the prompt, the answers and the rewards.
"""

from __future__ import annotations

from typing import Any

import pytest

from unified import Example, call_named, catalogue
from unified_plugins.datasets._examples import recognise

ASKED = [{"role": "user", "content": "What colour is the sky?"}]
BLUE, GREEN = ([{"role": "assistant", "content": f"It is {colour}."}] for colour in ("blue", "green"))
STEPS = ["Light scatters.", "Green most."]

TYPES: dict[str, tuple[dict[str, Any], str, Any, list[str], list[float] | None]] = {
    "language modelling": ({"text": "The sky is blue."}, "text", "", ["The sky is blue."], None),
    "prompt-only": ({"prompt": "The sky is"}, "prompts", "The sky is", [], None),
    "prompt-only, conversation": ({"prompt": ASKED}, "prompts", ASKED, [], None),
    "prompt-completion": (
        {"prompt": "The sky is", "completion": " blue."}, "prompt_completion", "The sky is", [" blue."], None,
    ),
    "prompt-completion, conversation": (
        {"prompt": ASKED, "completion": BLUE}, "prompt_completion", ASKED, ["It is blue."], None,
    ),
    "preference, implicit": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        "preference", "The sky is", [" blue.", " green."], [1, 0],
    ),
    "preference, implicit, conversation": (
        {"chosen": ASKED + BLUE, "rejected": ASKED + GREEN},
        "preference", ASKED, ["It is blue.", "It is green."], [1, 0],
    ),
    "preference, explicit": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        "preference", "The sky is", [" blue.", " green."], [1, 0],
    ),
    "preference, explicit, conversation": (
        {"prompt": ASKED, "chosen": BLUE, "rejected": GREEN},
        "preference", ASKED, ["It is blue.", "It is green."], [1, 0],
    ),
    "unpaired": (
        {"prompt": "The sky is", "completion": " green.", "label": False}, "unpaired", "The sky is", [" green."], [0],
    ),
    "unpaired, conversation": (
        {"prompt": ASKED, "completion": BLUE, "label": True}, "unpaired", ASKED, ["It is blue."], [1],
    ),
    "stepwise": (
        {"prompt": "Why is the sky blue?", "completions": STEPS, "labels": [True, False]},
        "steps", "Why is the sky blue?", ["Light scatters.\nGreen most.\n"], None,
    ),
    "stepwise, conversation": (
        {"prompt": ASKED, "completions": STEPS, "labels": [True, False]},
        "steps", ASKED, ["Light scatters.\nGreen most.\n"], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_a_row_of_each_type_runs_unchanged(name: str) -> None:
    row, wanted, prompt, answers, rewards = TYPES[name]
    chosen = recognise([(1, row)], "x.jsonl")
    example: Example = call_named(chosen.part.convert, row=row, settings=chosen.settings)
    assert chosen.name == wanted
    assert (example.prompt, example.answers, example.rewards) == (prompt, answers, rewards)


def test_messages_are_language_modelling_of_a_conversation() -> None:
    assert recognise([(1, {"messages": ASKED + BLUE})], "x.jsonl").name == "messages"


def test_a_completion_of_several_turns_stays_the_turns_that_it_is() -> None:
    part = catalogue().get("format", "prompt_completion")
    turns = [*BLUE, {"role": "user", "content": "Why?"}, *GREEN]
    example = call_named(part.convert, row={"prompt": ASKED, "completion": turns}, settings=part.settings())
    assert example.answers == [turns]
    with pytest.raises(ValueError, match="must begin with a turn of the assistant, not of 'user'"):
        call_named(part.convert, row={"prompt": ASKED, "completion": turns[1:]}, settings=part.settings())


def test_a_prompt_beside_whole_conversations_is_not_asked_twice_and_one_beside_answers_is_kept() -> None:
    part = catalogue().get("format", "preference")
    whole = {"prompt": "What colour is the sky?", "chosen": ASKED + BLUE, "rejected": ASKED + GREEN}
    assert call_named(part.convert, row=whole, settings=part.settings()).prompt == ASKED
    more = [*BLUE, {"role": "user", "content": "Sure?"}]
    rest = {"prompt": ASKED, "chosen": more + BLUE, "rejected": more + GREEN}  # the two share two turns more
    assert call_named(part.convert, row=rest, settings=part.settings()).prompt == ASKED + more
