"""A process of its own: what it answers, and how it is ended."""

from __future__ import annotations

import os

import pytest

from adapters_pl.inputs.apart import Apart

DOUBLES = """
import time
def answer(request):
    if request == "endless":
        time.sleep(60)
    if request == "large":
        bytes(2**31)
    if request == "breaks":
        raise SystemExit(3)
    return request * 2 if request else None
"""


@pytest.fixture
def doubles():
    process = Apart(DOUBLES)
    yield process
    process.end()


def test_it_answers_and_says_how_long_that_took(doubles):
    assert doubles.ask("\u00e9\ud800\n", 10)[0] == "\u00e9\ud800\n" * 2
    answer, seconds = doubles.ask([1, 2], 10)
    assert answer == [1, 2, 1, 2]
    assert 0 <= seconds < 10


@pytest.mark.parametrize(("request_", "seconds"), [("endless", 0.2), ("breaks", 60), ("large", 60)])
def test_what_has_no_end_or_breaks_is_ended_and_the_next_is_answered(doubles, request_, seconds):
    first = doubles._process
    assert doubles.ask(1, 60)[0] == 2
    assert first is None
    first = doubles._process
    assert doubles.ask(request_, seconds) is None
    assert first.poll() is not None
    assert doubles.ask(1, 60)[0] == 2


def test_a_forked_process_begins_its_own(doubles):
    assert doubles.ask(1, 60)[0] == 2
    child = os.fork()
    if child == 0:
        try:
            fine = doubles.ask(3, 60)[0] == 6
            doubles.end()
        finally:
            os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert doubles.ask(4, 60)[0] == 8
