"""Conversations as text, through a chat template: what stands before a turn of the assistant, and what the turn says.

A template only ever writes a conversation from its beginning: once before a turn, with the opening of the assistant's
turn, as serving does it, and once up to the end of that turn. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unified.data import Message

Tools = list[dict[str, Any]]

#: for tokenizers without a chat template; its words are those of the small models that were trained with one
PLAIN_TEMPLATE = (
    "{% if tools %}{{ 'Tools: ' + tools | tojson + '\\n' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] }}"
    "{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}{{ eos_token + '\\n' }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] + '\\n' }}"
    "{% elif m['role'] == 'tool' %}{{ 'Tool: ' + m['content'] + '\\n' }}"
    "{% else %}{{ 'User: ' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
#: where messages keep reasoning that is not part of their content
REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Stretch:
    """What one row learns from, as text: `whole`, of which `before` is the context, as serving writes it.

    said: (start, end) in characters of `whole`, of each turn of the assistant that is learned; the end lies behind what
    the template writes after the turn. text: the answer as it reads.
    shared: `whole` does not begin with `before` (the template opens a turn in another way than it writes one that is
    there); the context then ends where their tokens part.
    verbatim: the template leaves out words of even this turn, which stand here as they are. left_out: the same, but
    they could not be put back (they stand beside tool calls, or apart from the content).
    """

    before: str
    whole: str
    said: tuple[tuple[int, int], ...]
    text: str
    shared: bool = False
    verbatim: bool = False
    left_out: bool = False


class Chat:
    """The chat template of a tokenizer, or PLAIN_TEMPLATE where it has none.

    Args:
        tokenizer: of transformers.
        ends: the texts of the tokens that may end a turn.
    """

    def __init__(self, tokenizer: Any, ends: Collection[str]) -> None:
        self.tokenizer, self.ends = tokenizer, sorted(ends, key=len, reverse=True)
        self.plain = not tokenizer.chat_template

    def text(self, messages: Sequence[Message], tools: Tools | None, *, opening: bool) -> str:
        """The conversation as the template writes it; `opening`: with the opening of a turn of the assistant behind it.

        The arguments of tool calls are given as they are, and to a template that wants text, as their JSON.
        Raises ValueError: the template refuses the conversation.
        """
        from jinja2 import TemplateError

        try:
            try:
                return self._written(messages, tools, opening)
            except TypeError:
                if not any(m.get("tool_calls") for m in messages):
                    raise
                return self._written([_with_json_arguments(m) for m in messages], tools, opening)
        except (TemplateError, TypeError) as error:
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise ValueError(f"the chat template refuses the turns {roles}: {error}") from error

    def _written(self, messages: Sequence[Message], tools: Tools | None, opening: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tools=tools,
                chat_template=PLAIN_TEMPLATE if self.plain else None,
                add_generation_prompt=opening,
                tokenize=False,
            )
        )

    def stretches(
        self, prompt: Sequence[Message], answer: Sequence[Message], tools: Tools | None, shown: str
    ) -> list[Stretch]:
        """The continuation of a conversation, which begins with a turn of the assistant: one stretch, or several.

        shown: the prompt as `text` writes it, with the opening.

        One, if the whole begins with what is served before each turn of the assistant, and with the text up to its end,
        and each turn is ended by a token. Else the template rewrites its past, or ends no turns, and each turn of the
        assistant is a stretch of its own behind what is served before it. What follows the last turn of the assistant
        is not learned from.

        Raises ValueError: the answer does not begin with the assistant; the template writes the prompt in another way
        once an answer follows; a turn calls tools and the template does not write that.
        """
        if not answer or answer[0].get("role") != "assistant":
            raise ValueError("an answer of messages must begin with a turn of the assistant")
        turns = [*prompt, *answer]
        places = [i for i in range(len(prompt), len(turns)) if turns[i].get("role") == "assistant"]
        served = [shown, *(self.text(turns[:i], tools, opening=True) for i in places[1:])]
        alone = [self._turn(turns[:i], turns[i], tools, before) for i, before in zip(places, served, strict=True)]
        whole = alone[-1].whole
        ends = [self._reach(whole, turn) for turn in alone]
        if len(alone) == 1 or not all(ends):
            return alone
        read = self._bare(whole[len(alone[0].before) :])
        left_out = any(turn.left_out for turn in alone)
        said = tuple((len(turn.before), end) for turn, end in zip(alone, ends, strict=True))
        return [Stretch(alone[0].before, whole, said, read, left_out=left_out)]

    def _reach(self, whole: str, turn: Stretch) -> int:
        """Where a turn ends in the whole, in characters; 0 where it does not stand there as it does alone, or unended.

        What a template writes behind a conversation (one more end token) may be missing where the conversation goes on.
        """
        if turn.shared or turn.verbatim:
            return 0
        text = turn.whole
        while not whole.startswith(text):
            end = self._end(text)
            text = text.rstrip().removesuffix(end) if end else ""
        ended = len(text) == len(whole) or self._end(text)
        return len(text) if ended and len(text) > len(turn.before) else 0

    def _turn(self, history: Sequence[Message], turn: Message, tools: Tools | None, before: str) -> Stretch:
        """One turn of the assistant behind what is served before it."""
        whole = self.text([*history, turn], tools, opening=False)
        content = str(turn.get("content") or "")
        follows = whole.startswith(before)
        if follows and set(turn) <= {"role", "content"} and content.strip() in whole[len(before) :]:
            return Stretch(before, whole, ((len(before), len(whole)),), content)  # what is most often the case
        base = self.text(history, tools, opening=False)
        if not (follows or (whole.startswith(base) and before.startswith(base))):
            raise ValueError(
                "the chat template writes a prompt differently once an answer follows: "
                f"...{before[-60:]!r} became ...{whole[: len(before)][-60:]!r}"
            )
        written = whole[len(base if whole.startswith(base) else before) :]
        calls: list[Any] = list(turn.get("tool_calls") or [])
        for call in calls:
            name = str((call.get("function") or call).get("name", ""))
            if not _writes(written, name):
                raise ValueError(f"the chat template does not write the call of tool '{name}'")
        apart = [str(turn[key]) for key in REASONING if turn.get(key)]
        missing = not _writes(written, content)
        if missing and not calls:
            opened = before[len(base) :] if before.startswith(base) else ""
            said = before + content[_overlap(opened, content) :] + self._end(whole)
            return Stretch(before, said, ((len(before), len(said)),), content, verbatim=True)
        left_out = missing or not all(_writes(written, words) for words in apart)
        read = self._bare(whole[len(before) :] if follows else written) if calls or apart else content
        return Stretch(before, whole, ((len(before), len(whole)),), read, shared=not follows, left_out=left_out)

    def _end(self, text: str) -> str:
        """The end token that a text ends with, white space aside; "" where it ends with none."""
        bare = text.rstrip()
        return next((end for end in self.ends if bare.endswith(end)), "")

    def _bare(self, text: str) -> str:
        """The text without white space around it and end tokens behind it."""
        while end := self._end(text):
            text = text.rstrip().removesuffix(end)
        return text.strip()


def tools_of(columns: Mapping[str, Any]) -> Tools | None:
    """The tools in the column `tools` of a row: a list of JSON schemas, or its JSON text. None for anything else."""
    tools = columns.get("tools")
    if isinstance(tools, str) and tools.lstrip().startswith("["):
        try:
            tools = json.loads(tools)
        except ValueError:
            return None
    fits = isinstance(tools, list) and tools and all(isinstance(tool, Mapping) for tool in tools)
    return [dict(tool) for tool in tools] if fits and isinstance(tools, list) else None


def _with_json_arguments(message: Message) -> dict[str, Any]:
    """The message, the arguments of its tool calls as JSON text."""
    calls = []
    for call in message.get("tool_calls") or []:
        function = dict(call.get("function") or call)
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments"), ensure_ascii=False)
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls} if calls else dict(message)


def _writes(text: str, words: str) -> bool:
    """Whether the words stand in the text, white space aside."""
    return words.strip() in text or "".join(words.split()) in "".join(text.split())


def _overlap(opened: str, content: str) -> int:
    """How many characters of the content the opening of the turn has said already."""
    return next((n for n in range(min(len(opened), len(content)), 0, -1) if opened.endswith(content[:n])), 0)
