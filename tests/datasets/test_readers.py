"""What stands in files, as it is read: each kind, each way of being broken, folders and patterns of files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from unified import UserError
from unified_plugins.datasets._readers import Bad, Raw, TextRows, read
from unified_plugins.datasets.files import find

ROWS: list[dict[str, Any]] = [{"prompt": f"p{i}", "n": i} for i in range(5)]


def cells(path: Path, text_rows: TextRows = "paragraph") -> list[Any]:
    return [raw.cells for raw in read(path, text_rows)]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


# --- json ---


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        {"data": ROWS},
        {"version": "1", "data": ROWS, "tags": ["a"]},
        {"prompt": [r["prompt"] for r in ROWS], "n": [r["n"] for r in ROWS]},
    ],
)
def test_a_list_an_object_with_one_list_and_one_of_columns_hold_the_same_rows(tmp_path: Path, value: Any) -> None:
    path = put(tmp_path, "x.json", json.dumps(value, indent=1))
    assert [(raw.number, raw.cells) for raw in read(path)] == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize(
    "value", [{"a": ROWS, "b": ROWS, "c": 1}, {"prompt": "one row"}, {"prompt": ["a"], "n": [1, 2]}, 3, "text"]
)
def test_json_whose_rows_cannot_be_told_is_refused_with_what_it_has(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match=r"(?s)x\.json: a \.json file must hold .*(the object has: |it holds a )"):
        cells(put(tmp_path, "x.json", json.dumps(value)))


def test_one_column_of_texts_is_a_column_and_one_of_objects_are_rows(tmp_path: Path) -> None:
    assert cells(put(tmp_path, "x.json", '{"text": ["a", "b"]}')) == [{"text": "a"}, {"text": "b"}]
    assert cells(put(tmp_path, "y.json", '{"rows": [{"text": "a"}]}')) == [{"text": "a"}]


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.json:3: not JSON"):
        cells(put(tmp_path, "x.json", '[\n{"a": 1},\n{"a": }\n]'))
    with pytest.raises(UserError, match=r"y\.json:2: not UTF-8: byte 0xe9"):
        cells(put(tmp_path, "y.json", '[\n"é"]'.encode("latin-1")))
    with pytest.raises(UserError, match="not JSON that can be read"):
        cells(put(tmp_path, "z.json", "[" * 100_000))


# --- rows that are bad while others are good ---

GOOD = b'{"prompt": "a"}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": ', "not JSON: Expecting value (column 11)"),
        (b"[1]", "a row must be an object with columns, not list"),
        ('{"prompt": "é"}'.encode("latin-1"), "not UTF-8: byte 0xe9 (number 13 of the line)"),
        (b'{"prompt": "\\ud83d"}', "column 'prompt' holds half a character: a lone surrogate \\ud83d"),
        (b'{"m": [{"content": "x\\uDE00"}]}', "column 'm' holds half a character: a lone surrogate \\ude00"),
        (b'{"\\ud800": 1}', "column '\\ud800' holds half a character: a lone surrogate \\ud800"),
        (b"[" * 100_000, "not JSON that can be read: "),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON that can be read: "),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "ndjson"])
def test_a_bad_line_is_bad_alone(tmp_path: Path, line: bytes, said: str, ending: str) -> None:
    path = put(tmp_path, f"x.{ending}", b"\n".join([GOOD, line, GOOD]))
    first, bad, last = read(path)
    assert first == Raw(str(path), 1, {"prompt": "a"})
    assert last == Raw(str(path), 3, {"prompt": "a"})
    assert isinstance(bad.cells, Bad)
    assert bad.number == 2
    assert bad.cells.startswith(said)


def test_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    assert cells(put(tmp_path, "x.jsonl", b'{"prompt": "\\ud83d\\ude00"}')) == [{"prompt": "\U0001f600"}]


def test_an_unknown_byte_in_a_table_is_bad_alone(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", "prompt,n\na,1\né,2\nb,3\n".encode("latin-1"))
    assert cells(path) == [{"prompt": "a", "n": "1"}, Bad("not UTF-8: byte 0xe9 in column 'prompt'"),
                           {"prompt": "b", "n": "3"}]  # fmt: skip


def test_text_that_is_not_utf8_inside_parquet_is_bad_alone(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    raw = pyarrow.array([b"a", b"\xe9", b"b"], pyarrow.binary())
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    parquet.write_table(pyarrow.table({"prompt": broken}), tmp_path / "x.parquet")
    assert cells(tmp_path / "x.parquet") == [{"prompt": "a"}, Bad("not UTF-8: byte 0xe9"), {"prompt": "b"}]


def test_utf16_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)x\.jsonl: the file cannot be read: it is UTF-16.*write it as UTF-8"):
        cells(put(tmp_path, "x.jsonl", '{"prompt": "a"}'.encode("utf-16")))


def test_a_packed_file_that_is_cut_off_says_behind_which_row(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f'{{"prompt": "{i * 7919}"}}\n' for i in range(50_000)).encode())
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"x\.jsonl\.gz:\d{4,}: behind this row the file cannot be read"):
        cells(path)


# --- csv and text ---


def test_cells_may_hold_line_breaks_and_be_long(tmp_path: Path) -> None:
    long = "x" * 200_000  # more than the csv module takes unless told
    path = put(tmp_path, "x.csv", f'\ufeffprompt,n\n"a\nb",1\n\n{long},2\n')
    assert [(raw.number, raw.cells) for raw in read(path)] == [
        (3, {"prompt": "a\nb", "n": "1"}), (5, {"prompt": long, "n": "2"}),
    ]  # fmt: skip
    assert cells(put(tmp_path, "x.tsv.gz", "prompt\tn\na,b\t1\n")) == [{"prompt": "a,b", "n": "1"}]


def test_a_quotation_mark_that_nothing_closes_swallows_no_rows_in_silence(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", 'prompt,n\na,1\n"b,2\nc,3\nd,4\n')
    with pytest.raises(UserError, match=r"x\.csv:3: a quotation mark opens a cell here that nothing closes"):
        cells(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv:1: two columns have the name 'a'"):
        cells(put(tmp_path, "x.csv", "a,b,a\n1,2,3\n"))


@pytest.mark.parametrize(
    ("text_rows", "rows"),
    [
        ("paragraph", [(1, "One.\nTwo."), (5, "Three.")]),
        ("line", [(1, "One."), (2, "Two."), (5, "Three.")]),
        ("document", [(1, "One.\r\nTwo.\n \n\nThree.")]),
    ],
)
def test_plain_text_is_cut_into_paragraphs_lines_or_not_at_all(
    tmp_path: Path, text_rows: TextRows, rows: list[tuple[int, str]]
) -> None:
    for name in ("x.txt", "x.txt.gz"):
        path = put(tmp_path, name, "\ufeffOne.\r\nTwo.\n \n\nThree.\n")
        assert [(raw.number, raw.cells) for raw in read(path, text_rows)] == [(n, {"text": t}) for n, t in rows]
    assert cells(put(tmp_path, "y.txt", b"a\n\n\xe9\n\nb\n"))[1] == Bad("not UTF-8: byte 0xe9 (number 1 of the line)")
    assert cells(put(tmp_path, "z.txt", " \n\n"), text_rows) == []


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_may_be_packed(tmp_path: Path, kind: str) -> None:
    import pyarrow
    from pyarrow import ipc, parquet

    table, path = pyarrow.Table.from_pylist(ROWS), tmp_path / f"x.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=2)
    else:
        with ipc.new_file(str(path), table.schema) as out:
            out.write_table(table, max_chunksize=2)
    assert cells(path) == ROWS
    assert cells(put(tmp_path, f"y.{kind}.gz", path.read_bytes())) == ROWS


# --- which files ---


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "c.ndjson.bak", ".hidden.jsonl", "README.md"):
        put(tmp_path, name, "{}")
    assert [p.name for p in find(".", tmp_path)] == ["a.jsonl.gz", "b.jsonl"]


def test_a_folder_of_several_kinds_makes_the_user_choose_by_a_pattern(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "c.jsonl"):
        put(tmp_path, name, "{}")
    with pytest.raises(UserError, match=r"(?s)several kinds: \.csv, \.jsonl.*`path: \.\.\./\*\.csv\*`"):
        find(".", tmp_path)
    assert [p.name for p in find("*.jsonl", tmp_path)] == ["b.jsonl", "c.jsonl"]
    with pytest.raises(UserError, match="no file fits the pattern"):
        find("*.parquet", tmp_path)


def test_a_folder_without_data_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path, "model.bin", "")
    with pytest.raises(UserError, match=r"(?s)folder without a file that can be read.*holds: model\.bin.*known: "):
        find(".", tmp_path)


def test_a_dataset_that_the_library_saved_is_read_in_its_own_order(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    paths = find("saved", tmp_path)
    assert len(paths) == 2
    assert [row for path in paths for row in cells(path)] == ROWS
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match=r"several splits: test, train"):
        find("both", tmp_path)
    paths[0].unlink()
    with pytest.raises(UserError, match="the saved dataset lacks data-00000"):
        find("saved", tmp_path)
