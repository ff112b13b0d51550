"""What each built-in reward gives to given answers."""

from __future__ import annotations

from typing import Any

import pytest

from unified import Answer, PromptGroup, call_named, catalogue
from unified_plugins.datasets.random_walks import GraphSettings, graph


def judge(name: str, groups: list[PromptGroup], models: Any = None, **settings: Any) -> Any:
    part = catalogue().get("reward", name)
    return call_named(part.judge, groups=groups, settings=part.settings(**settings), models=models or {})


def group(*texts: str, prompt: str = "", **columns: Any) -> PromptGroup:
    return PromptGroup([1], [Answer(list(range(len(t))), t) for t in texts], prompt, columns)


def test_given_rewards_are_those_of_the_data_and_a_missing_one_stays_missing():
    answers = [Answer([1, 2], reward=1.0), Answer([1, 2], reward=[0.5, 0.25]), Answer([1])]
    assert judge("given", [PromptGroup([1], answers)]) == [[1.0, [0.5, 0.25], None]]


def test_a_reward_model_is_scaled_then_shifted_and_named():
    part = catalogue().get("reward", "model")

    class Scores:
        def score(self, groups: list[PromptGroup]) -> list[list[float | None]]:
            return [[1.0, None]]

    judged = judge("model", [group("a", "b")], {"stage:rm": Scores()}, model="stage:rm", scale=2, shift=-1)
    assert judged == [[1.0, None]]
    assert part.models(part.settings(model="stage:rm")) == {"stage:rm": "scalar"}


def test_the_walks_of_the_data_are_worth_what_the_data_says():
    part = catalogue().get("dataset", "random_walks")
    for seed in (0, 3):
        rows = call_named(part.open, settings=part.settings(graph_seed=seed), split="train", seed=0, folder=".")[:50]
        own = [group(*r.answers, prompt=str(r.prompt), **r.columns) for r in rows]
        assert judge("random_walks", own) == [r.rewards for r in rows]  # the rows carry their graph
        bare = [group(*r.answers, prompt=str(r.prompt)) for r in rows]
        assert judge("random_walks", bare, graph_seed=seed) == [r.rewards for r in rows]


def test_text_that_is_no_walk_is_worth_nothing():
    assert judge("random_walks", [group("", "nonsense", "a a a", "1 2", prompt="h")]) == [[0.0] * 4]


def test_the_shortest_way_of_every_start_is_worth_one():
    here = graph(GraphSettings())
    for start in range(1, 21):
        way = [start]
        while way[-1] != 0:
            way.append(min(here.edges[way[-1]], key=lambda n: here.distance[n]))
        first, *rest = (chr(ord("a") + n) for n in way)
        assert judge("random_walks", [group(" ".join(rest), prompt=first)]) == [[1.0]]


def test_an_answer_is_right_when_its_number_is_the_sum():
    answers = ["7+5=12 1+2+1=4 #42", "#42", "# 42 ", "#41", "42", "#42 and more", "", "#41 #42"]
    assert judge("arithmetic", [group(*answers, prompt="17+25=")]) == [[1, 1, 1, 0, 0, 0, 0, 1]]
    assert judge("arithmetic", [group("#42", prompt="no sum")]) == [[None]]
    assert judge("arithmetic", [group("#42", "#7", prompt="any text", answer=42)]) == [[1, 0]]


def test_a_wrong_answer_in_the_right_form_is_worth_what_is_set():
    answers = ["#42", "#41", "41"]
    assert judge("arithmetic", [group(*answers, prompt="17+25=")], format_reward=0.1) == [[1, 0.1, 0]]


@pytest.mark.parametrize(
    ("text", "share", "last"),
    [
        ("He ran. She sat.", 1.0, 1.0),
        ("He ran. She sat", 1 / 2, 0.0),
        ("He ran! Did she? She sat. And", 3 / 4, 0.0),
        ('"Stop," he said. "Now!"', 1.0, 1.0),
        ("It cost 3.50 at 7.30 p.m", 0.0, 0.0),  # no end mark before white space
        ("A title\nHe ran.", 1 / 2, 1.0),  # a line without a mark did not end properly
        ("He ran.\n\n", 1.0, 1.0),
        ("...", 1.0, 1.0),
        ("", 0.0, 0.0),
        ("and on and on", 0.0, 0.0),
    ],
)
def test_sentences_that_end_properly_are_counted(text, share, last):
    assert judge("sentence_end", [group(text)]) == [[pytest.approx(share)]]
    assert judge("sentence_end", [group(text)], last=True) == [[last]]


def test_required_words_are_counted_whole_and_without_regard_to_capitals():
    texts = ["The Cat and a dog.", "Cats only", "nothing"]
    assert judge("contains", [group(*texts)], words=["cat", "dog"]) == [[1.0, 0.0, 0.0]]
    assert judge("contains", [group(*texts)], words=["cat", "dog"], whole=False) == [[1.0, 0.5, 0.0]]
    assert judge("contains", [group(*texts)], words="cat", ignore_case=False) == [[0.0, 0.0, 0.0]]
    assert judge("contains", [group("c++ (new)")], words=["c++", "(new)"]) == [[1.0]]  # no patterns, words


def test_length_is_worth_one_at_the_target_and_falls_evenly():
    # 4 words: |4 - 6| / 4 = 1/2 off; 11 characters: at the target; ids count one per character here
    assert judge("length", [group("one two three four")], target=6, width=4, unit="words") == [[0.5]]
    assert judge("length", [group("hello world")], target=11, width=2, unit="characters") == [[1.0]]
    assert judge("length", [group("abc", "abcdefgh")], target=4, width=4) == [[0.75, 0.0]]


def test_every_built_in_reward_is_in_this_file_and_gives_one_number_per_answer():
    known = {"given", "model", "random_walks", "arithmetic", "sentence_end", "contains", "length"}
    assert known <= set(catalogue().names("reward"))
