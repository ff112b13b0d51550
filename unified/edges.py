"""What models that meet in a stage must have in common, compared by hash before anything runs.

A frozen model that reads the policy's token ids must mean the same by them (vocabulary) and, where rows are
conversations, know them rendered the same way (template); averaged weights must be of one architecture. A stage that is
meant to differ says so: `allow_mismatch: [vocabulary, template]`, beside its `kind`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from unified.configurations import context_at, first_difference, made_tokenizer, shape_at
from unified.configurations import shape_of as shape_of
from unified.errors import Problem, UserError, shown, unknown_name
from unified.made import STAGE, is_to_come, made_by
from unified.manifest import chosen_parts
from unified.named_models import of_the_hub
from unified.registry import call_named
from unified.stage import ModelSettings

if TYPE_CHECKING:
    from unified.check import PlannedStage, Use
    from unified.recipe import Recipe

#: the key of a stage that allows what is not the same
KEY = "allow_mismatch"
ALLOWED = ("template", "vocabulary")
#: what agrees between a model and one that reads its tokens
TOKENS = frozenset(ALLOWED)
ASPECTS = TOKENS | {"architecture"}
_NAMES = {"vocabulary": "vocabulary", "template": "chat template", "architecture": "architecture"}


def read_allowed(written: Any) -> tuple[frozenset[str], list[Problem]]:
    """What `allow_mismatch` of a stage allows, and what is wrong with it."""
    if written is None:
        return frozenset(), []
    if not isinstance(written, list) or not all(isinstance(name, str) for name in written):
        hint = f"write a list: `{KEY}: [{', '.join(ALLOWED)}]`"
        return frozenset(), [Problem(f"'{KEY}' must be a list of names, not {shown(written)}", (KEY,), (hint,))]
    problems = [
        unknown_name("mismatch that could be allowed", name, ALLOWED, at=(KEY, i))
        for i, name in enumerate(written)
        if name not in ALLOWED
    ]
    return frozenset(written) & TOKENS, problems


def vocabulary_hash(tokenizer: Any) -> str:
    """sha256, in hexadecimal, of every token with its id: equal where token ids mean the same."""
    return _hash(sorted(tokenizer.get_vocab().items()))


def chat_template_hash(tokenizer: Any) -> str:
    """sha256, in hexadecimal, of the chat template and the tokens that begin and end a text.

    Equal where a conversation is written as the same text. Without a template of its own a tokenizer has that of
    `render`.
    """
    from unified.render import PLAIN_TEMPLATE

    return _hash([tokenizer.chat_template or PLAIN_TEMPLATE, tokenizer.bos_token, tokenizer.eos_token])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def goes_back_to(reference: str, planned: Mapping[str, PlannedStage | None]) -> str | None:
    """The "base", folder or hub id that the model behind a reference was made from; None where it leads nowhere."""
    seen = set()
    while reference.startswith(STAGE):
        stage = planned.get(reference.removeprefix(STAGE))
        if reference in seen or stage is None or stage.own is None:
            return None
        seen.add(reference)
        reference = stage.own.reference
    return reference


class Models:
    """The models behind a recipe's references, as far as they are known without weights; each is looked at once.

    fetch: whether configuration and tokenizer of a hub id are fetched; otherwise they are not known.
    """

    def __init__(self, recipe: Recipe, planned: Mapping[str, PlannedStage | None], *, fetch: bool) -> None:
        self.recipe, self.planned, self.fetch = recipe, planned, fetch
        self._found: dict[tuple[str, str], Any] = {}

    def root(self, reference: str) -> str | None:
        """The model that a reference goes back to, "base", a folder or hub id: what stages make keeps its tokenizer.

        None for a reference that leads nowhere.
        """
        return goes_back_to(reference, self.planned)

    def tokenizer(self, root: str) -> Any:
        """The tokenizer of a root, with `context`, the tokens that the model can hold; None where it is not known yet.

        UserError where there is none.
        """
        return self._once("tokenizer", root)

    def shape(self, root: str) -> dict[str, Any] | None:
        """`shape_of` a root; None where it is not known yet. UserError where it has no configuration."""
        found: dict[str, Any] | None = self._once("shape", root)
        return found

    def _once(self, what: str, root: str) -> Any:
        if (what, root) not in self._found:
            try:
                settings = self._settings(root)
                look = self._tokenizer if what == "tokenizer" else self._shape
                self._found[what, root] = None if settings is None else look(settings)
            except UserError as error:
                self._found[what, root] = error
        found = self._found[what, root]
        if isinstance(found, UserError):
            raise found
        return found

    def _settings(self, root: str) -> ModelSettings | None:
        """What a root says, None for a hub id that may not be asked."""
        settings = self.recipe.model if root == "base" else ModelSettings(path=root, new=None, tokenizer=None)
        hub = settings is not None and settings.path and of_the_hub(settings.path, self.recipe.home)
        return None if hub and not self.fetch else settings

    def _tokenizer(self, settings: ModelSettings) -> Any:
        if settings.path is None:
            tokenizer = made_tokenizer(settings)
        else:
            from unified.models import base_tokenizer  # slow to import

            tokenizer = base_tokenizer(settings, self.recipe.home)
        tokenizer.context = context_at(settings, self.recipe.home)  # rows must fit; see training.check_rows
        return tokenizer

    def _shape(self, settings: ModelSettings) -> dict[str, Any]:
        return shape_at(settings, self.recipe.home)

    # --- edges ---

    def problems(self, stage: PlannedStage) -> Iterator[Problem]:
        """Everything that the models of a stage, and its data, do not have in common with the model it goes on from."""
        own = stage.own
        root = self.root(own.reference) if own is not None else None
        if own is None or root is None:
            return
        for use in stage.uses:
            if use.kind == "dataset":
                yield from self._of_rows(stage, use, own, root)
            elif use is not own and use.agree - stage.allowed:
                yield from self._of_model(stage, use, own, root)

    def _of_model(self, stage: PlannedStage, use: Use, own: Use, root: str) -> Iterator[Problem]:
        other = self.root(use.reference)
        if other is None or other == root:
            return
        for aspect in sorted(use.agree - stage.allowed):
            try:
                difference = self._difference(aspect, root, other)
            except UserError as error:
                first, *hints = str(error).splitlines()
                hint = f"its {_NAMES[aspect]} must be that of '{own.reference}'"
                yield Problem(first, use.at, (*(h.strip() for h in hints), hint))
                return
            if difference is None or (aspect == "template" and not self._has_conversations(stage)):
                continue
            what = f"'{use.reference}' has another {_NAMES[aspect]} than '{own.reference}'"
            hints = [difference] if difference else []
            if aspect in TOKENS:
                what += "" if "architecture" in use.agree else ", whose tokens it reads"
                hints.append(_override(stage, aspect))
            yield Problem(what, use.at, tuple(hints))

    def _of_rows(self, stage: PlannedStage, use: Use, own: Use, root: str) -> Iterator[Problem]:
        """Rows that a stage has sampled are read with the template that they were sampled with."""
        maker = self.planned.get(use.reference.removeprefix(STAGE))
        if maker is None or maker.own is None or "template" in stage.allowed:
            return
        other = self.root(maker.own.reference)
        if other is None or other == root:
            return
        try:
            differs = self._difference("template", root, other) is not None
        except UserError:  # told of the stage whose model it is
            return
        if differs and self._has_conversations(maker):
            what = f"the answers of '{use.reference}' were sampled with another chat template than that of"
            yield Problem(f"{what} '{own.reference}'", use.at, (_override(stage, "template"),))

    def _difference(self, aspect: str, root: str, other: str) -> str | None:
        """What is not the same, in words ("" where they would say nothing); None for the same, and for the unknown."""
        if aspect == "architecture":
            shapes = self.shape(root), self.shape(other)
            if shapes[0] is None or shapes[1] is None or shapes[0] == shapes[1]:
                return None
            name = first_difference(shapes[0], shapes[1])
            return None if name is None else f"{name} is {shapes[1][name]}, not {shapes[0][name]}"
        ours, theirs = self.tokenizer(root), self.tokenizer(other)
        if ours is None or theirs is None:
            return None
        if aspect == "template":
            return None if chat_template_hash(ours) == chat_template_hash(theirs) else ""
        return (
            None if vocabulary_hash(ours) == vocabulary_hash(theirs) else _words(theirs.get_vocab(), ours.get_vocab())
        )

    def _has_conversations(self, stage: PlannedStage, asked: frozenset[str] = frozenset()) -> bool:
        """Whether some rows of a stage are messages, which a template renders; rows of the hub may be."""
        for chosen in chosen_parts(stage.settings):
            made = made_by(chosen)
            maker = self.planned.get(made.removeprefix(STAGE)) if made else None
            if chosen.part.kind != "dataset":
                continue
            if made:
                if maker and made not in asked and self._has_conversations(maker, asked | {made}):
                    return True
            elif chosen.part.remote or (not is_to_come(chosen) and self._some_are_messages(chosen)):
                return True
        return False

    def _some_are_messages(self, chosen: Any) -> bool:
        about = {"split": "train", "seed": self.recipe.seed, "folder": self.recipe.home}
        try:
            rows = call_named(chosen.part.open, settings=chosen.settings, **about)
            return any(not isinstance(row.prompt, str) for row in rows)
        except Exception:  # rows that cannot be had are told by the stage's own check
            return False


def _words(theirs: Mapping[str, int], ours: Mapping[str, int]) -> str:
    """How two vocabularies differ: sizes, and the token of the lowest id that is not the same."""
    token = min(
        (t for t in theirs.keys() | ours.keys() if theirs.get(t) != ours.get(t)), key=lambda t: _lowest(t, theirs, ours)
    )
    sizes = f"{len(theirs)} tokens, not {len(ours)}; " if len(theirs) != len(ours) else ""
    return f"{sizes}{token!r} is {_number(theirs, token)}, not {_number(ours, token)}"


def _number(vocabulary: Mapping[str, int], token: str) -> str:
    return f"token {vocabulary[token]}" if token in vocabulary else "there"


def _lowest(token: str, *vocabularies: Mapping[str, int]) -> tuple[int, str]:
    return min(v[token] for v in vocabularies if token in v), token


def _override(stage: PlannedStage, aspect: str) -> str:
    return f"if this is meant: `{KEY}: [{', '.join(sorted(stage.allowed | {aspect}))}]` in stage '{stage.name}'"
