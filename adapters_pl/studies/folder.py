"""A trial's directory: an ordinary run's, with ``trial.json`` and a lock."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

from adapters_pl.evaluation.metrics import mean_of_sets
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.untrusted import has_shape, read_json
from adapters_pl.runs.at_once import NO_LOCKS
from adapters_pl.runs.run import Run


class TrialFolder:
    """``<study>/trial-<number>/``.

    Its lock is held by the worker that runs the trial, and by the process that it has started for it: that one inherits
    the open file. So the lock tells, on one machine and where a file system hands locks on, whether anything still
    works in the directory, and is free at once when nothing does, however it ended.
    """

    def __init__(self, study: Path, number: int) -> None:
        self.path = study / f"trial-{number}"
        self.number = number
        self._descriptor: int | None = None
        #: Whether the file system knows locks.
        self.locks = True

    def take(self) -> bool:
        """Take the lock; gives whether nobody else has it."""
        self.path.mkdir(exist_ok=True)
        descriptor = os.open(self.path / ".trial.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                raise
            self.locks = False
        self._descriptor = descriptor
        return True

    @property
    def descriptor(self) -> int:
        """The open file that holds the lock, for a child to inherit."""
        assert self._descriptor is not None
        return self._descriptor

    def release(self) -> None:
        """Let go of the lock. A child that still runs keeps it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, study: str, values: dict[str, Any], state: str, error: str | None = None) -> None:
        """Write ``trial.json``.

        Args:
            study: its name.
            values: of the trial, by configuration key.
            state: ``running``, ``complete``, ``pruned`` or ``failed``.
            error: one line on why it failed.
        """
        content = {"study": study, "number": self.number, "values": values, "state": state, "error": error}
        Run(self.path).write("trial.json", content)

    def written(self) -> dict[str, Any]:
        """What ``trial.json`` says, empty where there is none or it cannot be read."""
        try:
            return read_json(self.path / "trial.json")
        except UserError:
            return {}

    def accuracies(self) -> dict[str, dict[str, Any]]:
        """The figures of the test by set, empty before it has ended: a test writes those of all its sets at once."""
        sets = Run(self.path).results().get("sets", {})
        return {
            name: figures
            for name, figures in sets.items()
            if has_shape(figures, {"accuracy": (int, float)}) and 0 <= figures["accuracy"] <= 1
        }

    @property
    def checkpoint(self) -> Path:
        """Where training goes on, if it is there."""
        return Run(self.path).checkpoints / "last.ckpt"


def mean_accuracy(sets: dict[str, dict[str, Any]]) -> float | None:
    """The mean of the sets' accuracies in 0..1, each set weighing the same; ``None`` where there is none."""
    return mean_of_sets({name: figures["accuracy"] for name, figures in sets.items()}, sets)
