"""Filters: which judged groups go on to be learned from.

A rule of kind "filter" may name: groups, a list of PromptGroup. Its value is the list of those that stay, in order.
"""

from __future__ import annotations

from dataclasses import replace

from unified import PromptGroup, Rule, hookimpl


def no_spread(groups: list[PromptGroup]) -> list[PromptGroup]:
    """Drop groups whose rewards are all equal: compared with each other, their answers teach nothing.

    Probes and answers that could not be judged are not looked at; a group with fewer than two others is dropped.
    Source: dynamic sampling, Yu et al. 2025, arXiv:2503.14476, section 3.2.
    """
    return [
        g for g in groups if len({a.total_reward for a in g.answers if not a.probe and a.total_reward is not None}) > 1
    ]


def cut_off(groups: list[PromptGroup]) -> list[PromptGroup]:
    """Take the answers that were cut off at the longest length out of the loss, the counts and the comparison.

    They keep their places without a loss token, so that no group is dropped. Nothing is known of how they would have
    ended. Source: overlong filtering, Yu et al. 2025, arXiv:2503.14476, section 3.4.
    """
    return [
        replace(
            g, answers=[replace(a, loss_mask=[False] * len(a.ids)) if a.finish == "length" else a for a in g.answers]
        )
        for g in groups
    ]


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `filters: [no_spread, cut_off]`."""
    return [Rule("no_spread", of="filter", value=no_spread), Rule("cut_off", of="filter", value=cut_off)]
