"""``study``: every cell of a grid of configurations as a run of its own, by any number of workers."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.commands.plan import PlanCLI
from adapters_pl.cli.configuration import find_own_modules
from adapters_pl.cli.main import DONE, USER_ERROR
from adapters_pl.cli.parser import attempt, explained, refuse_saved_adapter
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.tables import print_table
from adapters_pl.inputs.terminal import to_look_at
from adapters_pl.runs.run import DEFAULT_ROOT
from adapters_pl.studies.asked import Asked, read
from adapters_pl.studies.folder import TrialFolder
from adapters_pl.studies.ledger import FAILED, Ledger
from adapters_pl.studies.table import described, results_table
from adapters_pl.studies.trial import Child, Commands, Look
from adapters_pl.studies.worker import work


class _TrialCLI(PlanCLI):
    """The configuration of a trial, of which module, data and adapters are built."""

    needs_data = True
    built = ("model", "adapter", "data")


def check(asked: Asked) -> None:
    """Parse and build the configuration of every trial, or of trials with every value; nothing is loaded or written.

    Raises:
        UserError: one could not be trained; the message says which, and why.
    """
    for values in asked.samples():
        line = CommandLine.read("fit", asked.words(values))
        for key in ("run_dir", "print_config", "help", "help_all"):
            if line.has(key):
                raise UserError(f"study: --{key} is no key of a configuration; leave it out.")
        refuse_saved_adapter(line, "its trials are new trainings")
        find_own_modules(line)
        try:
            if not _TrialCLI(line).adapters:
                raise UserError("nothing to train: there is no adapter; name one, as in adapter: LoRA.")
        except Exception as error:
            if known := explained(error, "fit"):
                raise UserError(f"study {asked.name}, {described(values)}: {known}") from error
            raise


def start(words: Sequence[str], log: IO[bytes], lock: int) -> Child:
    """``adapters-pl`` with ``words`` in a process of its own, which a Ctrl-C does not reach by itself.

    Where the worker is killed it is told to save and to end (on Linux), and holds the trial's lock until it has.
    """
    command = [sys.executable, "-m", "adapters_pl", *words]
    follow = partial(_follow, os.getpid(), _libc()) if sys.platform == "linux" else None
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[lock],
        start_new_session=True,
        preexec_fn=follow,  # the worker has no second thread that could hold a lock when it forks
    )


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _follow(parent: int, libc: ctypes.CDLL) -> None:
    libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _say(line: str) -> None:
    print(to_look_at(line), flush=True)


def main(options: Namespace, debug: bool = False) -> int:
    """Run the trials of a study that are open; the exit code is 1 where one has failed."""
    return attempt("study", partial(_study, options), debug)


def _study(options: Namespace) -> int:
    asked = read(options.config, options.form, options.name, options.more)
    folder = Path(options.root or DEFAULT_ROOT) / asked.name
    if not (folder / "study.yaml").is_file():  # else it was looked at when the study began
        check(asked)
    ledger = Ledger(asked, folder, options.storage)
    ledger.open()
    if options.retry_failed:
        print(f"failed trials that are run again: {ledger.retry_failed()}")
    _say(f"study {asked.name}: {asked.trials} trials in {folder}")

    def run_trial(values: dict[str, object], trial: TrialFolder, look: Look) -> float:
        return Commands(asked.words(values), start).run(trial, look)

    work(ledger, run_trial, _say)
    slots = ledger.slots()
    print_table(results_table(asked.name, folder, slots))
    _say(f"runs: {folder}/trial-0 to trial-{asked.trials - 1}")
    failed = [slot for slot in slots if slot.state == FAILED]
    for slot in failed:
        _say(f"trial {slot.number} ({described(slot.values)}) failed: {slot.error}")
    if failed:
        print("run them again with --retry_failed")
    return USER_ERROR if failed else DONE
