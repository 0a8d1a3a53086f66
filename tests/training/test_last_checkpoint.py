"""When ``last.ckpt`` is written, and how signals end training."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment

from tests.helpers.kill_resume import differences, load, outcome, prepare, train

SHORT = {"max_epochs": 2}


class Noise(Callback):
    """Draws the numbers that dropout draws from, as an answer that is sampled may."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        torch.rand(())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("last")
    prepare(folder)
    train(folder, folder / "whole", Noise(), trainer=SHORT)
    return folder


class Watch(Callback):
    """Notes what each ``last.ckpt`` says of itself as it changes."""

    def __init__(self, run):
        self.path = run / "checkpoints/last.ckpt"
        self.seen = []

    def on_before_backward(self, trainer, pl_module, loss):
        if self.path.is_file() and load(self.path)["global_step"] not in (step for step, _ in self.seen):
            stored = load(self.path)
            self.seen.append((stored["global_step"], (stored["resume"]["epoch"], stored["resume"]["rows"])))


def test_it_is_written_every_so_many_steps_after_an_epoch_and_at_the_end(folder, tmp_path):
    watch = Watch(tmp_path)
    train(folder, tmp_path, watch, trainer=SHORT)
    # Eight steps of four rows make an epoch, the last of them of two.
    assert watch.seen == [(3, (0, 12)), (6, (0, 24)), (8, (1, 0)), (9, (1, 4)), (12, (1, 16)), (15, (1, 28))]
    stored = load(watch.path)
    assert (stored["global_step"], stored["resume"]["epoch"], stored["resume"]["rows"]) == (16, 2, 0)


def test_a_trial_run_leaves_nothing(folder, tmp_path):
    train(folder, tmp_path, every=1, trainer={"fast_dev_run": 3, "val_check_interval": None})
    assert not (tmp_path / "checkpoints").exists()


def test_what_a_killed_process_left_is_removed_and_never_read(folder, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (".last.ckpt.123", ".best.ckpt.99", ".keep", "notes.5"):
        (tmp_path / "checkpoints" / name).write_bytes(b"half")
    train(folder, tmp_path, trainer={"max_epochs": 1})
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [".keep", "best.ckpt", "last.ckpt", "notes.5"]


# ---- signals


class Send(Callback):
    """Sends this process a signal while a hook runs."""

    def __init__(self, number, hook, at):
        self.count = 0

        def act(trainer, *arguments, **named):
            self.count += 1
            if self.count == at:
                os.kill(os.getpid(), number)

        setattr(self, hook, act)


@pytest.mark.parametrize(
    ("number", "hook", "at", "position"),
    [
        # The first batch of the sixth step, which is finished, and its second one.
        (signal.SIGINT, "on_train_batch_start", 11, (6, 24, False)),
        (signal.SIGTERM, "on_before_backward", 12, (6, 24, False)),
        # The first batch of the second validation, and the last one of that at the end of the epoch.
        (signal.SIGTERM, "on_validation_batch_start", 3, (5, 20, True)),
        (signal.SIGINT, "on_validation_batch_end", 6, (8, 30, True)),
    ],
)
def test_a_signal_ends_training_between_two_steps_and_it_goes_on_as_if_it_had_not(
    folder, tmp_path, number, hook, at, position
):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit):
        train(folder, tmp_path, Noise(), Send(number, hook, at), every=100, trainer=SHORT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    stored = load(tmp_path / "checkpoints/last.ckpt")
    found = stored["resume"]
    assert (stored["global_step"], found["rows"], found["validating"]) == position
    train(folder, tmp_path, Noise(), every=100, trainer=SHORT)
    assert differences(outcome(folder / "whole"), outcome(tmp_path)) == []


def test_a_second_interrupt_ends_at_once(folder, tmp_path):
    class Twice(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        train(folder, tmp_path, Twice())
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


# ---- SLURM


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job of one task; ``scontrol`` notes what it is told."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tools}/told\n")
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    job = {"JOB_ID": "4711", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}
    for key, value in job.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    return tools / "told"


def test_slurms_signal_saves_between_two_steps_and_requeues(folder, tmp_path, slurm):
    before = signal.getsignal(signal.SIGUSR1)
    stopper = Send(signal.SIGUSR1, "on_before_backward", 9)
    with pytest.raises(SystemExit):
        train(folder, tmp_path / "run", Noise(), stopper, every=100, trainer=SHORT)
    assert slurm.read_text() == "requeue 4711\n"
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 5
    train(folder, tmp_path / "run", Noise(), every=100, trainer=SHORT)
    assert differences(outcome(folder / "whole"), outcome(tmp_path / "run")) == []


def test_other_signals_do_not_requeue(folder, tmp_path, slurm):
    with pytest.raises(SystemExit):
        train(folder, tmp_path / "run", Send(signal.SIGTERM, "on_before_backward", 1))
    assert not slurm.exists()


def test_without_auto_requeue_slurms_signal_is_not_ours(folder, tmp_path, slurm):
    environment = SLURMEnvironment(auto_requeue=False)
    signal.signal(signal.SIGUSR1, handler := lambda *_: None)
    try:
        train(
            folder,
            tmp_path / "run",
            Send(signal.SIGUSR1, "on_before_backward", 1),
            trainer={"max_epochs": 1, "plugins": [environment]},
        )
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert not slurm.exists()
