r"""The published files: where each comes from, how it is recognised, and who made it.

``sources.json`` pins them to one commit of the LLM-Adapters repository. A file is known by its git blob SHA-1,
``sha1("blob <size>\0" + content)``; size, rows and columns are ``None`` where only that is known.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One published file.

    Attributes:
        path: in the published layout, ``dataset/<Name>/test.json`` or ``ft-training_set/<name>.json``.
        url: its canonical address, at the pinned commit.
        sha1: the git blob SHA-1 of its content.
        size: bytes.
        rows: how many there are.
        columns: what the rows hold.
        shared_under: the licence under which the collection was published.
        licence: the licence of the set's own authors, where it is known for certain.
        citation: who made the set.
    """

    path: str
    url: str
    sha1: str
    size: int | None
    rows: int | None
    columns: tuple[str, ...] | None
    shared_under: str
    licence: str | None
    citation: str


@cache
def sources() -> dict[str, Source]:
    """Every published file by its path."""
    listed = json.loads(files("adapters_pl.data").joinpath("sources.json").read_text(encoding="utf-8"))
    base = f"https://raw.githubusercontent.com/{listed['repository']}/{listed['commit']}"
    found = {}
    for path, about in listed["files"].items():
        # A training mixture has no folder of its own: it is the collection's.
        made = listed["sets"].get(path.split("/")[1], {})
        found[path] = Source(
            path=path,
            url=f"{base}/{path}",
            sha1=about["sha1"],
            size=about["size"],
            rows=about["rows"],
            columns=tuple(about["columns"]) if about["columns"] else None,
            shared_under=listed["licence"],
            licence=made.get("licence"),
            citation=made.get("citation", listed["citation"]),
        )
    return found


def pinned_commit() -> str:
    """The commit that every address is pinned to."""
    return next(iter(sources().values())).url.split("/")[5]


def blob_sha1(path: Path) -> str:
    """The git blob SHA-1 of a file, read in pieces."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
