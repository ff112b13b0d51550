"""Answers as they stand in the rows, and to each prompt a probe: the answer to the next prompt of the batch.

A probe takes part in statistics alone. The mean log-ratio of answers to prompts that they do not belong to estimates
KL(policy, reference). Source: Ethayarajh et al. 2024, arXiv:2402.01306.
"""

from dataclasses import replace

from unified import DataSource, PromptGroup, Settings, hookimpl


class MismatchedSettings(Settings):
    """Nothing to set."""


def collect(prompts: list[PromptGroup]) -> list[PromptGroup]:
    """The groups with a probe each; the last prompt gets the first answer of the first one.

    A probe has reward 0, so that it is not taken for an answer whose judgement failed. A batch of one prompt has no
    other answer and gets no probe.
    """
    out = []
    for place, group in enumerate(prompts):
        other = prompts[(place + 1) % len(prompts)]
        lent = [
            replace(a, probe=True, reward=0.0, trajectory=None, columns=dict(group.answers[0].columns))
            for a in other.answers[:1]
        ]
        out.append(replace(group, answers=[*group.answers, *(lent if other is not group and group.answers else [])]))
    return out


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer rows with probes as `source: mismatched`."""
    return [DataSource("mismatched", MismatchedSettings, collect=collect, online=False)]
