"""The one kind of error a user is meant to see, and the wording of "did you mean"."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

from adapters_pl.inputs.masking import masked
from adapters_pl.inputs.terminal import to_look_at


class UserError(Exception):
    """Something in the input is wrong: shown as one or two lines, without a traceback, with exit code 1.

    The message says what is wrong and what to do about it. Anything that is *not* a ``UserError`` is a fault
    of the program, and keeps its traceback.
    """


def did_you_mean(name: str, choices: Iterable[str], most: int = 3, otherwise: str | None = None) -> str:
    """Word the nearest of ``choices`` as a question, or say ``otherwise``, or list them all, when none is near.

    >>> did_you_mean("rnk", ["rank", "alpha"])
    "did you mean 'rank'?"
    """
    known = sorted(set(choices))
    folded = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.lower(), folded, n=most, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(folded[n]) for n in near)}?"
    if otherwise is not None:
        return otherwise
    return f"known: {', '.join(known)}" if known else "none is known"


#: The most characters of a word, of a line, of a list of choices, and the most lines, in what is shown of an error.
LONGEST_WORD, LONGEST_LINE, LONGEST_LIST, MOST_LINES = 120, 400, 2000, 20


def shortened(message: str) -> str:
    """``message`` as it is shown: ``...`` in the middle of each word, line and list of choices that is too long.

    What a user or a stranger gave can be of any length, may hold what a terminal obeys, and stands within the sentence
    that says what is wrong with it.
    """
    lines = to_look_at(message).splitlines()
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES // 2], "...", *lines[1 - MOST_LINES // 2 :]]
    return "\n".join(_shortened_line(line) for line in lines)


def _shortened_line(line: str) -> str:
    line = re.sub(r"\S+", lambda word: _middle_left_out(word[0], LONGEST_WORD), line)
    said, introduced, choices = (*re.split("(known: |one of )", line, maxsplit=1), "", "")[:3]
    return _middle_left_out(said, LONGEST_LINE) + introduced + _middle_left_out(choices, LONGEST_LIST)


def _middle_left_out(text: str, most: int) -> str:
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says, without secrets, or its kind if it says nothing."""
    lines = masked(str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there was too little memory, of a GPU or of the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own
        return True
    # The CPU's allocator raises what everything raises.
    return isinstance(error, RuntimeError) and re.search(_TOO_LITTLE, str(error)) is not None


_TOO_LITTLE = r"DefaultCPUAllocator|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|std::bad_alloc"


def system_error(error: BaseException) -> OSError | None:
    """What the operating system refused, if that is what led to ``error``.

    PyTorch's writer reports its own confusion after it, and safetensors puts it into words.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        if found := re.search(r"\(os error (\d+)\)", str(cause)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        cause = cause.__cause__ or cause.__context__
    return None
