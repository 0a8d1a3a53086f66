"""A worker of a study whose trials are forked off it, and which kills itself when a file of a trial is there.

``python tests/helpers/study_worker.py FILE WORDS...``: ``FILE`` is a pattern below the study's folder, or ``-``. It is
run by ``tests.helpers.warm``, so that neither it nor its trials import anything.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch

from adapters_pl.cli.commands import study
from adapters_pl.cli.main import main
from adapters_pl.inputs import terminal
from adapters_pl.studies import worker

FORK = multiprocessing.get_context("fork")


class Child:
    """A forked process with the part of ``subprocess.Popen`` that a trial needs."""

    def __init__(self, words: Sequence[str], log: IO[bytes], pattern: str) -> None:
        self.pattern = pattern
        self.process = FORK.Process(target=_run, args=(list(words), log.fileno(), os.getpid()))
        self.process.start()

    def wait(self, timeout: float | None = None) -> int:
        while True:
            self.process.join(0.02)
            if self.pattern != "-" and any(Path().glob(self.pattern)):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.process.exitcode is not None:
                return self.process.exitcode
            if timeout is not None:
                raise subprocess.TimeoutExpired("trial", timeout)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def _run(words: list[str], log: int, parent: int) -> None:
    study._follow(parent, study._libc())
    # A fork has lost the pool of threads. One thread makes a new one; of two that came first, one would find none.
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(log, 1)
    os.dup2(log, 2)
    terminal.prepare()
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    pattern, *words = sys.argv[1:]
    study.start = lambda words, log, lock: Child(words, log, pattern)
    worker.PATIENCE = 0.05
    sys.exit(main(["study", *words]))
