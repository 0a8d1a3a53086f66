"""A directory that appears as a whole, or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters_pl.inputs.errors import UserError, system_error
from adapters_pl.runs.run import locked


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
    target = Path(out).expanduser()
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
