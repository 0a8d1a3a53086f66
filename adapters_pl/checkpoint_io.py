"""Writing checkpoints so that a killed process or a full disk never costs the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from adapters_pl import sharded_checkpoint
from adapters_pl.errors import UserError, first_line
from adapters_pl.runs import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and only then puts it there.

    Strategies that write one file call this on rank 0 alone. An error there would leave the other processes
    waiting for ever, so where there are several it is kept in ``failure`` until all of them can stop together
    (see :class:`~adapters_pl.guards.Guards`).
    """

    def __init__(self) -> None:
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` at ``path``, whole or not at all.

        Raises:
            UserError: the disk is full or cannot be written; what was at ``path`` is still there.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = _system_error(error)
            if reason is None:
                raise
            there = sorted(path.parent.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
            kept = f"the last good one is {there[-1]}" if there else "none had been written before"
            failure = (
                f"{path.parent}: {path.name} could not be written at step {checkpoint.get('global_step')} "
                f"({reason}); {kept}\nMake room there, then: adapters-pl fit --ckpt_path last"
            )
            if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
                raise UserError(failure) from error
            self.failure = failure

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at ``path``, be it a file or the shards that several processes wrote."""
        if sharded_checkpoint.is_sharded(Path(path)):
            return sharded_checkpoint.load(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


def _system_error(error: BaseException) -> str | None:
    """What the system said; PyTorch's writer reports its own confusion after it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return (cause.strerror or first_line(cause)) if cause is not None else None
