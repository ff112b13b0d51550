"""Rows of files: every way in which they can be written, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from unified import (
    DataFormat,
    Example,
    PluginError,
    Settings,
    TrainSettings,
    UserError,
    call_named,
    catalogue,
    hookimpl,
)
from unified.manifest import files_named
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


def test_rows_that_do_not_fit_stop_the_run_or_are_skipped_and_counted(tmp_path):
    write(tmp_path / "x.jsonl", [ROWS[0], {"question": "q", "anwser": "a"}, ROWS[1]])
    with pytest.raises(UserError) as caught:
        read(tmp_path, path="x.jsonl", held_out=0)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/x.jsonl:2: no column 'answer'  (format 'question_answer')",
        "    the row has: question, anwser",
        "    `columns: {prompt: NAME}` says which column is which",
        "    `bad_rows: skip` leaves such rows out, and counts them",
    ]
    rows = read(tmp_path, path="x.jsonl", held_out=0, bad_rows="skip")
    assert (asked(rows), rows.counts) == (["q0", "q1"], {"skipped_bad": 1})
    assert rows.problems == [f"{tmp_path}/x.jsonl:2: no column 'answer'  (format 'question_answer')"]
    assert rows.format == "question_answer"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_line_that_is_broken_deep_in_a_file_is_named_or_skipped(streaming, tmp_path):
    lines = [json.dumps({"prompt": f"p{i}", "completion": "c"}) for i in range(1, 17_301)]
    lines[17_202] = '{"prompt": "half'
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"x\.jsonl:17203: not JSON: Unterminated string"):
        read(tmp_path, path="x.jsonl", held_out=0, streaming=streaming)
    rows = read(tmp_path, path="x.jsonl", held_out=0, bad_rows="skip", streaming=streaming)
    assert (len(rows), rows.counts) == (17_299, {"skipped_bad": 1})
    assert rows.problems[0].startswith(f"{tmp_path}/x.jsonl:17203: not JSON")
    assert rows[17_202].columns["row"] == 17_204


def test_only_the_first_places_are_kept_but_all_are_counted_on_both_sides_of_a_split(tmp_path):
    write(tmp_path / "x.jsonl", [*ROWS, *({"question": "q", "answer": ""} for _ in range(9))])
    for split, number in (("train", 18), ("held_out", 2)):
        rows = read(tmp_path, split, path="x.jsonl", bad_rows="skip")
        assert (len(rows), rows.counts, len(rows.problems)) == (number, {"skipped_bad": 9}, 5)
    write(tmp_path / "y.jsonl", [{"question": "q", "answer": " "}] * 3)
    with pytest.raises(UserError, match=r"(?s)all 3 rows do not fit.*y\.jsonl:1: column 'answer' is empty"):
        read(tmp_path, path="y.jsonl", held_out=0, bad_rows="skip")


def test_a_format_is_recognised_from_the_first_row_that_can_be_read(tmp_path):
    (tmp_path / "x.jsonl").write_text('[1]\n{"prompt": "a", "completion": "b"}\n')
    rows = read(tmp_path, path="x.jsonl", held_out=0, bad_rows="skip")
    assert (rows.format, rows.counts) == ("prompt_completion", {"skipped_bad": 1})


def tree(name, *answers):
    replies = [{"role": "assistant", "text": f"{name}{a}", "rank": i, "replies": []} for i, a in enumerate(answers)]
    again = {"role": "prompter", "text": "again", "replies": [{"role": "assistant", "text": f"{name} end"}]}
    replies[0]["replies"] = [again]
    return {"tree": name, "prompt": {"role": "prompter", "text": name, "replies": replies}}


@pytest.mark.parametrize("streaming", [False, True])
def test_all_examples_of_one_row_are_on_one_side_of_the_split(streaming, tmp_path):
    write(tmp_path / "x.jsonl", [tree(name, "1", "2") for name in "abcdefghij"])
    sides = [read(tmp_path, side, path="x.jsonl", held_out=3, streaming=streaming) for side in ("train", "held_out")]
    trees = [[e.columns["tree"] for e in side] for side in sides]
    assert [len(t) for t in trees] == [14, 6]  # two examples of each tree
    assert not set(trees[0]) & set(trees[1])
    assert [e.answers[0] for e in sides[1]][:2] == [trees[1][0] + "1", trees[1][0] + " end"]


def test_rows_that_hold_nothing_for_their_format_are_counted(tmp_path):
    write(tmp_path / "x.jsonl", [tree("a", "1", "2"), tree("b", "1")])
    rows = read(tmp_path, path="x.jsonl", held_out=0, format={"name": "trees", "ranked": True})
    assert (len(rows), rows.counts) == (1, {"without_examples": 1})
    write(tmp_path / "y.jsonl", [tree("b", "1")])
    with pytest.raises(UserError, match="none of the 1 rows holds what the format takes"):
        read(tmp_path, path="y.jsonl", held_out=0, format={"name": "trees", "ranked": True})


def test_a_strangers_format_that_raises_is_named_with_the_row(tmp_path):
    def convert(row: dict[str, Any]) -> Example:
        raise KeyError("oops")

    class Stranger:
        @staticmethod
        @hookimpl
        def unified_formats() -> list[DataFormat]:
            return [DataFormat("strange", Settings, convert=convert)]

    write(tmp_path / "x.jsonl", ROWS)
    with (
        using(Catalogue({"stranger": Stranger()})),
        pytest.raises(PluginError, match=r"x\.jsonl:1: convert of format 'strange' raised KeyError: 'oops'"),
    ):
        read(tmp_path, path="x.jsonl", format="strange", bad_rows="skip")


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


def test_json_with_one_object_a_line_is_read_as_jsonl(tmp_path):
    write(tmp_path / "x.json", ROWS)
    assert asked(read(tmp_path, path="x.json", held_out=0)) == [row["question"] for row in ROWS]
    (tmp_path / "y.json").write_text('[{"prompt": "a"}] [1]')
    with pytest.raises(UserError, match=r"y\.json:1: not JSON: Extra data"):
        read(tmp_path, path="y.json")


def test_a_csv_row_of_another_width_is_an_error(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,completion\na,b\nc\n")
    with pytest.raises(UserError, match=r"x\.csv:3: the row has 1 cells, but there are 2 columns"):
        read(tmp_path, path="x.csv")
    assert read(tmp_path, path="x.csv", held_out=0, bad_rows="skip").counts == {"skipped_bad": 1}


def test_a_missing_file_is_compared_with_its_neighbours(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(
        UserError, match=r"(?s)no file .*trian\.jsonl.*did you mean 'train\.jsonl'.*holds: train\.jsonl"
    ):
        read(tmp_path, path="trian.jsonl")
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path, path="nowhere/train.jsonl")


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


#: every real file: (format, rows, numbers of answers), and the one line that it needs
REAL: dict[str, tuple[str, int, set[int], dict[str, Any]]] = {
    "code/mbpp.jsonl": ("mbpp", 474, {1}, {}),
    "gsm8k/train.jsonl.gz": ("question_answer", 7473, {1}, {}),
    "hh_rlhf/harmless_base_half_a.jsonl.gz": ("preference", 1154, {2}, {"bad_rows": "skip"}),
    "ifeval/input_half_a.jsonl": ("prompts", 271, {0}, {}),
    "math/svamp.jsonl": (
        "instruction", 1000, {1}, {"columns": {"instruction": "Body", "input": "Question", "output": "Answer"}},
    ),
    "preference/dpo_en_demo.jsonl.gz": ("preference", 300, {2}, {}),
    "preference/dpo_zh_demo.jsonl": ("preference", 300, {2}, {}),
    "preference/oasst_en_ranked.jsonl": ("ranked", 212, {2, 3, 4, 5, 6, 8, 9}, {}),
    "preference/oasst_en_trees.jsonl": ("trees", 254, {1, 2, 3, 4, 5, 6, 8, 9}, {}),
    "process/big_bench_mistake.jsonl.gz": ("steps", 2186, {1}, {}),
    "prompts/belle_zh_prompts.jsonl": ("prompts", 369, {0}, {}),
    "sft/belle_zh_instructions.jsonl": ("instruction", 631, {1}, {}),
    "sft/belle_zh_seed_tasks.jsonl": ("instruction", 175, {1}, {}),
    "sft/gpteacher_codegen.jsonl.gz": ("instruction", 4535, {1}, {}),
    "sft/gpteacher_roleplay.jsonl.gz": ("instruction", 1923, {1}, {}),
    "sft/self_instruct_seed_tasks.jsonl": ("instruction", 175, {1}, {}),
    "text/tinystories.jsonl": ("text", 903, {1}, {}),
}  # fmt: skip


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data beside the checkout")
def test_every_real_file_is_in_this_table():
    assert {str(path.relative_to(SHARED)) for path in SHARED.rglob("*.jsonl*")} == set(REAL)


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data beside the checkout")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_recognised_and_read_whole_with_at_most_one_line_of_settings(name):
    wanted, rows, answers, line = REAL[name]
    assert len(line) <= 1
    examples = read(SHARED, path=name, held_out=0, **line)
    assert (examples.format, len(examples)) == (wanted, rows)
    assert {len(e.answers) for e in examples} == answers


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data beside the checkout")
def test_the_ranked_turns_of_the_trees_are_the_rows_that_were_drawn_from_them():
    found = read(SHARED, path="preference/oasst_en_trees.jsonl", held_out=0, format={"name": "trees", "ranked": True})
    known = read(SHARED, path="preference/oasst_en_ranked.jsonl", held_out=0)
    assert len(found) == len(known) == 212
    assert [(e.prompt, e.answers, e.rewards) for e in found] == [(e.prompt, e.answers, e.rewards) for e in known]


@pytest.mark.real
@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data beside the checkout")
def test_the_transcripts_that_are_no_pair_are_refused_or_counted():
    with pytest.raises(UserError, match=r"jsonl\.gz:455: column 'chosen' is empty"):
        read(SHARED, path="hh_rlhf/harmless_base_half_a.jsonl.gz")
    rows = read(SHARED, path="hh_rlhf/harmless_base_half_a.jsonl.gz", held_out=0, bad_rows="skip")
    assert (len(rows), rows.counts) == (1154, {"skipped_bad": 2})
    assert "jsonl.gz:989: chosen and rejected differ before their last turn" in rows.problems[1]
    assert all(e.prompt[0]["role"] == "user" and e.rewards == [1.0, 0.0] for e in rows)


def test_a_changed_file_of_a_folder_or_of_a_pattern_changes_the_fingerprint_of_its_stage(tmp_path):
    (tmp_path / "rows").mkdir()
    for path in ("rows", "rows/*.jsonl"):
        write(tmp_path / "rows" / "a.jsonl", ROWS)
        stage, problems = parse(TrainSettings, {"algorithm": "sft", "data": {"name": "files", "path": path}}, owner="s")
        assert not problems
        before = files_named(stage, tmp_path)
        assert list(before) == [f"{'./rows' if path == 'rows' else 'rows'}/a.jsonl"]
        write(tmp_path / "rows" / "a.jsonl", ROWS[1:])
        assert files_named(stage, tmp_path) != before
