r"""The published files: where each comes from, how it is recognised, and where it is found or downloaded.

``sources.json`` pins them to one commit of the LLM-Adapters repository. A file is known by its git blob SHA-1,
``sha1("blob <size>\0" + content)``; size, rows and columns are ``None`` where only that is known.

A file is looked for where it is said to be, then in the data root, then in the cache. A download goes into
``<name>.part`` beside its place in the cache, is checked against the registered SHA-1, and is renamed only then; what
an interrupted one left behind is gone on with.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException, HTTPResponse
from importlib import resources
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from adapters_pl.answers.sets import COLLECTION, SPECS
from adapters_pl.compat.lightning import rank_zero_info
from adapters_pl.inputs.cache import CACHE_VARIABLE, cache_folder, offline
from adapters_pl.inputs.errors import UserError

ROOT_VARIABLE = "ADAPTERS_PL_DATA"

#: How often a connection that breaks is taken up again before the user is asked to.
ATTEMPTS = 3
TIMEOUT = 30.0
_PIECE = 1 << 20
_announced: set[tuple[Path, str]] = set()


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
    """Every published file by its path; what is said of its set stands in that set's row."""
    listed = json.loads(resources.files("adapters_pl.data").joinpath("sources.json").read_text(encoding="utf-8"))
    base = f"https://raw.githubusercontent.com/{listed['repository']}/{listed['commit']}"
    found = {}
    for path, about in listed["files"].items():
        # A training mixture has no folder of its own: it is the collection's.
        spec = SPECS.get(path.split("/")[1])
        found[path] = Source(
            path=path,
            url=f"{base}/{path}",
            sha1=about["sha1"],
            size=about["size"],
            rows=about["rows"],
            columns=tuple(about["columns"]) if about["columns"] else None,
            shared_under=listed["licence"],
            licence=spec.licence if spec else None,
            citation=spec.citation if spec else COLLECTION,
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


class MissingFile(UserError):
    """A published file is neither at hand nor to be had; what is at hand may still be enough."""


def cached_path(relative: str) -> Path:
    """Where the cache keeps a published file; below the commit, the layout is the published one."""
    return cache_folder() / "data" / pinned_commit() / relative


def local_path(root: str | None, relative: str) -> Path:
    """``relative`` below ``root``, else below ``ADAPTERS_PL_DATA``, else below the current folder."""
    return Path(os.path.expanduser(root or os.environ.get(ROOT_VARIABLE) or ".")) / relative


def find_file(root: str | None, relative: str, wanted_by: str, files: Mapping[str, str] | None = None) -> Path:
    """The file ``relative`` of the published layout, fetched if it has to be.

    Args:
        root: the folder that holds the published layout; else the environment variable's, else the current one.
        relative: the file's path in that layout.
        wanted_by: the dataset that asks, for the messages.
        files: where files lie that are not in that layout, by their path in it; they come before everything else.

    Raises:
        MissingFile: it is nowhere; the message says where it was looked for and how to name the root.
        UserError: ``files`` names it where it is not, what was found in the cache or downloaded is not the registered
            file, or the cache cannot be written.
    """
    if files and relative in files:
        named = Path(os.path.expanduser(files[relative]))
        if not named.is_file():
            raise UserError(f"{wanted_by}: no file {named}, which data.files names for '{relative}'; check the path.")
        return named
    path = local_path(root, relative)
    if path.is_file():
        return path
    source = sources().get(relative)
    remedy = f"Set --data.root (or {ROOT_VARIABLE}) to the folder that holds '{relative}'"
    if source is None:
        raise MissingFile(f"{wanted_by}: no file {path}. {remedy}.")
    cached = cached_path(relative)
    if cached.is_file() and blob_sha1(cached) == source.sha1:
        return cached
    damaged = f", and {cached} is not the published file" if cached.is_file() else ""
    try:
        return download(source, cached)
    except MissingFile as error:
        raise MissingFile(f"{wanted_by}: no file {path}{damaged}. {remedy}; {error}") from error


def check_published(path: Path, relative: str, wanted_by: str) -> str:
    """The SHA-1 of the file read for ``relative``; if it is not the published file's, that is said once."""
    sha1 = blob_sha1(path)
    source = sources().get(relative)
    if source is not None and sha1 != source.sha1 and (path, sha1) not in _announced:
        _announced.add((path, sha1))
        rank_zero_info(f"{wanted_by}: {path} is not the published file (SHA-1 {sha1[:12]}, not {source.sha1[:12]})")
    return sha1


def download(source: Source, target: Path, announce: Callable[[str], object] = rank_zero_info) -> Path:
    """Bring a published file to ``target``, whole and verified or not at all.

    Raises:
        MissingFile: downloads are forbidden, the address cannot be reached, or the connection broke again and again.
        UserError: what came is not the registered file, or the folder cannot be written.
    """
    if switch := offline():
        raise MissingFile(f"{switch} forbids downloading {source.url}.")
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Processes of one run ask at the same time; one of them downloads.
        with FileLock(f"{part}.lock"):
            if target.is_file() and blob_sha1(target) == source.sha1:
                return target
            announce(f"downloading {source.url}")
            resumed = part.is_file()
            _receive(source, part)
            if resumed and blob_sha1(part) != source.sha1:
                part.unlink()  # the older part was of something else
                _receive(source, part)
            if (came := blob_sha1(part)) != source.sha1:
                part.unlink()
                raise UserError(
                    f"{source.url} is not the registered file: its SHA-1 is {came}, not {source.sha1}. Nothing was "
                    f"kept; try again, or put '{source.path}' below --data.root yourself."
                )
            os.replace(part, target)
            return target
    except OSError as error:
        raise UserError(
            f"the cache {target.parent} cannot be written ({error.strerror or error}): name another folder with "
            f"{CACHE_VARIABLE}, or put '{source.path}' below --data.root."
        ) from error


def _receive(source: Source, part: Path) -> None:
    """Append to ``part`` what is still lacking."""
    reason = ""
    for _ in range(ATTEMPTS):
        have = part.stat().st_size if part.is_file() else 0
        if source.size is not None and have >= source.size:
            return
        headers = {"User-Agent": "adapters-pl"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            answer: HTTPResponse = urlopen(Request(source.url, headers=headers), timeout=TIMEOUT)
        except HTTPError as error:
            if error.code == 416 and have:  # nothing lies beyond what is here
                return
            reason = f"answers {error.code} {error.reason}"
            if error.code < 500:
                break
            continue
        except (OSError, HTTPException) as error:
            reason = f"cannot be reached ({getattr(error, 'reason', None) or error})"
            continue
        with answer, part.open("ab" if answer.status == 206 else "wb") as file:
            expected = answer.headers.get("Content-Length")
            received = 0
            while piece := _read(answer):
                file.write(piece)
                received += len(piece)
        if expected is None or received == int(expected):
            return
        reason = f"broke off after {part.stat().st_size:,} bytes, which are kept: run again to go on"
    raise MissingFile(f"{source.url} {reason}.")


def _read(answer: HTTPResponse) -> bytes:
    """What has come, as soon as it has: a connection that breaks gives no more, and takes nothing back."""
    try:
        return answer.read1(_PIECE)
    except HTTPException as error:
        return getattr(error, "partial", b"")
    except OSError:
        return b""
