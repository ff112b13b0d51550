"""Mixed datasets: the shares of every beginning, the end, repeated rows, names, system messages, and how they nest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from unified import UserError, call_named, catalogue, check_recipe, load_recipe
from unified.made import is_to_come, references, resolved
from unified.settings import Chosen, choose
from unified.unverified import not_yet_verified


def write(folder: Path, name: str, rows: int, *, chat: bool = False) -> dict[str, Any]:
    """A file of so many rows, as the data of a source: none is held out."""
    prompt: Any = [{"role": "user", "content": "?"}] if chat else "?"
    lines = [json.dumps({"prompt": prompt, "completion": f"{name}{i}"}) for i in range(rows)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {"name": "files", "path": f"./{name}.jsonl", "held_out": 0}


def mixture(**written: Any) -> Chosen:
    chosen, problems = choose("dataset", {"name": "mixture", **written})
    assert chosen is not None, "\n".join(p.text() for p in problems)
    return chosen


def mixed(folder: Path, split: str = "train", seed: int = 0, **written: Any) -> Any:
    chosen = mixture(**written)
    return call_named(chosen.part.open, settings=chosen.settings, split=split, seed=seed, folder=folder)


def names(rows: Any) -> list[str]:
    return [row.columns["source"] for row in rows]


def test_at_each_place_stands_the_source_that_lacks_the_most(tmp_path: Path) -> None:
    # shares 2/3 and 1/3. Place 1 lacks 2/3, 1/3: a. 2: 4/3 - 1 = 1/3, 2/3: b. 3: 2 - 1 = 1, 1 - 1 = 0: a. And again.
    sources = [{"data": write(tmp_path, "a", 6), "weight": 2}, {"data": write(tmp_path, "b", 3), "weight": 1}]
    assert names(mixed(tmp_path, sources=sources)) == ["a", "b", "a"] * 3


@pytest.mark.parametrize("weights", [(0.7, 0.3), (5, 1, 1), (0.5, 0.25, 0.15, 0.1), (1, 1000)])
def test_every_beginning_has_the_shares(tmp_path: Path, weights: tuple[float, ...]) -> None:
    sources = [{"data": write(tmp_path, f"s{i}", 40), "weight": w} for i, w in enumerate(weights)]
    seen = names(mixed(tmp_path, sources=sources, stop="all", rows=300))
    assert len(seen) == 300
    for end in range(1, len(seen) + 1):
        count = Counter(seen[:end])
        off = [count[f"s{i}"] - end * w / sum(weights) for i, w in enumerate(weights)]
        assert max(off) < 1 + 1e-9  # never more than one row ahead, so all others together lack no more than that
        assert min(off) > -(len(weights) - 1) - 1e-9


def test_it_ends_when_the_first_source_is_used_up_and_tells_what_was_not_used(tmp_path: Path) -> None:
    sources = [{"data": write(tmp_path, "long", 10)}, {"data": write(tmp_path, "short", 2)}]
    rows = mixed(tmp_path, sources=sources)
    assert names(rows) == ["long", "short", "long", "short", "long"]  # the next would be a third of `short`
    assert rows.counts == {"mixed/long": 3, "mixed/short": 2, "unused/long": 7}


def test_it_goes_on_until_all_are_used_up_and_counts_what_was_repeated(tmp_path: Path) -> None:
    sources = [{"data": write(tmp_path, "long", 5)}, {"data": write(tmp_path, "short", 2)}]
    rows = mixed(tmp_path, sources=sources, stop="all")
    assert names(rows) == ["long", "short"] * 4 + ["long"]
    assert rows.counts == {"mixed/long": 5, "mixed/short": 4, "repeated/short": 2}
    said = Counter(row.answers[0] for row in rows)
    assert said == {**{f"long{i}": 1 for i in range(5)}, "short0": 2, "short1": 2}


def test_the_number_of_rows_is_an_end_of_its_own(tmp_path: Path) -> None:
    sources = [{"data": write(tmp_path, "a", 3)}, {"data": write(tmp_path, "b", 3)}]
    assert len(mixed(tmp_path, sources=sources, rows=4)) == 4
    assert len(mixed(tmp_path, sources=sources, rows=50)) == 6  # the first is used up before
    assert len(mixed(tmp_path, sources=sources, rows=50, stop="all")) == 50


def test_the_seed_draws_the_order_of_each_source_anew_for_every_pass(tmp_path: Path) -> None:
    sources = [{"data": write(tmp_path, "a", 12)}]

    def said(seed: int, **more: Any) -> list[str]:
        return [r.answers[0] for r in mixed(tmp_path, seed=seed, sources=sources, stop="all", rows=24, **more)]

    assert said(1) == said(1) != said(2)
    assert sorted(said(1)[:12]) == sorted(said(1)[12:]) == sorted(f"a{i}" for i in range(12))
    assert said(1)[:12] != said(1)[12:]
    assert said(1, shuffle=False) == [f"a{i}" for i in range(12)] * 2


def test_held_out_rows_are_those_of_each_source_and_are_never_repeated(tmp_path: Path) -> None:
    def half(name: str) -> dict[str, Any]:
        return {"data": {**write(tmp_path, name, 20), "held_out": 0.5}}

    sources = [{**half("a"), "weight": 3}, half("b")]
    train, held = (mixed(tmp_path, split, sources=sources, stop="all") for split in ("train", "held_out"))
    assert {r.answers[0] for r in train} & {r.answers[0] for r in held} == set()
    assert {r.answers[0] for r in train} | {r.answers[0] for r in held} <= {f"{n}{i}" for n in "ab" for i in range(20)}
    assert len({r.answers[0] for r in held}) == len(held)
    assert Counter(names(held)) == {"a": 10, "b": 3}  # 3 : 1 until the ten of `a` are used up
    assert len(train) > 20  # while these are repeated


def test_a_system_message_goes_before_messages_and_a_row_that_brings_one_keeps_it(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "?"}]
    rows = [{"prompt": own, "completion": "x"}, {"prompt": own[1:], "completion": "y"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"data": {"name": "files", "path": "./c.jsonl", "held_out": 0}, "system": "Be brief.", "name": "chat"}
    found = mixed(tmp_path, sources=[source], shuffle=False)
    assert [r.prompt for r in found] == [own, [{"role": "system", "content": "Be brief."}, own[1]]]
    assert found.counts == {"mixed/chat": 2, "own_system/chat": 1}


def test_a_system_message_before_text_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)a\.jsonl:1: source 'a'.*text has no place.*chat: true"):
        mixed(tmp_path, sources=[{"data": write(tmp_path, "a", 2), "system": "Be brief."}])


def test_a_column_of_the_same_name_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "?", "completion": "!", "source": "the web"}\n')
    sources = [{"data": {"name": "files", "path": "./x.jsonl", "held_out": 0}, "name": "mine"}]
    with pytest.raises(UserError, match=r"(?s)x\.jsonl:1.*has a column 'source' already.*`column: NAME`"):
        mixed(tmp_path, sources=sources)
    (row,) = mixed(tmp_path, sources=sources, column="part")
    assert (row.columns["part"], row.columns["source"]) == ("mine", "the web")


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path, "a", 2)
    with pytest.raises(UserError, match="two sources of the mixture have the name 'a'"):
        mixed(tmp_path, sources=[{"data": data}, {"data": data}])


def test_what_the_sources_left_out_is_passed_on(tmp_path: Path) -> None:
    data = write(tmp_path, "a", 3)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("no json\n")
    rows = mixed(tmp_path, sources=[{"data": {**data, "bad_rows": "skip"}}])
    assert rows.counts == {"skipped_bad": 1, "mixed/a": 3}
    assert [p.rpartition("/")[2] for p in rows.problems] == ["a.jsonl:4: not JSON: Expecting value (column 1)"]
    assert rows.format == "prompt_completion"


def test_rows_that_stay_in_their_file_stay_there(tmp_path: Path) -> None:
    plain, streamed = write(tmp_path, "a", 5), {**write(tmp_path, "b", 5), "streaming": True}
    assert not mixed(tmp_path, sources=[{"data": plain}]).streaming
    rows = mixed(tmp_path, sources=[{"data": plain}, {"data": streamed}])
    assert rows.streaming
    assert rows[1] is not rows[1]
    assert sorted(r.answers[0] for r in rows) == [f"{n}{i}" for n in "ab" for i in range(5)]


def test_a_mixture_of_mixtures_has_the_shares_of_both(tmp_path: Path) -> None:
    inner = {"name": "mixture", "column": "of", "sources": [{"data": write(tmp_path, n, 8)} for n in "ab"]}
    rows = mixed(tmp_path, sources=[{"data": inner, "name": "ab"}, {"data": write(tmp_path, "c", 8)}], shuffle=False)
    assert names(rows) == ["ab", "c"] * 8 + ["ab"]
    assert [r.columns.get("of") for r in rows] == ["a", None, "b", None] * 4 + ["a"]


# --- in a recipe ---

RECIPE = """
name: mixed
model: {{new: {{model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1,
  num_attention_heads: 2}}, tokenizer: random_walks}}
stages:
  draw: {{kind: sample, data: {{name: random_walks, view: prompts}}, source: {{group_size: 1, max_tokens: 4}}}}
  train: {{algorithm: sft, data: {{name: mixture, sources: [{{data: "{inner}"}}, {{data: walks.jsonl, weight: 2}}]}}}}
"""


def recipe(folder: Path, inner: str = "stage:draw") -> Path:
    (folder / "walks.jsonl").write_text("".join(json.dumps({"text": "a b c"}) + "\n" for _ in range(20)))
    (folder / "r.yaml").write_text(RECIPE.format(inner=inner))
    return folder / "r.yaml"


def test_a_source_may_be_what_a_stage_makes_and_a_path_alone_is_a_file(tmp_path: Path) -> None:
    plan = check_recipe(load_recipe(recipe(tmp_path)))
    settings: Any = plan.stages[1].settings
    assert [(use.reference, use.kind) for use in plan.stages[1].uses if use.kind == "dataset"] == [
        ("stage:draw", "dataset")
    ]
    ((at, _),) = references(settings)
    assert at == ("data", "sources", 0, "data", "path")
    assert is_to_come(settings.data)
    found = resolved(settings, lambda _: {"path": str(tmp_path / "walks.jsonl"), "format": "text", "held_out": 1})
    assert not is_to_come(found.data)
    rows = call_named(found.data.part.open, settings=found.data.settings, split="train", seed=0, folder=tmp_path)
    assert set(names(rows)) == {"draw", "walks"}  # the name is that of the stage, not of its file


def test_a_stage_that_is_not_there_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"r\.yaml:7: stage 'train': no stage 'drew'"):
        check_recipe(load_recipe(recipe(tmp_path, "stage:drew")))


def test_a_source_on_the_hub_is_not_fetched_by_a_check_and_counted_as_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("fetched"))
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace('"stage:draw"', "{name: hub, id: someone/sums}"))
    plan = check_recipe(load_recipe(path))
    assert not_yet_verified(plan) == ["dataset someone/sums"]


def test_the_part_is_offered() -> None:
    assert not catalogue().get("dataset", "mixture").remote
