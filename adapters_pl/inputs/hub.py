"""The hub, asked without waiting for it where it cannot answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache

from adapters_pl.inputs.errors import UserError


def unreachable() -> str | None:
    """Why the hub's host has no address here, or nothing; with a proxy it is the proxy's affair."""
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return None if getproxies() else f"{host}: {error.strerror}"
    return None


@contextmanager
def at_hand(*settings: Any) -> Iterator[None]:
    """Within it the hub's clients take what is in their caches, if the hub has no address here: they would try on.

    Args:
        settings: modules that hold a copy of the switch, as ``datasets.config`` does.
    """
    if constants.HF_HUB_OFFLINE or not unreachable():
        yield
        return
    holders = (constants, *settings)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value


def refuse_unreachable(name: str, file: str, revision: str | None = None) -> None:
    """Fail at once where ``file`` of the hub id ``name`` can neither be read from the cache nor be asked for.

    Raises:
        UserError: there is no network, and it was never downloaded.
    """
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, file, revision=revision), str):
        return
    if reason := unreachable():
        raise UserError(f"'{name}': no such directory, and the hub cannot be reached to download it ({reason}).")
