"""`unified data`: what a file is taken for, what is told of it, and how its rows are shown."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.tools import SHARED, tiny_policy
from unified.cli import app
from unified.data_page import show
from unified.data_rows import MARKS, plainly
from unified.data_tool import Looked, histogram, lengths, look
from unified.manifest import Manifest
from unified.models import save_model

FILES = sorted(p for p in (SHARED / "data").rglob("*.jsonl*")) if SHARED.is_dir() else []


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def unified(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)


def write(name: str, *rows: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return name


def told(file: str, *arguments: str) -> dict[str, Any]:
    result = unified(file, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def becomes(found: Looked) -> dict[str, list[str]]:
    return {column.name: column.becomes for column in found.columns}


SUMS = [{"question": f"{i} and {i}?", "answer": str(2 * i), "source": "me"} for i in range(4)]


# --- what a file is taken for ---


@pytest.mark.skipif(not FILES, reason="the data are not beside the checkout")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_file_of_the_shared_data_is_recognised_or_told_what_cannot_be_placed(path: Path) -> None:
    found = told(str(path), "--rows", "1")
    if found["recognised"] is None:
        assert found["unplaced"]
        assert found["needs"]
    else:
        with_all = found["rows"] + found["left_out"].get("skipped_bad", 0)
        assert with_all > 99
        assert len(found["shown"]) == 1
        assert any(column["becomes"] for column in found["columns"])


def test_the_format_is_said_with_the_columns_that_it_was_recognised_by() -> None:
    found = look(write("x.jsonl", *SUMS))
    assert (found.recognised, found.why) == ("question_answer", "recognised by its columns question, answer")
    assert becomes(found) == {"question": ["prompt"], "answer": ["answer"], "source": []}
    assert (found.rows, found.answers) == (4, 4)
    assert look("x.jsonl", format="{name: question_answer, chat: false}").why == "named, not recognised"


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (
            {"instruction": "Add.", "input": "2 3", "output": "5", "system": "Be brief."},
            {"instruction": ["prompt"], "input": ["prompt"], "output": ["answer"], "system": ["prompt"]},
        ),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 2},
            {"prompt": ["prompt"], "chosen": ["answer"], "rejected": ["answer"], "margin": []},
        ),
        (
            {"prompt": "q", "completion": "a", "label": True},
            {"prompt": ["prompt"], "completion": ["answer"], "label": ["reward"]},
        ),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
         {"messages": ["prompt", "answer"]}),
        ({"prompt": "q", "answers": ["a", "b"], "rewards": [1, 0]},
         {"prompt": ["prompt"], "answers": ["answer"], "rewards": ["reward"]}),
        ({"prompt": "q", "level": 3}, {"prompt": ["prompt"], "level": []}),
    ],
)  # fmt: skip
def test_a_column_becomes_what_changes_without_it(row: dict[str, Any], wanted: dict[str, list[str]]) -> None:
    assert becomes(look(write("x.jsonl", row))) == wanted


def test_columns_that_nobody_can_place_are_named_with_what_formats_need_and_no_failure() -> None:
    name = write("x.jsonl", {"ID": 1, "Question": "2+3?", "Answer": "5"})
    result = unified(name)
    assert result.exit_code == 0
    assert "not placed: ID, Question, Answer" in result.stdout
    assert "try in a recipe: columns: {question: Question, answer: Answer}" in result.stdout
    assert "question_answer: Rows of `question` and `answer`" in result.stdout
    assert told(name)["columns"][0] == {"name": "ID", "becomes": [], "holds": "number"}
    found = look(name, columns=["question=Question", "answer=Answer"])
    assert becomes(found) == {"ID": [], "question": ["prompt"], "answer": ["answer"]}


def test_two_formats_that_fit_are_both_named() -> None:
    found = look(write("x.jsonl", {"messages": [{"role": "user", "content": "q"}], "prompt": "q", "completion": "a"}))
    assert found.recognised is None
    assert set(found.needs) == {"messages", "prompt_completion"}
    assert unified("x.jsonl").exit_code == 0


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.jsonl", None, "no file"),
        ("x.docx", b"?", "no rows can be read from a file that ends in '.docx'"),
        ("x.jsonl", b"\xff\xfe{", "it is UTF-16"),
        ("x.json", b"[{", "not JSON"),
        ("empty.jsonl", b"", "the file has no rows"),
        ("x.parquet", b"?", "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_ends_with_2_and_the_reason(name: str, content: bytes | None, why: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    result = unified(name)
    assert (result.exit_code, why in result.stderr) == (2, True)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--columns", "prompt"], "write WANTED=COLUMN"),
        (["--columns", "question=qestion"], "did you mean 'question'?"),
        (["--max-length", "9"], "give --model"),
        (["--split", "test"], "--split is train or held_out"),
        (["--format", "questions"], "no format 'questions'"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_a_mistake_in_the_command_ends_with_2_and_says_which(arguments: list[str], why: str) -> None:
    result = unified(write("x.jsonl", *SUMS), *arguments)
    assert result.exit_code == 2
    assert why in result.stderr


# --- where it may be ---


def test_a_folder_a_pattern_a_dataset_and_a_mapping_are_looked_at_as_a_recipe_would() -> None:
    write("rows/a.jsonl", *SUMS[:1])
    write("rows/b.jsonl", *SUMS[1:])
    assert [look(text).rows for text in ("rows", "rows/*.jsonl", "{name: files, path: rows, limit: 3}")] == [4, 4, 3]
    assert look("{name: arithmetic, rows: 7}").rows == 7
    mixed = look("{name: mixture, stop: all, column: of, sources: [{data: rows}, {data: {name: arithmetic, rows: 8}}]}")
    # one row in four is held out of a source, as in a stage: three of them eight times, as there are eight sums
    assert (mixed.rows, mixed.left_out) == (16, {"mixed/rows": 8, "mixed/arithmetic": 8, "repeated/rows": 5})


def test_what_a_stage_made_is_read_as_later_stages_read_it() -> None:
    row = {"prompt": "a", "answers": ["b", "c"], "rewards": [1, 0]}
    write("runs/x/draw/data/train.jsonl", row, row)
    write("runs/x/draw/data/held_out.jsonl", row)
    made = {"path": "data/train.jsonl", "format": "groups", "held_out_path": "data/held_out.jsonl"}
    given: dict[str, Any] = {f.name: "" for f in fields(Manifest)}
    given |= {"settings": {}, "inputs": {}, "outputs": {}, "dataset": made, "summary": {}, "versions": {}}
    Manifest(**given).write(Path("runs/x/draw"))
    assert (look("runs/x/draw").rows, look("runs/x/draw").answers) == (2, 4)
    assert look("runs/x/draw", split="held_out").rows == 1
    assert look("runs/x/draw/data/train.jsonl").recognised == "groups"


def test_an_id_of_the_hub_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*about: Any, **more: Any) -> Any:
        asked.append((about, more["split"]))
        return datasets.Dataset.from_list(SUMS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert look("someone/sums").rows == 4
    assert asked == [(("someone/sums", None), "train")]


def test_a_split_has_the_rows_that_a_stage_would_see() -> None:
    write("x.jsonl", *[{"text": f"row {i}"} for i in range(20)])
    assert [look("x.jsonl", split=split).rows for split in (None, "train", "held_out")] == [20, 18, 2]


# --- what is told of the rows ---


def test_lengths_are_by_nearest_rank() -> None:
    # of 1 ... 200: the 100th, 180th and 198th
    found = lengths(list(range(200, 0, -1)))
    assert found is not None
    assert (found.number, found.least, found.median, found.p90, found.p99, found.most) == (200, 1, 100, 180, 198, 200)
    one = lengths([7])
    assert one is not None
    assert (one.least, one.median, one.p99, one.most) == (7, 7, 7, 7)
    assert lengths([]) is None


def test_a_histogram_has_round_steps_and_its_last_bar_reaches_to_the_longest() -> None:
    # 3 to 41 in at most ten steps: of 5, from 0; what is over the 99th percentile is in the last
    assert histogram([3, 4, 5, 41, 300], 41) == [
        (0, 4, 2), (5, 9, 1), (10, 14, 0), (15, 19, 0), (20, 24, 0), (25, 29, 0), (30, 34, 0), (35, 39, 0),
        (40, 300, 2),
    ]  # fmt: skip
    for values in ([1], [0, 0], [5, 5000], list(range(1000, 3000))):
        bars = histogram(values, values[-1])
        assert sum(number for *_, number in bars) == len(values)
        assert len(bars) <= 10
        assert bars[0][0] <= values[0]
        assert bars[-1][1] >= values[-1]


def test_bad_rows_repeated_rows_and_system_messages_are_counted_with_their_places() -> None:
    def row(system: str, asked: str, said: str) -> dict[str, Any]:
        turns = [("system", system), ("user", asked), ("assistant", said)]
        return {"messages": [{"role": r, "content": c} for r, c in turns if c is not None]}

    name = write(
        "x.jsonl", row("", "q", "a"), row("S", "q", "b"), "no json", row("S", "q", "b"), row("", "q", "a"),
        {"messages": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "y"}]},
    )  # fmt: skip
    found = look(name)
    assert (found.rows, found.left_out) == (5, {"skipped_bad": 1})
    assert (found.repeated, found.repeated_prompts) == (2, 2)
    assert (found.system, found.empty_system) == (4, 2)
    assert found.places == [
        "x.jsonl:3: not JSON: Expecting value (column 1)",
        "x.jsonl:4: repeated (an earlier row says the same)",
        "x.jsonl:5: repeated (an earlier row says the same)",
    ]
    assert "system messages: 80.0 % of the prompts; 2 are empty" in unified(name).stdout


def test_without_a_tokenizer_lengths_are_in_characters_and_that_is_said() -> None:
    found = look(write("x.jsonl", {"prompt": "abc", "completion": "defgh"}))
    assert found.prompt is not None
    assert found.answer is not None
    assert (found.unit, found.prompt.most, found.answer.most, found.limit) == ("characters", 3, 5, None)
    assert "lengths in characters; --model gives tokens" in unified("x.jsonl").stdout


# --- with a tokenizer ---


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with a model whose tokens are letters and which holds 64 of them."""
    made = tiny_policy()
    save_model(made.load("policy"), made.tokenizer(), tmp_path / "model")
    return "model"


def test_rows_over_the_limit_are_counted_with_what_each_policy_makes_of_them(model: str) -> None:
    rows = [("a", 5), ("a" * 6, 5), ("a", 20), ("a" * 20, 5)]
    name = write("x.jsonl", *[{"prompt": p, "completion": "b" * n} for p, n in rows])
    found = look(name, model=model, max_length=11)
    # </s> comes to each: 1+5+1 = 7, 6+5+1 = 12, 1+20+1 = 22, 20+5+1 = 26 tokens. Too long by themselves are one answer
    # (21, so no cut of the prompt helps) and one prompt (20)
    assert found.over == {"rows": 3, "cut_prompt": 2, "cut_answer": 2}
    assert found.places == [
        f"x.jsonl:{line}: too long ({tokens} tokens, the limit is 11)" for line, tokens in ((2, 12), (3, 22), (4, 26))
    ]
    assert found.prompt is not None
    assert (found.unit, found.prompt.least, found.prompt.most) == ("tokens", 1, 20)
    assert (found.trained, found.tokens) == (6 + 6 + 21 + 6, 7 + 12 + 22 + 26)
    assert look(name, model=model).limit == 64
    assert "too long: none; the limit is 64 tokens" in unified(name, "--model", model).stdout


def test_what_is_learned_stands_between_marks_where_there_are_no_colours(model: str) -> None:
    name = write("x.jsonl", {"prompt": "ab", "completion": "cd"})
    out = unified(name, "--model", model).stdout
    assert f"what is learned stands between {MARKS[0]} and {MARKS[1]}" in out
    assert out.replace(" ", "").endswith(f"---x.jsonl:1\nab{MARKS[0]}cd</s>{MARKS[1]}\n\n")


def test_on_a_terminal_what_is_learned_is_green_and_nothing_else_is(model: str) -> None:
    found = look(write("x.jsonl", {"prompt": "ab", "completion": "cd"}), model=model)
    out = io.StringIO()
    show(Console(file=out, force_terminal=True, color_system="standard", highlight=False), found)
    text = out.getvalue()
    (green,) = [part for part in text.split("\x1b[") if part.startswith(("32m", "22;32m"))]
    assert green.partition("m")[2].replace(" ", "") == "cd</s>"
    assert MARKS[0] not in text


def test_the_turns_of_the_user_are_not_learned(model: str) -> None:
    turns = [("user", "ab"), ("assistant", "cd"), ("user", "ef"), ("assistant", "gh")]
    name = write("x.jsonl", {"messages": [{"role": r, "content": c} for r, c in turns]})
    (shown,) = look(name, model=model).shown
    ((_, stretches),) = shown.answers
    learned = [text.replace(" ", "") for text, is_learned in stretches if is_learned]
    assert [text[:6] for text in learned] == ["cd</s>", "gh</s>"]
    others = "".join(text for text, is_learned in stretches if not is_learned).replace(" ", "")
    assert "ab" in others
    assert "ef" in others


def test_pairs_are_shown_with_their_rewards(model: str) -> None:
    write("x.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    for arguments in ([], ["--model", model]):
        out = unified("x.jsonl", *arguments).stdout
        assert "answer 0, reward 1:" in out
        assert "answer 1, reward 0:" in out


# --- how it is printed ---


def test_control_characters_of_the_data_are_written_out_and_not_obeyed() -> None:
    evil = "\x1b[2J\x1b]0;title\x07 \u202egnp.exe \r\x9b31m"
    name = write("x.jsonl", {"prompt": f"a {evil}", "completion": evil, f"col{evil}": 1}, '{"prompt": "\x1b[2J"')
    result = unified(name)
    assert result.exit_code == 0
    assert not set(result.stdout) & set("\x1b\x07\r\x9b\u202e")
    assert "\\x1b[2J" in result.stdout
    assert "\\u202egnp.exe" in result.stdout
    assert set(json.dumps(told(name))) <= set(map(chr, range(32, 127)))
    assert plainly("a\tb\nc", one_line=True) == "a\\tb\\nc"


def test_json_is_one_object_with_all_that_was_found() -> None:
    found = told(write("x.jsonl", *SUMS), "--rows", "2")
    assert set(found) == {f.name for f in fields(Looked)}
    assert found["dataset"]["path"] == "x.jsonl"
    assert found["columns"][0] == {"name": "question", "becomes": ["prompt"], "holds": ""}
    assert found["shown"][1]["answers"] == [[None, [["[user] 1 and 1?\n", False], ["[assistant] 2\n", True]]]]


def test_a_long_text_is_shown_from_both_ends() -> None:
    out = unified(write("x.jsonl", {"text": "a" * 3000 + "z"})).stdout
    assert "a … 1601 characters … a" in out  # 3001 less 1000 and 400
    assert f"z{MARKS[1]}" in out


def test_no_rows_need_be_shown() -> None:
    assert "rows as text" not in unified(write("x.jsonl", *SUMS), "--rows", "0").stdout


def test_looking_leaves_nothing_behind() -> None:
    unified(write("x.jsonl", *SUMS))
    assert [p.name for p in Path().iterdir()] == ["x.jsonl"]
