"""A checkpoint is written whole or not at all, and the one before stays until then."""

from __future__ import annotations

import errno
import io
import resource
import signal

import pytest
import torch

from adapters_pl.inputs.errors import UserError
from adapters_pl.training import checkpoint
from adapters_pl.training.checkpoint import AtomicCheckpointIO
from tests.helpers.kill_resume import fork, load, prepare, train

SMALL, LARGE = ({"global_step": step, "value": torch.full((size,), step)} for step, size in ((1, 1), (2, 100_000)))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(SMALL, path)
    return path


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


def test_a_checkpoint_takes_the_place_of_the_one_before(path):
    AtomicCheckpointIO().save_checkpoint(LARGE, path)
    assert load(path)["global_step"] == 2
    assert names(path) == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["global_step"] == 2


def test_until_it_is_on_the_disk_the_one_before_is_there(path, monkeypatch):
    seen = []

    def fsync(descriptor, own=checkpoint.replacing.__wrapped__.__globals__["os"].fsync):
        seen.append((load(path)["global_step"], len(names(path))))
        own(descriptor)

    monkeypatch.setattr("adapters_pl.runs.at_once.os.fsync", fsync)
    AtomicCheckpointIO().save_checkpoint(LARGE, path)
    assert seen == [(1, 2), (2, 1)]  # the file and then, renamed, its folder


class FullDisk:
    """PyTorch on a disk on which there is room for so many bytes."""

    def __init__(self, room):
        self.room = room

    def save(self, checkpoint, file):
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        file.write(buffer.getvalue()[: self.room])
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(torch, name)


def test_a_full_disk_leaves_the_one_before_and_says_where_to_make_room(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "torch", FullDisk(1000))
    with pytest.raises(UserError) as error:
        AtomicCheckpointIO().save_checkpoint(LARGE, path)
    assert str(error.value).splitlines() == [
        f"{path.parent}: last.ckpt could not be written at step 2 (No space left on device); "
        f"the last good one is {path}",
        "Make room there, then: adapters-pl fit --ckpt_path last",
    ]
    assert names(path) == ["last.ckpt"]
    assert load(path)["global_step"] == 1
    with pytest.raises(UserError, match=r"best\.ckpt could not be .*; the last good one is .*last\.ckpt"):
        AtomicCheckpointIO().save_checkpoint(LARGE, path.with_name("best.ckpt"))
    with pytest.raises(UserError, match="none had been written before"):
        AtomicCheckpointIO().save_checkpoint(LARGE, path.parent / "elsewhere" / "last.ckpt")


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process with a GPU cannot be forked")
def test_a_real_limit_on_the_size_of_files_is_worded_as_well(path):
    """PyTorch's writer reports its own confusion instead of what the system said."""

    def job(rank, pipe):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(UserError, match="File too large"):
            AtomicCheckpointIO().save_checkpoint(LARGE, path)
        return 7

    assert fork(1, path.parent.parent, job).wait() == [7]
    assert names(path) == ["last.ckpt"]
    assert load(path)["global_step"] == 1


def test_what_is_no_fault_of_the_system_keeps_its_traceback(path):
    with pytest.raises((TypeError, AttributeError)):
        AtomicCheckpointIO().save_checkpoint({"function": lambda: None}, path)
    with pytest.raises(RuntimeError, match="by design"):
        AtomicCheckpointIO().save_checkpoint({"bad": Unreadable()}, path)
    assert names(path) == ["last.ckpt"]


class Unreadable:
    def __reduce__(self):
        raise RuntimeError("by design")


def test_training_ends_where_the_disk_is_full_and_goes_on_where_there_is_room(tmp_path, monkeypatch):
    prepare(tmp_path)
    run = tmp_path / "run"
    train(tmp_path, run, trainer={"max_epochs": -1, "max_steps": 4})
    monkeypatch.setattr(checkpoint, "torch", FullDisk(1000))
    with pytest.raises(UserError, match=r"last\.ckpt could not be written at step 6"):
        train(tmp_path, run, trainer={"max_epochs": 1, "limit_val_batches": 0})
    monkeypatch.undo()
    assert load(run / "checkpoints/last.ckpt")["global_step"] == 4
    assert not list((run / "checkpoints").glob(".*"))
    train(tmp_path, run, trainer={"max_epochs": 1})
    assert load(run / "checkpoints/last.ckpt")["global_step"] == 8
