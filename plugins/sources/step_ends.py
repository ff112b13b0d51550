"""Answers of the rows with a label for each step: only the last token of a step carries a gradient and a reward.

A step ends at every token of the answer that is `separator`; the column `labels` of the row holds one number per step.
"""

from dataclasses import replace
from typing import Any

from unified import Answer, DataSource, Field, PromptGroup, Settings, UserError, hookimpl


class StepEndsSettings(Settings):
    """Where steps end, and where their labels stand."""

    separator: int = Field(description="token id that ends a step")
    labels: str = Field("labels", description="column with one list of labels per row: true, false or in [0, 1]")


def collect(prompts: list[PromptGroup], settings: StepEndsSettings) -> list[PromptGroup]:
    """The groups with their ends marked. UserError where there are more or fewer labels than steps."""
    return [replace(g, answers=[_marked(g, a, settings) for a in g.answers]) for g in prompts]


def _marked(group: PromptGroup, answer: Answer, settings: StepEndsSettings) -> Answer:
    labels: Any = group.columns.get(settings.labels)
    ends = [token == settings.separator for token in answer.ids]
    if not isinstance(labels, list) or len(labels) != sum(ends):
        given = f"{len(labels)} labels" if isinstance(labels, list) else "no list of labels"
        raise UserError(
            f"row {group.key}: column '{settings.labels}' holds {given} for {sum(ends)} steps",
            f"a step ends at token {settings.separator}; set `separator` or `labels` of source 'step_ends'",
        )
    rest = iter(float(label) for label in labels)
    return replace(answer, loss_mask=ends, reward=[next(rest) if end else 0.0 for end in ends])


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer labelled steps as `source: {name: step_ends, separator: ID}`."""
    return [DataSource("step_ends", StepEndsSettings, collect=collect, online=False)]
