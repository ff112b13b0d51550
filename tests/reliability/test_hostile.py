"""Hostile inputs are taken or refused with a clear error; nothing hangs, and a check writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc

from tests.reliability import _outcomes
from tests.reliability._mutations import bytes_changed, changed
from tests.reliability._outcomes import Outcomes, Unclear, judged, limited
from tests.reliability._steps import try_steps
from tests.reliability.hostile import try_files, try_recipes
from unified import UserError, call_named, catalogue, check_recipe, load_recipe
from unified.data_tool import look
from unified.errors import Problem, first_of, shown
from unified.layout import Row, lay_out
from unified.settings import choose
from unified.tree import DEEPEST, LONGEST, MOST_VALUES, read_yaml

FEW, MANY = 150, 2000


@pytest.mark.parametrize("number", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_mutated_recipe_is_sound_or_refused_with_its_mistakes_and_writes_nothing(number: int, tmp_path: Path) -> None:
    found = try_recipes(number, tmp_path)
    assert found.defects == []
    assert found.tried == number
    assert found.counts["refused"] > number / 2
    assert found.counts["taken"] > 0


@pytest.mark.parametrize("number", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_mutated_data_file_is_read_or_refused_by_its_name(number: int, tmp_path: Path) -> None:
    found = try_files(number, tmp_path)
    assert found.defects == []
    assert found.tried == number
    assert min(found.counts[o] for o in ("taken", "refused", "no format")) > number / 20


@pytest.mark.parametrize("number", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_a_step_on_groups_that_make_no_sense_leaves_finite_weights_or_a_clear_error(
    number: int, tmp_path: Path
) -> None:
    found = try_steps(number, tmp_path)
    assert found.defects == []
    assert found.tried == number
    assert found.counts["finite"] > number / 3


# --- the suite itself: it must see what it is there to see ---


def test_an_exception_that_is_no_clear_error_is_a_defect_and_so_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outcomes, "LIMIT_S", 0.05)
    outcomes = Outcomes()

    def hang() -> str:
        with limited(0.05):
            while True:
                pass

    def unclear() -> str:
        raise Unclear("it says nothing")

    for work in (lambda: str({}["a"]), hang, unclear, lambda: "refused"):
        judged(outcomes, work, "an input")
    assert dict(outcomes.counts) == {"defect: KeyError": 1, "defect: hang": 1, "defect: unclear": 1, "refused": 1}
    assert len(outcomes.defects) == 3


def test_a_tree_is_changed_at_the_place_that_is_drawn_and_the_drawn_one_stays_as_it_was() -> None:
    tree = {"a": [1, 2], "b": 3}  # places in order: a, a.0, a.1, b
    assert changed(tree, [("replace", 0.5, 0, 9, "k")]) == {"a": [1, 9], "b": 3}
    assert changed(tree, [("delete", 0.75, 0, 9, "k")]) == {"a": [1, 2]}
    assert changed(tree, [("rename", 0.75, 0, 9, "k")]) == {"a": [1, 2], "k": 3}
    assert tree == {"a": [1, 2], "b": 3}
    assert bytes_changed(b"abcd", [("cut", 0.5, 0, b"x"), ("insert", 1.0, 0, b"x")]) == b"abx"


# --- what the suite has found, and what it cannot draw often enough ---


def refusal(text: str) -> str:
    with pytest.raises(UserError) as found:
        read_yaml(text, "r.yaml", [])
    return str(found.value)


def test_aliases_that_repeat_each_other_a_billion_times_are_refused_at_once() -> None:
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for above, here in zip("abcdefgh", "bcdefghi", strict=True):
        laughs += f"{here}: &{here} [{', '.join([f'*{above}'] * 10)}]\n"
    assert f"more than {MOST_VALUES:,} values" in refusal(laughs)


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 5000, "{a: " * 5000, "? " * 5000])
def test_what_stands_too_deep_is_refused_before_the_parser_runs_out_of_stack(text: str) -> None:
    assert f"more than {DEEPEST} mappings and lists stand inside each other" in refusal(text)


def test_a_recipe_of_a_million_characters_is_the_longest_that_is_read() -> None:
    assert read_yaml("a" * LONGEST, "r.yaml", []).plain() == "a" * LONGEST
    assert "1,000,001 characters are too many" in refusal("a" * (LONGEST + 1))


@pytest.mark.parametrize(
    "text", ["a: !!python/object/apply:os.system [ls]", "a: !!timestamp x", "a: !!binary aGk=", "a: !x {b: 1}"]
)
def test_a_tag_that_would_make_something_else_than_a_plain_value_is_refused(text: str) -> None:
    assert "r.yaml:1: the tag" in refusal(text)


@pytest.mark.parametrize("text", ["a: \x00", "a: \ud800", "a: !!bool maybe", "a: !!int ''", "a: " + "1" * 5000])
def test_values_that_the_yaml_library_cannot_make_are_refused_with_the_place(text: str) -> None:
    assert refusal(text).startswith("r.yaml")


def test_a_value_of_any_size_is_shown_in_a_few_words() -> None:
    assert shown(["x"]) == "['x']"
    assert len(shown("x" * 10**6)) < 260
    assert shown("x" * 10**6).endswith("(1,000,002 characters)")


SMALL = "hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, max_position_embeddings: 64"


@pytest.mark.parametrize(
    ("heads", "stage", "said"),
    [
        ("2", "learning_rate: {}", "one for a role at least"),  # was StopIteration
        (
            "32",
            "max_steps: 1",
            "not a multiple of the number of attention heads",
        ),  # no ValueError
        ("2", f"weight_decay: {list(range(3000))}", "characters)"),  # the whole value was shown
    ],
)
def test_a_recipe_that_once_ended_in_a_traceback_or_a_flood_is_refused(
    heads: str, stage: str, said: str, tmp_path: Path
) -> None:
    model = f"{{new: {{model_type: llama, num_attention_heads: {heads}, {SMALL}}}, tokenizer: random_walks}}"
    text = f"name: a\nmodel: {model}\nstages: {{one: {{algorithm: sft, data: random_walks, {stage}}}}}\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as found:
        check_recipe(load_recipe(tmp_path / "r.yaml"))
    assert said in str(found.value)
    assert len(str(found.value)) < 2000


@pytest.mark.parametrize("role", [{"a": 1}, ["user"], 1, None])
def test_a_turn_whose_role_is_no_text_is_a_row_that_does_not_fit(role: object, tmp_path: Path) -> None:
    row = {"messages": [{"role": role, "content": "x" * 5000}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl.* a message needs `role` and `content`") as found:
        look(str(tmp_path / "rows.jsonl"))
    assert len(str(found.value)) < 2000


@pytest.mark.parametrize("kind", ["padded", "packed", "prefix-shared"])
def test_rows_without_any_token_are_laid_out_as_one_slot_that_nobody_reads(kind: Any) -> None:
    layout = lay_out([Row([], [], []), Row([], [], [])], kind, pad=7)
    assert set(layout.input_ids.flatten().tolist()) == {7}
    assert layout.target.numel() == 0
    assert layout.shape == (2, 1)


def test_a_running_mean_stays_where_it_is_when_no_answer_counted() -> None:
    update = catalogue().get("algorithm", "bco").update
    assert update(state={"mean": 0.5, "count": 3.0}, totals={}) == {"mean": 0.5, "count": 3.0}
    assert update(state={"mean": 0.0, "count": 0.0}, totals={"answers": 0.0}) == {"mean": 0.0, "count": 0.0}
    # (3 answers of 0.5 and 1 of 0.1) / 4 = 0.4
    made = update(state={"mean": 0.5, "count": 3.0}, totals={"answers": 1.0, "rewards": 0.1})
    assert made == {"mean": pytest.approx(0.4), "count": 4.0}


@pytest.mark.parametrize("streaming", [False, True])
def test_an_arrow_file_that_points_outside_itself_is_refused_and_does_not_end_the_process(
    streaming: bool, tmp_path: Path
) -> None:
    table = pyarrow.table({"text": ["abc", "def"]})
    with pyarrow.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    whole = (tmp_path / "rows.arrow").read_bytes()
    ends, wrong = np.array([0, 3, 6], dtype=np.int32).tobytes(), np.array([0, 2**30, 6], dtype=np.int32).tobytes()
    assert whole.count(ends) == 1  # where the texts begin and end, in bytes of the column
    (tmp_path / "rows.arrow").write_bytes(whole.replace(ends, wrong))
    data, _ = choose("dataset", {"name": "files", "path": "rows.arrow", "held_out": 0, "streaming": streaming})
    assert data is not None
    with pytest.raises(UserError, match=r"rows\.arrow: the file cannot be read as arrow"):
        call_named(data.part.open, settings=data.settings, split="train", seed=0, folder=tmp_path)


def test_a_thousand_problems_are_told_in_as_many_words_as_a_person_reads() -> None:
    problems = [Problem("x" * 10_000).text("recipe.yaml:1")] * 1000
    told = first_of(problems)
    assert sum(map(len, told)) < 45_000
    assert told[-1] == f"... and {1000 - (len(told) - 1)} more like these"
    assert told[0].endswith("(10,015 characters)")
    assert first_of(["one", "two"]) == ["one", "two"]
