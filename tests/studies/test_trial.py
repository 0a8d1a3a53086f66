"""One trial's commands: which are run, from where, and what becomes of their ends."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from adapters_pl.studies.folder import TrialFolder
from adapters_pl.studies.trial import Commands, Failed, Pruned


@pytest.fixture
def folder(tmp_path):
    folder = TrialFolder(tmp_path, 0)
    assert folder.take()
    yield folder
    folder.release()


class Child:
    """A process that has ended, or that runs until it is told to end."""

    def __init__(self, code=0):
        self.code, self.told = code, []

    def wait(self, timeout=None):
        if self.code is None and timeout is not None:
            raise subprocess.TimeoutExpired("trial", timeout)
        return self.code or 0

    def terminate(self):
        self.told.append("terminate")
        self.code = 130 if self.code is None else self.code

    def kill(self):
        self.told.append("kill")


def leave_figures(folder, accuracy=0.5):
    sets = {"a": {"n": 2, "accuracy": accuracy}, "b": {"n": 4, "accuracy": 1.0}}
    (folder.path / "results.json").write_text(json.dumps({"sets": sets}))


@pytest.fixture
def run(folder):
    """Run a trial whose processes are these functions of log and words; gives what was started."""
    started = []

    def run(*processes, look=lambda measured: False):
        left = list(processes)

        def start(words, log, lock):
            assert lock == folder.descriptor
            started.append(list(words))
            return left.pop(0)(log) or Child()

        return Commands(["--config", "c"], start).run(folder, look), started

    run.started = started
    return run


def test_a_trial_is_a_training_and_a_test_and_its_figure_the_mean_of_the_sets(folder, run):
    accuracy, started = run(lambda log: None, lambda log: leave_figures(folder))
    path = str(folder.path)
    assert accuracy == 0.75
    assert started == [["fit", "--config", "c", "--run_dir", path], ["test", "--config", "c", "--ckpt_path", path]]
    assert (folder.path / "output.log").read_text().startswith("$ adapters-pl fit --config c --run_dir ")


def test_a_trial_goes_on_from_its_checkpoint_and_is_not_tested_twice(folder, run):
    folder.checkpoint.parent.mkdir()
    folder.checkpoint.touch()
    _, started = run(lambda log: None, lambda log: leave_figures(folder))
    assert started[0] == ["fit", "--config", "c", "--ckpt_path", str(folder.path)]
    assert run()[0] == 0.75
    assert len(started) == 2


@pytest.mark.parametrize("accuracy", [float("nan"), float("inf"), 10**400, -1, True])
def test_an_accuracy_that_is_none_does_not_count(folder, accuracy):
    leave_figures(folder, accuracy)
    assert list(folder.accuracies()) == ["b"]


def test_a_trial_fails_by_what_its_command_said(folder, run):
    def failing(log):
        log.write(b"Seed set to 1\nerror: data.root: no such folder, token=hf_abcdefghijklmnopqrstuvwxyz012345\n \n")
        log.flush()
        return Child(1)

    with pytest.raises(Failed, match=r"^fit: data.root: no such folder, token=\*\*\*$"):
        run(failing)
    with pytest.raises(Failed, match=r"^fit was ended by signal 9 .too little memory"):
        run(lambda log: Child(-signal.SIGKILL))
    with pytest.raises(Failed, match="no figures"):
        run(lambda log: None, lambda log: None)


def test_an_interrupted_trial_ends_its_process_and_waits_for_it(run):
    child = Child(None)

    def look(measured):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lambda log: child, look=look)
    assert child.told == ["terminate"]


def test_the_pruner_is_told_each_loss_once_and_stops_the_training(folder, run):
    rows = ["epoch,step,train_loss,val_loss", "0,4,1.0,", "0,5,,2.5", "1,9,0.9,", "1,10,,1.5"]
    child, seen = Child(None), []

    def look(measured):
        seen.append(measured)
        (folder.path / "metrics.csv").write_text("\n".join(rows[: 3 + 2 * len(seen)]) + "\n")
        return len(seen) == 4

    with pytest.raises(Pruned):
        run(lambda log: child, look=look)
    assert seen == [[], [(5, -2.5), (10, -1.5)], [], []]
    assert child.told == ["terminate"]
