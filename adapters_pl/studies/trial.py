"""One trial: an ordinary ``fit`` and an ordinary ``test``, each a process of its own."""

from __future__ import annotations

import csv
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from adapters_pl.inputs.errors import shortened
from adapters_pl.inputs.masking import masked, masked_words
from adapters_pl.studies.folder import TrialFolder, mean_accuracy

#: What the processes of a trial print, one after the other.
LOG = "output.log"
#: Seconds between two looks at a process: for the heartbeat, and what the pruner has to know.
POLL = 1.0
#: What a pruner compares; it is negated, as an accuracy is better where it is higher.
WATCHED = "val_loss"
_TAIL = 1 << 16


class Child(Protocol):
    """The part of ``subprocess.Popen`` that a trial needs."""

    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


#: Starts ``adapters-pl`` with the words, its output in the file, with the open file of the trial's lock inherited.
Start = Callable[[Sequence[str], IO[bytes], int], Child]
#: Called every :data:`POLL` seconds with what was measured since: (step, value); says whether to stop the trial.
Look = Callable[[list[tuple[int, float]]], bool]


class Failed(Exception):
    """A command of the trial ended with an error; the message is one line."""


class Pruned(Exception):
    """The trial was stopped because others did better."""


@dataclass
class Commands:
    """How a trial is run.

    Attributes:
        words: what follows ``fit``, and ``test``.
        start: starts a process.
    """

    words: Sequence[str]
    start: Start

    def run(self, folder: TrialFolder, look: Look) -> float:
        """Train and test in ``folder``, from where an earlier attempt has stopped.

        Returns:
            The mean accuracy of the test sets, in 0..1.

        Raises:
            Failed: a command ended with an error.
            Pruned: ``look`` said so.
        """
        accuracy = mean_accuracy(folder.accuracies())
        if accuracy is not None:  # tested already, by a worker that was killed before it could say so
            return accuracy
        begun = ["--ckpt_path", str(folder.path)]
        self._wait(
            folder, ["fit", *self.words, *(begun if folder.checkpoint.exists() else ["--run_dir", begun[1]])], look
        )
        self._wait(folder, ["test", *self.words, *begun], look)
        accuracy = mean_accuracy(folder.accuracies())
        if accuracy is None:
            raise Failed(f"the test left no figures in {folder.path / 'results.json'}")
        return accuracy

    def _wait(self, folder: TrialFolder, words: Sequence[str], look: Look) -> None:
        """Run one command to its end."""
        measured = _measured(folder.path / "metrics.csv")
        with (folder.path / LOG).open("ab") as log:
            log.write(f"$ {shlex.join(['adapters-pl', *masked_words(words)])}\n".encode())
            log.flush()
            child = self.start(words, log, folder.descriptor)
            try:
                while (code := _code(child)) is None:
                    if look(next(measured)):
                        raise Pruned
            except BaseException:
                _end(child)
                raise
        if code:
            raise Failed(_reason(folder.path / LOG, words[0], code))


def _code(child: Child) -> int | None:
    try:
        return child.wait(timeout=POLL)
    except subprocess.TimeoutExpired:
        return None


def _end(child: Child) -> None:
    """End a process; it saves its checkpoint first, unless this one is interrupted again."""
    child.terminate()
    try:
        child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise


def _reason(log: Path, command: str, code: int) -> str:
    """One line on why ``command`` ended with ``code``: the error that it printed, or the signal that ended it."""
    if code < 0:
        return f"{command} was ended by signal {-code}{' (too little memory?)' if code == -9 else ''}; see {log}"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "internal error:"))]
    said = (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")
    return shortened(masked(f"{command}: {said}"))


def _measured(file: Path) -> Iterator[list[tuple[int, float]]]:
    """What is new in the column :data:`WATCHED` of ``metrics.csv`` each time, negated."""
    last = -1
    while True:
        found = []
        if file.is_file():
            with file.open(encoding="utf-8", newline="") as rows:
                for row in csv.DictReader(rows):
                    step, value = row.get("step") or "", row.get(WATCHED)
                    if value and step.isdigit() and int(step) > last:
                        found.append((int(step), -float(value)))
        last = max((step for step, _ in found), default=last)
        yield found
