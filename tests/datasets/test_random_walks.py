"""The random-walks task: its graph, its rows, and what a walk is worth."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from unified import Example, UserError, call_named, catalogue
from unified_plugins.datasets.random_walks import Graph, GraphSettings, graph

# a <- b <- c <- d, and d -> b; from d the goal is 2 steps away, or 3 through c; b -> d leads round and round
SMALL = Graph(((), (0, 3), (1,), (1, 2)), {0: 0, 1: 1, 2: 2, 3: 2}, max_steps=6)


def rows(split: str = "train", seed: int = 0, **settings: Any) -> list[Example]:
    part = catalogue().get("dataset", "random_walks")
    out: list[Example] = call_named(part.open, settings=part.settings(**settings), split=split, seed=seed, folder=".")
    return out


def walk_of(row: Example, answer: int = 0) -> list[str]:
    return [str(row.prompt), *row.answers[answer].split()]


@pytest.mark.parametrize(
    ("walk", "worth"),
    [
        ("d b a", 1.0),  # 2 steps, none is shorter
        ("d c b a", 3 / 4),  # (6 - 3) / (6 - 2)
        ("d b d b a", 2 / 4),  # (6 - 4) / (6 - 2)
        ("d b d b d b a", 0.0),  # 6 steps, the longest allowed
        ("d b d b d b d b a", 0.0),  # longer
        ("b a", 1.0),
        ("d b", 0.0),  # does not arrive
        ("d a", 0.0),  # no such edge
        ("d b a a", 0.0),  # the goal has no edge out
        ("d z a", 0.0),  # no such node
        ("d bb a", 0.0),  # no name of a node
        ("d", 0.0),
        ("a", 0.0),
    ],
)
def test_a_walk_is_worth_the_share_of_steps_that_it_saves(walk, worth):
    assert SMALL.optimality(walk.split()) == pytest.approx(worth)


def test_the_expected_optimality_is_that_of_the_walks_in_time():
    # from b, a fair coin at b, at d and nowhere else: arrive after 1 step with 1/2; after 3 (b d b a) with 1/8;
    # 4 (b d c b a) 1/8; 5 (b d b d b a) 1/32; 6 (twice round, once through c, two orders) 2/32
    in_time = {1: 1 / 2, 3: 1 / 8, 4: 1 / 8, 5: 1 / 32, 6: 2 / 32}
    from_b = sum(p * (6 - steps) / 5 for steps, p in in_time.items()) / sum(in_time.values())
    # from c one step to b, then as from b with at most 5 more, fewest 2
    from_c = sum(p * (5 - s) / 4 for s, p in in_time.items() if s <= 5) / sum(p for s, p in in_time.items() if s <= 5)
    # from d to b with 1/2 (1 step) or through c (2 steps)
    arrive: dict[int, float] = {}
    for detour in (1, 2):
        for steps, p in in_time.items():
            if steps + detour <= 6:
                arrive[steps + detour] = arrive.get(steps + detour, 0) + p / 2
    from_d = sum(p * (6 - steps) / 4 for steps, p in arrive.items()) / sum(arrive.values())
    expected, rarest = SMALL.expected()
    assert expected == pytest.approx((from_b + from_c + from_d) / 3)
    # in time from b 27/32, from c 25/32 (not those that need 6 more), from d (25/32 + 24/32) / 2
    assert rarest == pytest.approx(49 / 64)


@pytest.mark.parametrize("graph_seed", range(6))
def test_training_and_held_out_walks_are_worth_three_quarters_on_every_graph(graph_seed):
    for split in ("train", "held_out"):
        worth = [row.rewards[0] for row in rows(split, seed=graph_seed, graph_seed=graph_seed, held_out_rows=1000)]
        assert statistics.mean(worth) == pytest.approx(0.75, abs=0.04)  # 0.005, and three standard errors of 0.011


def test_every_node_of_the_graph_reaches_the_goal_and_the_seed_decides_the_graph():
    one, other = graph(GraphSettings()), graph(GraphSettings(graph_seed=1))
    assert set(one.distance) == set(range(21))
    assert one.edges[0] == ()
    assert one.edges != other.edges
    assert graph(GraphSettings(graph_seed=1)) is other


def test_rows_are_walks_of_the_graph_that_arrive_and_the_rows_of_a_seed_are_always_the_same():
    here = graph(GraphSettings())
    train = rows()
    assert len(train) == 1000
    for row in train:
        assert row.rewards == [here.optimality(walk_of(row))]
        assert row.answers[0].endswith("a")
        assert len(row.answers[0].split()) <= 10
    assert train == rows()
    assert train != rows(seed=1)
    assert train[:200] != rows("held_out")


def test_starts_are_equally_frequent():
    # 1000 rows, 20 starts: 50 each, with deviation sqrt(1000 · 0.05 · 0.95) = 6.9
    starts = [str(row.prompt) for row in rows()]
    counts = [starts.count(letter) for letter in "bcdefghijklmnopqrstu"]
    assert sum(counts) == 1000
    assert all(abs(count - 50) < 4 * 6.9 for count in counts)


def test_a_pair_has_the_better_walk_first():
    here = graph(GraphSettings())
    pairs = rows(view="pairs", rows=200)
    assert len(pairs) == 200
    for row in pairs:
        assert row.rewards == [1.0, 0.0]
        assert here.optimality(walk_of(row, 0)) > here.optimality(walk_of(row, 1))


def test_half_of_the_walks_of_pairs_are_spoiled_unless_the_recipe_says_otherwise():
    here = graph(GraphSettings())

    def invalid(**settings: Any) -> float:
        return statistics.mean(
            here.optimality(walk_of(row, 1)) == 0 for row in rows(view="pairs", rows=500, **settings)
        )

    assert invalid(mistakes=0.0) < 0.2  # of walks that arrive only those of 10 steps are worth 0
    assert 0.55 < invalid() < 0.85  # of two walks one is spoiled in 3 cases of 4, and not every mistake costs all


def test_ranked_walks_are_different_and_worth_the_number_that_they_beat():
    here = graph(GraphSettings())
    for row in rows(view="ranked", rows=100, answers=4):
        worth = [here.optimality(walk_of(row, i)) for i in range(4)]
        assert len(set(row.answers)) == 4
        assert worth == sorted(worth, reverse=True)
        assert row.rewards == [sum(other < mine for other in worth) for mine in worth]


def test_prompts_are_all_starts_and_the_held_out_ones_stand_once():
    assert [row.prompt for row in rows("held_out", view="prompts", repeat=3)] == list("bcdefghijklmnopqrstu")
    assert len(rows(view="prompts", repeat=3)) == 60
    assert rows(view="prompts")[0].answers == []


def test_a_graph_that_nobody_can_draw_is_refused_with_what_to_set():
    with pytest.raises(UserError, match=r"(?s)no graph of .* optimality 0\.99.*set another walk_optimality"):
        graph(GraphSettings(nodes=4, max_steps=2, walk_optimality=0.99, edge_probability=0.01))


def test_the_tokenizer_has_one_token_a_node_and_reads_back_what_it_wrote():
    part = catalogue().get("dataset", "random_walks")
    tokenizer = part.tokenizer(part.settings())
    assert len(tokenizer) == 24
    ids = tokenizer("d f a").input_ids
    assert ids == [6, 8, 3]  # pad, unk and the end come first
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == "d f a"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
