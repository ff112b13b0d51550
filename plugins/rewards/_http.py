"""Asking a server over HTTP: JSON in and out, with a time limit, and again after a while where it is busy or away."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import field_validator

from unified import Field, Settings, UserError, masked

T = TypeVar("T")
#: answers of a server that may be other a moment later
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LARGEST_REPLY = 64_000_000  # bytes


class ServerSettings(Settings):
    """Where a server is, and how patient to be with it."""

    url: str = Field(description="where requests go: http://HOST:PORT/PATH; nothing is ever sent to another host")
    api_key_env: str | None = Field(None, description="environment variable that holds the key, sent as a bearer token")
    timeout: float = Field(60.0, gt=0, description="seconds to wait for one reply")
    retries: int = Field(4, ge=0, description="times to ask again where the server is busy, away or late")
    backoff: float = Field(1.0, ge=0, description="seconds before the first of them; doubled for each that follows")
    at_once: int = Field(16, ge=1, description="requests under way at the same time")
    environment_proxies: bool = Field(
        False, description="go through the proxies, and use the certificates, that environment variables name"
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"a url begins with http:// or https:// and names a host, not {url!r}")
        if parts.username or parts.password:
            raise ValueError("a key has no place in a url: name its environment variable in `api_key_env`")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("api_key_env is the name of an environment variable, not the key itself")
        return name


class Failed(Exception):  # noqa: N818 - the server failed, not this program
    """A request that was not answered, with the reason."""


def post(settings: ServerSettings, path: str, payload: Any) -> Any:
    """The JSON that the server replies. Failed where, after all retries, it gave none.

    Nothing goes anywhere but to the server of the settings: redirects are not followed, and without
    `environment_proxies` neither proxies nor a netrc file are looked at.
    """
    import httpx2 as httpx

    headers = _headers(settings)
    reason = ""
    with httpx.Client(headers=headers, timeout=settings.timeout, trust_env=settings.environment_proxies) as client:
        for attempt in range(settings.retries + 1):
            if attempt:
                time.sleep(settings.backoff * 2 ** (attempt - 1))
            try:
                status, text = _replied(client, settings, path, payload)
                if status == 200:
                    return json.loads(text)
                reason = f"it replied {status}: {text[:200].decode(errors='replace')}"
                if status not in _BUSY:
                    break
            except (httpx.HTTPError, TimeoutError) as error:
                reason = f"{type(error).__name__}: {error}"
            except (ValueError, RecursionError):
                raise Failed("it replied something that is no JSON") from None
    raise Failed(masked(reason))


def _replied(client: Any, settings: ServerSettings, path: str, payload: Any) -> tuple[int, bytes]:
    """(status, body). TimeoutError for a reply that drips in for longer than `timeout`; Failed for one too large."""
    end, body = time.monotonic() + settings.timeout, bytearray()
    with client.stream("POST", settings.url + path, json=payload, follow_redirects=False) as reply:
        for part in reply.iter_bytes():
            body += part
            if len(body) > _LARGEST_REPLY:
                raise Failed(f"it replied more than {_LARGEST_REPLY:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"no whole reply in {settings.timeout:g} s")
        return int(reply.status_code), bytes(body)


def side_by_side(settings: ServerSettings, work: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
    """work(item) for every item, several at a time, in the order of the items; a `Failed` stands in its own place.

    Raises:
        UserError: every request failed.
    """

    def tried(item: T) -> Any:
        try:
            return work(item)
        except Failed as failed:
            return failed

    with ThreadPoolExecutor(max_workers=settings.at_once) as pool:
        out = list(pool.map(tried, items))
    if out and all(isinstance(one, Failed) for one in out):
        raise UserError(f"the server at {settings.url} answered none of {len(out)} requests: {out[0]}")
    return out


def _headers(settings: ServerSettings) -> dict[str, str]:
    if settings.api_key_env is None:
        return {}
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise UserError(
            f"the environment variable {settings.api_key_env} is empty", f"it holds the key for {settings.url}"
        )
    return {"Authorization": f"Bearer {key}"}
