"""Finds plugins, checks what they offer, and keeps the catalogue of parts by kind and name."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from unified import hookspecs
from unified.errors import PluginError, UserError, did_you_mean, unknown_name
from unified.hookspecs import API_VERSION
from unified.names import remember
from unified.parts import KINDS, Part, Rule

GROUP = "unified"
#: hook that offers parts -> the class its answers must have
PART_HOOKS = {
    "unified_algorithms": "algorithm",
    "unified_rules": "rule",
    "unified_datasets": "dataset",
    "unified_formats": "format",
    "unified_sources": "source",
    "unified_rewards": "reward",
    "unified_engines": "engine",
    "unified_stages": "stage",
}


class Catalogue:
    """All parts that the installed plugins offer, and the hooks of a run.

    `failures` maps the distribution of a plugin that could not be loaded to the reason; the others still work.
    """

    def __init__(self, plugins: Mapping[str, Any] | None = None, *, installed: bool = True) -> None:
        """Load the installed plugins (unless `installed` is False) and those given as {name: module or object}."""
        self.failures: dict[str, str] = {}
        self._parts: dict[tuple[str, str], tuple[Part, str]] = {}
        self.manager = pluggy.PluginManager("unified")
        self.manager.add_hookspecs(hookspecs)
        if os.environ.get("UNIFIED_TRACE"):
            self._trace()
        for name, plugin in (plugins or {}).items():
            self._register(name, plugin)
        if installed:
            for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
                self._load(entry)
        self._collect()

    # --- reading ---

    def find(self, kind: str, name: str) -> Part | None:
        """The part of that kind and name, or None."""
        return self._parts.get((kind, name), (None, ""))[0]

    def get(self, kind: str, name: str) -> Any:
        """The part of that kind and name; UserError with the known names when there is none."""
        part = self.find(kind, name)
        if part is None:
            raise UserError(unknown_name(kind, name, self.names(kind), advice=self.advice(kind, name)).text())
        return part

    def names(self, kind: str) -> list[str]:
        """Names of all parts of a kind, sorted."""
        return sorted(name for of, name in self._parts if of == kind)

    def kinds(self) -> list[str]:
        """All kinds of which there is a part, sorted."""
        return sorted({kind for kind, _ in self._parts})

    def provider(self, kind: str, name: str) -> str:
        """The plugin that offers a part."""
        return f"plugin {self._parts[kind, name][1]}"

    def advice(self, kind: str, name: str) -> str:
        """What else may explain an unknown name: another kind has it, or a plugin failed to load."""
        others = [k for k, n in self._parts if n == name and k != kind]
        if others:
            return f"there is a {others[0]} '{name}', but here a {kind} is needed"
        if self.failures:
            return "; ".join(f"plugin of {d} could not be loaded: {why}" for d, why in self.failures.items())
        return f"a plugin package may offer it: pip install it, then `unified list {kind}`"

    # --- loading ---

    def _load(self, entry: EntryPoint) -> None:
        distribution = entry.dist.name if entry.dist else "an unknown distribution"
        try:
            plugin = entry.load()
        except BaseException as error:  # a stranger's package may raise anything, also SystemExit
            if isinstance(error, KeyboardInterrupt):
                raise
            self.failures[distribution] = f"{type(error).__name__}: {error}"
            print(
                f"warning: plugin '{entry.name}' of {distribution} could not be imported and is left out: "
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
            )
            return
        if not self.manager.is_registered(plugin):
            self._register(entry.value if entry.name == "builtin" else entry.name, plugin)

    def _register(self, name: str, plugin: Any) -> None:
        version = getattr(plugin, "unified_api", API_VERSION)
        if version != API_VERSION:
            raise UserError(
                f"plugin '{name}' was written for API version {version}, this is version {API_VERSION}",
                "install a version of the plugin that fits, or an older version of unified",
            )
        members = plugin if isinstance(plugin, (list, tuple)) else getattr(plugin, "unified_plugins", [plugin])
        for member in members:  # a package may list several modules
            label = name if member is plugin else getattr(member, "__name__", name)
            known = {hook for hook in vars(hookspecs) if hasattr(getattr(hookspecs, hook), "unified_spec")}
            for attribute in dir(member):
                if getattr(getattr(member, attribute, None), "unified_impl", None) and attribute not in known:
                    near = did_you_mean(attribute, known)
                    raise UserError(
                        f"plugin '{label}' implements an unknown hook '{attribute}'",
                        *([f"did you mean '{near}'?"] if near else []),
                        f"known: {', '.join(sorted(known))}",
                    )
            try:
                self.manager.register(member, name=label)
            except (ValueError, pluggy.PluginValidationError) as error:
                raise UserError(f"plugin '{label}' cannot be registered: {error}") from error

    def _collect(self) -> None:
        self.manager.check_pending()
        for hook, kind in PART_HOOKS.items():
            for impl in getattr(self.manager.hook, hook).get_hookimpls():
                try:
                    offered = impl.function()
                except Exception as error:
                    raise PluginError(f"plugin '{impl.plugin_name}' raised in {hook}: {error!r}") from error
                if os.environ.get("UNIFIED_TRACE"):
                    names = ", ".join(str(getattr(part, "name", part)) for part in offered or []) or "nothing"
                    print(f"hook {hook}: plugin {impl.plugin_name} answers {names}", file=sys.stderr)
                for part in offered or []:
                    self._add(part, kind, impl.plugin_name, hook)

    def _add(self, part: Any, kind: str, plugin: str, hook: str) -> None:
        if not isinstance(part, KINDS[kind]):
            raise UserError(f"plugin '{plugin}': {hook} must return {KINDS[kind].__name__} objects, not {part!r}")
        for field, allowed in {**part.always, **part.offers}.items():
            function = getattr(part, field)
            if function is None:
                continue
            named = [p.name for p in inspect.signature(function).parameters.values() if p.kind not in (p.VAR_KEYWORD,)]
            wrong = [n for n in named if allowed is not None and n not in allowed]
            if wrong:
                raise UserError(
                    f"plugin '{plugin}': {field} of {kind} '{part.name}' asks for '{wrong[0]}'",
                    f"it may ask for: {', '.join(allowed or ())}",
                )
        if isinstance(part, Rule) and (not part.of or part.of in KINDS):
            raise UserError(
                f"plugin '{plugin}': rule '{part.name}' must say what it is a rule of, not of='{part.of}'",
                "for example: advantage, ratio, kl, margin, link, filter",
            )
        key = (getattr(part, "of", kind), part.name)
        if key in self._parts:
            raise UserError(
                f"two plugins offer the {key[0]} '{part.name}': {self._parts[key][1]} and {plugin}",
                "uninstall one of them, or rename the part in one",
            )
        self._parts[key] = (part, plugin)

    def _trace(self) -> None:
        def before(name: str, impls: Any, kwargs: Mapping[str, Any]) -> None:
            print(f"hook {name}({', '.join(kwargs)}) asks {_labels(impls)}", file=sys.stderr)

        def after(outcome: Any, name: str, impls: Any, kwargs: Mapping[str, Any]) -> None:
            how = f"raised {outcome.exception!r}" if outcome.exception else f"was heard by {_labels(impls)}"
            print(f"hook {name} {how}", file=sys.stderr)

        self.manager.add_hookcall_monitoring(before, after)


def _labels(impls: Any) -> str:
    return ", ".join(impl.plugin_name for impl in impls) or "nobody"


def call_named(function: Callable[..., Any], **available: Any) -> Any:
    """Call with those of the available arguments that the function names (all, if it takes **keywords)."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**available)
    missing = [p.name for p in parameters if p.name not in available and p.default is p.empty]
    if missing:
        raise UserError(
            f"{getattr(function, '__name__', function)} asks for '{missing[0]}'",
            f"here it may ask for: {', '.join(sorted(available))}",
        )
    return function(**{p.name: available[p.name] for p in parameters if p.name in available})


_current: list[Catalogue] = []


def catalogue() -> Catalogue:
    """The catalogue in use; loads the installed plugins when first asked."""
    if not _current:
        _current.append(Catalogue())
        remember(_current[-1])
    return _current[-1]


@contextmanager
def using(other: Catalogue) -> Iterator[Catalogue]:
    """Use another catalogue for a while: for tests, and for programs that bring plugins of their own."""
    catalogue_before = len(_current)
    _current.append(other)
    try:
        yield other
    finally:
        del _current[catalogue_before:]
