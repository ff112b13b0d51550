"""What holds for every built-in algorithm, under several settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.algorithms.batches import known, mean_metrics, pushed, random_fields, term
from unified import Batch
from unified.coefficient import coefficients, gradient_of_loss
from unified.parts import HEADS

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}),
    ("dpo", {}),
    ("dpo", {"margin": "length_normalised", "link": "squared", "beta": 0.5}),
    ("dpo", {"margin": "reference_free", "link": "hinge"}),
    ("dpo", {"link": {"name": "sigmoid", "label_smoothing": 0.1}}),
    ("reward_model", {}),
    ("reward_model", {"centring": 0.01, "link": "hinge"}),
    *[
        (name, {})
        for name in (
            "ipo",
            "dpo_norm",
            "simpo",
            "alphapo",
            "robust_dpo",
            "nca",
            "exo",
            "sppo",
            "apo_zero",
            "apo_down",
            "discopop",
            "ld_dpo",
            "wpo",
            "aot",
            "aot_unpaired",
            "dpo_pl",
            "rpo",
            "cpo",
            "orpo",
            "slic",
            "tpo",
            "kto",
            "bco",
            "apo_zero_unpaired",
            "nash_md",
            "dft",
            "weighted_sft",
            "rft",
            "raft",
            "plackett_luce",
            "token_reward_model",
            "pointwise",
            "prm",
        )
    ],
    ("dpo", {"transform": "f_forward_kl"}),
    ("dpo", {"transform": "f_js", "link": "binary"}),
    ("dpo", {"transform": {"name": "f_alpha", "alpha": 0.3}, "gap": 0.4}),
    ("cpo", {"nll": "mean", "comparison_weight": 0.5, "nll_weight": 2.0}),
    ("tpo", {"margin": {"name": "length_normalised", "reference": False}, "gap": 0.5, "beta": 2.0, "nll": "mean"}),
    ("aot_unpaired", {"link": {"name": "sigmoid", "label_smoothing": 0.1}}),
    ("kto", {"desirable_weight": 1.33, "undesirable_weight": 0.7, "threshold": 1.5}),
    ("nash_md", {"kl": "token", "beta": 0.1}),
    ("pointwise", {"target": "number"}),
    ("grpo", {}),
    ("grpo", {"kl_weight": 0.0}),
    ("grpo", {"ratio": {"name": "clip", "low": 0.1, "high": 0.3}, "kl": "k2", "entropy_weight": 0.01}),
    ("grpo", {"ratio": {"name": "dual_clip", "cap": 1.4}, "kl": {"name": "k1", "importance": "old_policy"}}),
    ("grpo", {"ratio": "none", "kl_weight": 0.0}),
    *[
        (name, {})
        for name in (
            "dr_grpo",
            "dapo",
            "gspo",
            "luspo",
            "cispo",
            "gmpo",
            "sapo",
            "dppo",
            "clip_cov",
            "kl_cov",
            "rloo",
            "reinforce",
            "reinforce_pp",
            "reinforce_pp_baseline",
            "remax",
            "opo",
            "gpg",
            "vapo",
        )
    ],
    ("gspo", {"ratio": {"name": "sequence_clip", "low": 0.1, "high": 0.1, "per_token": True}}),
    ("rloo", {"ratio": {"name": "sequence_clip", "level": "product", "low": 0.3, "high": 0.3}}),
    ("cispo", {"ratio": {"name": "clipped_weight", "low": 0.1, "high": 0.1, "level": "mean"}}),
    ("cispo", {"ratio": {"name": "clipped_weight", "level": "product"}, "kl_weight": 0.1}),
    ("dppo", {"ratio": {"name": "probability_clip", "low": 0.02, "high": 0.01, "symmetric": True, "pull": 0.1}}),
    ("clip_cov", {"ratio": {"name": "clip_cov", "share": 0.2, "floor": 0.1}}),
    ("kl_cov", {"ratio": {"name": "kl_cov", "share": 0.2, "weight": 0.5}, "kl_weight": 0.1}),
    ("grpo", {"kl": {"name": "k3", "straight_through": True}, "entropy_target": 2.0, "entropy_weight": 0.1}),
    ("grpo", {"factors": [{"name": "importance", "high": 1.2}, {"name": "reject", "level": "mean", "low": 0.8}]}),
    ("dapo", {"factors": [{"name": "importance", "mean_one": True}, {"name": "variation", "limit": 0.2}]}),
    ("dapo", {"factors": [{"name": "top_entropy", "share": 0.25}, {"name": "off_policy", "limit": 0.01}]}),
    ("ppo", {}),
    ("ppo", {"kl_place": "loss", "kl": "k3", "value_clip": None, "entropy_weight": 0.01}),
    ("ppo", {"kl_place": "advantage", "value_weight": 0.1}),
    *[(name, {}) for name in ("distill_forward", "distill_reverse", "gkd", "on_policy_distillation", "minillm")],
    ("minillm", {"entropy_weight": 0.01, "ratio": {"name": "clip", "low": 0.1, "high": 0.3}}),
]
everywhere = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=lambda x: str(x))


@everywhere
@pytest.mark.parametrize("seed", range(3))
def test_the_coefficient_is_the_negative_gradient_of_the_loss(name: str, settings: dict[str, Any], seed: int) -> None:
    one, batch = term(name, **settings), Batch(random_fields(seed))
    closed, slope = coefficients(one, batch, known(one, batch)), gradient_of_loss(one, batch, known(one, batch))
    assert set(closed) == set(slope) == set(one.aggregations)
    for head in closed:
        assert (closed[head] != 0).any()
        wanted = torch.where(batch.loss_mask, slope[head], 0.0)
        torch.testing.assert_close(closed[head].double(), wanted, rtol=1e-9, atol=1e-9)


@everywhere
def test_only_what_is_declared_is_looked_at(name: str, settings: dict[str, Any]) -> None:
    one, fields = term(name, **settings), random_fields()
    always = {"loss_mask", "group", "reward", "advantage", "returns"}
    given = Batch({k: v for k, v in fields.items() if k in always | one.reads})
    for head, gc in coefficients(one, given, known(one, given)).items():
        torch.testing.assert_close(gc, coefficients(one, Batch(fields), known(one, Batch(fields)))[head])


@everywhere
def test_padding_does_not_matter(name: str, settings: dict[str, Any]) -> None:
    one, fields = term(name, **settings), random_fields()
    noise = torch.full((12, 3), 7.0, dtype=torch.float64)
    wide = {k: torch.cat([v, noise.to(v.dtype)], 1) if v.dim() == 2 else v for k, v in fields.items()}
    wide["loss_mask"] = torch.cat([fields["loss_mask"], torch.zeros(12, 3, dtype=torch.bool)], 1)
    found, wanted = pushed(one, Batch(wide)), pushed(one, Batch(fields))
    for head in wanted:
        torch.testing.assert_close(found[head][:, :7], wanted[head], rtol=0, atol=1e-14)
        assert (found[head][:, 7:] == 0).all()


@everywhere
def test_the_order_of_rows_does_not_matter(name: str, settings: dict[str, Any]) -> None:
    one, fields = term(name, **settings), random_fields()
    order = torch.randperm(12)
    found = pushed(one, Batch({k: v[order] for k, v in fields.items()}))
    for head, wanted in pushed(one, Batch(fields)).items():
        torch.testing.assert_close(found[head], wanted[order], rtol=0, atol=1e-14)


@everywhere
def test_a_probe_is_not_pushed_and_changes_no_other_row(name: str, settings: dict[str, Any]) -> None:
    one, fields = term(name, **settings), random_fields()
    if one.algorithm.source == "mismatched":
        pytest.skip("probes are there to be looked at; tests/algorithms/test_unpaired.py")
    probe = torch.zeros(12, dtype=torch.bool)
    probe[::3] = True
    found = pushed(one, Batch({**fields, "probe": probe}))
    wanted = pushed(one, Batch({k: v[~probe] for k, v in fields.items()}))
    for head in wanted:
        assert (found[head][probe] == 0).all()
        torch.testing.assert_close(found[head][~probe], wanted[head], rtol=0, atol=1e-14)


@everywhere
def test_metrics_are_sums_and_counts_over_what_counts(name: str, settings: dict[str, Any]) -> None:
    one, fields = term(name, **settings), random_fields()
    given = Batch({k: v for k, v in fields.items() if k not in HEADS or k in one.heads})
    twice = Batch({k: torch.cat([v, v + 4 if k == "group" else v]) for k, v in given.fields.items()})
    assert mean_metrics(one, given) == pytest.approx(mean_metrics(one, twice))
    assert mean_metrics(one, given)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_the_reference_is_read_only_where_the_kl_has_a_weight(kind: str) -> None:
    bare = term(kind, kl_weight=0.0)
    assert "ref_logp" not in bare.reads | bare.credit_reads
    assert "ref_logp" in term(kind, kl_weight=0.1, kl_place="loss").reads
    assert {"ref_logp", "old_logp"} <= term(kind, kl_weight=0.1, kl_place="reward").credit_reads


def test_without_a_ratio_and_a_kl_no_head_is_read() -> None:
    assert term("grpo", ratio="none", kl_weight=0.0).reads == frozenset()
    assert term("sft").reads == frozenset()
