"""An answer that a judge left without a number says why: no opinion, none that can be read, nobody there."""

from __future__ import annotations

from typing import Any

from tests.rewards.test_judges import Scripted, _group, _judged, _serving
from unified import Answer, PromptGroup


def reasons(group: PromptGroup, models: Any = None, **written: Any) -> list[str]:
    _judged([group], models, **written)
    return group.reasons


class Full:
    """A judge who can hold no question at all."""

    class tokenizer:  # noqa: N801
        chat_template = None

    def answer(self, prompts: list[Any], *_: Any) -> list[list[Answer]]:
        return [[] for _ in prompts]


def test_an_opinion_without_points_is_quoted_with_what_was_looked_for() -> None:
    judge = {"self": Scripted(lambda question, vote: "I like it")}
    (said,) = reasons(_group("p", "a"), judge, name="rubric", model="self", pattern=r"(\d)", high=4)
    assert said == r"no points from 0 to 4 ((\d)) in 'I like it'"


def test_points_outside_of_the_scale_are_no_points() -> None:
    judge = {"self": Scripted(lambda question, vote: "Score: 7")}
    (said,) = reasons(_group("p", "a"), judge, name="rubric", model="self")
    assert said.startswith("no points from 0 to 5 ")
    assert said.endswith(" in 'Score: 7'")


def test_a_question_that_the_judge_cannot_hold_is_told_with_the_length_of_an_opinion() -> None:
    for name in ("rubric", "pairwise"):
        said = reasons(_group("p", "a", "b"), {"self": Full()}, name=name, model="self", max_tokens=99)
        assert set(said) == {"the question and an opinion of 99 tokens are more than the judge can hold"}


def test_an_endpoint_that_fails_for_one_question_is_named_with_its_reply() -> None:
    def reply(number: int, path: str, payload: Any, headers: Any) -> tuple[int, Any]:
        if "second" in payload["messages"][0]["content"]:
            return 400, {"error": "no"}
        return 200, {"choices": [{"message": {"content": "Score: 5"}}]}

    with _serving(reply) as (url, _):
        group, endpoint = _group("p", "first", "second"), {"url": url, "model": "m", "retries": 0}
        assert _judged([group], name="rubric", endpoint=endpoint) == [[1.0, None]]
    (said,) = group.reasons
    assert said.startswith(f"the server at {url}: it replied 400")


def test_a_comparison_that_cannot_be_read_and_an_answer_without_another_say_so() -> None:
    judge = {"self": Scripted(lambda question, vote: "both are fine")}
    (said,) = reasons(_group("p", "a", "b"), judge, name="pairwise", model="self")
    assert said == r"no verdict (Better:\s*(\w+)) in 'both are fine'"
    (said,) = reasons(_group("p", "a"), judge, name="pairwise", model="self")
    assert said == "the only answer of a prompt has nothing to be compared with"


def test_an_answer_with_a_number_needs_no_reason() -> None:
    judge = {"self": Scripted(lambda question, vote: "Score: 3. Better: A")}
    for name in ("rubric", "pairwise"):
        assert reasons(_group("p", "a", "b"), judge, name=name, model="self") == []
