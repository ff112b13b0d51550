"""Each sign on a series that has it, once until it has gone; none on runs that do well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unified.signs import KINDS, PATIENCE, SIGNS, WINDOW, Sign, Watch

RECORDED = json.loads((Path(__file__).parent / "healthy_runs.json").read_text())
#: a batch in which all is well
WELL = {"kl": 0.05, "frac_reward_zero_std": 0.4, "completions/mean_length": 120.0, "completions/clipped_ratio": 0.05,
        "completions/nats": 0.6, "completions/repeated": 0.03, "missing_share": 0.0}  # fmt: skip
#: sign -> what a batch shows that has it, and words of the remedy with its source
TROUBLE = {
    "entropy_collapse": ({"completions/nats": 0.01}, ("entropy", "2505.22617")),
    "no_spread": ({"frac_reward_zero_std": 1.0}, ("refill", "2503.14476, section 3.2")),
    "nothing_learned": ({"steps_skipped": 1.0}, ("refill", "2503.14476")),
    "kl_blow_up": ({"kl": 1.5}, ("1.5 nats", "before was 0.05", "KL weight", "1909.08593")),
    "length_run_away": ({"completions/mean_length": 240.0, "completions/clipped_ratio": 0.6},
                        ("section 3.4", "2503.20783")),
    "all_cut_off": ({"completions/clipped_ratio": 1.0}, ("max_tokens", "section 3.4")),
    "rewards_missing": ({"missing_share": 0.25}, ("25%", "max_missing")),
    "repetition": ({"completions/repeated": 0.7}, ("70%", "2502.03373", "1908.04319")),
}  # fmt: skip


def watch_after(batches: int = WINDOW) -> Watch:
    """One that has seen so many batches that did well."""
    watch = Watch()
    for _ in range(batches):
        assert watch.look(WELL) == []
    return watch


def shows(watch: Watch, *batches: dict[str, float]) -> list[list[Sign]]:
    return [watch.look({**WELL, **batch}) for batch in batches]


def test_every_sign_has_a_series_here() -> None:
    assert set(TROUBLE) == set(SIGNS)
    assert set(KINDS) == {*SIGNS, "gradient_spike", "nonfinite"}


@pytest.mark.parametrize("kind", sorted(TROUBLE))
def test_a_sign_is_told_when_it_stays_with_its_remedy_and_source_and_again_only_after_it_was_gone(kind: str) -> None:
    trouble, words = TROUBLE[kind]
    watch = watch_after()
    found = shows(watch, *[trouble] * (PATIENCE + 5))
    assert [[s.kind for s in signs] for signs in found] == [[]] * (PATIENCE - 1) + [[kind]] + [[]] * 5
    (sign,) = found[PATIENCE - 1]
    assert [word for word in words if word not in sign.message] == []
    assert sign.values
    assert shows(watch, {}) == [[]]
    again = shows(watch, *[trouble] * PATIENCE)
    assert [s.kind for signs in again for s in signs] == [kind]
    assert watch.told == {kind: 2}


@pytest.mark.parametrize("kind", sorted(TROUBLE))
def test_one_bad_batch_now_and_then_is_no_sign(kind: str) -> None:
    trouble = TROUBLE[kind][0]
    assert not any(shows(watch_after(), *([trouble] * (PATIENCE - 1) + [{}]) * 10))


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_runs_that_do_well_raise_nothing(name: str) -> None:
    # recorded from mini runs: one reaches 2.1 nats per token from its reference, one has norms of 18 medians, one
    # begins with six of ten answers cut off
    watch, series = Watch(), RECORDED[name]
    steps = len(series["grad_norm"])
    assert steps >= 40
    found: list[Sign | None] = []
    for i in range(steps):
        batch = {k: values[i] for k, values in series.items() if values[i] is not None}
        found += [watch.gradient("grad_norm", batch["grad_norm"], 1.0), *watch.look(batch)]
    assert [sign for sign in found if sign] == []


def test_groups_without_spread_are_nothing_to_tell_where_no_reward_moves_the_policy() -> None:
    watch = Watch(judged=False)
    assert not any(shows(watch, *[{"frac_reward_zero_std": 1.0}] * 10))


def test_short_answers_that_are_all_cut_off_may_be_meant() -> None:
    watch = Watch()
    short = {"completions/clipped_ratio": 1.0, "completions/mean_length": 1.0}
    assert not any(watch.look(short) for _ in range(10))


def test_a_kl_that_grows_slowly_is_told_when_it_is_large_and_one_that_leaps_before() -> None:
    slow = Watch()
    told = [i for i in range(100) if slow.look({"kl": 0.05 * i})]
    # 0.05 i > 4 from i = 81 on, and for three batches at i = 83
    assert told == [83]
    leaps = watch_after()
    assert [i for i in range(5) if leaps.look({"kl": 1.2})] == [2]  # 24 medians of 0.05, over 1


def norms(watch: Watch, *values: float, limit: float = 1.0) -> list[float | None]:
    found = [watch.gradient("grad_norm", value, limit) for value in values]
    return [None if sign is None else sign.values["factor"] for sign in found]


def test_a_spike_of_the_gradient_is_told_with_its_factor_once() -> None:
    watch = Watch()
    assert norms(watch, *[0.5, 1.5] * 20) == [None] * 40
    # the median of 0.5 and 1.5 in equal number is 1: 60 is 60 times it
    assert norms(watch, 60.0, 61.0, 1.0) == [60.0, None, None]
    sign = watch.gradient("grad_norm", 500.0, 1.0)
    assert sign is not None
    assert sign.kind == "gradient_spike"
    assert "2204.02311" in sign.message


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ((19.0,), 1.0),  # under 20 medians
        ((60.0,), 100.0),  # not clipped: the step is as large as ever
    ],
)
def test_what_is_no_spike(values: tuple[float, ...], limit: float) -> None:
    watch = Watch()
    norms(watch, *[1.0] * 40)
    assert norms(watch, *values, limit=limit) == [None]


def test_the_first_steps_are_no_measure_of_a_spike() -> None:
    assert norms(Watch(), *[1.0] * (WINDOW // 2 - 1), 1000.0) == [None] * (WINDOW // 2)


def test_a_watch_that_was_saved_and_loaded_goes_on_as_if_nothing_had_been() -> None:
    straight, saved = watch_after(20), watch_after(20)
    trouble = TROUBLE["kl_blow_up"][0]
    for watch in (straight, saved):
        shows(watch, trouble, trouble)
        norms(watch, *[1.0] * 25)
    loaded = Watch()
    loaded.load_state(json.loads(json.dumps(saved.state())))
    assert loaded == straight
    assert shows(loaded, trouble) == shows(straight, trouble)
    assert norms(loaded, 60.0) == norms(straight, 60.0) == [60.0]
    assert loaded.told == {"kl_blow_up": 1, "gradient_spike": 1}
