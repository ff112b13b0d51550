"""Rows of files: every way in which they can be written, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from unified import DataFormat, Settings, UserError, call_named, catalogue, hookimpl
from unified.registry import Catalogue, using
from unified.settings import parse

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = [{"question": f"q{i}", "answer": f"a{i}", "weight": i} for i in range(20)]


def read(folder: Path, split: str = "train", **settings: Any) -> Any:
    """What a recipe in `folder` would read."""
    part = catalogue().get("dataset", "files")
    parsed, problems = parse(part.settings, settings, owner="dataset 'files'")
    assert not problems
    return call_named(part.open, settings=parsed, split=split, seed=0, folder=folder)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(examples: Any) -> list[str]:
    return [example.prompt[0]["content"] for example in examples]


def write_as(kind: str, folder: Path) -> Path:
    import pyarrow
    from pyarrow import ipc, parquet

    path = folder / f"rows.{kind}"
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = pyarrow.Table.from_pylist(ROWS)
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "jsonl":
        path.write_text("\ufeff" + text.replace("\n", "\n\n"), encoding="utf-8")  # a byte-order mark and empty lines
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        path.write_text("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in ROWS))
    elif kind == "parquet":
        parquet.write_table(table, path)
    else:
        opener = ipc.new_stream if kind == "arrow" else ipc.new_file
        path = folder / "rows.arrow"
        with opener(str(path), table.schema) as out:
            out.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "arrow", "arrow file"])
def test_the_same_rows_come_out_of_every_kind_of_file(kind, tmp_path):
    examples = read(tmp_path, path=write_as(kind, tmp_path).name, held_out=0)
    assert asked(examples) == [row["question"] for row in ROWS]
    assert [e.answers for e in examples] == [[row["answer"]] for row in ROWS]


def test_a_row_knows_its_file_and_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    examples = read(tmp_path, path="x.jsonl", held_out=0)
    assert [e.columns["row"] for e in examples] == [2, 4]
    assert {e.columns["file"] for e in examples} == {str(path)}


def test_train_and_held_out_divide_the_file_and_neither_depends_on_the_stage_seed(tmp_path):
    write(tmp_path / "x.jsonl", ROWS)
    train, held_out = asked(read(tmp_path, path="x.jsonl")), asked(read(tmp_path, "held_out", path="x.jsonl"))
    assert len(held_out) == 2  # a tenth of 20
    assert sorted(train + held_out) == sorted(row["question"] for row in ROWS)
    assert train == [row["question"] for row in ROWS if row["question"] not in held_out]  # in order
    part = catalogue().get("dataset", "files")
    again = call_named(part.open, settings=part.settings(path="x.jsonl"), split="train", seed=5, folder=tmp_path)
    assert asked(again) == train
    assert asked(read(tmp_path, "held_out", path="x.jsonl", held_out_seed=1)) != held_out


def test_held_out_may_be_a_number_or_a_file_of_its_own(tmp_path):
    write(tmp_path / "x.jsonl", ROWS)
    write(tmp_path / "y.jsonl", ROWS[:3])
    assert len(read(tmp_path, "held_out", path="x.jsonl", held_out=7)) == 7
    assert len(read(tmp_path, path="x.jsonl", held_out_path="y.jsonl")) == 20
    assert asked(read(tmp_path, "held_out", path="x.jsonl", held_out_path="y.jsonl")) == ["q0", "q1", "q2"]


def test_the_limit_counts_from_the_beginning_of_the_file(tmp_path):
    write(tmp_path / "x.jsonl", [*ROWS[:5], "no object"])
    assert asked(read(tmp_path, path="x.jsonl", limit=5, held_out=0)) == ["q0", "q1", "q2", "q3", "q4"]


def test_columns_are_given_the_names_that_a_format_wants(tmp_path):
    write(tmp_path / "x.jsonl", [{"Body": "2 apples.", "Question": "How many?", "Answer": 2.0}])
    example = read(tmp_path, path="x.jsonl", held_out=0, columns={"question": "Question", "answer": "Answer"})[0]
    assert example.prompt == [{"role": "user", "content": "How many?"}]
    assert example.answers == ["2"]
    assert example.columns["Body"] == "2 apples."


def test_a_format_and_its_settings_can_be_chosen(tmp_path):
    write(tmp_path / "x.jsonl", ROWS)
    chosen = read(tmp_path, path="x.jsonl", held_out=0, format={"name": "question_answer", "chat": False})
    assert chosen[0].prompt == "q0\n"
    assert asked(read(tmp_path, path="x.jsonl", held_out=0, format="auto"))[0] == "q0"


def test_rows_that_do_not_fit_are_refused_by_line_or_dropped_and_counted(tmp_path):
    write(tmp_path / "x.jsonl", [ROWS[0], {"question": "q", "anwser": "a"}, ROWS[1]])
    with pytest.raises(UserError) as caught:
        read(tmp_path, path="x.jsonl", held_out=0)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/x.jsonl:2: no column 'answer'  (format 'question_answer')",
        "    the row has: question, anwser",
        "    `columns: {prompt: NAME}` says which column is which; `bad_rows: drop` leaves such rows out",
    ]
    rows = read(tmp_path, path="x.jsonl", held_out=0, bad_rows="drop")
    assert (asked(rows), rows.counts) == (["q0", "q1"], {"dropped_bad": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', r"x\.jsonl:2: not JSON: Expecting value \(column 11\)"),
        ('{"prompt": "a"}\n["a"]\n', r"x\.jsonl:2: a row must be an object with columns, not list"),
        ("", r"x\.jsonl: the file has no rows"),
        ("\n\n", r"x\.jsonl: the file has no rows"),
        (
            '{"Body": "a"}\n',
            r"(?s)x\.jsonl: no format fits its columns.*has: Body.*`columns:`.*question_answer: Rows of",
        ),
        (
            '{"prompt": "a", "completion": "b", "question": "c", "answer": "d"}',
            "'prompt_completion' and 'question_answer'",
        ),
        ('{"prompt": "a"}\n', r"1 rows are to be held out, but there are 1 in all"),
    ],
)
def test_a_file_that_is_wrong_is_one_message_with_its_place(text, said, tmp_path):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        read(tmp_path, path="x.jsonl")


def test_bytes_that_are_not_what_the_name_says_are_an_error(tmp_path):
    for name in ("x.jsonl.gz", "x.parquet", "x.arrow"):
        (tmp_path / name).write_bytes(b"\xff\xfe nothing of the kind")
        with pytest.raises(UserError, match=f"{name}: the file cannot be read"):
            read(tmp_path, path=name)
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"x\.jsonl: the file cannot be read"):
        read(tmp_path, path="x.jsonl")


def test_json_with_one_object_a_line_is_told_apart(tmp_path):
    write(tmp_path / "x.json", ROWS)
    with pytest.raises(UserError, match=r"(?s)x\.json:2: not JSON: Extra data.*ends in \.jsonl"):
        read(tmp_path, path="x.json")


def test_a_csv_row_of_another_width_is_an_error(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,completion\na,b\nc\n")
    with pytest.raises(UserError, match=r"x\.csv:3: the row does not have 2 cells as line 1 has"):
        read(tmp_path, path="x.csv")


def test_a_missing_file_is_compared_with_its_neighbours(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(
        UserError, match=r"(?s)no file .*trian\.jsonl.*did you mean 'train\.jsonl'.*holds: train\.jsonl"
    ):
        read(tmp_path, path="trian.jsonl")
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path, path="nowhere/train.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path, path=".")


def test_an_unknown_column_in_the_map_is_compared_with_the_columns(tmp_path):
    write(tmp_path / "x.jsonl", [{"Question": "a", "Answer": "b"}])
    with pytest.raises(
        UserError, match=r"(?s)no column 'Qestion' \(for 'prompt'\).*did you mean 'Question'.*has: Quest"
    ):
        read(tmp_path, path="x.jsonl", columns={"prompt": "Qestion"})


def test_a_kind_of_file_that_nobody_reads_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "x.docx").write_text("")
    with pytest.raises(UserError, match=r"(?s)ends in '\.docx'.*known: \.jsonl"):
        read(tmp_path, path="x.docx")


def test_nothing_held_out_is_an_error_only_for_who_asks_for_it(tmp_path):
    write(tmp_path / "x.jsonl", ROWS)
    assert len(read(tmp_path, path="x.jsonl", held_out=0)) == 20
    with pytest.raises(UserError, match=r"(?s)no rows are held out.*held_out: 0\.1"):
        read(tmp_path, "held_out", path="x.jsonl", held_out=0)


def test_a_strangers_format_that_fits_too_makes_the_user_choose(tmp_path):
    class Stranger:
        @staticmethod
        @hookimpl
        def unified_formats() -> list[DataFormat]:
            return [DataFormat("strange", Settings, recognises=lambda columns: "answer" in columns)]

    write(tmp_path / "x.jsonl", ROWS)
    with using(Catalogue({"stranger": Stranger()})):
        with pytest.raises(UserError, match=r"(?s)'question_answer' and 'strange' both fit.*choose one: `format: "):
            read(tmp_path, path="x.jsonl")
        assert len(read(tmp_path, path="x.jsonl", held_out=0, format="question_answer")) == 20


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data beside the checkout")
@pytest.mark.parametrize(
    ("name", "rows", "answers"),
    [
        ("gsm8k/train.jsonl.gz", 7473, {1}),
        ("sft/gpteacher_roleplay.jsonl.gz", 1923, {1}),
        ("sft/self_instruct_seed_tasks.jsonl", 175, {1}),
        ("preference/oasst_en_ranked.jsonl", 212, {2, 3, 4, 5, 6, 8, 9}),
        ("preference/dpo_en_demo.jsonl.gz", 300, {2}),
        ("text/tinystories.jsonl", 903, {1}),
        ("prompts/belle_zh_prompts.jsonl", 369, {0}),
        ("ifeval/input_half_a.jsonl", 271, {0}),
    ],
)
def test_real_files_are_recognised_and_read_whole(name, rows, answers):
    examples = read(SHARED, path=name, held_out=0)
    assert len(examples) == rows
    assert {len(e.answers) for e in examples} == answers


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data beside the checkout")
def test_the_transcripts_whose_earlier_turns_differ_are_refused_or_counted():
    with pytest.raises(UserError, match="differ before their last turn"):
        read(SHARED, path="hh_rlhf/harmless_base_half_a.jsonl.gz")
    rows = read(SHARED, path="hh_rlhf/harmless_base_half_a.jsonl.gz", held_out=0, bad_rows="drop")
    assert (len(rows), rows.counts) == (1155, {"dropped_bad": 1})
    assert all(e.prompt[0]["role"] == "user" and e.rewards == [1.0, 0.0] for e in rows)
