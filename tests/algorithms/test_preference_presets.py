"""The presets of the preference family: a number by hand for each, and the gradient of each published loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.algorithms.batches import loss, mean_metrics, pushed, random_fields, term
from unified import Batch, PluginError, UserError

LOG3 = math.log(3)
S = torch.sigmoid
LS = F.logsigmoid


def pair(better: float, worse: float, *, tokens: int = 1, **fields: float) -> Batch:
    """One pair; each answer has so many tokens, and gained so many nats over a reference at -1 a token, in sum."""
    ref = torch.full((2, tokens), -1.0, dtype=torch.float64)
    logp = ref + torch.tensor([[better], [worse]], dtype=torch.float64) / tokens
    more = {k: torch.full_like(ref, v) for k, v in fields.items()}
    pairs = {"loss_mask": ref == ref, "reward": torch.tensor([1.0, 0.0]), "group": torch.zeros(2)}
    return Batch({"logp": logp, "ref_logp": ref, **pairs, **more})


def both(name: str, batch: Batch, **settings: Any) -> list[float]:
    """w GC of a token of the better and of the worse answer."""
    found: list[float] = pushed(term(name, **settings), batch)["logp"][:, 0].tolist()
    return found


def test_ipo_at_the_reference_is_pulled_by_one_over_beta() -> None:
    # beta 0.1: the goal of h is 5; 2 * (5 - 0) = 10, and at h = 5 nothing
    assert both("ipo", pair(0, 0)) == pytest.approx([10, -10])
    assert both("ipo", pair(4, -1)) == pytest.approx([0, 0], abs=1e-12)


def test_dpo_norm_looks_at_means_over_tokens() -> None:
    # beta 5; gains 2 log 3 / 5 over two tokens: m = log 3, sigmoid(-m) = 1/4, times 5 / 2 tokens
    assert both("dpo_norm", pair(2 * LOG3 / 5, 0, tokens=2)) == pytest.approx([5 / 8, -5 / 8])


def test_simpo_asks_for_a_lead() -> None:
    # beta 2, gap log 3, equal mean log-probs: m = -log 3, sigmoid(log 3) = 3/4, times 2 / 2 tokens
    assert both("simpo", pair(0, 0, tokens=2), beta=2.0, gap=LOG3) == pytest.approx([3 / 4, -3 / 4])


def test_alphapo_pushes_unlikely_answers_harder() -> None:
    # both at mean log p = -1: m = -gap = 0; 2 * e^(0.5 * 1) / 2
    settings = {"beta": 2.0, "gap": 0.0, "transform": {"name": "f_alpha", "alpha": 0.5}}
    assert both("alphapo", pair(0, 0), **settings) == pytest.approx([math.exp(0.5), -math.exp(0.5)])


def test_robust_dpo_pushes_on_where_the_pair_is_right() -> None:
    # m = log 3, e = 0.1: 0.1 * (0.9 / 4 + 0.1 * 3 / 4) / 0.8 = 0.0375
    assert both("robust_dpo", pair(10 * LOG3, 0)) == pytest.approx([0.0375, -0.0375])


def test_nca_keeps_a_good_answer_from_going_on() -> None:
    # a = log 3, b = 0: 1/4 - 3/8 = -1/8 and -1/4, times 0.1
    assert both("nca", pair(10 * LOG3, 0)) == pytest.approx([-0.0125, -0.025])


def test_exo_stops_where_the_policy_doubts_as_much_as_the_label() -> None:
    # e = 1/4: the goal of m is log 3; at m = 0: 1/4 * log 3 * 0.1
    settings = {"link": {"name": "label_kl", "label_smoothing": 0.25}}
    assert both("exo", pair(10 * LOG3, 0), **settings) == pytest.approx([0, 0], abs=1e-12)
    assert both("exo", pair(0, 0), **settings) == pytest.approx([LOG3 / 40, -LOG3 / 40])


def test_sppo_gives_each_answer_a_goal_of_its_own() -> None:
    # goals 5 and -5: 2 * (5 - 4) and -2 * (-3 + 5)
    assert both("sppo", pair(4, -3)) == pytest.approx([2, -4])


def test_apo_zero_pushes_both_from_the_reference() -> None:
    # a = log 3: 3/16; b = 0: 1/4; times 0.1
    assert both("apo_zero", pair(10 * LOG3, 0)) == pytest.approx([0.1 * 3 / 16, -0.025])
    assert loss(term("apo_zero"), pair(10 * LOG3, 0)) == pytest.approx(1 / 4 + 1 / 2)


def test_apo_down_lowers_the_better_answer_too() -> None:
    # a = 0, m = log 3: 3/16 - 1/4 = -1/16 and -3/16
    assert both("apo_down", pair(0, -10 * LOG3)) == pytest.approx([-0.1 / 16, -0.1 * 3 / 16])


def test_discopop_is_halfway_between_its_losses_at_zero() -> None:
    # m = 0: s = 1/2; (1/2 * 1/2 + 1/2 * 1 - 1/4 / 0.05 * (1 - log 2)) * 0.1
    wanted = 0.1 * (0.75 - 5 * (1 - math.log(2)))
    assert both("discopop", pair(0, 0)) == pytest.approx([wanted, -wanted])


def test_ld_dpo_halves_what_lies_beyond_the_shorter_answer() -> None:
    logp = torch.zeros(2, 3, dtype=torch.float64)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    fields = {"logp": logp, "ref_logp": logp, "loss_mask": mask, "reward": torch.tensor([0.0, 1.0])}
    found = pushed(term("ld_dpo"), Batch({**fields, "group": torch.zeros(2)}))["logp"]
    # sigmoid(0) * 0.1 = 0.05, half of it beyond one token
    torch.testing.assert_close(found, torch.tensor([[-0.05, 0, 0], [0.05, 0.025, 0.025]], dtype=torch.float64))


def test_wpo_weighs_a_pair_by_how_likely_its_answers_are() -> None:
    # log p - log sum p^2 = -1 + 0.5 for both: weight e^-1
    assert both("wpo", pair(0, 0, collision_logp=-0.5)) == pytest.approx([0.05 / math.e, -0.05 / math.e])


def test_rpo_adds_imitation_of_the_better_answer_per_token() -> None:
    assert both("rpo", pair(0, 0, tokens=2)) == pytest.approx([0.05 + 1 / 2, -0.05])


def test_cpo_adds_imitation_of_every_token() -> None:
    assert both("cpo", pair(0, 0, tokens=2)) == pytest.approx([0.05 + 1, -0.05])
    # -log sigmoid(0) and -log p = 2 nats
    assert loss(term("cpo"), pair(0, 0, tokens=2)) == pytest.approx(math.log(2) + 2)


def test_orpo_at_equal_odds() -> None:
    # d = 1/2, 1 - p = 1 - 1/e, lambda 0.1: 1 + 0.05 / (1 - 1/e), over 2 tokens
    odds = 0.05 / (1 - 1 / math.e)
    assert both("orpo", pair(0, 0, tokens=2)) == pytest.approx([(1 + odds) / 2, -odds / 2])


def test_slic_stops_comparing_but_not_imitating_once_the_lead_is_there() -> None:
    assert both("slic", pair(0.5, 0)) == pytest.approx([1.1, -1])
    assert both("slic", pair(1.5, 0)) == pytest.approx([0.1, 0])


def test_imitation_beside_a_preference_does_nothing_where_no_answer_is_better() -> None:
    batch = pair(0, 0).plus(reward=torch.ones(2))
    assert both("cpo", batch) == [0, 0]


def test_answers_that_are_best_together_share_the_imitation() -> None:
    zeros = torch.zeros(3, 1, dtype=torch.float64)
    fields = {"logp": zeros, "loss_mask": zeros == 0, "reward": torch.tensor([1.0, 1.0, 0.0]), "group": torch.zeros(3)}
    # two pairs: each better answer 0.05 / 2, and half of the imitation
    found = pushed(term("cpo"), Batch(fields))["logp"][:, 0]
    torch.testing.assert_close(found, torch.tensor([0.525, 0.525, -0.05], dtype=torch.float64))


def test_tpo_imitates_the_gold_answer_and_compares_the_others() -> None:
    zeros = torch.zeros(3, 1, dtype=torch.float64)
    fields = {"logp": zeros, "loss_mask": zeros == 0, "reward": torch.tensor([1.0, 0.0, 2.0]), "group": torch.zeros(3)}
    found = pushed(term("tpo"), Batch(fields))["logp"][:, 0]
    torch.testing.assert_close(found, torch.tensor([0.05, -0.05, 1.0], dtype=torch.float64))


def test_xpo_takes_alpha_off_what_the_reference_wrote() -> None:
    plain = pair(0, 0, tokens=2)
    batch = Batch(plain.fields, {"from_reference": torch.tensor([0.0, 1.0])})
    assert both("xpo", batch, alpha=0.01) == pytest.approx([0.05, -0.05 - 0.01])
    # log 2 + 0.01 * log p of the marked answer, -2 nats
    assert loss(term("xpo", alpha=0.01), batch) == pytest.approx(math.log(2) - 0.02)


def test_xpo_without_the_mark_is_refused() -> None:
    with pytest.raises(UserError, match="`column: from_reference` names no column"):
        both("xpo", pair(0, 0))


def test_nash_md_weighs_the_chance_to_win_against_the_kl() -> None:
    batch = pair(2, -2, tokens=2).plus(reward=torch.tensor([0.75, 0.25], dtype=torch.float64))
    # (P - 1/2) - 0.1 h: 0.25 - 0.2 for the whole answer, 0.25 - 0.1 for a token of it; two answers
    assert both("nash_md", batch, beta=0.1) == pytest.approx([0.025, -0.025])
    assert both("nash_md", batch, beta=0.1, kl="token") == pytest.approx([0.075, -0.075])


def test_a_ranking_in_dpo_pl_is_chosen_from_the_best_down() -> None:
    zeros = torch.zeros(3, 1, dtype=torch.float64)
    fields = {"logp": zeros, "ref_logp": zeros, "loss_mask": zeros == 0, "reward": torch.tensor([2.0, 1.0, 0.0])}
    batch = Batch({**fields, "group": torch.zeros(3)})
    # first choice 1/3 each, second 1/2 each: 1 - 1/3, 1 - 1/3 - 1/2, 1 - 1/3 - 1/2 - 1
    wanted = torch.tensor([2 / 3, 1 / 6, -5 / 6], dtype=torch.float64) * 0.1
    torch.testing.assert_close(pushed(term("dpo_pl"), batch)["logp"][:, 0], wanted)
    assert loss(term("dpo_pl"), batch) == pytest.approx(math.log(6))


def test_dpo_pl_of_pairs_is_dpo() -> None:
    assert both("dpo_pl", pair(10 * LOG3, 0)) == pytest.approx(both("dpo", pair(10 * LOG3, 0)))


def test_a_token_of_probability_one_in_orpo_is_named_and_not_passed_on() -> None:
    batch = pair(1.0, 0.0)  # log p = 0 for the better answer: its odds are infinite
    with pytest.raises(PluginError, match=r"coefficient of logp by algorithm 'orpo' \(plugin .*\) is nan at answer 0"):
        both("orpo", batch)


@dataclass
class Pairs:
    """Four pairs: log-probs of the policy (with gradient) and the reference, summed and averaged over tokens."""

    leaf: Tensor
    fields: dict[str, Tensor]

    def of(self, x: Tensor, *, mean: bool = False) -> tuple[Tensor, Tensor]:
        mask = self.fields["loss_mask"]
        sums = (x * mask).sum(1) / (mask.sum(1) if mean else 1)
        return sums[0::2], sums[1::2]

    @property
    def h(self) -> tuple[Tensor, Tensor]:
        return self.of(self.leaf - self.fields["ref_logp"])

    @property
    def mean_h(self) -> tuple[Tensor, Tensor]:
        return self.of(self.leaf - self.fields["ref_logp"], mean=True)

    @property
    def p(self) -> tuple[Tensor, Tensor]:
        return self.of(self.leaf)

    @property
    def mean_p(self) -> tuple[Tensor, Tensor]:
        return self.of(self.leaf, mean=True)


def gap(sides: tuple[Tensor, Tensor]) -> Tensor:
    return sides[0] - sides[1]


def discopop(m: Tensor) -> Tensor:
    share = S(m / 0.05)
    return (1 - share) * -LS(m) + share * torch.exp(-m)


def exo(m: Tensor) -> Tensor:
    q = torch.stack([S(m), S(-m)])
    p = torch.tensor([[0.999], [0.001]], dtype=torch.float64)
    return (q * (q / p).log()).sum(0)


def odds(mean: Tensor) -> Tensor:
    p = mean.exp()
    return (p / (1 - p)).log()


def weight(x: Pairs) -> Tensor:
    better, worse = x.of(x.leaf.detach() - x.fields["collision_logp"], mean=True)
    return (better + worse).exp()


#: the papers' losses of each pair, with their own symbols; beta 0.1 unless it is set
PUBLISHED: dict[str, tuple[dict[str, Any], Callable[[Pairs], Tensor]]] = {
    "ipo": ({"beta": 0.3}, lambda x: (gap(x.h) - 1 / 0.6) ** 2),
    "dpo_norm": ({}, lambda x: -LS(5 * gap(x.mean_h))),
    "simpo": ({}, lambda x: -LS(2.5 * gap(x.mean_p) - 1.375)),
    "alphapo": (
        {},
        lambda x: -LS(2.5 / 0.25 * ((-0.25 * x.mean_p[1]).exp() - (-0.25 * x.mean_p[0]).exp()) - 1.375),
    ),
    "robust_dpo": ({}, lambda x: (-0.9 * LS(0.1 * gap(x.h)) + 0.1 * LS(-0.1 * gap(x.h))) / 0.8),
    "nca": ({}, lambda x: -LS(0.1 * x.h[0]) - 0.5 * LS(-0.1 * x.h[0]) - 0.5 * LS(-0.1 * x.h[1])),
    "exo": ({}, lambda x: exo(0.1 * gap(x.h))),
    "sppo": ({}, lambda x: (x.h[0] - 5) ** 2 + (x.h[1] + 5) ** 2),
    "apo_zero": ({}, lambda x: 1 - S(0.1 * x.h[0]) + S(0.1 * x.h[1])),
    "apo_down": ({}, lambda x: 1 + S(0.1 * x.h[0]) - S(0.1 * gap(x.h))),
    "discopop": ({}, lambda x: discopop(0.1 * gap(x.h))),
    "wpo": ({}, lambda x: -weight(x) * LS(0.1 * gap(x.h))),
    "rpo": ({"nll_weight": 0.7}, lambda x: -LS(0.1 * gap(x.h)) - 0.7 * x.mean_p[0]),
    "cpo": ({}, lambda x: -LS(0.1 * gap(x.p)) - x.p[0]),
    "orpo": ({}, lambda x: -x.mean_p[0] - 0.1 * LS(odds(x.mean_p[0]) - odds(x.mean_p[1]))),
    "slic": ({"gap": 0.5}, lambda x: (1.5 - gap(x.p)).clamp(min=0) - 0.1 * x.p[0]),
    "dpo_pl": ({}, lambda x: -LS(0.1 * gap(x.h))),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_gradient_is_that_of_the_published_loss(name: str) -> None:
    settings, published = PUBLISHED[name]
    fields = {k: v[[i for i in range(12) if i % 3]] for k, v in random_fields(1).items()}  # two answers a prompt
    fields["reward"] = torch.tensor([1.0, 0.0] * 4)
    leaf = fields["logp"].clone().requires_grad_()
    value = published(Pairs(leaf, fields)).mean()
    value.backward()
    assert leaf.grad is not None
    found = pushed(term(name, **settings), Batch(fields))["logp"]
    torch.testing.assert_close(found, -leaf.grad, rtol=1e-9, atol=1e-9)
    assert loss(term(name, **settings), Batch(fields)) == pytest.approx(value.item(), abs=1e-12)


def test_metrics_of_wpo_show_the_mean_weight() -> None:
    assert mean_metrics(term("wpo"), pair(0, 0, collision_logp=-0.5))["weights"] == pytest.approx(1 / math.e)
