"""Servers that sample: where they are, how they are asked, and what is done when one is away.

Requests of one call are under way side by side, over all servers that hold the weights. A request whose server went
away, or that was answered by other weights, is asked again; nothing that other weights have sampled is handed on.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx
from pydantic import field_validator

from unified import Field, LostEngine, NewWeights, Sampling, Settings, UserError, cut_short, masked

T = TypeVar("T")
#: replies of a server that may be other a moment later
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
#: times a server may be given the weights while one call is answered, before somebody else must be at it too
_TRIES = 5


class ServersSettings(Settings):
    """Where the servers are, what they serve, and how patient to be with them."""

    urls: list[str] = Field(
        min_length=1, description="http://HOST:PORT of every server, without a path; prompts are shared out over them"
    )
    model: str | None = Field(None, description="the name that the servers serve the model by; without, their only one")
    api_key_env: str | None = Field(None, description="environment variable that holds the key, sent as a bearer token")
    at_once: int = Field(64, ge=1, description="answers under way at the same time on one server")
    timeout: float = Field(600.0, gt=0, description="seconds to wait for one reply")
    connect_timeout: float = Field(10.0, gt=0, description="seconds to wait for a connection, and for a sign of life")
    on_lost: Literal["wait", "stop"] = Field(
        "wait", description="no server answers: wait for one and push the weights again, or stop with a checkpoint"
    )
    wait_seconds: float = Field(600.0, ge=0, description="on_lost: wait: seconds until the run stops after all")
    tolerance: float = Field(
        0.1, gt=0, description="nats per token, in the mean over a short text, by which servers and trainer may differ"
    )
    map_from: str | None = Field(None, description="how paths of pushed weights begin here, and on the servers ...")
    map_to: str | None = Field(None, description="... where the same disk is mounted elsewhere: they begin so")
    environment_proxies: bool = Field(
        False, description="go through the proxies, and use the certificates, that environment variables name"
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_more(cls, urls: Any) -> Any:
        return [urls] if isinstance(urls, str) else urls

    @field_validator("urls")
    @classmethod
    def _are_http(cls, urls: list[str]) -> list[str]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ValueError(f"a url begins with http:// or https:// and names a host, not {url!r}")
            if parts.username or parts.password:
                raise ValueError("a key has no place in a url: name its environment variable in `api_key_env`")
        plain = [url.rstrip("/").removesuffix("/v1") for url in urls]
        if len(set(plain)) < len(plain):
            raise ValueError("one server is named twice")
        return plain

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("api_key_env is the name of an environment variable, not the key itself")
        return name


class Away(Exception):  # noqa: N818 - the server is away, not this program
    """A server did not answer, or not as one that is ready."""


class Stale(Exception):  # noqa: N818 - the answer is, not this program
    """A server answered with other weights than it was given."""


class Refused(Exception):  # noqa: N818 - said by the server
    """A server said no: (status, why)."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"it replied {status}: {why}")
        self.status = status


@dataclass(frozen=True)
class Wanted:
    """One answer to sample: its place (prompt, number), the prompt, and the seed."""

    place: tuple[int, int]
    prompt: list[int]
    seed: int


class Servers:
    """Connections to all servers of one call; an async context manager.

    load(url): give a server the weights and make sure that it has them. holds(url): whether it has them still. Both
    raise Away where it does not answer.
    """

    def __init__(
        self,
        name: str,
        settings: ServersSettings,
        load: Callable[[Servers, str], Awaitable[None]],
        holds: Callable[[Servers, str], Awaitable[bool]],
    ) -> None:
        self.name, self.settings, self._load, self._holds = name, settings, load, holds
        times = httpx.Timeout(settings.timeout, connect=settings.connect_timeout, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(
            headers=_headers(settings), timeout=times, limits=limits, trust_env=settings.environment_proxies
        )
        self._turns = {url: asyncio.Semaphore(settings.at_once) for url in settings.urls}
        self._loaded: dict[str, int] = {}
        self._unsure: set[str] = set()

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, url: str, path: str, payload: Any = None, *, method: str = "POST") -> Any:
        """What a server replies, as JSON where it is. Away where it does not answer; Refused where it says no."""
        try:
            reply = await self._client.request(method, url + path, json=payload, follow_redirects=False)
        except (httpx.HTTPError, OSError) as error:
            raise Away(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if reply.status_code in _BUSY:
            raise Away(f"it replied {reply.status_code}: {_said(reply)}")
        if reply.status_code >= 300:
            raise Refused(reply.status_code, _said(reply))
        try:
            return reply.json()
        except ValueError:
            return reply.text

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
        """one(servers, url, wanted) of every answer that is wanted, by its place."""
        out: dict[tuple[int, int], T] = {}
        pending = list(wanted)
        while pending:
            away = await self._make_ready(self.settings.urls)
            ready = [url for url in self.settings.urls if url not in away]
            if not ready:
                await self._wait_for_one(away)
                continue
            shared = [(w, ready[i % len(ready)]) for i, w in enumerate(pending)]
            lost: dict[str, str] = {}
            found = await asyncio.gather(*(self._one(one, url, w, lost) for w, url in shared))
            fine = {url: await self._still(url) for url in ready if url not in lost}
            for (w, url), answer in zip(shared, found, strict=True):
                if answer is not None and fine.get(url, True):
                    out[w.place] = answer
            pending = [w for w in pending if w.place not in out]
            for url, why in lost.items():
                _say(f"engine '{self.name}': {url} was lost in the middle: {why}; its answers are asked for again")
        return out

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
                raise UserError(f"engine '{self.name}': {url}: {masked(str(refused))}") from refused

    async def _still(self, url: str) -> bool:
        """Whether a server still holds the weights, after it has answered."""
        try:
            return await self._holds(self, url)
        except Away:
            return True  # what it has answered was checked before, and each answer by itself where it tells

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
                f"engine '{self.name}': {url} does not take the weights: {masked(str(refused))}"
            ) from refused

    async def _wait_for_one(self, away: dict[str, str]) -> None:
        """Until some server answers and holds the weights again; LostEngine where none does in time."""
        settings, began = self.settings, time.monotonic()
        if len(away) < len(settings.urls):
            for url, why in away.items():
                _say(f"engine '{self.name}': {url} does not answer ({why}); the others go on without it")
            return
        what = f"engine '{self.name}': no server answers: " + "; ".join(f"{u}: {w}" for u, w in away.items())
        if settings.on_lost == "wait":
            _say(f"{what}; waiting for up to {settings.wait_seconds:g} s")
        while settings.on_lost == "wait" and time.monotonic() - began < settings.wait_seconds:
            away = await self._make_ready(settings.urls)
            if len(away) < len(settings.urls):
                back = ", ".join(url for url in settings.urls if url not in away)
                _say(f"engine '{self.name}': {back} is back, and holds the weights again")
                return
            await asyncio.sleep(min(1.0, settings.wait_seconds / 10))
        raise LostEngine(
            masked(what), "start a server again, and run the same command: the run goes on from its checkpoint"
        )


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


def path_there(settings: ServersSettings, weights: NewWeights) -> str:
    """The folder of the weights as the servers see it. UserError where `map_from` is not how it begins."""
    here = str(weights.folder)
    if not settings.map_from:
        return here
    if not here.startswith(settings.map_from):
        raise UserError(f"the weights lie in {here}, which does not begin with `map_from`: {settings.map_from}")
    return (settings.map_to or "") + here.removeprefix(settings.map_from)


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


def _headers(settings: ServersSettings) -> dict[str, str]:
    if settings.api_key_env is None:
        return {}
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise UserError(
            f"the environment variable {settings.api_key_env} is empty", f"it holds the key for {settings.urls[0]}"
        )
    return {"Authorization": f"Bearer {key}"}


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
