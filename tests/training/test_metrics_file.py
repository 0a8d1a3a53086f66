"""``metrics.csv`` goes on where it stopped, without rows that come again."""

from __future__ import annotations

import os

import pytest

from adapters_pl.training.metrics_file import MetricsFile


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "lora-1"


def log(run, *rows):
    """Log rows of a step and further numbers, as a process of its own does."""
    logger = MetricsFile(run)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
        logger.save()
    return logger


def lines(run):
    return (run / "metrics.csv").read_text().splitlines()


def test_a_later_process_adds_its_rows(run):
    log(run, (0, {"train_loss": 2.5}), (1, {"train_loss": 2.0}))
    log(run, (2, {"train_loss": 1.5}))
    assert lines(run) == ["step,train_loss", "0,2.5", "1,2.0", "2,1.5"]


def test_a_new_column_is_added_to_the_rows_that_are_there(run):
    log(run, (0, {"train_loss": 2.5}))
    log(run, (0, {"val_loss": 3.0}), (1, {"train_loss": 2.0}))
    assert lines(run) == ["step,train_loss,val_loss", "0,2.5,", "0,,3.0", "1,2.0,"]


def test_rows_after_the_checkpoint_are_taken_out_before_they_come_again(run):
    log(run, *((step, {"train_loss": 3.0 - step}) for step in range(4)))
    logger = MetricsFile(run)
    logger.rewind(2)
    assert lines(run) == ["step,train_loss", "0,3.0", "1,2.0"]
    logger.log_metrics({"train_loss": 9.0}, 2)
    logger.save()
    assert lines(run)[-1] == "2,9.0"


def test_a_row_that_was_cut_is_taken_out(run):
    log(run, (0, {"a": 1.0, "z": 2.0}), (1, {"a": 1.0, "z": 2.0}))
    file = run / "metrics.csv"
    file.write_text(file.read_text()[:-7])
    assert lines(run)[-1] == "1.0"
    MetricsFile(run).rewind(5)
    assert lines(run) == ["a,step,z", "1.0,0,2.0"]


def test_the_first_rows_appear_whole_or_not_at_all(run, monkeypatch):
    """A process that is killed while it writes them leaves no file without its header or with half a row."""
    seen = []

    def fsync(descriptor, own=os.fsync):
        seen.append((run / "metrics.csv").exists())
        own(descriptor)

    monkeypatch.setattr("adapters_pl.runs.at_once.os.fsync", fsync)
    logger = log(run, (0, {"train_loss": 2.5}))
    assert seen == [False, True]  # the rows, and the folder in which they have got their name
    logger.log_metrics({"train_loss": 2.0}, 1)
    logger.save()
    assert lines(run) == ["step,train_loss", "0,2.5", "1,2.0"]
    assert len(seen) == 2


def test_nothing_is_made_of_nothing(run):
    MetricsFile(run).rewind(3)
    assert not (run / "metrics.csv").exists()
