"""Tags in order, once each, with something inside."""

from __future__ import annotations

import pytest

from tests.rewards.judging import judged_texts, refusal

GOOD = "<think>one\ntwo</think>\n<answer> 3 </answer>\n"


@pytest.mark.parametrize(
    "said",
    [
        "<answer>3</answer><think>so</think>",  # another order
        "<think>a</think><think>b</think><answer>3</answer>",  # twice
        "<think> </think><answer>3</answer>",  # empty
        "<think>so<answer>3</answer></think>",  # one inside the other
        "<think>so</think><answer>3",  # not closed
        "<think>so</think>3",
        "",
    ],
)
def test_what_breaks_the_form_is_worth_nothing(said: str) -> None:
    assert judged_texts("format", [said, GOOD]) == [0.0, 1.0]
    assert judged_texts({"name": "format", "strict": False}, [said, GOOD]) == [0.0, 1.0]


def test_text_outside_the_tags_is_allowed_only_where_it_is_not_strict() -> None:
    said = [GOOD + "more", "first " + GOOD, GOOD.replace("\n<answer>", "between<answer>")]
    assert judged_texts("format", said) == [0.0] * 3
    assert judged_texts({"name": "format", "strict": False}, said) == [1.0] * 3


def test_in_part_each_tag_that_stands_once_counts_a_share() -> None:
    rule = {"name": "format", "partial": True}
    # of four tags: all; <think> twice, so three; two; none
    said = [GOOD, "<think>" + GOOD, "<answer>3</answer>", "3"]
    assert judged_texts(rule, said) == [1.0, 0.75, 0.5, 0.0]


def test_a_tag_that_the_prompt_opened_is_not_opened_again() -> None:
    rule = {"name": "format", "opened": True}
    rest = GOOD.removeprefix("<think>")
    assert judged_texts(rule, [rest, GOOD, " </think><answer>3</answer>", rest + "more"]) == [1.0, 0.0, 0.0, 0.0]
    # </think>, <answer>, </answer>: two of three
    assert judged_texts({**rule, "partial": True}, ["so</think> <answer>3"]) == [pytest.approx(2 / 3)]


def test_other_tags_are_named_by_the_recipe_and_must_be_names() -> None:
    rule = {"name": "format", "tags": ["plan", "code", "test"]}
    assert judged_texts(rule, ["<plan>a</plan><code>b</code><test>c</test>", GOOD]) == [1.0, 0.0]
    assert "without brackets" in refusal({"name": "format", "tags": ["<think>"]})
    assert "must differ" in refusal({"name": "format", "tags": ["a", "a"]})
