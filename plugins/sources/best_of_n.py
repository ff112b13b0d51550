"""Best of n: whole answers are sampled, a reward judges them, and the best are what the prompt gets.

Source: Cobbe et al. 2021, arXiv:2110.14168, section 4 (verifiers); Nakano et al. 2021, arXiv:2112.09332, section 3.2.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified import DataSource, Field, PromptGroup, hookimpl
from unified_plugins.sources._search import Partial, Search, SearchSettings, models


class BestOfNSettings(SearchSettings):
    """How many are sampled."""

    n: int = Field(8, ge=1, description="answers sampled per prompt")


def collect(
    prompts: list[PromptGroup],
    settings: BestOfNSettings,
    sample: Any,
    models: Mapping[str, Any],
    folder: Path | None = None,
) -> list[PromptGroup]:
    """The best `keep` of n, the best first; the column `search_tokens` counts the tokens sampled for the prompt."""
    search = Search(prompts, settings, sample, models, folder)
    found = search.whole([(i, Partial()) for i in range(len(prompts))], settings.n)
    return search.groups(search.judged(found))


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer it as `source: {name: best_of_n, n: 16, reward: {name: model, model: stage:NAME}}`."""
    return [DataSource("best_of_n", BestOfNSettings, collect=collect, models=models, online=True)]
