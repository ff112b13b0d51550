"""Answers as they stand in the rows: for imitation, preferences and rankings."""

from unified import DataSource, PromptGroup, Settings, hookimpl


class RowsSettings(Settings):
    """Nothing to set."""


def collect(prompts: list[PromptGroup]) -> list[PromptGroup]:
    """The groups themselves."""
    return list(prompts)


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer rows as `source: rows`."""
    return [DataSource("rows", RowsSettings, collect=collect, online=False)]
