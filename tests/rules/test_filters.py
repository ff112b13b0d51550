"""Filters of judged groups."""

from __future__ import annotations

from unified import Answer, PromptGroup, call_named
from unified_plugins.rules.filters import cut_off, no_spread


def _group(*rewards: float | None, probe: float | None = None) -> PromptGroup:
    answers = [Answer([1], reward=r) for r in rewards]
    return PromptGroup([0], answers + ([Answer([1], reward=probe, probe=True)] if probe is not None else []))


def test_only_groups_with_different_rewards_stay_and_keep_their_order() -> None:
    groups = [_group(1.0, 0.0), _group(1.0, 1.0), _group(0.0, 0.5, 0.5), _group(1.0)]
    assert call_named(no_spread, groups=groups) == [groups[0], groups[2]]


def test_a_missing_judgement_is_no_different_reward() -> None:
    assert no_spread([_group(1.0, None, 1.0)]) == []


def test_a_probe_is_no_different_reward() -> None:
    assert no_spread([_group(1.0, 1.0, probe=0.0)]) == []


def test_rewards_per_token_are_summed() -> None:
    same = PromptGroup([0], [Answer([1, 2], reward=[0.25, 0.75]), Answer([1, 2], reward=[0.5, 0.5])])
    assert no_spread([same]) == []


def test_answers_that_were_cut_off_keep_their_places_but_have_no_loss_token() -> None:
    short, long = Answer([1, 2], reward=1.0), Answer([1, 2, 3], reward=0.0, finish="length")
    (found,) = call_named(cut_off, groups=[PromptGroup([0], [short, long])])
    assert found.answers[0] is short
    assert found.answers[1].loss_mask == [False] * 3
    assert long.loss_mask is None  # the group that came is left as it was
