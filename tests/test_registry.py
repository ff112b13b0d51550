"""The catalogue: what plugins offer is found by name, and whatever is wrong with a plugin names that plugin."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from unified import Algorithm, PluginError, Reward, Rule, UserError, hookimpl, registry
from unified.registry import Catalogue, call_named


def offers(hook: str, *parts: Any) -> SimpleNamespace:
    """A plugin that answers one hook."""

    def answer() -> list[Any]:
        return list(parts)

    answer.__name__ = hook
    return SimpleNamespace(**{hook: hookimpl(answer)})


def alone(**plugins: Any) -> Catalogue:
    return Catalogue(plugins, installed=False)


def test_two_plugins_with_one_name_are_refused_and_both_are_named() -> None:
    first, second = (offers("unified_rewards", Reward("same", judge=lambda groups: [])) for _ in range(2))
    with pytest.raises(UserError, match=r"two plugins offer the reward 'same': (first and second|second and first)"):
        alone(first=first, second=second)


def test_one_name_in_two_kinds_is_no_conflict() -> None:
    reward = offers("unified_rewards", Reward("same", judge=lambda groups: []))
    algorithm = offers("unified_algorithms", Algorithm("same", loss=lambda batch: batch.logp))
    found = alone(first=reward, second=algorithm)
    assert (found.names("reward"), found.names("algorithm")) == (["same"], ["same"])
    assert found.provider("reward", "same") == "plugin first"


def test_a_misspelt_hook_is_refused_with_the_plugin_and_the_nearest_hook() -> None:
    with pytest.raises(UserError, match="plugin 'mine' implements an unknown hook 'unified_reward'") as raised:
        alone(mine=offers("unified_reward"))
    assert "did you mean 'unified_rewards'?" in str(raised.value)


def test_a_misspelt_argument_of_a_hook_is_refused_with_the_plugin() -> None:
    def step_finished(stagge: str) -> None: ...

    with pytest.raises(UserError, match=r"(?s)plugin 'mine' cannot be registered: .*stagge"):
        alone(mine=SimpleNamespace(step_finished=hookimpl(step_finished)))


def test_a_part_whose_function_asks_for_an_unknown_argument_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(UserError, match="plugin 'mine': judge of reward 'r' asks for 'gruops'") as raised:
        alone(mine=offers("unified_rewards", Reward("r", judge=lambda gruops: [])))
    assert "it may ask for: groups, settings, models, folder" in str(raised.value)


def test_a_plugin_for_another_version_of_the_contract_is_refused() -> None:
    plugin = offers("unified_rewards")
    plugin.unified_api = 99
    with pytest.raises(UserError, match="plugin 'mine' was written for API version 99, this is version 1"):
        alone(mine=plugin)


def test_a_hook_that_answers_with_the_wrong_kind_of_thing_is_refused() -> None:
    with pytest.raises(UserError, match="plugin 'mine': unified_rewards must return Reward objects, not 'r'"):
        alone(mine=offers("unified_rewards", "r"))


@pytest.mark.parametrize("of", ["", "algorithm"])
def test_a_rule_must_say_what_it_is_a_rule_of(of: str) -> None:
    with pytest.raises(UserError, match=f"plugin 'mine': rule 'r' must say what it is a rule of, not of='{of}'"):
        alone(mine=offers("unified_rules", Rule("r", of=of, value=lambda x: x)))


def test_a_plugin_that_raises_in_a_hook_is_named() -> None:
    def unified_rewards() -> list[Reward]:
        raise RuntimeError("no luck")

    with pytest.raises(PluginError, match=r"plugin 'mine' raised in unified_rewards: RuntimeError\('no luck'\)"):
        alone(mine=SimpleNamespace(unified_rewards=hookimpl(unified_rewards)))


class BrokenEntry:
    """An entry point whose module raises when it is imported."""

    name, value = "broken", "broken_module"
    dist = SimpleNamespace(name="broken-dist")

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def load(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [ImportError("no module 'x'"), SystemExit(3)])
def test_a_plugin_that_fails_to_import_is_named_with_its_distribution_and_the_others_work(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def both(group: str) -> list[Any]:
        builtin = EntryPoint("builtin", "unified_plugins", group)
        return [BrokenEntry(error), builtin]

    monkeypatch.setattr(registry, "entry_points", both)
    found = Catalogue()
    assert found.names("dataset")  # the built-in plugin came through
    assert list(found.failures) == ["broken-dist"]
    assert "plugin 'broken' of broken-dist could not be imported and is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="plugin of broken-dist could not be loaded"):
        found.get("reward", "unheard-of")


def test_an_unknown_name_comes_with_the_nearest_and_the_kind_that_has_it() -> None:
    found = alone(mine=offers("unified_rewards", Reward("words", judge=lambda groups: [])))
    with pytest.raises(UserError, match=r"no reward 'wrods'\n    did you mean 'words'\?"):
        found.get("reward", "wrods")
    with pytest.raises(UserError, match="there is a reward 'words', but here a algorithm is needed"):
        found.get("algorithm", "words")


def test_the_trace_prints_each_hook_call_and_who_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIFIED_TRACE", "1")

    def checkpoint_saved(step: int) -> None: ...

    plugin = offers("unified_rewards", Reward("words", judge=lambda groups: []))
    plugin.checkpoint_saved = hookimpl(checkpoint_saved)
    found = alone(mine=plugin)
    assert "hook unified_rewards: plugin mine answers words" in capsys.readouterr().err
    found.manager.hook.checkpoint_saved(stage="s", step=3, folder="f")
    printed = capsys.readouterr().err.splitlines()
    assert printed == [
        "hook checkpoint_saved(stage, step, folder) asks mine",
        "hook checkpoint_saved was heard by mine",
    ]


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (lambda a: a, 1),
        (lambda a, b: a + b, 3),
        (lambda: 0, 0),
        (lambda **given: len(given), 2),
        (lambda a, c=5: a + c, 6),
    ],
)
def test_a_function_gets_the_arguments_that_it_names(function: Callable[..., int], result: int) -> None:
    assert call_named(function, a=1, b=2) == result


def test_a_function_that_needs_something_else_is_refused_with_what_there_is() -> None:
    with pytest.raises(UserError, match="asks for 'z'\n    here it may ask for: a, b"):
        call_named(lambda z: z, a=1, b=2)
