"""Arms of a benchmark in turns: training beside the floor and peft, answers beside transformers and the harness.

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
from adapters_pl.training.benchmark import answering, fitting
from adapters_pl.training.benchmark.pace import Finished, Job, Pace, StepTime

#: Steps of each arm that are not counted: the first ones allocate, and fill caches.
WARMUP = 2


class _Resident:
    """An arm in a process of its own."""

    def __init__(self, kind: str, name: str, build: Callable[[int], Job], steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(kind, name, build, steps, theirs), daemon=True)
        # Ctrl-C reaches the whole group of processes; the one that measures ends the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def received(self) -> tuple[list[Any], int]:
        """The steps that were asked for, and the most memory in bytes; raises ``UserError`` for what went wrong."""
        try:
            answer = self._connection.recv()
        except EOFError:
            raise UserError(f"bench: the process of {self.name} has ended; is there memory for all arms?") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def take(self, steps: int) -> tuple[list[Any], int]:
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


def _work(kind: str, name: str, build: Callable[[int], Job], steps: int, connection: Connection) -> None:
    """What the process of an arm does; what libraries print in it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        job = build(steps)
        seed_everything(job.seed, verbose=False)
        arms_of(kind)[name](job, Pace(connection))
    except (Finished, EOFError):
        pass
    except UserError as error:
        connection.send(error)
    except Exception as error:
        connection.send(UserError(f"bench: {name} failed: {type(error).__name__}: {first_line(error)}"))


def arms_of(kind: str) -> dict[str, Callable[[Job, Pace], None]]:
    """The arms by name, of ``training``, ``writing`` or ``scoring``."""
    return {"training": fitting.ARMS, "writing": answering.WRITING, "scoring": answering.SCORING}[kind]


def take_turns(
    build: Callable[[int], Job], kind: str, arms: Sequence[str], rounds: int, steps: int, warmup: int = WARMUP
) -> tuple[dict[str, list[list[Any]]], dict[str, int]]:
    """Let ``arms`` take turns.

    Args:
        build: makes the job of an arm, given the number of its steps; called in the arm's process.
        kind: ``training``, ``writing`` or ``scoring``.
        arms: keys of :func:`arms_of`.
        rounds: turns of each arm.
        steps: in a turn.
        warmup: steps of each arm that are not counted.

    Returns:
        For each arm, the steps of its turns, and the most bytes of memory.

    Raises:
        UserError: an arm could not be built, or failed.
    """
    residents: list[_Resident] = []
    times: dict[str, list[list[Any]]] = {arm: [] for arm in arms}
    peaks = dict.fromkeys(arms, 0)
    try:
        for arm in arms:
            residents.append(_Resident(kind, arm, build, warmup + rounds * steps))
        for resident in residents:
            resident.received()
            resident.take(warmup)
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
    return times, peaks


def measure(build: Callable[[int], Job], arms: Sequence[str], rounds: int, steps: int) -> dict[str, Any]:
    """Let ``arms`` train in turns.

    Args:
        build: makes the job of an arm, given the number of optimizer steps; called in the arm's process.
        arms: of training; the ratios are of ``adapters-pl`` to each of the others.
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
    times, peaks = take_turns(build, "training", arms, rounds, steps)
    return {
        "arms": {arm: {**_summary(times[arm]), "peak_bytes": peaks[arm]} for arm in arms},
        "ratios": _ratios(times, peaks, lambda step: step.tokens),
        "steps": {arm: [[asdict(step) for step in turn] for turn in times[arm]] for arm in arms},
    }


def measure_answers(build: Callable[[int], Job], kind: str, arms: Sequence[str], rounds: int) -> dict[str, Any]:
    """Let ``arms`` answer all rows in turns.

    Args:
        build: as for :func:`measure`.
        kind: ``writing`` or ``scoring``.
        arms: of that kind; the ratios are of ``adapters-pl`` to each of the others.
        rounds: how often each arm answers.

    Returns:
        ``arms``: for each, medians of ``row_seconds`` and ``tokens_per_second``, ``rows`` and ``peak_bytes``;
        ``ratios``: for each other arm, ``seconds`` per row of ours over theirs as ``[median, lowest, highest]`` of the
        rounds, ``memory``, and ``same``, the share of rows with the same answer where both answered all.

    Raises:
        UserError: an arm could not be built, or failed.
    """
    times, peaks = take_turns(build, kind, arms, rounds, steps=1, warmup=1)
    turns = {arm: [step for turn in times[arm] for step in turn] for arm in arms}
    ratios = _ratios(times, peaks, lambda step: step.rows)
    for arm, ratio in ratios.items():
        ours, theirs = turns["adapters-pl"][0].answers, turns[arm][0].answers
        equal = sum(one == other for one, other in zip(ours, theirs, strict=False)) / len(ours)
        ratio["same"] = equal if len(ours) == len(theirs) else None
    return {
        "arms": {
            arm: {
                "row_seconds": median(step.seconds / step.rows for step in turns[arm]),
                "tokens_per_second": median(step.tokens / step.seconds for step in turns[arm]),
                "rows": turns[arm][0].rows,
                "peak_bytes": peaks[arm],
            }
            for arm in arms
        },
        "ratios": ratios,
        "steps": {arm: [asdict(step) for step in turns[arm]] for arm in arms},
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


def _ratios(
    times: dict[str, list[list[Any]]], peaks: dict[str, int], amount: Callable[[Any], int]
) -> dict[str, dict[str, Any]]:
    """Our time for one of ``amount`` over that of each other arm, round by round, and our memory over theirs."""
    per_unit = {
        arm: [sum(step.seconds for step in turn) / sum(map(amount, turn)) for turn in turns]
        for arm, turns in times.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for arm in times:
        if arm != "adapters-pl":
            ratios = [one / other for one, other in zip(per_unit["adapters-pl"], per_unit[arm], strict=True)]
            seconds = [median(ratios), min(ratios), max(ratios)]
            found[arm] = {"seconds": seconds, "memory": peaks["adapters-pl"] / peaks[arm]}
    return found
