"""Standard input and output that are closed, gone or cannot show a character, and the signals that end a process."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from types import FrameType
from typing import TextIO

#: What ends a process beside Ctrl-C; Windows has no SIGHUP.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Control characters but tab and new line, halves of pairs, and what reorders the text around it.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def to_look_at(text: str) -> str:
    """``text`` in which a box stands for every character that is none to look at, and that a terminal may obey."""
    return _UNSHOWN.sub("\N{WHITE SQUARE}", text)


def prepare() -> None:
    """Make standard streams that can always be used, and let the signals that end a process end it as Ctrl-C does.

    A stream that is closed becomes one to nowhere: a file would get its number otherwise. A character that a stream
    cannot encode becomes a question mark. A signal that the process was started to ignore stays ignored.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def let_go_of_closed_streams() -> None:
    """Let what is written to a terminal that was closed, or to a pipe that nobody reads any more, go nowhere."""
    for stream in (sys.stdout, sys.stderr):
        if _is_closed(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """For a process that loads batches: a signal to the whole group must not end it before the last step is saved."""
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)


def _is_closed(stream: TextIO) -> bool:
    if not hasattr(select, "poll"):
        return False
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # a notebook's has none
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def _interrupt(number: int, frame: FrameType | None) -> None:
    let_go_of_closed_streams()
    raise KeyboardInterrupt
