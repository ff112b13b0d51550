"""The contract suite: the checks that any plugin's parts are run through, ours or a stranger's. No model is needed.

    from unified.testing import check_algorithm
    assert check_algorithm("my_algorithm", {"beta": 0.5}) == []

`unified plugin check NAME` does the same from the command line. A part is named as in a recipe, or given itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unified.contract import FIRST, REST, Subject, failures
from unified.contract_kinds import ENGINE, FILTER, FORMAT, STAGE
from unified.contract_parts import DATASET, REWARD, SOURCE, PartUnderTest, Unfit
from unified.data import PromptGroup
from unified.errors import PluginError, UserError, unknown_name
from unified.parts import Algorithm, Dataset, DataSource, Part, Reward
from unified.registry import catalogue
from unified.settings import Settings, parse

__all__ = ["Finding", "check_algorithm", "check_dataset", "check_part", "check_plugin", "check_reward", "check_source"]

Given = Mapping[str, Any] | Settings | None
Check = Callable[[PartUnderTest], Iterator[str]]


@dataclass(frozen=True)
class Finding:
    """One way in which a part breaks the contract: the part, the check that found it, and what is wrong.

    part: its kind and name. check: one of the names that `CHECKS` lists for the kind, or "settings".
    """

    part: str
    check: str
    message: str


OTHERS: dict[str, Sequence[Check]] = {
    "reward": REWARD, "dataset": DATASET, "source": SOURCE, "format": FORMAT, "filter": FILTER, "engine": ENGINE,
    "stage": STAGE,
}  # fmt: skip
#: kind -> names of its checks, in order, with what each asks
CHECKS: dict[str, dict[str, str]] = {
    kind: {c.__name__: (c.__doc__ or "").strip() for c in checks}
    for kind, checks in {"algorithm": (*FIRST, *REST), **OTHERS}.items()
}


def check_algorithm(algorithm: str | Algorithm, settings: Given = None) -> list[Finding]:
    """Run an algorithm through the contract of DESIGN section 4, on random numbers.

    Args:
        algorithm: its name in a recipe, or itself.
        settings: as a recipe would write them; without, the defaults. Columns that they name are made up.
    Returns:
        What breaks the contract, [] if nothing. Where shapes are wrong or numbers not finite, nothing else is tried.
    Raises:
        UserError: no algorithm of that name.
    """
    return check_part("algorithm", algorithm, settings) or []


def check_reward(
    reward: str | Reward, settings: Given = None, groups: Sequence[PromptGroup] | None = None
) -> list[Finding]:
    """Whether a reward gives every answer a finite number, a list of them, or None, and the same whatever is beside it.

    groups: answers it can judge; without, made-up text, which it may refuse (then nothing is found).
    Raises UserError for an unknown name.
    """
    return check_part("reward", reward, settings, groups) or []


def check_dataset(dataset: str | Dataset, settings: Given = None) -> list[Finding]:
    """Whether a dataset gives the same sound rows when it is opened twice, of both splits.

    Raises UserError for an unknown name.
    """
    return check_part("dataset", dataset, settings) or []


def check_source(source: str | DataSource, settings: Given = None) -> list[Finding]:
    """Whether a source gives PromptGroups, the same twice, and leaves judging to rewards.

    Raises UserError for an unknown name.
    """
    return check_part("source", source, settings) or []


def check_part(
    kind: str, part: str | Part, settings: Given = None, groups: Sequence[PromptGroup] | None = None
) -> list[Finding] | None:
    """The findings of one part; None for a kind that the suite does not cover, and for input that the part refuses."""
    if kind not in CHECKS:
        return None
    known: Any = catalogue().get(kind, part) if isinstance(part, str) else part
    label = f"{kind} '{known.name}'"
    built: Any = settings
    if not isinstance(settings, Settings):
        built, problems = parse(known.settings, settings or {}, owner=label)
        if built is None:
            return [Finding(label, "settings", p.text()) for p in problems]
    if kind == "algorithm":
        return _check_algorithm(label, Subject(known, built))
    return _check_other(label, PartUnderTest(known, built, list(groups or [])), OTHERS[kind])


def check_plugin(name: str, settings: Mapping[str, Any] | None = None) -> dict[tuple[str, str], list[Finding] | None]:
    """(kind, name) -> findings, of the parts with that name, or else of all parts that the plugin of that name offers.

    None stands for what was not checked: a part that needs settings which are not given, that refuses what is made up
    for it, or of a kind that the suite does not cover. `settings` are those of the part.
    Raises UserError when there is neither a part nor a plugin of that name.
    """
    known = catalogue()
    everything = [(kind, part) for kind in known.kinds() for part in known.names(kind)]
    wanted = [one for one in everything if one[1] == name]
    wanted = wanted or [one for one in everything if provided_by(name, known.provider(*one))]
    if not wanted:
        plugins = {known.provider(*one).removeprefix("plugin ") for one in everything}
        found = unknown_name("part or plugin", name, {*(part for _, part in everything), *plugins})
        raise UserError(found.message, *found.hints[:-1], "`unified list` shows the parts")
    return {(kind, part): _checked(kind, part, settings) for kind, part in wanted}


def provided_by(name: str, provider: str) -> bool:
    """Whether a provider is the plugin of that name, or a module of it."""
    module = provider.removeprefix("plugin ")
    return module == name or module.startswith(f"{name}.")


def _checked(kind: str, name: str, settings: Given) -> list[Finding] | None:
    """Findings of an installed part; None where a setting without a default is missing, or it is not covered."""
    part = catalogue().get(kind, name)
    needed = {key for key, field in part.settings.model_fields.items() if field.is_required()}
    return None if needed - set(settings or ()) else check_part(kind, part, settings)


def _check_algorithm(label: str, subject: Subject) -> list[Finding]:
    """The first checks one after the other, and then the rest together."""
    found: list[Finding] = []
    for checks in (*((first,) for first in FIRST), REST):
        found = [Finding(label, c.__name__, text) for c in checks for text in failures(c, subject)]
        if found:
            break
    return found


def _check_other(label: str, subject: PartUnderTest, checks: Sequence[Check]) -> list[Finding] | None:
    """The findings of the first check that has some; None where the part refuses what was made up for it."""
    for check in checks:
        try:
            texts = list(dict.fromkeys(check(subject)))
        except Unfit:
            return None
        except (UserError, PluginError) as error:
            texts = [str(error)]
        except Exception as error:
            texts = [f"{type(error).__name__}: {error}"]
        if texts:
            return [Finding(label, check.__name__, text) for text in texts]
    return []
