"""Runs that are killed, stopped or broken, on one process and on two."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.helpers import warm

JOBS = Path(__file__).with_name("resume_jobs.py")
USER_ERROR, STOPPED = 3, 4


@pytest.fixture(scope="module")
def jobs():
    """What happened to all of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = warm.run([sys.executable, JOBS, "3"], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    *table, found = done.stdout.splitlines()
    return {"table": "\n".join(table), **json.loads(found)}


def test_a_killed_run_goes_on_bit_for_bit_as_if_it_had_not_been(jobs):
    """``python tests/helpers/kill_resume.py`` does this at twenty moments."""
    assert "3 of 3 equal; 3 killed after the first checkpoint, 1 within the writing of one" in jobs["table"]
    assert all(kind in jobs["table"] for kind in ("one process", "2 processes", "command line"))
    assert jobs["wrong"] == 0


def test_a_loss_that_is_none_on_one_process_ends_all_with_its_rows(jobs):
    nan = jobs["nan"]
    assert nan["codes"] == [USER_ERROR, USER_ERROR]
    [rank_0, rank_1] = nan["rows"]
    assert len(rank_0) == len(rank_1) == 6
    rows = ", ".join(map(str, sorted(rank_1[4])))
    for said in nan["said"]:
        assert said.startswith(f"Step 3: the loss is not finite; it comes of the training rows {rows} (counted from 0)")
    assert nan["step"] == 2


def test_a_full_disk_ends_all_processes_and_leaves_the_last_good_checkpoint(jobs):
    full = jobs["full"]
    assert full["codes"] == [USER_ERROR, USER_ERROR]
    for said in full["said"]:
        assert "best.ckpt could not be written at step 2 (No space left on device); the last good one is " in said
        assert said.splitlines()[0].endswith("/full/checkpoints/last.ckpt")
    assert full["step"] == 1
    assert full["left"] == ["last.ckpt"]


def test_a_signal_to_one_process_ends_all_after_the_same_step(jobs):
    stopped = jobs["stopped"]
    assert stopped["codes"] == [STOPPED, STOPPED]
    assert stopped["step"] == 2
    assert [len(rows) for rows in stopped["rows"]] == [5, 5]  # the third step's first batch was fetched, and is left


def flat(rows):
    return [row for batches in rows for batch in batches for row in batch]


@pytest.mark.parametrize(("before", "after", "done"), [("stopped", "fewer", 16), ("one", "more", 12)])
def test_on_another_number_of_processes_every_row_that_is_left_comes_once(jobs, before, after, done):
    assert jobs[after]["codes"] == [0] * len(jobs[after]["codes"])
    seen = [row for rank in jobs[before]["rows"] for batch in rank[: 4 if before == "stopped" else 6] for row in batch]
    assert len(seen) == done
    left = flat(jobs[after]["rows"])
    assert len(seen + left) == len({*seen, *left}) == 30


def test_that_random_numbers_differ_on_another_number_of_processes_is_said_once(jobs):
    first, *others = jobs["more"]["logs"]
    assert (
        first.count("resuming on 2 processes what 1 began: every remaining row comes once, but steps and random") == 1
    )
    assert all("what 1 began" not in log for log in others)
