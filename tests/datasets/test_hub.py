"""Datasets of the hub: fetched when a stage runs and not before, then read as files are. Nothing here has a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unified import UserError, call_named, catalogue, check_recipe, load_recipe
from unified.settings import parse
from unified.unverified import not_yet_verified

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(20)]
ASKED = list[tuple[str, Any, str, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> ASKED:
    """A hub that knows one dataset, and notes what it was asked for."""
    import datasets

    seen: ASKED = []

    def load(path: str, name: str | None = None, *, split: str, revision: str | None = None) -> Any:
        seen.append((path, name, split, revision))
        if path != "someone/sums":
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist\nand a long explanation")
        return datasets.Dataset.from_list(ROWS if split == "train" else ROWS[:3])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return seen


def read(split: str = "train", **settings: Any) -> Any:
    part = catalogue().get("dataset", "hub")
    parsed, problems = parse(part.settings, settings, owner="dataset 'hub'")
    assert not problems
    return call_named(part.open, settings=parsed, split=split, seed=0, folder=Path())


def questions(examples: Any) -> list[str]:
    return [example.prompt[0]["content"] for example in examples]


def test_rows_come_in_the_order_of_the_dataset_and_know_where_they_stood(asked: ASKED) -> None:
    examples = read(id="someone/sums", subset="easy", revision="v1", held_out=0)
    assert asked == [("someone/sums", "easy", "train", "v1")]
    assert questions(examples) == [f"q{i}" for i in range(20)]
    assert [e.answers for e in examples[:2]] == [["a0"], ["a1"]]
    assert (examples[4].columns["file"], examples[4].columns["row"]) == ("someone/sums", 5)


def test_held_out_rows_are_drawn_from_the_split_and_never_trained_on(asked: ASKED) -> None:
    train, held_out = questions(read(id="someone/sums")), questions(read("held_out", id="someone/sums"))
    assert len(held_out) == 2  # a tenth of 20
    assert sorted(train + held_out) == sorted(row["question"] for row in ROWS)
    assert {split for _, _, split, _ in asked} == {"train"}


def test_a_split_of_its_own_leaves_all_other_rows_to_training(asked: ASKED) -> None:
    assert len(read(id="someone/sums", held_out_split="test")) == 20
    assert questions(read("held_out", id="someone/sums", held_out_split="test")) == ["q0", "q1", "q2"]


def test_columns_format_and_limit_are_those_of_files(asked: ASKED) -> None:
    examples = read(id="someone/sums", columns={"prompt": "question"}, format="prompts", limit=4, held_out=0)
    assert [e.prompt for e in examples] == ["q0", "q1", "q2", "q3"]
    with pytest.raises(UserError, match=r"someone/sums: no column 'qestion'"):
        read(id="someone/sums", columns={"prompt": "qestion"}, held_out=0)


def test_a_dataset_that_cannot_be_had_is_one_clear_message(asked: ASKED) -> None:
    with pytest.raises(UserError) as caught:
        read(id="someone/suns")
    assert str(caught.value).splitlines() == [
        "dataset someone/suns (train) cannot be had from the hub: Dataset 'someone/suns' doesn't exist",
        "    without a network, keep its rows in a file: `data: rows.jsonl`",
    ]


def test_a_check_fetches_nothing_and_says_what_it_could_not_verify(tmp_path: Path, asked: ASKED) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: a\nmodel: someone/some-model\ndefaults: {data: {name: hub, id: someone/sums}}\n"
        "stages:\n"
        "  one: {algorithm: sft, max_length: 100, evaluation: {reward: null}}\n"
        "  two: {model: stage:one, terms: [{algorithm: sft}, {algorithm: sft, data: {name: hub, id: other/text}}]}\n"
        "  three: {algorithm: sft, data: random_walks, evaluation: {data: {name: hub, id: last/one}}}\n"
    )
    plan = check_recipe(load_recipe(recipe))
    assert asked == []
    assert not_yet_verified(plan) == [
        "model someone/some-model", "dataset someone/sums", "dataset other/text", "dataset last/one",
    ]  # fmt: skip


def test_a_model_in_a_folder_and_rows_of_a_task_leave_nothing_unverified(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    new = "{new: {model_type: llama, hidden_size: 8, num_attention_heads: 1}, tokenizer: random_walks}"
    recipe.write_text(f"name: a\nmodel: {new}\nstages: {{s: {{algorithm: sft, data: random_walks}}}}\n")
    assert not_yet_verified(check_recipe(load_recipe(recipe))) == []


def test_rows_that_stay_on_the_disk_are_the_same_rows(asked: ASKED) -> None:
    held, streamed = read(id="someone/sums"), read(id="someone/sums", streaming=True)
    assert list(streamed) == list(held)
    assert (len(streamed), streamed.format, streamed[3] is streamed[3]) == (18, "question_answer", False)
