"""Rows whose answers carry judgements: scores, trees of ranked replies, labels of steps."""

from __future__ import annotations

from typing import Any

import pytest

from unified import Example, call_named, catalogue


def convert(name: str, row: dict[str, Any], **settings: Any) -> Any:
    part = catalogue().get("format", name)
    return call_named(part.convert, row=row, settings=part.settings(**settings))


# --- scored ---

RATED = {
    "instruction": "2+3?",
    "completions": [
        {"response": "5", "overall_score": 9.5, "fine-grained_score": 4.5,
         "annotations": {"honesty": {"Rating": "5"}, "truthfulness": {"Rating": "4"}, "help": {"Rating": "N/A"}}},
        {"response": "6", "overall_score": "3", "fine-grained_score": 1.0,
         "annotations": {"honesty": {"Rating": "1"}, "truthfulness": {"Rating": "1"}, "help": {"Rating": "4"}}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("score", "rewards"),
    [
        ("overall_score", [9.5, 3.0]),
        ("fine-grained_score", [4.5, 1.0]),
        ("annotations", [4.5, 2.0]),  # (5 + 4) / 2, for what is not rated does not count; (1 + 1 + 4) / 3
    ],
)
def test_the_reward_of_an_answer_is_the_score_that_is_chosen(score: str, rewards: list[float]) -> None:
    example = convert("scored", RATED, score=score)
    assert (example.prompt, example.answers) == ([{"role": "user", "content": "2+3?"}], ["5", "6"])
    assert example.rewards == rewards


def test_scores_may_stand_beside_their_answers() -> None:
    example = convert("scored", {"prompt": "2+3=", "responses": ["5", "6"], "scores": [1, -0.5]})
    assert example == Example("2+3=", ["5", "6"], [1.0, -0.5], example.columns)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"overall_score": None}, r"'completions\[1\]\.overall_score' must be a number, not None"),
        ({"overall_score": True}, "must be a number, not True"),
        ({"overall_score": float("nan")}, "must be a number, not nan"),
        ({"response": " "}, r"'completions\[1\]\.response' is empty"),
    ],
)
def test_a_score_or_text_that_is_missing_is_never_guessed(change: dict[str, Any], said: str) -> None:
    completions = [RATED["completions"][0], {**RATED["completions"][1], **change}]  # type: ignore[index]
    with pytest.raises(ValueError, match=said):
        convert("scored", {**RATED, "completions": completions})


def test_an_unknown_score_is_answered_with_the_ones_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"has no 'rating'; .* may be: overall_score, fine-grained_score, annotations"):
        convert("scored", RATED, score="rating")


# --- trees ---


def said(role: str, text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), **more}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


TREE = said(
    "prompter", "q",
    said("assistant", "worse", said("prompter", "then?", said("assistant", "only")), rank=1),
    said("assistant", "better", said("prompter", "alone"), rank=0),
    said("assistant", "unjudged", rank=None),
    message_id="m",
)  # fmt: skip


def test_each_turn_of_a_user_with_replies_is_an_example_with_the_way_to_it_as_prompt() -> None:
    ranked, imitated = convert("trees", {"message_tree_id": "t", "prompt": TREE})
    assert (ranked.prompt, ranked.answers, ranked.rewards) == (turns("q"), ["better", "worse"], [1.0, 0.0])
    assert ranked.columns == {"message_tree_id": "t", "message_id": "m", "unranked": 1}
    assert (imitated.prompt, imitated.answers) == (turns("q", "worse", "then?"), ["only"])
    assert imitated.rewards is None


def test_only_ranked_turns_are_taken_where_the_recipe_says_so() -> None:
    assert [e.answers for e in convert("trees", {"prompt": TREE}, ranked=True)] == [["better", "worse"]]
    assert convert("trees", {"prompt": said("prompter", "q", said("assistant", "a"))}, ranked=True) == []


def test_replies_of_equal_rank_get_equal_rewards_and_unranked_ones_none() -> None:
    equal = said("prompter", "q", said("assistant", "a", rank=0), said("assistant", "b", rank=0))
    assert convert("trees", {"prompt": equal})[0].rewards == [0.0, 0.0]
    unranked = said("prompter", "q", said("assistant", "a"), said("assistant", "b"))
    (example,) = convert("trees", {"prompt": unranked})
    assert (example.answers, example.rewards) == (["a", "b"], None)


def test_deleted_replies_are_used_only_where_the_recipe_says_so() -> None:
    tree = said("prompter", "q", said("assistant", "a", deleted=True), said("assistant", "b", deleted=False))
    assert [e.answers for e in convert("trees", {"prompt": tree})] == [["b"]]
    assert [e.answers for e in convert("trees", {"prompt": tree}, deleted=True)] == [["a", "b"]]


@pytest.mark.parametrize(
    "tree",
    [
        said("prompter", "q", said("prompter", "r")),
        said("prompter", "q", said("assistant", "a", said("assistant", "b"))),
        said("robot", "q"),
        {"role": "prompter", "text": "q", "replies": ["a"]},
        said("prompter", "q", said("assistant", " ")),
    ],
)
def test_what_is_no_tree_of_turns_says_so(tree: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="column 'prompt"):
        convert("trees", {"prompt": tree})


# --- steps ---


def test_steps_become_one_answer_that_knows_where_each_step_ends() -> None:
    example = convert("steps", {"prompt": "2+3+4=", "completions": ["2+3=5 ", "5+4=8"], "labels": [True, 0.25]})
    (answer,) = example.answers
    assert answer == "2+3=5 \n5+4=8\n"
    assert [answer[:end] for end in example.columns["step_ends"]] == ["2+3=5", "2+3=5 \n5+4=8"]
    assert example.columns["labels"] == [1.0, 0.25]
    assert convert("steps", {"prompt": "?", "steps": ["a", "b"], "labels": [1, 0]}, separator=" ").answers == ["a b "]


@pytest.mark.parametrize(
    ("mistake", "labels"), [(None, [1, 1, 1]), (0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0]), (2.0, [1, 1, 0])]
)
def test_steps_are_right_before_the_first_mistake_and_wrong_from_it_on(mistake: Any, labels: list[float]) -> None:
    row = {"input": "sort", "steps": ["a", "b", "c"], "answer": "c", "mistake_index": mistake}
    example = convert("steps", row)
    assert example.prompt == [{"role": "user", "content": "sort"}]
    assert example.columns["labels"] == labels


def test_a_blank_step_ends_behind_its_separator_and_keeps_its_label() -> None:
    example = convert("steps", {"prompt": "?", "steps": ["a", "", "b"], "labels": [1, 0, 1]})
    assert example.answers == ["a\n\nb\n"]
    assert example.columns["step_ends"] == [1, 3, 4]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [1]}, "there are 2 steps but 1 labels"),
        ({"labels": [1, 2]}, "true, false or numbers from 0 to 1"),
        ({"labels": "10"}, "'labels' must be a list"),
        ({"labels": None}, "'labels' is empty"),
        ({"steps": ["a", 1]}, "'steps' must be a list of texts"),
        ({"steps": []}, "'steps' is empty"),
        ({"prompt": None}, "no column 'prompt' or"),
    ],
)
def test_steps_and_labels_that_do_not_fit_say_why(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        convert("steps", {"prompt": "?", "steps": ["a", "b"], "labels": [1, 0], **change})


@pytest.mark.parametrize("mistake", [3, -1, True, "1"])
def test_a_mistake_must_be_one_of_the_steps(mistake: Any) -> None:
    with pytest.raises(ValueError, match="must be null or from 0 to 2, not"):
        convert("steps", {"input": "?", "steps": ["a", "b", "c"], "mistake_index": mistake})
