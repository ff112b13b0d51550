"""The sampling stage: what it writes, of what, and that it does so again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools import stage, tiny_policy
from unified import UserError, catalogue
from unified.settings import parse
from unified.stage import StageResult

PROMPTS = {"name": "random_walks", "view": "prompts"}


def sample(folder: Path, seed: int = 0, **written: Any) -> StageResult:
    """Run the stage on the random tiny policy."""
    part = catalogue().get("stage", "sample")
    about = {"data": PROMPTS, "reward": "vowels", "source": {"group_size": 4, "max_tokens": 6}, "held_out": 0,
             "unfinished": "keep"}  # fmt: skip
    settings, problems = parse(part.settings, {**about, **written}, owner="stage 'test'")
    assert not problems, problems
    made: StageResult = part.run(stage(folder, {"base": tiny_policy()}, seed=seed), settings)
    return made


def rows(folder: Path, name: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]


def test_the_best_of_what_was_sampled_is_kept_with_its_prompt_reward_and_columns(tmp_path: Path) -> None:
    everything = sample(tmp_path / "all")
    best = sample(tmp_path / "best", select="best")
    sampled, kept = rows(tmp_path / "all"), rows(tmp_path / "best")
    assert len(sampled) == len(kept) == 20
    for before, after in zip(sampled, kept, strict=True):
        assert before["rewards"] == [sum(c in "aeiou" for c in text) for text in before["answers"]]
        top = before["rewards"].index(max(before["rewards"]))
        assert after["answers"] == [before["answers"][top]]
        assert after["rewards"] == [before["rewards"][top]]
        assert after["start"] == before["prompt"] == after["prompt"]
    flat = [r for row in sampled for r in row["rewards"]]
    wanted = {"prompts": 20, "answers": 80, "kept_prompts": 20, "kept_answers": 20}
    assert {k: best.summary[k] for k in wanted} == wanted
    assert best.summary["reward/sampled"] == pytest.approx(sum(flat) / 80)
    assert best.summary["reward/kept"] == pytest.approx(sum(max(row["rewards"]) for row in sampled) / 20)
    assert everything.summary["kept_answers"] == 80


def test_the_same_seed_gives_the_same_file_and_another_one_another(tmp_path: Path) -> None:
    how = {"select": {"name": "statistical", "beta": 2.0}}
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        sample(tmp_path / name, seed=seed, **how)
    a, b, c = ((tmp_path / name / "data" / "train.jsonl").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_stage_that_was_cut_off_ends_with_the_same_files_when_it_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unified_plugins.stages import sample as module

    write = module.write_rows

    def stops(path: Path, examples: Any) -> None:
        if path.name == "held_out.jsonl":
            raise KeyboardInterrupt
        write(path, list(examples)[:3])

    monkeypatch.setattr(module, "write_rows", stops)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "cut", held_out=5)
    monkeypatch.setattr(module, "write_rows", write)
    sample(tmp_path / "cut", held_out=5)
    sample(tmp_path / "whole", held_out=5)
    for name in ("train", "held_out"):
        assert rows(tmp_path / "cut", name) == rows(tmp_path / "whole", name)
    assert len(rows(tmp_path / "cut", "held_out")) == 5


def test_no_more_than_the_limit_is_kept_of_a_prompt_and_those_are_its_best(tmp_path: Path) -> None:
    sample(tmp_path / "all")
    sample(tmp_path / "two", limit=2)
    for before, after in zip(rows(tmp_path / "all"), rows(tmp_path / "two"), strict=True):
        assert sorted(after["rewards"], reverse=True) == sorted(before["rewards"], reverse=True)[:2]


def test_answers_that_were_cut_off_or_read_as_an_earlier_one_leave_before_the_selection_and_are_counted(
    tmp_path: Path,
) -> None:
    short = {"group_size": 8, "max_tokens": 1}
    everything = sample(tmp_path / "all", source=short)
    distinct = sample(tmp_path / "distinct", source=short, distinct=True)
    texts = [row["answers"] for row in rows(tmp_path / "all")]
    assert [sorted(set(t)) for t in texts] == [sorted(row["answers"]) for row in rows(tmp_path / "distinct")]
    gone = sum(len(t) - len(set(t)) for t in texts)
    assert gone > 0
    assert distinct.summary["dropped/repeated"] == gone
    assert everything.summary["kept_answers"] == 160
    # with one token an answer is finished only where that token ends it, and then it reads as nothing
    ended = sample(tmp_path / "ended", source=short, unfinished="drop")
    assert {text for row in rows(tmp_path / "ended") for text in row["answers"]} == {""}
    assert ended.summary["dropped/unfinished"] + ended.summary["kept_answers"] == 160


def test_rows_of_earlier_rounds_stand_unchanged_behind_the_new_ones(tmp_path: Path) -> None:
    sample(tmp_path / "first", select="best", num_prompts=3)
    earlier = {"name": "files", "path": str(tmp_path / "first" / "data" / "train.jsonl"), "held_out": 0}
    second = sample(tmp_path / "second", seed=1, select="best", num_prompts=2, keep=[earlier])
    assert rows(tmp_path / "second")[2:] == rows(tmp_path / "first")
    assert second.summary["added_prompts"] == 3
    assert second.summary["kept_prompts"] == 2


def test_answers_of_the_rows_are_judged_and_selected_where_the_source_gives_them(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p, "answers": ["xa", "ae", "xx"]}) for p in "bc")
    )
    sample(tmp_path / "s", source="rows", data={"name": "files", "path": str(tmp_path / "rows.jsonl"), "held_out": 0},
           select="best_worst")  # fmt: skip
    # vowels: 1, 2, 0
    assert [(r["answers"], r["rewards"]) for r in rows(tmp_path / "s")] == [(["ae", "xx"], [2.0, 0.0])] * 2


def test_messages_are_written_as_messages_and_not_as_the_template_writes_them(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "b", "answer": "a"}) + "\n")
    sample(tmp_path / "s", data={"name": "files", "path": str(tmp_path / "rows.jsonl"), "held_out": 0})
    (row,) = rows(tmp_path / "s")
    assert row["prompt"] == [{"role": "user", "content": "b"}]
    assert row["answer"] == "a"  # where a verifier looks for it


def test_a_stage_that_keeps_nothing_is_refused_with_what_it_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no answer was kept: prompts 20, answers 80.*kept_answers 0"):
        sample(tmp_path, select={"name": "threshold", "at_least": 100})
