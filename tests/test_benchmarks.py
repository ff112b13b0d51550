"""The benchmarks count and compare as they say: ratios of neighbours, exclusive times, live bytes, the same work."""

from __future__ import annotations

import importlib
import io
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.__main__ import chosen, rows_needed
from benchmarks.cases import CASES, SCALING, Case, rows_of, spread_out
from benchmarks.compare import BESIDE, Options, measure, order, ratios, shares, sides_of, spread, summary
from benchmarks.environment import code_version, constrained
from benchmarks.material import end_ids, tokenizer, write
from benchmarks.measure import Live, Timer, highest
from benchmarks.worker import Serve, loop

TINY = Case("sft", "sft", "tiny", 0, 12, 1, 4, 1)


def block(tokens: int, cpu: float, wall: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"tokens": tokens, "cpu": cpu, "wall": wall, **more}


# --- ratios ---


def test_the_ratio_of_a_pair_is_of_tokens_per_second_and_not_of_seconds():
    # ours 100 tokens in 2 s = 50/s, theirs 60 in 3 s = 20/s: 2.5 times; seconds alone would say 1.5
    assert ratios([{"ours": block(100, 2.0), "trl": block(60, 3.0)}], "ours", "trl", "cpu") == [2.5]


def test_the_summary_takes_the_median_of_the_ratios_and_not_the_ratio_of_medians():
    # a slow second covers both sides of a pair: ratios 2, 2, 8 -> 2; medians 10/s and 2/s would say 5
    rounds = [{"ours": block(10 * s, 1.0), "trl": block(t * s, 1.0)} for s, t in ((1, 5), (4, 5), (1, 1))]
    rounds[2]["ours"] = block(8, 1.0)
    assert ratios(rounds, "ours", "trl", "cpu") == [2.0, 2.0, 8.0]
    assert summary(rounds)["ratios"]["trl"]["cpu"]["median"] == 2.0


def test_a_side_that_ran_in_some_rounds_is_compared_in_those_alone():
    rounds = [{"ours": block(4, 1.0), BESIDE: block(1, 1.0)}, {"ours": block(9, 1.0)}]
    found = summary(rounds)["ratios"][BESIDE]["cpu"]
    assert (found["median"], found["number"]) == (4.0, 1)


def test_quartiles_lie_between_the_numbers_beside_them():
    # of 1 2 3 4 5 (inclusive): positions 1 and 3 of 0..4 -> 2 and 4
    found = spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found["low"], found["median"], found["high"], found["min"], found["max"]) == (2, 3, 4, 1, 5)
    assert spread([]) == {}


def test_sides_change_places_from_round_to_round():
    assert [order(["a", "b"], n) for n in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_overhead_is_what_neither_model_nor_optimiser_took():
    # 4 s: forward 2, update 1, weigh 0.5, and 0.5 that no verb claims
    verbs = {"forward": 2.0, "update": 1.0, "weigh": 0.5}
    found, overhead = shares([block(1, 4.0, verbs=verbs)], ("forward", "update"))
    assert found == {"forward": 0.5, "update": 0.25, "weigh": 0.125, "other": 0.125}
    assert overhead == 0.25


# --- clocks and memory ---


def test_time_inside_another_verb_counts_for_the_inner_one_alone():
    ticks = iter([0.0, 10.0, 13.0, 20.0])  # outer begins, inner begins, inner ends, outer ends
    timer = Timer(lambda: next(ticks))
    space = SimpleNamespace(inner=lambda: 1, outer=lambda: space.inner())
    timer.wrap(space, "inner", "inner")
    timer.wrap(space, "outer", "outer")
    assert space.outer() == 1
    assert timer.take() == {"inner": 3.0, "outer": 17.0}
    assert timer.take() == {}


def test_a_verb_that_is_not_there_is_named():
    with pytest.raises(AttributeError, match=r"has no 'gone' to time as 'verb'"):
        Timer().wrap(SimpleNamespace(), "gone", "verb")


def test_the_peak_of_live_bytes_is_the_highest_running_sum():
    # +5 -> 5, +7 -> 12, -5 -> 7, +3 -> 10; given out of order
    assert highest([(3, -5), (1, 5), (4, 3), (2, 7)]) == 12
    assert highest([]) == 0


def test_live_bytes_count_what_is_allocated_while_watched_and_is_still_held():
    before = torch.zeros(1 << 20)  # 4 MiB that were there
    live = Live()
    live.start()
    first = torch.zeros(1 << 20)  # 4 MiB
    del before, first
    second = torch.zeros(1 << 21)  # 8 MiB: the peak, for the first are gone
    peak = live.stop()
    assert second.numel() == 1 << 21
    assert 8 << 20 <= peak < (8 << 20) + 65536


# --- the line between the processes ---


def test_a_block_has_so_many_steps_and_sums_their_tokens():
    out, steps = io.StringIO(), iter(range(1, 100))
    serve = Serve(io.StringIO("go 2\ngo 3 option\nend\n"), out)
    options: list[str] = []
    serve.choose = options.append
    loop(serve, lambda: next(steps))
    ready, first, second = map(json.loads, out.getvalue().splitlines())
    assert ready == {"ready": True}
    assert (first["steps"], first["tokens"]) == (2, 1 + 2)
    assert (second["steps"], second["tokens"]) == (3, 3 + 4 + 5)
    assert options == ["", "option"]


def test_a_closed_line_ends_a_side():
    out = io.StringIO()
    loop(Serve(io.StringIO(""), out), lambda: 1 / 0)
    assert out.getvalue() == '{"ready": true}\n'


# --- cases and rows ---


def test_one_word_is_one_token_and_an_answer_has_room_for_its_end():
    case = SCALING["tokens of a row, 4096 in a step"][0][1]
    tokens = tokenizer(case.size[0])
    lengths = [len(tokens(row["text"])["input_ids"]) for row in rows_of(case, 5)]
    assert lengths == [case.answer - 1] * 5


def test_lengths_lie_between_a_half_and_the_double_of_their_median():
    r = random.Random(0)
    drawn = sorted(spread_out(r, 128, 0.3) for _ in range(2001))
    assert drawn[0] >= 64
    assert drawn[-1] <= 256
    assert abs(drawn[1000] - 128) < 6  # deviation of a median of 2001: 1.25 * 0.3 * 128 / 45 = 1.1
    assert spread_out(r, 0, 0.3) == 0


def test_rows_are_the_same_for_every_side_that_asks():
    case = CASES["dpo-256-64-30m"]
    assert rows_of(case, 3) == rows_of(case, 3)
    assert set(rows_of(case, 1)[0]) == {"prompt", "chosen", "rejected"}


def test_there_are_rows_for_every_step_once():
    # 3 rows a step: 2 steps to warm up, 5 pairs of 2 steps each, as many again with checkpointing, and one for memory
    assert rows_needed(3, 2, 5) >= 3 * (2 + 2 * 5 + 2 * 5 + 1)


def test_every_case_of_the_issue_is_there_for_both_models():
    names = {(c.name, c.model) for c in CASES.values()}
    wanted = ("sft", "rm", "dpo-128-128", "dpo-256-64", "grpo-64", "grpo-256", "ppo", "rollout")
    assert {(n, m) for n in wanted for m in ("5m", "30m")} <= names
    assert all(CASES[t].title == t for t in CASES)


def test_cases_are_chosen_by_kind_name_title_and_model():
    assert chosen(["dpo"], ["5m"]) == ["dpo-128-128-5m", "dpo-256-64-5m"]
    assert chosen(["grpo-64", "sft-30m"], []) == ["sft-30m", "grpo-64-5m", "grpo-64-30m"]
    assert chosen(["scaling"], []) == ["scaling"]
    assert chosen(["nothing"], []) == []


def test_the_peer_has_no_ppo():
    assert [sides_of(CASES[t]) for t in ("ppo-5m", "sft-5m")] == [["ours", "limit"], ["ours", "limit", "trl"]]


def test_answers_of_a_rollout_end_by_one_of_many_ids():
    # 0.0245 of 512 is 12.5, rounded 13: with p = 13/512 half of the answers end within ln 2 / p = 27 tokens
    assert end_ids(CASES["rollout-5m"]) == list(range(2, 15))


# --- results and tables ---


def result(**more: Any) -> dict[str, Any]:
    rounds = [{"ours": block(300, 1.0), "limit": block(200, 1.0), "trl": block(100, 1.0)}]
    return {
        "code": "c", "machine": "m", "versions": {"torch": "2"}, "date": "2026-01-01", "load": 0.5,
        "options": {"pairs": 3, "threads": 1, "precision": "bf16"}, "case": TINY.as_dict(), **summary(rounds),
        "peak": {"ours": 2 << 20, "limit": 3 << 20, "trl": 8 << 20}, "rss": {"ours": 1, "limit": 1, "trl": 1},
        "verbs": {"forward": 0.75, "other": 0.25}, "overhead": 0.25, **more,
    }  # fmt: skip


def test_a_result_is_kept_for_the_same_code_and_options_or_more_pairs():
    options = {"pairs": 3, "threads": 1, "precision": "bf16"}
    assert report.is_kept(result(), "c", options)
    assert report.is_kept(result(), "c", {**options, "pairs": 2})
    assert not report.is_kept(result(), "c", {**options, "pairs": 4})
    assert not report.is_kept(result(), "d", options)
    assert not report.is_kept(result(), "c", {**options, "precision": "fp32"})
    assert not report.is_kept(result(failed="x"), "c", options)
    assert not report.is_kept(None, "c", options)


def test_the_tables_stand_between_the_marks_and_the_rest_is_left_alone(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\nafter\n")
    for _ in range(2):  # writing again changes nothing
        report.write_page(readme, {"sft-tiny": result()})
        text = readme.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        # 300 / 100 = 3 times TRL, 300 / 200 = 1.5 times the hand loop, a quarter overhead
        assert "| sft-tiny | 300 | 3.00 (3.00–3.00) | 3.00 (3.00–3.00) | – | 1.50 (1.50–1.50) | 25.0% |" in text
        # 2 of 8 MiB is a quarter
        assert "| sft-tiny | 2 | 8 | 3 | 0.25 |" in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="once each"):
        report.write_page(readme, {})


def test_a_failed_case_says_so_in_the_table():
    assert "| sft-5m | failed: no memory |" in report.speeds({"sft-5m": {"failed": "'trl' ended with 1:\nno memory"}})


def test_growth_is_told_against_the_first_point():
    points = [{"value": 2, "seconds": 1.0, "tokens": 10}, {"value": 8, "seconds": 3.0, "tokens": 40}]
    assert "| G | 8 | 3.00 | 13 | 4 | 3.00 |" in report.scaling({"points": {"G": points}})


def test_the_readme_has_the_marks_once():
    text = (Path(__file__).parents[1] / "benchmarks" / "README.md").read_text()
    assert [text.count(mark) for mark in report.MARKS] == [1, 1]


def test_the_version_of_the_code_follows_the_engine_and_not_the_report(tmp_path: Path):
    for name in ("unified/step.py", "benchmarks/ours.py", "benchmarks/report.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    first = code_version(tmp_path)
    (tmp_path / "benchmarks/report.py").write_text("2")
    assert code_version(tmp_path) == first
    (tmp_path / "unified/step.py").write_text("2")
    assert code_version(tmp_path) != first


def test_the_peer_runs_on_the_projects_own_versions():
    assert any(line.startswith("transformers==") for line in constrained())


# --- the harness on a tiny case, without the peer ---


@pytest.mark.parametrize(
    "case",
    [TINY, Case("dpo-tiny", "dpo", "tiny", 8, 8, 2, 3, 1), Case("rm-tiny", "rm", "tiny", 6, 6, 2, 3, 1)],
    ids=lambda case: case.kind,
)
def test_the_hand_loop_learns_from_the_same_rows_to_the_same_loss(case: Case, tmp_path: Path):
    from benchmarks import limit, ours

    places = write(case, tmp_path, 24)
    engine = ours.start(case, *places, ours.settings_of(case, places[0], bf16=False))
    hand = limit.Loop(case, *places, bf16=False)
    for _ in range(3):
        engine.iterate()
        tokens = hand.step()
        assert tokens == engine.run.last["tokens"] > 0
        assert hand.loss == pytest.approx(engine.run.last["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_the_hand_loop_samples_as_many_answers_as_were_asked(kind: str, tmp_path: Path):
    from benchmarks import limit

    case = Case(kind, kind, "tiny", 6, 5, 4, 3, 1)
    hand = limit.Loop(case, *write(case, tmp_path, 12), bf16=False)
    # 3 prompts x 4 answers of 1 to 5 tokens
    assert 12 <= hand.step() <= 60


def test_sampled_log_probs_of_the_hand_loop_are_those_of_the_model(tmp_path: Path):
    from benchmarks import limit
    from benchmarks.limit_parts import sample

    case = Case("rollout", "rollout", "tiny", 6, 8, 3, 2, 1)
    hand = limit.Loop(case, *write(case, tmp_path, 4), bf16=False)
    prompts = [next(hand.rows), next(hand.rows)]
    torch.manual_seed(0)
    found = sample(hand.sampler, prompts, 3, 8, [2, 3, 4, 5])
    assert len({len(a) for a, _ in found}) > 1  # rows have been dropped on the way
    for i, (answer, logp) in enumerate(found):
        pack = limit.Pack([prompts[i // 3] + answer], [len(prompts[i // 3])])
        torch.testing.assert_close(logp, hand.logp(hand.model, pack).detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def own_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's functions are put back after a test that times them."""
    from benchmarks.ours import VERBS

    for module, name in [*VERBS, ("unified.loop", "prepare")]:
        owner: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        monkeypatch.setattr(owner, last, getattr(owner, last))


@pytest.mark.parametrize(
    ("case", "verbs"),
    [
        (TINY, {"forward", "backward", "update", "weigh", "count", "report"}),
        (Case("grpo-tiny", "grpo", "tiny", 6, 5, 4, 2, 1), {"generate", "judge", "credit", "forward", "backward"}),
    ],
    ids=lambda x: x.kind if isinstance(x, Case) else "",
)
def test_our_side_counts_its_tokens_and_names_where_its_time_goes(
    case: Case, verbs: set[str], tmp_path: Path, own_verbs: None
):
    from benchmarks import ours

    folder, models = write(case, tmp_path, 12)
    out = io.StringIO()
    serve = Serve(io.StringIO("go 1\ngo 2\npeak\nend\n"), out)
    ours.run(serve, case, {"folder": str(folder), "models": str(models), "precision": "fp32"})
    _, _, found, peak = map(json.loads, out.getvalue().splitlines())
    shown, overhead = shares([found], ours.MODEL)
    assert verbs <= shown.keys()
    assert sum(shown.values()) == pytest.approx(1.0, abs=0.01)
    assert 0 < overhead < 1
    assert found["loss"] is not None
    assert peak["peak"] > 0
    if case is TINY:  # rows 4 to 11, each with its end
        words = sum(len(row["text"].split()) + 1 for row in rows_of(case, 12)[4:])
        assert found["tokens"] == words
    else:  # 2 steps x 2 prompts x 4 answers of 1 to 5 tokens
        assert 16 <= found["tokens"] <= 80


@pytest.mark.slow
def test_a_case_is_measured_from_start_to_table_in_processes_of_its_own(tmp_path: Path):
    places = write(TINY, tmp_path, rows_needed(TINY.rows, TINY.steps, 2))
    found = measure(TINY, places, Options(pairs=2, precision="fp32"), peer=False, tell=lambda line: None)
    assert found["tokens"]["ours"] == found["tokens"]["limit"] > 0
    assert found["loss"]["ours"] == pytest.approx(found["loss"]["limit"], rel=1e-4)
    assert found["ratios"]["limit"]["cpu"]["number"] == 2
    assert sum(found["verbs"].values()) == pytest.approx(1.0, abs=0.01)
    assert {"forward", "backward", "update", "weigh", "count", "report"} <= found["verbs"].keys()
    assert 0 < found["overhead"] < 1
    assert found["peak"]["ours"] > 0
    about = {k: v for k, v in result().items() if k in ("code", "machine", "versions", "date", "load")}
    assert "sft-tiny" in report.page({"sft-tiny": {**about, **found}})
