"""The random state of all processes, in a form that a checkpoint may hold without a pickle."""

from __future__ import annotations

import io
import random
import zlib
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> list[Any]:
    """The process's random state: the generators' words as bytes, and the numbers that go with them."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    parts = [np.array(words, np.uint32).tobytes(), np.asarray(keys).tobytes(), torch.get_rng_state().numpy().tobytes()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return [parts, [version, gauss], [kind, place, has_gauss, cached]]


def set_random_state(state: list[Any], device: torch.device) -> None:
    """Go on with the numbers that come after ``state``, which :func:`random_state` gave."""
    (words, keys, cpu, *gpu), (version, gauss), (kind, *rest) = state
    random.setstate((version, tuple(np.frombuffer(words, np.uint32).tolist()), gauss))
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))
    torch.set_rng_state(torch.frombuffer(bytearray(cpu), dtype=torch.uint8))
    if device.type == "cuda" and gpu:
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(gpu[0]), dtype=torch.uint8), device)


def together(mine: list[Any]) -> dict[str, Any]:
    """The states of all processes as a tensor and numbers; called by every process.

    Ten kilobytes of each would be much beside a small adapter: what is the same in all of them is stored once.
    """
    states: list[Any] = [mine]
    if torch.distributed.is_initialized():
        states = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, mine)
    content = zlib.compress(b"".join(part for parts, *_ in states for part in parts))
    return {
        "bytes": torch.frombuffer(bytearray(content), dtype=torch.uint8),
        "lengths": [[len(part) for part in parts] for parts, *_ in states],
        "numbers": [numbers for _, *numbers in states],
    }


def processes(stored: dict[str, Any]) -> int:
    """How many processes' states :func:`together` has put together."""
    return len(stored["lengths"])


def one_of(stored: dict[str, Any], rank: int) -> list[Any]:
    """The state of one of the processes in ``stored``, which :func:`together` gave."""
    content = io.BytesIO(zlib.decompress(stored["bytes"].numpy().tobytes()))
    parts = [[content.read(length) for length in lengths] for lengths in stored["lengths"]]
    return [parts[rank], *stored["numbers"][rank]]
