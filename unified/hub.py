"""Whether the hub can be asked for a model: one that is not here is said so at once, where there is no network."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from unified.errors import UserError


def is_cached(reference: str) -> bool:
    """Whether a model of the hub has been fetched before; nothing is asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(reference, "config.json"), str)
    except ValueError:  # no id that the hub could have
        return False


def refuse_unreachable(reference: str) -> None:
    """UserError for a model that would have to be fetched, where the name of the hub's machine cannot be resolved.

    The hub's own client would try again for minutes before it says so. Nothing is looked up for a model in the cache,
    where the client is told to stay offline (it says at once what is missing), and behind a proxy.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies() or is_cached(reference):
        return
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(
            f"there is no folder {reference}, and the hub cannot be asked for a model of this name: no {host} found",
            f"relative paths start at {Path.cwd()}; without a network, models of the hub must be in its cache",
        ) from error
