"""Servers that sample: where they are, how they are asked, and what is done when one is away.

Requests of one call are under way side by side, over all servers that hold the weights. A request whose server went
away, or that was answered by other weights, is asked again; nothing that other weights have sampled is handed on.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx2 as httpx

from unified import Answer, LostEngine, NewWeights, Sampling, UserError, cut_short, masked
from unified_plugins.engines._servers_settings import ServersSettings, key_of

T = TypeVar("T")
#: replies of a server that may be other a moment later
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
#: times a server may be given the weights while one call is answered, before somebody else must be at it too
_TRIES = 5


class Away(Exception):  # noqa: N818 - the server is away, not this program
    """A server did not answer, or not as one that is ready. status: what it replied, 0 where it did not."""

    def __init__(self, why: str, status: int = 0) -> None:
        super().__init__(why)
        self.status = status


class Stale(Exception):  # noqa: N818 - the answer is, not this program
    """A server answered with other weights than it was given."""


class Refused(Exception):  # noqa: N818 - said by the server
    """A server said no: (status, why)."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"it replied {status}: {why}")
        self.status = status


@contextmanager
def as_expected(what: str) -> Iterator[None]:
    """Around the reading of a reply: Refused where it is not built as expected; what: its route, and who has it so."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Refused(200, f"not as {what} replies ({type(error).__name__}: {cut_short(str(error), 80)})") from error


@dataclass(frozen=True)
class Wanted:
    """One answer to sample: its place (prompt, number), the prompt, and the seed."""

    place: tuple[int, int]
    prompt: list[int]
    seed: int


class Servers:
    """Connections to all servers of one call; an async context manager.

    load(url): give a server the weights and make sure that it has them. holds(url): whether it has them still. Both
    raise Away where it does not answer. each_tells: whether every answer says which weights gave it; where none does,
    answers of a server that was lost are asked for again.
    """

    def __init__(
        self,
        name: str,
        settings: ServersSettings,
        load: Callable[[Servers, str], Awaitable[None]],
        holds: Callable[[Servers, str], Awaitable[bool]],
        *,
        each_tells: bool,
    ) -> None:
        self.name, self.settings, self._load, self._holds = name, settings, load, holds
        self._each_tells, self._key = each_tells, key_of(settings)
        times = httpx.Timeout(settings.timeout, connect=settings.connect_timeout, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {}, timeout=times, limits=limits,
            trust_env=settings.environment_proxies,
        )  # fmt: skip
        self._turns = {url: asyncio.Semaphore(settings.at_once) for url in settings.urls}
        self._loaded: dict[str, int] = {}
        self._unsure: set[str] = set()

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self, url: str, path: str, payload: Any = None, *, method: str = "POST", at_once: bool = False
    ) -> Any:
        """What a server replies, as JSON where it is. Away where it does not answer; Refused where it says no.

        at_once: it has nothing to compute for this, so that `connect_timeout` bounds the reply as well.
        UserError where it wants another key. No message holds the key.
        """
        times = httpx.Timeout(self.settings.connect_timeout) if at_once else httpx.USE_CLIENT_DEFAULT
        try:
            reply = await self._client.request(method, url + path, json=payload, timeout=times, follow_redirects=False)
        except (httpx.HTTPError, OSError) as error:
            raise Away(self._plain(f"{type(error).__name__}: {error}".rstrip(": "))) from error
        status = reply.status_code
        if status in _BUSY:
            raise Away(f"it replied {status}: {self._plain(_said(reply))}", status)
        if status == 401:
            raise self._wrong_key(url, self._plain(_said(reply)))
        if status >= 300:
            raise Refused(status, self._plain(_said(reply)))
        try:
            return reply.json()
        except ValueError:
            return reply.text

    def _plain(self, text: str) -> str:
        """A text without the key, whatever its shape and the name of its variable."""
        return masked(text.replace(self._key, "***") if self._key else text)

    def _wrong_key(self, url: str, said: str) -> UserError:
        variable = self.settings.api_key_env
        if variable is None:
            return UserError(
                f"engine '{self.name}': {url} wants a key (401: {said})",
                "name the environment variable that holds it: `api_key_env: NAME`",
            )
        return UserError(
            f"engine '{self.name}': {url} does not take the key in the variable {variable} (401: {said})",
            "put the key of this server into it",
        )

    def forget(self, url: str) -> None:
        """Give a server the weights next time, whatever it says that it holds."""
        self._unsure.add(url)

    async def all_ready(self) -> None:
        """Have every server hold the weights; where none answers one is waited for, by `on_lost`.

        One that stays away does no harm while another is there; it is named.
        """
        away = await self._make_ready(self.settings.urls)
        if away:
            await self._wait_for_one(away)

    async def answers(
        self, wanted: Sequence[Wanted], one: Callable[[Servers, str, Wanted], Awaitable[T]]
    ) -> dict[tuple[int, int], T]:
        """one(servers, url, wanted) of every answer that is wanted, by its place.

        LostEngine where for `wait_seconds` (`on_lost: stop`: in one round) servers look ready and nothing arrives.
        """
        out: dict[tuple[int, int], T] = {}
        pending, since = list(wanted), 0.0
        while pending:
            away = await self._make_ready(self.settings.urls)
            ready = [url for url in self.settings.urls if url not in away]
            if not ready:
                await self._wait_for_one(away)
                continue
            shared = [(w, ready[i % len(ready)]) for i, w in enumerate(pending)]
            lost: dict[str, str] = {}
            found = await asyncio.gather(*(self._one(one, url, w, lost) for w, url in shared))
            known = ready if not self._each_tells else [url for url in ready if url not in lost]
            fine = {url: await self._still(url) for url in known}
            for (w, url), answer in zip(shared, found, strict=True):
                if answer is not None and fine.get(url, True):
                    out[w.place] = answer
            before, pending = len(pending), [w for w in pending if w.place not in out]
            for url, why in lost.items():
                _say(f"engine '{self.name}': {url} was lost in the middle: {why}; its answers are asked for again")
            since = 0.0 if len(pending) < before else since or time.monotonic()
            if since and lost:
                await self._pause_before_next(since, lost)
        return out

    async def _pause_before_next(self, since: float, lost: dict[str, str]) -> None:
        """Nothing has arrived since then, though servers look ready: wait a little, or give up; by `on_lost`."""
        settings = self.settings
        if settings.on_lost == "stop" or time.monotonic() - since >= settings.wait_seconds:
            raise self._given_up("servers look ready, and no request is answered", lost)
        await asyncio.sleep(min(1.0, settings.wait_seconds / 10))

    def _given_up(self, what: str, why: dict[str, str]) -> LostEngine:
        said = "; ".join(f"{url}: {reason}" for url, reason in why.items())
        return LostEngine(
            f"engine '{self.name}': {what}: {said}",
            "start a server again, and run the same command: the run goes on from its checkpoint",
        )

    async def _one(
        self, one: Callable[[Servers, str, Wanted], Awaitable[T]], url: str, w: Wanted, lost: dict[str, str]
    ) -> T | None:
        """None where the server went away, or answered with other weights: then it is noted and asked no more."""
        async with self._turns[url]:
            if url in lost:
                return None
            try:
                return await one(self, url, w)
            except (Away, Stale) as error:
                lost.setdefault(url, str(error))
                return None
            except Refused as refused:
                raise self.refused(url, refused) from refused

    def refused(self, url: str, refused: Refused) -> UserError:
        """The message of a server that says no."""
        return UserError(
            f"engine '{self.name}': {url}: {refused}",
            "docs/rollouts.md says how a server is started, and what it gives",
        )

    async def _still(self, url: str) -> bool:
        """Whether a server still holds the weights, after it has answered; or none of its answers needs this."""
        try:
            return await self._holds(self, url)
        except Away:
            return self._each_tells
        except Refused as refused:
            raise self.refused(url, refused) from refused

    async def _make_ready(self, urls: Sequence[str]) -> dict[str, str]:
        """Have these servers hold the weights; url -> why, of those that do not answer."""
        found = await asyncio.gather(*(self._ready(url) for url in urls))
        return {url: why for url, why in zip(urls, found, strict=True) if why is not None}

    async def _ready(self, url: str) -> str | None:
        try:
            if url not in self._unsure and await self._holds(self, url):
                return None
            if self._loaded.get(url, 0) >= _TRIES:
                raise UserError(
                    f"engine '{self.name}': {url} was given the weights {_TRIES} times and each time lost them again",
                    "is another run pushing to the same server? Every run needs servers of its own",
                )
            await self._load(self, url)
            self._unsure.discard(url)
            self._loaded[url] = self._loaded.get(url, 0) + 1
            return None
        except Away as away:
            return str(away)
        except Refused as refused:
            raise UserError(
                f"engine '{self.name}': {url} does not take the weights: {refused}",
                "docs/rollouts.md says how a server is started, and what it gives",
            ) from refused

    async def _wait_for_one(self, away: dict[str, str]) -> None:
        """Until some server answers and holds the weights again; LostEngine where none does in time."""
        settings, began = self.settings, time.monotonic()
        if len(away) < len(settings.urls):
            for url, why in away.items():
                _say(f"engine '{self.name}': {url} does not answer ({why}); the others go on without it")
            return
        if settings.on_lost == "wait":
            said = "; ".join(f"{url}: {why}" for url, why in away.items())
            _say(f"engine '{self.name}': no server answers: {said}; waiting for up to {settings.wait_seconds:g} s")
        while settings.on_lost == "wait" and time.monotonic() - began < settings.wait_seconds:
            away = await self._make_ready(settings.urls)
            if len(away) < len(settings.urls):
                back = ", ".join(url for url in settings.urls if url not in away)
                _say(f"engine '{self.name}': {back} is back, and holds the weights again")
                return
            await asyncio.sleep(min(1.0, settings.wait_seconds / 10))
        raise self._given_up("no server answers", away)


def run(work: Awaitable[T]) -> T:
    """What an awaitable gives; also in a program whose thread has a loop already, as a notebook has."""

    async def whole() -> T:
        return await work

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(whole())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, whole()).result()


def wanted(
    prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seeds: Sequence[Sequence[int]]
) -> list[Wanted]:
    """The answers to ask for: n to each prompt; greedy ones are one answer. UserError for a prompt without tokens."""
    empty = next((i for i, prompt in enumerate(prompts) if not prompt), None)
    if empty is not None:
        raise UserError(
            f"prompt {empty} has no tokens, so nothing can be sampled", "use a tokenizer with a beginning token"
        )
    each = min(n, 1) if sampling.temperature == 0 else n
    return [Wanted((i, k), list(p), seeds[i][k]) for i, p in enumerate(prompts) for k in range(each)]


def push_to(start: Callable[[dict[str, float]], Servers], weights: NewWeights) -> dict[str, Any]:
    """Have every server take the weights, whatever it says that it holds: the receipt for `generate`.

    start: makes the servers, given where each one's gap on the probe (nats) is written down by its url.
    """
    gaps: dict[str, float] = {}

    async def work() -> None:
        async with start(gaps) as servers:
            for url in servers.settings.urls:
                servers.forget(url)
            await servers.all_ready()

    run(work())
    return {"weights": weights, "metrics": {"mismatch": max(gaps.values())} if gaps else {}}


def by_prompt(
    found: Mapping[tuple[int, int], Answer], tokenizer: Any, prompts: int, n: int, sampling: Sampling
) -> list[list[Answer]]:
    """What was found for `wanted`, as text too: n answers to each of so many prompts, no two of them one object.

    Greedy answers are certain: their sampling_logp is 0.
    """
    once = sampling.temperature == 0
    for answer in found.values():
        answer.text = tokenizer.decode(answer.ids, skip_special_tokens=True)
        if once:
            answer.sampling_logp = [0.0] * len(answer.ids)
    return [[_copy(found[i, 0 if once else k]) for k in range(n)] for i in range(prompts)]


def _copy(answer: Answer) -> Answer:
    return replace(answer, ids=list(answer.ids), sampling_logp=list(answer.sampling_logp or ()), columns={})


async def read_anew(servers: Servers, url: str, route: str, payload: Any, path: str) -> None:
    """Have a server read the weights in a folder; again where that fails once. UserError where it cannot.

    Away where it does not answer, which is not to be told from one that is still reading.
    """
    for again in (True, False):
        try:
            await servers.ask(url, route, payload)
            return
        except Away as away:
            if away.status != 500:
                raise
            if not again:  # it is there, and says that it cannot
                raise UserError(
                    f"engine '{servers.name}': {url} could not read the weights in {path}: {away}",
                    "the server must see that folder: `map_from` and `map_to` say where it is there",
                ) from away


def gap(name: str, url: str, given: Sequence[float], weights: NewWeights, settings: ServersSettings) -> float:
    """Mean difference of a server's log-probs on the probe from the trainer's, in nats. UserError over `tolerance`."""
    if len(given) != len(weights.logp):
        raise UserError(f"engine '{name}': {url} gave {len(given)} log-probs where {len(weights.logp)} were asked for")
    found = sum(abs(a - b) for a, b in zip(given, weights.logp, strict=True)) / len(weights.logp)
    if not found <= settings.tolerance:
        raise UserError(
            f"engine '{name}': {url} does not hold the policy of optimiser step {weights.version}: on a short text "
            f"its log-probs are {found:.3g} nats per token off the trainer's (`tolerance: {settings.tolerance:g}`)",
            "it must serve this model, unquantised, with the folder of the weights in reach; nothing was learned of it",
        )
    return found


def _said(reply: Any) -> str:
    """The reason in an error of a server, in one line."""
    try:
        body = reply.json()
        body = body.get("error", body) if isinstance(body, dict) else body
        body = body.get("message", body) if isinstance(body, dict) else body
    except ValueError:
        body = reply.text
    return cut_short(" ".join(str(body).split()), 300)


def _say(text: str) -> None:
    print(f"warning: {masked(text)}", file=sys.stderr, flush=True)
