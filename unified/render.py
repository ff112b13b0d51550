"""Turns rows of text into prompt groups of tokens: special tokens, chat templates, length limits. Imports no torch.

A prompt is rendered once and never changes: whatever answers it, from the data or sampled, continues the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from unified.data import Answer, Example, Message, PromptGroup, Text
from unified.errors import UserError

#: for tokenizers without a chat template; its words are those of the small models that were trained with one
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token + '\\n' }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] + '\\n' }}"
    "{% else %}{{ 'User: ' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


class TooLong(ValueError):  # noqa: N818
    """A row has more tokens than the limit. `row` is its number in the dataset, from 0."""

    def __init__(self, row: int, tokens: int, limit: int) -> None:
        super().__init__(f"row {row} has {tokens} tokens, the limit is {limit}")
        self.row, self.tokens, self.limit = row, tokens, limit


class Renderer:
    """Text to token ids, with one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with an end-of-sequence token.
        max_length: longest prompt with answer, in tokens.
        eos_ids: further tokens that end a turn, as the generation configuration of a model lists them.
    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, max_length: int, eos_ids: Collection[int] = ()) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, so no answer could end",
                "set tokenizer.eos_token and save it beside the model",
            )
        self.tokenizer, self.max_length = tokenizer, max_length
        self.eos_ids = {int(tokenizer.eos_token_id), *eos_ids}
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        bos = tokenizer.bos_token_id
        adds = bool(getattr(tokenizer, "add_bos_token", False)) or bos in tokenizer("a").input_ids[:1]
        self._bos = [bos] if bos is not None and adds else []
        first = tokenizer.convert_ids_to_tokens(self._plain("a")[:1])
        self._adds_space = bool(first) and first[0].startswith("▁")

    def prompt_ids(self, prompt: Text) -> list[int]:
        """Token ids of a prompt, ready to be continued.

        Text gets the beginning-of-sequence token that the tokenizer itself would add, once. Messages go through the
        chat template (PLAIN_TEMPLATE where there is none) up to and with the opening of the assistant's turn. Empty for
        an empty text where the tokenizer adds nothing.
        """
        return self._rendered(prompt)[1]

    def answer_ids(self, prompt: Text, answer: str) -> list[int]:
        """Token ids of an answer to that prompt, the end-of-sequence token last; never empty.

        After messages these are the tokens by which the rendered conversation is longer than the rendered prompt; what
        the template writes behind the end-of-sequence token (a line break) is left out, as in a sampled answer.

        Raises:
            ValueError: the chat template writes the prompt in another way once an answer follows.
        """
        return self._answered(prompt, answer, *self._rendered(prompt))

    def text(self, prompt: Text) -> str:
        """The prompt as it reads: text as it is, messages as the chat template writes them."""
        return prompt if isinstance(prompt, str) else self._templated(prompt, opening=True)

    def group(self, example: Example, *, row: int = -1, reserve: int = 0) -> PromptGroup:
        """One row as tokens.

        Args:
            example: the row.
            row: its number in the dataset, from 0; becomes the group's key.
            reserve: tokens to be kept free for a sampled answer; where it is not 0 the answers of the row do not count.
        Raises:
            TooLong: prompt and longest answer (or reserve) have more than max_length tokens.
            ValueError: as answer_ids, or there is not one reward per answer.
        """
        rewards = example.rewards if example.rewards is not None else [None] * len(example.answers)
        if len(rewards) != len(example.answers):
            raise ValueError(f"row {row} has {len(rewards)} rewards but {len(example.answers)} answers")
        shown, prompt = self._rendered(example.prompt)
        columns = number_columns(example.columns)
        answers = [
            Answer(self._answered(example.prompt, text, shown, prompt), text, reward=reward, columns=dict(columns))
            for text, reward in zip(example.answers, rewards, strict=True)
        ]
        longest = reserve or max((len(a.ids) for a in answers), default=0)
        if len(prompt) + longest > self.max_length:
            raise TooLong(row, len(prompt) + longest, self.max_length)
        return PromptGroup(prompt, answers, shown, dict(example.columns), row)

    def _rendered(self, prompt: Text) -> tuple[str, list[int]]:
        """A prompt as it reads, and as token ids."""
        shown = self.text(prompt)
        ids = self._plain(shown)
        return shown, self._with_bos(ids) if isinstance(prompt, str) or self._template else ids

    def _answered(self, prompt: Text, answer: str, shown: str, ids: list[int]) -> list[int]:
        """answer_ids, for a prompt that reads `shown` and has those ids."""
        if isinstance(prompt, str):
            return [*self._continuation(answer), self.tokenizer.eos_token_id]
        whole = self._templated([*prompt, {"role": "assistant", "content": answer}], opening=False)
        after = self._with_bos(self._plain(whole)) if self._template else self._plain(whole)
        if after[: len(ids)] == ids:
            return self._ended(after[len(ids) :])
        if not whole.startswith(shown):
            raise ValueError(
                "the chat template writes a prompt differently once an answer follows: "
                f"...{shown[-60:]!r} became ...{whole[: len(shown)][-60:]!r}"
            )
        return self._ended(self._continuation(whole[len(shown) :]))

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _continuation(self, text: str) -> list[int]:
        """Ids of text that stands behind other text: without the space that some tokenizers put before everything."""
        if self._adds_space:
            mark = self._plain("\n")
            ids = self._plain("\n" + text)
            if ids[: len(mark)] == mark:
                return ids[len(mark) :]
        return self._plain(text)

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if ids[:1] == self._bos else [*self._bos, *ids]

    def _templated(self, messages: Sequence[Message], *, opening: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                chat_template=self._template,
                add_generation_prompt=opening,
                tokenize=False,
            )
        )

    def _ended(self, ids: list[int]) -> list[int]:
        """The ids up to the last end-of-sequence token if only white space follows it, else with one behind them."""
        for place in range(len(ids) - 1, -1, -1):
            if ids[place] in self.eos_ids:
                return ids[: place + 1]
            if self.tokenizer.decode([ids[place]]).strip():
                break
        return [*ids, self.tokenizer.eos_token_id]


def number_columns(columns: Mapping[str, Any]) -> dict[str, float]:
    """The columns of a row that hold one number (or true, false), as floats."""
    return {name: float(value) for name, value in columns.items() if isinstance(value, (bool, int, float))}


def render_rows(
    renderer: Renderer,
    examples: Sequence[Example],
    *,
    needs_answers: int,
    too_long: Literal["refuse", "drop"] = "refuse",
    reserve: int = 0,
) -> tuple[list[PromptGroup], dict[str, int]]:
    """All rows as tokens, in order, and how many there were.

    Args:
        renderer: the tokenizer and the limit.
        examples: the rows; what their `counts` (where they have one) say of rows left out before is passed on.
        needs_answers: fewest answers a row must have; 0 for prompts alone.
        too_long: what to do with a row over the limit.
        reserve: tokens kept free for a sampled answer; then only the prompt counts.
    Returns:
        The groups (key: the row's number from 0), and {"rows", "kept", "dropped_too_long", ...}.
    Raises:
        UserError: no rows at all or none left; a row over the limit where too_long is "refuse"; a row with too few
            answers; a row whose rendering fails. Each names the row.
    """
    if not len(examples):
        raise UserError("the dataset has no rows", "give a file or a setting that leaves at least one")
    groups: list[PromptGroup] = []
    dropped = 0
    for row, example in enumerate(examples):
        if len(example.answers) < needs_answers:
            raise UserError(
                f"{_place(row, example)} has {len(example.answers)} answers, this stage needs {needs_answers} or more",
                "1 to imitate, 2 for a preference, more for a ranking; `columns:` says where a file keeps them",
            )
        try:
            groups.append(renderer.group(example, row=row, reserve=reserve))
        except TooLong as error:
            dropped += 1
            if too_long == "refuse":
                what = f", {reserve} of them kept free for the answer" if reserve else ""
                raise UserError(
                    f"{_place(row, example)} has {error.tokens} tokens{what}; the limit is {error.limit}",
                    "set too_long: drop, or a larger max_length",
                ) from error
        except ValueError as error:
            raise UserError(f"{_place(row, example)}: {error}") from error
    if not groups:
        raise UserError(
            f"all {len(examples)} rows have more than {renderer.max_length} tokens",
            "set a larger max_length, or other data",
        )
    counts = {"rows": len(examples), "kept": len(groups), "dropped_too_long": dropped}
    return groups, {**getattr(examples, "counts", {}), **counts}


def template_hash(tokenizer: Any) -> str:
    """sha256 of the chat template and the vocabulary, in hexadecimal: equal where rows become the same ids."""
    what = json.dumps([tokenizer.chat_template, sorted(tokenizer.get_vocab().items())], ensure_ascii=False)
    return hashlib.sha256(what.encode()).hexdigest()


def _place(row: int, example: Example) -> str:
    """Where a row came from, as exactly as the row knows."""
    file, line = example.columns.get("file"), example.columns.get("row")
    return f"row {row}" if file is None or line is None else f"{file}:{line}: row {row}"
