"""Rows of a dataset on the Hugging Face hub, by its id. They are fetched when the stage runs, and not before.

`unified check` does not open them: it counts them as not yet verified. What follows is as for `files`: a format says
how a row becomes a prompt and its answers, and held-out rows are drawn once for all stages, unless the dataset has a
split of its own for them.
"""

from collections.abc import Iterator
from typing import Any, Literal

from unified import Chosen, Dataset, Field, Settings, UserError, choice, hookimpl
from unified_plugins.datasets._examples import Converter, Rows, examples_of
from unified_plugins.datasets._readers import Raw
from unified_plugins.datasets._streaming import Streamed, Table
from unified_plugins.datasets.files import split_rows


class HubSettings(Settings):
    """Which rows of which dataset, and how they are read."""

    id: str = Field(min_length=1, description="the dataset on the hub, OWNER/NAME")
    subset: str | None = Field(None, description="which of its configurations; without, the only one")
    split: str = Field("train", description="its split to train on; `train[:1000]` is the beginning of it")
    held_out_split: str | None = Field(
        None, description="its split of held-out rows; then all of `split` is trained on"
    )
    revision: str | None = Field(None, description="commit, branch or tag of the dataset; without, the newest")
    format: Chosen | None = choice("format", None, description="how a row is read; auto or none: by its columns")
    columns: dict[str, str] = Field({}, description="names the format wants: the dataset's columns, {prompt: Question}")
    limit: int | None = Field(None, ge=1, description="only so many rows from the beginning")
    held_out: float = Field(0.1, ge=0, description="rows never trained on: a share below 1, or a number of rows")
    held_out_seed: int = Field(0, description="draws the held-out rows; the same for all stages")
    bad_rows: Literal["stop", "skip"] = Field(
        "stop", description="rows that do not fit: an error, or left out and counted"
    )
    streaming: bool = Field(
        False, description="rows stay on the disk, where they were fetched to, until they are needed"
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`format: auto` is the same as no format."""
        return {key: value for key, value in data.items() if (key, value) != ("format", "auto")}


def open_hub(settings: HubSettings, split: str) -> Rows | Streamed:
    """The rows of one split, in the order of the dataset; columns `file` (its id) and `row`, counted from 1.

    Raises UserError: a dataset that cannot be had, and all that `files` raises for rows that do not fit.
    """
    if settings.held_out_split is None:
        return split_rows(_fetched(settings, settings.split), settings, split, where=settings.id)
    return _fetched(settings, settings.split if split == "train" else settings.held_out_split)


def _fetched(settings: HubSettings, split: str) -> Rows | Streamed:
    from datasets import load_dataset

    try:
        table = load_dataset(settings.id, settings.subset, split=split, revision=settings.revision)
    except Exception as error:  # of the network, the hub, the dataset: all mean that there are no rows
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"dataset {settings.id} ({split}) cannot be had from the hub: {what[0]}",
            "without a network, keep its rows in a file: `data: rows.jsonl`",
        ) from error
    if settings.streaming:
        return Streamed([Table(settings.id, table)], Converter(settings, settings.id))
    return examples_of(settings, _numbered(table, settings.id), settings.id)


def _numbered(table: Any, name: str) -> Iterator[Raw]:
    for number, row in enumerate(table, start=1):
        yield Raw(name, number, dict(row))


@hookimpl
def unified_datasets() -> list[Dataset]:
    """Offer the hub as `data: {name: hub, id: OWNER/NAME}`."""
    return [Dataset("hub", HubSettings, open=open_hub, remote=True)]
