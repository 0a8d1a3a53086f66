"""Writing checkpoints so that a killed process or a full disk never costs the one before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from adapters_pl.compat import dcp as sharded_checkpoint
from adapters_pl.inputs.errors import UserError
from adapters_pl.runs.run import GO_ON, replacing, writing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and only then puts it there.

    Strategies that write one file call this on rank 0 alone. An error there would leave the other processes
    waiting for ever, so where there are several it is kept in ``failure`` until all of them can stop together
    (see :class:`~adapters_pl.training.guards.Guards`).
    """

    def __init__(self) -> None:
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` at ``path``, whole or not at all.

        Raises:
            UserError: the disk is full or cannot be written; what was at ``path`` is still there.
        """
        path = Path(path)
        with keeping_failure(self, path, checkpoint):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at ``path``, be it a file or the shards that several processes wrote."""
        if sharded_checkpoint.is_sharded(Path(path)):
            return sharded_checkpoint.load(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


@contextmanager
def keeping_failure(io: Any, path: Path, checkpoint: dict[str, Any]) -> Iterator[None]:
    """Word what the system refuses; of several processes each keeps it until all can stop together."""
    try:
        with writing(path, path.parent, GO_ON, f" at step {checkpoint.get('global_step')}"):
            yield
    except UserError as error:
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            raise
        io.failure = str(error)
