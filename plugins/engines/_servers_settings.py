"""Settings of engines on servers: where these are, how patient to be with them, the key, and paths as they see them."""

from __future__ import annotations

import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import field_validator

from unified import Field, NewWeights, Settings, UserError


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
            if "@" in url or parts.query or parts.fragment:  # what they say may be a secret: it is not repeated
                hint = "without ? and #: " if "@" not in url else ""
                raise ValueError(f"{hint}a key has no place in a url: name its environment variable in `api_key_env`")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"a url begins with http:// or https:// and names a host, not {url!r}")
            try:
                _ = parts.port
            except ValueError as error:
                raise ValueError(f"{url!r} has no port from 0 to 65535") from error
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


def key_of(settings: ServersSettings) -> str:
    """The key that `api_key_env` names, without blanks around it; empty without. UserError where it can be none."""
    if settings.api_key_env is None:
        return ""
    key = os.environ.get(settings.api_key_env, "").strip()
    if not re.fullmatch(r"[!-~]+", key):
        what = "holds characters that no header takes" if key else "is empty"
        raise UserError(
            f"the environment variable {settings.api_key_env} {what}", f"it holds the key for {settings.urls[0]}"
        )
    return key


def path_there(settings: ServersSettings, weights: NewWeights) -> str:
    """The folder of the weights as the servers see it. UserError where `map_from` is not how it begins."""
    here = str(weights.folder)
    if not settings.map_from:
        return here
    if not here.startswith(settings.map_from):
        raise UserError(f"the weights lie in {here}, which does not begin with `map_from`: {settings.map_from}")
    return (settings.map_to or "") + here.removeprefix(settings.map_from)
