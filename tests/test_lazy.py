"""Rows that stay in their file: rendered when they are drawn, the same tokens as before, and exact after a stop."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import letter_tokenizer, stage, tiny_policy, train_settings
from unified import Example, UserError
from unified.lazy import LazyRows
from unified.left_out import Counts, told
from unified.loop import train
from unified.render import Renderer, render_rows
from unified.running import Run
from unified.set_up import set_up


class Stay(list[Example]):
    """Examples that say of themselves that they stay in their file."""

    streaming = True
    counts, problems = {"skipped_bad": 2}, ["x.jsonl:7: not JSON", "x.jsonl:9: not JSON"]


def rows(n: int, *, long: tuple[int, ...] = ()) -> Stay:
    return Stay(Example("ab", ["c" * (40 if i in long else 1 + i % 5)]) for i in range(n))


def lazy(examples: Stay, **more: Any) -> LazyRows:
    return LazyRows(Renderer(letter_tokenizer(), 20), examples, needs_answers=1, **more)


# --- what is rendered ---


def test_rows_taken_in_any_order_are_those_that_are_rendered_at_once() -> None:
    examples = rows(12)
    whole, _ = render_rows(Renderer(letter_tokenizer(), 20), examples, needs_answers=1)
    taken, counts = lazy(examples).take([7, 0, 11, 7])
    assert taken == [whole[7], whole[0], whole[11], whole[7]]
    assert counts == {}
    assert lazy(examples)[3] == whole[3]
    assert lazy(examples)[-3:] == whole[-3:]


def test_nothing_is_rendered_before_it_is_asked_for_and_a_draw_is_one_call_of_the_tokenizer() -> None:
    asked: list[int] = []

    class Watched(Stay):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    made = lazy(Watched(rows(1000)))
    assert (len(made), asked) == (1000, [])
    made.take([5, 900])
    assert asked == [5, 900]


def test_a_row_that_is_too_long_is_left_out_and_counted_when_it_is_met_or_refused() -> None:
    examples = rows(6, long=(2,))
    taken, counts = lazy(examples, too_long="drop").take([1, 2, 3])
    assert [g and g.key for g in taken] == [1, None, 3]
    assert counts == {"dropped_too_long": 1}
    assert counts.problems == ["row 2: dropped_too_long (43 tokens, the limit is 20)"]  # a, b, 40 of c, the end
    with pytest.raises(UserError, match=r"row 2 has 43 tokens; the limit is 20"):
        lazy(examples).take([1, 2, 3])
    with pytest.raises(UserError, match="row 2: dropped_too_long"):
        lazy(examples, too_long="drop")[2]


def test_the_first_rows_are_those_that_rendering_all_keeps_first() -> None:
    examples = rows(60, long=tuple(range(0, 30, 2)))
    whole, _ = render_rows(Renderer(letter_tokenizer(), 20), examples, needs_answers=1, too_long="drop")
    found, counts = lazy(examples, too_long="drop").first(25)
    assert found == whole[:25]
    assert (counts["rows"], counts["kept"], counts["dropped_too_long"], counts["skipped_bad"]) == (60, 25, 15, 2)
    with pytest.raises(UserError, match="all 4 rows have more than 20 tokens"):
        lazy(rows(4, long=(0, 1, 2, 3)), too_long="drop").first(2)


# --- in a stage ---


def file_of(folder: Path, n: int = 300, *, long: tuple[int, ...] = ()) -> str:
    lines = [
        json.dumps({"prompt": "ab"[: 1 + i % 2], "completion": "cdefg"[i % 5] * (40 if i in long else 1 + i % 7)})
        for i in range(n)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "rows.jsonl")


def settings_of(path: str, *, streaming: bool = True, **more: Any) -> Any:
    data = {"name": "files", "path": path, "streaming": streaming, "held_out": 20}
    written = {"batch_size": 16, "learning_rate": 1e-2, "lr_scheduler_type": "linear", "max_length": 20, **more}
    return train_settings(algorithm="sft", data=data, **written)


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.roles.models["policy"].parameters()])


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_stopped_run_over_a_file_of_300_rows_ends_with_the_same_weights_and_counts(
    tmp_path: Path, shuffle: bool
) -> None:
    path = file_of(tmp_path, long=(5, 6, 50, 120, 121, 122, 288))
    settings = settings_of(path, too_long="drop", save_steps=4, shuffle=shuffle, num_train_epochs=1.5)
    straight, summary = train(stage(tmp_path / "a", {"base": tiny_policy()}), settings)
    assert straight.streams[0].position == 420  # 280 rows, one pass and a half: those left out are drawn as well

    broken = stage(tmp_path / "b", {"base": tiny_policy()})

    def stop(step: int, *_: Any) -> None:
        if step == 14:
            raise StoppedError

    broken.progress = stop
    with suppress(StoppedError):
        train(broken, settings)
    assert (tmp_path / "b" / "checkpoint").exists()
    said: list[str] = []
    context = stage(tmp_path / "b", {"base": tiny_policy()})
    context.say = said.append
    again, of_again = train(context, settings)
    assert torch.equal(weights(again), weights(straight))
    assert of_again["dropped_rows"] == summary["dropped_rows"]
    assert summary["dropped_rows"]["rows"] == 280
    number = summary["dropped_rows"]["dropped_too_long"]
    assert said == [f"test: of rows that stay in their file, as they were drawn: dropped_too_long {number}"]
    assert 5 <= number <= 14  # 7 rows, some held out, each met once or twice
    assert summary["steps"] == 18 + 9  # 280 = 17 * 16 + 8, and 140 = 8 * 16 + 12


def test_rows_in_a_file_and_rows_in_memory_give_the_same_weights_and_the_same_held_out_loss(tmp_path: Path) -> None:
    path = file_of(tmp_path, 60)
    made = []
    for streaming in (True, False):
        settings = settings_of(path, streaming=streaming, evaluation={"num_prompts": 12})
        run, summary = train(stage(tmp_path / str(streaming), {"base": tiny_policy()}), settings)
        made.append((weights(run), summary["eval/loss"], summary["steps"]))
        assert isinstance(run.streams[0].rows, LazyRows) == streaming
        assert len(run.held_out[0].rows) == (12 if streaming else 20)
    assert torch.equal(made[0][0], made[1][0])
    assert made[0][1:] == made[1][1:]


def test_a_step_whose_rows_are_all_left_out_changes_nothing(tmp_path: Path) -> None:
    path = file_of(tmp_path, 40, long=tuple(range(0, 40)))
    lines = Path(path).read_text().splitlines()
    lines[-1] = json.dumps({"prompt": "a", "completion": "b"})
    Path(path).write_text("\n".join(lines))
    settings = settings_of(path, too_long="drop", batch_size=2, shuffle=False, weight_decay=0.0)
    begin = weights(set_up(stage(tmp_path / "x", {"base": tiny_policy()}), settings))
    run, summary = train(stage(tmp_path / "y", {"base": tiny_policy()}), settings)
    assert summary["steps"] == 10
    assert summary["dropped_rows"]["dropped_too_long"] in (19, 20)
    same = torch.equal(weights(run), begin)
    assert same == (summary["dropped_rows"]["dropped_too_long"] == 20)


# --- what is said ---


def test_what_was_left_out_is_said_by_name_with_the_first_places() -> None:
    examples = rows(9, long=(1, 2, 4, 5, 6))
    _, counts = render_rows(Renderer(letter_tokenizer(), 20), examples, needs_answers=1, too_long="drop")
    assert told(counts, "train: rows") == [
        "train: rows: 9; skipped_bad 2, dropped_too_long 5",
        "    x.jsonl:7: not JSON",
        "    x.jsonl:9: not JSON",
        *(f"    row {i}: dropped_too_long (43 tokens, the limit is 20)" for i in (1, 2, 4)),
    ]
    assert told(Counts({"rows": 3, "kept": 3, "dropped_too_long": 0})) == []


def test_a_stage_says_it_when_it_begins_and_its_summary_keeps_the_places(tmp_path: Path) -> None:
    path = file_of(tmp_path, 40, long=(3,))
    with Path(path).open("a") as file:
        file.write("no json\n")
    said: list[str] = []
    context = stage(tmp_path / "s", {"base": tiny_policy()})
    context.say = said.append
    settings = settings_of(path, streaming=False, too_long="drop", max_steps=1)
    settings = settings.model_copy(
        update={"data": type(settings.data)(settings.data.part, settings.data.settings.model_copy(
            update={"bad_rows": "skip", "held_out": 0}))}
    )  # fmt: skip
    _, summary = train(context, settings)
    assert said[0] == "test: rows: 40; skipped_bad 1, dropped_too_long 1"
    assert said[1].strip() == f"{path}:41: not JSON: Expecting value (column 1)"
    assert said[2].strip() == f"{path}:4: row 3: dropped_too_long ({1 + 1 + 40 + 1} tokens, the limit is 20)"
    assert summary["dropped_places"] == [line.strip() for line in said[1:]]
