"""The noise of an answer: a function of its seed and the number of the token, and as good as random."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unified import Sampling
from unified_plugins.engines._draw import draw, processed
from unified_plugins.engines._noise import uniform

N = 200_000


def table(seeds: int, numbers: int, *, first: int = 0) -> np.ndarray:
    """[seeds, numbers] of noise of consecutive seeds, the worst choice there is."""
    s, n = np.meshgrid(np.arange(first, first + seeds), np.arange(numbers), indexing="ij")
    return uniform(s.ravel().astype(np.uint64), n.ravel().astype(np.uint64)).reshape(seeds, numbers)


def test_a_number_depends_on_nothing_but_seed_and_place():
    whole = table(7, 50)
    assert (whole[3:5, 10:20] == table(2, 20, first=3)[:, 10:]).all()
    backwards = uniform(np.arange(7, dtype=np.uint64)[::-1].copy(), np.full(7, 9, np.uint64))
    assert (backwards[::-1] == whole[:, 9]).all()
    assert len(np.unique(whole)) == whole.size


def test_every_number_lies_from_0_up_to_but_not_at_1_also_for_the_largest_seeds():
    seeds = np.array([0, 1, 2**63 - 1, 2**64 - 1], np.uint64)
    for number in (0, 1, 2**40):
        found = uniform(seeds, np.full(4, number, np.uint64))
        assert ((found >= 0) & (found < 1)).all()


@pytest.mark.parametrize("shape", [(1, N), (N, 1), (450, 450)])
def test_the_numbers_are_uniform(shape):
    # Pearson's statistic over 100 cells has mean 99 and standard deviation √198 ≈ 14; 5 deviations are allowed
    found = table(*shape)
    counts, _ = np.histogram(found, 100, (0, 1))
    expected = found.size / 100
    assert abs(((counts - expected) ** 2 / expected).sum() - 99) < 70


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbours_know_nothing_of_each_other(axis):
    # pairs over 10 × 10 cells: mean 99 and deviation 14 as above; their correlation is 0 within 5 / √pairs
    found = table(450, 450)
    one, next_ = (np.take(found, np.arange(start, 449 + start), axis).ravel() for start in (0, 1))
    counts, _, _ = np.histogram2d(one, next_, 10, ((0, 1), (0, 1)))
    expected = one.size / 100
    assert abs(((counts - expected) ** 2 / expected).sum() - 99) < 70
    assert abs(np.corrcoef(one, next_)[0, 1]) < 5 / one.size**0.5


def test_every_bit_of_the_result_is_set_half_of_the_time():
    bits = (table(1, N)[0] * 2.0**53).astype(np.uint64)
    for place in range(53):
        share = float(((bits >> np.uint64(place)) & np.uint64(1)).mean())
        assert abs(share - 0.5) < 5 * 0.5 / N**0.5, place


# --- tokens ---


@pytest.mark.parametrize("vocab", [13, 128, 300])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 6}, {"top_p": 0.7}, {"min_p": 0.2}])
def test_tokens_come_as_often_as_the_distribution_says(vocab, how):
    # Pearson's statistic over the k tokens expected 5 times or more has mean k and deviation √2k; 5 are allowed
    sampling, rows = Sampling(**how), 40_000
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(1)).mul(2)
    noise = torch.from_numpy(table(rows, 1)[:, 0])
    token, logp = draw(logits.expand(rows, -1), sampling, noise)
    probability = processed(logits, sampling)[0].double().softmax(-1)
    counts = torch.bincount(token, minlength=vocab).double()
    assert counts[probability == 0].sum() == 0
    often = probability * rows >= 5
    k = int(often.sum())
    statistic = float(((counts - probability * rows) ** 2 / (probability * rows))[often].sum())
    assert k > 1
    assert abs(statistic - k) < 5 * (2 * k) ** 0.5
    torch.testing.assert_close(logp.double(), probability[token].log(), atol=1e-5, rtol=1e-5)


def test_the_token_is_the_first_at_which_the_cumulative_sum_passes_the_noise():
    # probabilities 1/2, 0, 1/4, 1/4: [0, ½) is token 0, [½, ¾) token 2, [¾, 1) token 3; token 1 is never drawn
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64).log().expand(7, -1)
    noise = torch.tensor([0.0, 0.499999, 0.5, 0.749999, 0.75, 0.999999, 1 - 2.0**-53], dtype=torch.float64)
    token, logp = draw(logits, Sampling(), noise)
    assert token.tolist() == [0, 0, 2, 2, 3, 3, 3]
    torch.testing.assert_close(logp[[0, 2]].exp(), torch.tensor([0.5, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("place", [0, 126, 127, 128, 255, 256, 299])
def test_a_certain_token_is_drawn_at_any_noise_wherever_it_stands(place):
    logits = torch.full((3, 300), -torch.inf)
    logits[:, place] = 1.0
    token, logp = draw(logits, Sampling(), torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64))
    assert token.tolist() == [place] * 3
    assert logp.tolist() == [0.0] * 3


def test_no_token_without_probability_is_drawn_at_the_ends_of_the_noise():
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(3)) * 3
    logits[torch.rand(64, 500, generator=torch.Generator().manual_seed(4)) < 0.9] = -torch.inf
    logits[:, 7] = 0.0
    for end in (0.0, 2.0**-53, 1 - 2.0**-53):
        token, _ = draw(logits, Sampling(), torch.full((64,), end, dtype=torch.float64))
        assert logits.gather(1, token[:, None]).isfinite().all()


def test_min_p_keeps_what_is_at_least_so_likely_as_a_part_of_the_likeliest():
    # probabilities 8, 4, 2, 1 of 15: with min_p 1/4 those of 2 and more are kept, with 0.3 those of 4 and more
    logits = torch.tensor([[8.0, 4.0, 2.0, 1.0]]).log()
    assert processed(logits, Sampling(min_p=0.2499)).isfinite().tolist() == [[True, True, True, False]]
    assert processed(logits, Sampling(min_p=0.3)).isfinite().tolist() == [[True, True, False, False]]


def test_temperature_comes_before_what_is_left_out_and_top_p_looks_at_what_top_k_kept():
    # at temperature ½ the weights are squared: 64, 16, 4, 1; of the two likeliest the first holds 64/80 = 0.8
    logits = torch.tensor([[8.0, 4.0, 2.0, 1.0]]).log()
    kept = processed(logits, Sampling(temperature=0.5, top_k=2, top_p=0.79)).isfinite()
    assert kept.tolist() == [[True, False, False, False]]
    kept = processed(logits, Sampling(temperature=0.5, top_k=2, top_p=0.81)).isfinite()
    assert kept.tolist() == [[True, True, False, False]]


def test_top_p_finds_its_tokens_also_where_many_are_needed():
    # 2000 tokens of equal weight but one: with ties kept, 0.9 of the mass needs the ties too
    logits = torch.arange(2000.0)[None] * 1e-4
    kept = processed(logits, Sampling(top_p=0.9)).isfinite()[0]
    mass = logits[0].double().softmax(-1)
    assert mass[kept].sum() >= 0.9
    assert mass[kept].sum() - mass[kept].min() < 0.9


@pytest.mark.parametrize(("how", "whole"), [({}, True), ({"min_p": 0.1}, False), ({"top_k": 3}, False)])
def test_a_sampling_with_min_p_does_not_draw_from_the_whole_distribution(how, whole):
    assert Sampling(**how).whole is whole


def test_greedy_is_the_likeliest_token_whatever_the_noise_and_certain():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    for end in (0.0, 0.999):
        token, logp = draw(logits, Sampling(temperature=0), torch.full((2,), end, dtype=torch.float64))
        assert token.tolist() == [1, 0]
        assert logp.tolist() == [0.0, 0.0]
