"""What a tokenizer does to texts, many at a time: special tokens, text behind other text, places in a text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
#: a computation that yields texts and is sent their token ids
Asking = Generator[list[str], list[list[int]], T]


def given(result: T | ValueError) -> T:
    """A result of `together`; raises the ValueError that stands in its place."""
    if isinstance(result, ValueError):
        raise result
    return result


class Tokens:
    """One tokenizer. Special tokens are those that texts contain; none is added unless a method says so.

    Args:
        tokenizer: of transformers, with an end-of-sequence token.
        eos_ids: further tokens that end a turn.
    """

    def __init__(self, tokenizer: Any, eos_ids: Collection[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self.eos_ids = {self.eos, *eos_ids}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {int(i) for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        no_end = {tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id}
        self.end_ids = self.eos_ids | (special - no_end)
        self._white: dict[int, bool] = {}  # whether a token reads as white space, or as nothing
        self._encode = _batched(tokenizer)
        bos = tokenizer.bos_token_id
        adds = bool(getattr(tokenizer, "add_bos_token", False)) or bos in tokenizer("a").input_ids[:1]
        self._bos = [bos] if bos is not None and adds else []
        first, self._mark = self._encode(["a", "\n"])
        name = tokenizer.convert_ids_to_tokens(first[:1])
        self._lead = "\n" if name and name[0].startswith("▁") else ""  # what keeps away the space put before everything

    @property
    def end_texts(self) -> list[str]:
        """The tokens that may end a turn, as they read: those that end an answer, and the special ones."""
        return [text for text in self.tokenizer.convert_ids_to_tokens(sorted(self.end_ids)) if text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def with_bos(self, ids: list[int]) -> list[int]:
        """The ids behind the beginning token, once, where the tokenizer itself would put it."""
        return ids if ids[:1] == self._bos else [*self._bos, *ids]

    def together(self, askings: Sequence[Asking[T]]) -> list[T | ValueError]:
        """What the computations return, or the ValueError they raise; what all ask at the same time is one batch."""
        both, sent = self.beside(askings), None
        while True:
            try:
                texts = both.send(sent)  # type: ignore[arg-type]
            except StopIteration as done:
                return list(done.value)
            known = list(dict.fromkeys(texts))
            ids = dict(zip(known, self._encode(known), strict=True))
            sent = [ids[text] for text in texts]

    def alone(self, asking: Asking[T]) -> T:
        """What one computation returns, or raises."""
        return given(self.together([asking])[0])

    @staticmethod
    def beside(askings: Sequence[Asking[T]]) -> Asking[list[T | ValueError]]:
        """Several computations as one: it asks what all of them ask, and returns what each returns or raises."""
        results: dict[int, T | ValueError] = {}
        waiting: dict[int, Any] = dict.fromkeys(range(len(askings)))
        while waiting:
            asked: dict[int, list[str]] = {}
            for i, ids in waiting.items():
                try:
                    asked[i] = askings[i].send(ids)
                except StopIteration as done:
                    results[i] = done.value
                except ValueError as error:
                    results[i] = error
            made = iter((yield [text for texts in asked.values() for text in texts])) if asked else iter([])
            waiting = {i: [next(made) for _ in texts] for i, texts in asked.items()}
        return [results[i] for i in range(len(askings))]

    def behind(self, texts: Sequence[str]) -> Asking[list[list[int]]]:
        """Ids of texts that stand behind other text: without the space that some tokenizers put before everything."""
        led = yield [self._lead + text for text in texts]
        if not self._lead:
            return led
        kept = [ids[: len(self._mark)] == self._mark for ids in led]
        plain = iter((yield [text for text, known in zip(texts, kept, strict=True) if not known]))
        return [ids[len(self._mark) :] if known else next(plain) for ids, known in zip(led, kept, strict=True)]

    def places(self, text: str, edges: Sequence[int], *, lead: bool) -> list[int]:
        """How many tokens of a text begin before each of the edges, given in characters.

        A token across an edge begins before it. lead: the text stands behind other text.
        Raises ValueError: the tokenizer does not know where its tokens begin, as only fast ones do.
        """
        if not self.tokenizer.is_fast:
            raise ValueError("tokens stand across the seams of turns; only a fast tokenizer knows where they begin")
        front = self._lead if lead else ""
        made = self.tokenizer(front + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        skip = len(self._mark) if front else 0
        if made.input_ids[:skip] != self._mark[:skip]:
            return self.places(text, edges, lead=False)
        starts, reached = [], 0
        for start, end in made.offset_mapping:
            starts.append(min(start, reached))  # some tokenizers leave out a token's own leading space
            reached = max(reached, end)
        return [sum(start < edge + len(front) for start in starts[skip:]) for edge in edges]

    def to_end(self, ids: list[int], *, add: bool) -> list[int]:
        """The ids up to the first token that ends a turn, of those with nothing but such and white space behind them.

        A token that ends answers comes before a special one that is not among these. All ids where there is neither.
        add: at the end of an answer there must be an end-of-sequence token; it is put where there is none.
        """
        begin = len(ids)
        while begin and (ids[begin - 1] in self.end_ids or self._is_white(ids[begin - 1])):
            begin -= 1
        for known in (self.eos_ids, self.end_ids):
            place = next((i for i in range(begin, len(ids)) if ids[i] in known), None)
            if place is not None:
                kept = ids[: place + 1]
                return kept if ids[place] in self.eos_ids or not add else [*kept, self.eos]
        return [*ids, self.eos] if add else ids

    def _is_white(self, token: int) -> bool:
        if token not in self._white:
            self._white[token] = not self.tokenizer.decode([token]).strip()
        return self._white[token]


def _batched(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """Texts to ids as the tokenizer's own call does it; fast ones leave out what is not needed, as the offsets."""
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None

    def slow(texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False).input_ids]

    def fast(texts: list[str]) -> list[list[int]]:
        tokenizer("", add_special_tokens=False)  # sets its backend: no truncation, no padding
        return [made.ids for made in backend.encode_batch_fast(texts, add_special_tokens=False)]  # type: ignore[union-attr]

    return fast if _is_plain(tokenizer) and hasattr(backend, "encode_batch_fast") else slow


def _is_plain(tokenizer: Any) -> bool:
    """Whether the class changes nothing about how texts are encoded."""
    from transformers import PreTrainedTokenizerFast

    own = type(tokenizer)
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(own, name) is getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus")
    )
