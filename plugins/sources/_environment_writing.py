"""What an environment says, as the tokens between two turns of the assistant.

Only what is new is written: the chat template writes a short made-up conversation whose turn of the assistant is a
placeholder, and what stands behind the placeholder is what a server would put behind a real turn. What was sampled is
never turned into text and back.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from unified import PromptGroup, Renderer, UserError, tools_of

Message = Mapping[str, Any]
Tools = list[dict[str, Any]]

#: in the place of what the assistant said; no template has a reason to change it
PLACEHOLDER = "placeholder7342"
_ASKED: Message = {"role": "user", "content": "?"}
#: turns of the assistant that must stand in a longer conversation as they were sampled
_TURNS = (PLACEHOLDER, f"<think>\nreasons\n</think>\n\n{PLACEHOLDER}")


class Writing:
    """One tokenizer and its chat template.

    keep: let a conversation go on as it was sampled where the template would rewrite its past; else that is refused.
    owner: what errors name. Raises UserError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, *, keep: bool, owner: str) -> None:
        self.renderer, self.keep, self.owner = Renderer(tokenizer, sys.maxsize), keep, owner
        self.tokenizer = tokenizer
        self._safe: set[tuple[str, ...]] = set()
        self._openings: dict[tuple[int, str], tuple[list[int], Tools | None]] = {}  # of the groups of one batch

    @property
    def eos(self) -> int:
        """The token that ends an answer."""
        return self.renderer.tokens.eos

    def opening(
        self, group: PromptGroup, first: Sequence[Message], tools: Tools | None
    ) -> tuple[list[int], Tools | None]:
        """The ids before the first turn of the assistant (the prompt, and what was said at first), and the tools shown.

        tools: of the environment; without, those in the column `tools` of the row. The row's own ids where nothing is
        added to them.
        Raises UserError: the prompt is text, or its template writes no tools, so that they could not be shown; the
            template refuses the conversation.
        """
        key = (id(group), repr((first, tools)))
        if key not in self._openings:
            shown = self._shown(group, tools)
            self._openings[key] = self._opening(group, first, shown), shown
        ids, shown = self._openings[key]
        return list(ids), shown

    def _shown(self, group: PromptGroup, tools: Tools | None) -> Tools | None:
        if group.messages is None:
            if tools:
                raise UserError(
                    f"{self.owner}: row {group.key} has a prompt of text, in which no chat template writes the tools",
                    "give the prompt as messages, or tell of the tools in it and set show_tools: false",
                )
            return None
        if tools and self._text(group.messages, tools) == self._text(group.messages, None):
            raise UserError(
                f"{self.owner}: the chat template of this tokenizer writes no tools",
                "tell of them in the prompt and set show_tools: false",
            )
        return tools or tools_of(group.columns)

    def _opening(self, group: PromptGroup, first: Sequence[Message], tools: Tools | None) -> list[int]:
        if group.messages is None:
            return [*group.prompt, *self._behind("".join(str(m["content"]) for m in first))]
        if not first and tools == tools_of(group.columns):
            return list(group.prompt)
        try:
            return self.renderer.prompt_ids([*group.messages, *first], tools)
        except ValueError as error:
            raise self._refused(error) from error

    def between(self, said: Sequence[Message], group: PromptGroup, tools: Tools | None, last: int | None) -> list[int]:
        """The ids from one turn of the assistant to the next: what ends the turn, what was said, the next opening.

        last: the last id of the turn; where it is a token that ends turns, it is not written again.
        A prompt of text is followed by what was said as it stands.

        Raises UserError: the template refuses such a conversation, or rewrites its past.
        """
        if group.messages is None:
            return self._behind("".join(str(m["content"]) for m in said))
        roles = tuple(str(m["role"]) for m in said)
        if not self.keep and roles not in self._safe:
            self._check(said, tools)
            self._safe.add(roles)
        text = self._text([_ASKED, _turn(PLACEHOLDER), *said], tools)
        if PLACEHOLDER not in text:
            raise UserError(f"{self.owner}: the chat template does not write what the assistant said before")
        ids = self._behind(text[text.index(PLACEHOLDER) + len(PLACEHOLDER) :])
        return ids if last is None else ids[self._written(ids, last) :]

    def _written(self, ids: list[int], last: int) -> int:
        """How many of these ids are the end of a turn that has written its end token itself."""
        ends = self.renderer.tokens.end_ids
        for i, token in enumerate(ids if last in ends else ()):
            if token == last:
                return i + 1
            if token not in ends and self.tokenizer.decode([token]).strip():
                break
        return 0

    def _check(self, said: Sequence[Message], tools: Tools | None) -> None:
        """UserError where the template writes a turn of the assistant otherwise once the conversation goes on."""
        for turn in _TURNS:
            begun = self._text([_ASKED], tools)
            for times in (1, 2):
                longer = self._text([_ASKED, *[_turn(turn), *said] * times], tools)
                rest = longer[len(begun) :].lstrip()
                if not (longer.startswith(begun) and rest.startswith(turn)):
                    what = "leaves out or changes earlier reasoning" if turn != PLACEHOLDER else "rewrites its past"
                    raise UserError(
                        f"{self.owner}: behind a turn of the role '{said[0]['role']}' the chat template {what}, so "
                        "the next turn of the assistant would stand behind other text than a server gives it",
                        "let the environment answer in another role (`tool` instead of `user`), use another template,",
                        "or set past: keep, which goes on from what was sampled, whatever a server would leave out",
                    )
                begun = longer

    def _text(self, messages: Sequence[Message], tools: Tools | None) -> str:
        try:
            return self.renderer.text(messages, tools)
        except ValueError as error:
            raise self._refused(error) from error

    def _refused(self, error: ValueError) -> UserError:
        return UserError(
            f"{self.owner}: {error}", "let the environment answer in a role that the template knows, such as `user`"
        )

    def _behind(self, text: str) -> list[int]:
        """Ids of text that stands behind other text."""
        if not text:
            return []
        tokens = self.renderer.tokens
        return list(tokens.alone(tokens.behind([text]))[0])


def _turn(content: str) -> Message:
    return {"role": "assistant", "content": content}
