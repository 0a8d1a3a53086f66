"""Files and directories that appear as a whole or not at all, and locks between those that write them."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from adapters_pl.inputs.errors import UserError, system_error

#: What a file system says that knows no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once all of it is on the disk, and is removed if an error comes first.

    Until then ``path`` stays as it is. What a killed process leaves behind is hidden and ends in its number, so
    that nothing takes it for the file; :func:`sweep` removes it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    if hasattr(os, "O_DIRECTORY"):  # else a folder cannot be opened, and the system sees to its entries itself
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock at ``path``; gives whether it is held, which it always is after waiting.

    The lock of a process ends with it. On a file system that knows no locks every process holds it.
    """
    lock, held = FileLock(path), True
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        held = False
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield held
    finally:
        lock.release()


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in ``folder``."""
    for path in folder.glob(".*"):
        if path.is_file() and path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


def directory_at_once(
    out: str | Path,
    write: Callable[[Path], Any],
    what: str,
    may_replace: Callable[[Path], bool] = lambda path: False,
) -> Path:
    """Let ``write`` fill a directory that appears as ``out`` when it is whole, or not at all.

    Until then it is hidden and ends in the number of its process. What a killed one left is removed.

    Args:
        out: what ``--out`` says.
        write: given the hidden directory.
        what: is written, for messages: ``export``.
        may_replace: whether a directory that is there and not empty is an earlier one, whose place this one takes.

    Raises:
        UserError: there is something else, or the system refused.
    """
    target = Path(os.path.expanduser(out))
    if target.name in ("", ".."):
        target = Path(os.path.abspath(target))
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
        earlier = taken and target.is_dir() and may_replace(target)
    except OSError as error:  # a name that is too long, a link to itself
        raise UserError(f"--out {out} cannot be made: {error.strerror}.") from error
    if taken and not earlier:
        raise UserError(f"--out {out} exists and is not empty; name another directory, nothing is overwritten.")
    folder = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")) as alone:
            if not alone:
                raise UserError(f"another {what} writes --out {out}; wait until it has ended.")
            for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
                if left.suffix[1:].isdigit():
                    shutil.rmtree(left)
            try:
                folder.mkdir()
                (folder / "new").mkdir()
                write(folder / "new")
                if earlier:
                    os.replace(target, folder / "old")
                try:
                    os.replace(folder / "new", target)
                except OSError:
                    if earlier:
                        os.replace(folder / "old", target)
                    raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except UserError:
        raise
    except Exception as error:
        if (refused := system_error(error)) is None:
            raise
        raise UserError(
            f"--out {out} cannot be made ({refused.strerror}); nothing is left of it. "
            "Mend that, or name another directory."
        ) from error
    return target
