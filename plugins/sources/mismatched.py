"""Answers as they stand in the rows, and to each prompt a probe: the answer to the next other prompt of the batch.

A probe takes part in statistics alone. The mean log-ratio of answers to prompts that they do not belong to estimates
KL(policy, reference). Source: Ethayarajh et al. 2024, arXiv:2402.01306.
"""

from dataclasses import replace

from unified import Answer, DataSource, PromptGroup, Settings, hookimpl


class MismatchedSettings(Settings):
    """Nothing to set."""


def collect(prompts: list[PromptGroup]) -> list[PromptGroup]:
    """The groups with a probe each; the last prompt gets an answer to the first one.

    A probe has reward 0, so that it is not taken for an answer whose judgement failed. It is cut where it would be
    longer, with its prompt, than every row of the batch. A batch of one prompt has no other answer and gets no probe.
    """
    longest = max((len(g.prompt) + len(a.ids) for g in prompts for a in g.answers), default=0)
    out = []
    for place, group in enumerate(prompts):
        others = (p for p in [*prompts[place + 1 :], *prompts[:place]] if p.prompt != group.prompt and p.answers)
        lent = next((p.answers[0] for p in others), None)
        probes = [_probe(lent, group, longest - len(group.prompt))] if lent and group.answers else []
        out.append(replace(group, answers=[*group.answers, *probes]))
    return out


def _probe(answer: Answer, group: PromptGroup, tokens: int) -> Answer:
    """An answer in another group, cut to so many tokens."""
    return replace(
        answer,
        ids=answer.ids[:tokens],
        loss_mask=answer.loss_mask and answer.loss_mask[:tokens],
        sampling_logp=None,
        reward=0.0,
        finish="length" if len(answer.ids) > tokens else answer.finish,
        probe=True,
        trajectory=None,
        columns=dict(group.answers[0].columns),
    )


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer rows with probes as `source: mismatched`."""
    return [DataSource("mismatched", MismatchedSettings, collect=collect, online=False)]
