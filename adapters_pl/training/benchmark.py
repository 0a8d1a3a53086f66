"""How long a training step takes, beside the floor of the same base and beside peft with transformers' Trainer.

Every arm is a process of its own that stays: it loads its base once, and then takes a few steps whenever it is its
turn. So all arms meet the same disturbances of the machine, and ratios are taken between neighbours.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from lightning.pytorch import seed_everything

from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.training.benchmark_arms import ARMS, Finished, Job, Pace, StepTime

#: Steps of each arm that are not counted: the first ones allocate, and fill caches.
WARMUP = 2


class _Resident:
    """An arm in a process of its own."""

    def __init__(self, name: str, build: Callable[[int], Job], steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(name, build, steps, theirs), daemon=True)
        # Ctrl-C reaches the whole group of processes; the one that measures ends the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def received(self) -> tuple[list[StepTime], int]:
        """The steps that were asked for, and the most memory in bytes; raises ``UserError`` for what went wrong."""
        try:
            answer = self._connection.recv()
        except EOFError:
            raise UserError(f"bench: the process of {self.name} has ended; is there memory for all arms?") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def take(self, steps: int) -> tuple[list[StepTime], int]:
        """The times of ``steps`` steps, which begin now."""
        self._connection.send(steps)
        return self.received()

    def dismiss(self) -> None:
        """Let the process end by itself after its step."""
        with suppress(OSError):
            self._connection.send(None)

    def end(self) -> None:
        """Wait until the process has ended, or kill it: Lightning's loop does not heed a mere SIGTERM."""
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(name: str, build: Callable[[int], Job], steps: int, connection: Connection) -> None:
    """What the process of an arm does; what libraries print in it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        job = build(steps)
        seed_everything(job.seed, verbose=False)
        ARMS[name](job, Pace(connection))
    except (Finished, EOFError):
        pass
    except UserError as error:
        connection.send(error)
    except Exception as error:
        connection.send(UserError(f"bench: {name} failed: {type(error).__name__}: {first_line(error)}"))


def measure(build: Callable[[int], Job], arms: Sequence[str], rounds: int, steps: int) -> dict[str, Any]:
    """Let ``arms`` take turns.

    Args:
        build: makes the job of an arm, given the number of optimizer steps; called in the arm's process.
        arms: keys of ``ARMS``; the ratios are of ``adapters-pl`` to each of the others.
        rounds: turns of each arm.
        steps: optimizer steps in a turn.

    Returns:
        ``arms``: for each, medians of ``step_seconds``, of its ``parts`` and of ``tokens_per_second`` (real tokens),
        the share of ``padding``, ``peak_bytes`` and the mean ``loss`` of the counted steps; ``ratios``: for each other
        arm, ``seconds`` per real token of ours over theirs as ``[median, lowest, highest]`` of the rounds, and
        ``memory``.

    Raises:
        UserError: an arm could not be built, or failed.
    """
    residents: list[_Resident] = []
    times: dict[str, list[list[StepTime]]] = {arm: [] for arm in arms}
    peaks = dict.fromkeys(arms, 0)
    try:
        for arm in arms:
            residents.append(_Resident(arm, build, WARMUP + rounds * steps))
        for resident in residents:
            resident.received()
            resident.take(WARMUP)
        for turn in range(rounds):
            for resident in residents if turn % 2 == 0 else reversed(residents):
                taken, peak = resident.take(steps)
                times[resident.name].append(taken)
                peaks[resident.name] = max(peaks[resident.name], peak)
    finally:
        for resident in residents:
            resident.dismiss()
        for resident in residents:
            resident.end()
    return {
        "arms": {arm: {**_summary(times[arm]), "peak_bytes": peaks[arm]} for arm in arms},
        "ratios": {
            arm: {
                "seconds": _ratio(times["adapters-pl"], times[arm]),
                "memory": peaks["adapters-pl"] / peaks[arm],
            }
            for arm in arms
            if arm != "adapters-pl"
        },
        "steps": {arm: [[asdict(step) for step in turn] for turn in times[arm]] for arm in arms},
    }


def _summary(turns: list[list[StepTime]]) -> dict[str, Any]:
    steps = [step for turn in turns for step in turn]
    return {
        "step_seconds": median(step.seconds for step in steps),
        "tokens_per_second": median(step.tokens / step.seconds for step in steps),
        "padding": 1 - sum(step.tokens for step in steps) / sum(step.computed for step in steps),
        "parts": {name: median(step.parts.get(name, 0.0) for step in steps) for name in steps[0].parts},
        "loss": sum(step.loss for step in steps) / len(steps),
    }


def _ratio(ours: list[list[StepTime]], theirs: list[list[StepTime]]) -> list[float]:
    """Our time for a real token over theirs, round by round."""
    per_token = [
        [sum(step.seconds for step in turn) / sum(step.tokens for step in turn) for turn in turns]
        for turns in (ours, theirs)
    ]
    ratios = [one / other for one, other in zip(*per_token, strict=True)]
    return [median(ratios), min(ratios), max(ratios)]
