"""Checkpoints that are directories: every process writes its own shards, and any number of processes reads them.

``part-<rank>.pt`` holds a process's rows of every sharded tensor, ``rest.pt`` everything else. The files hold tensors
and plain data, and are read as such.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.untrusted import reason_of

REST = "rest.pt"
#: Stands in ``rest.pt`` for a tensor that the parts hold, with its key there.
_STORED = "__stored_in_parts__"


def is_sharded(path: Path) -> bool:
    """Whether ``path`` is a checkpoint of this kind."""
    return (path / REST).is_file()


def save(checkpoint: dict[str, Any], path: Path, rank: int, all_of: Callable[[bool], bool]) -> None:
    """Write ``checkpoint`` at ``path``; called by every process.

    ``path`` becomes a link to a directory of its own, which changes in one step when all of it is written: what was
    there before is whole until then.

    Args:
        checkpoint: the same on every process but for the shards, which are divided by their first dimension.
        path: where it is to be found.
        rank: of this process.
        all_of: waits for all processes, and says whether each gave it true.

    Raises:
        OSError: a process could not write; on all of them, and what was at ``path`` is still there.
    """

    def on_all_ranks(work: Callable[[], Any], here: bool = True) -> None:
        failed: Exception | None = None
        try:
            if here:
                work()
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises both
            failed = error
        if not all_of(failed is None):
            if rank == 0:
                shutil.rmtree(target, ignore_errors=True)
            raise failed or OSError(errno.EIO, "another process could not write its part", str(target))

    shards: dict[str, Tensor] = {}
    rest = _take(checkpoint, "", shards)
    before = path.resolve() if path.exists() else None
    target = path.with_name(f"{path.name}-{checkpoint.get('global_step', 0)}")
    if before == target:
        target = target.with_name(f"{target.name}b")

    def begin() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)

    def end() -> None:
        torch.save({"parts": torch.distributed.get_world_size(), "checkpoint": rest}, target / REST)
        link = path.with_name(f".{path.name}.link")
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(link, path)
        if before is not None and before.is_dir():
            shutil.rmtree(before, ignore_errors=True)

    on_all_ranks(begin, rank == 0)
    on_all_ranks(lambda: torch.save(shards, target / f"part-{rank}.pt"))
    on_all_ranks(end, rank == 0)


def load(path: Path) -> dict[str, Any]:
    """The checkpoint at ``path`` with whole tensors.

    Raises:
        UserError: a part is missing or damaged.
    """
    try:
        stored = _read(path / REST)
        parts = [_read(path / f"part-{rank}.pt") for rank in range(stored["parts"])]
        return _put_back(stored["checkpoint"], parts)
    except Exception as error:  # torch raises differently for every way in which a file can be wrong
        raise UserError(f"{path}: this sharded checkpoint is not whole ({reason_of(error)}); take another.") from error


def _read(file: Path) -> Any:
    if not file.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{file.name} is missing")
    return torch.load(file, map_location="cpu", weights_only=True)


def _take(tree: Any, path: str, shards: dict[str, Tensor]) -> Any:
    """``tree`` with a note in place of every sharded tensor, whose shard goes into ``shards``."""
    if isinstance(tree, DTensor):
        shards[path] = tree.to_local().detach().cpu().clone()
        return {_STORED: path}
    if isinstance(tree, dict):
        return {key: _take(value, f"{path}/{key}", shards) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_take(value, f"{path}/{i}", shards) for i, value in enumerate(tree)]
    return tree


def _put_back(tree: Any, parts: list[dict[str, Tensor]]) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {_STORED}:
            return torch.cat([part[tree[_STORED]] for part in parts])
        return {key: _put_back(value, parts) for key, value in tree.items()}
    return [_put_back(value, parts) for value in tree] if isinstance(tree, list) else tree
