"""What ``compat.dcp`` rests on in torch: how tensors are divided, and how files are written and read."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from adapters_pl.compat import dcp
from adapters_pl.inputs.errors import UserError
from tests.helpers.kill_resume import fork

pytestmark = pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process with a GPU cannot be forked")

#: Rows that two processes divide evenly, unevenly, and so that the second has none.
VALUES = {
    "even": torch.arange(12.0).view(4, 3),
    "uneven": torch.arange(10.0).view(5, 2),
    "single": torch.ones(1, 3),
}


def all_of(fine):
    answer = torch.tensor(int(fine))
    distributed.all_reduce(answer, distributed.ReduceOp.MIN)
    return bool(answer)


def write_by_one(rank, path):
    """One of two processes: a step of a sharded module, and the checkpoint with it."""
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    module = nn.Module()
    for name, value in VALUES.items():
        module.register_parameter(name, nn.Parameter(value.clone()))
    fully_shard(module, mesh=mesh)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    storage = torch.arange(100_000.0)
    checkpoint = {
        "global_step": 1,
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "view": DTensor.from_local(storage[3 * rank : 3 * rank + 3], mesh, [Shard(0)]),
    }
    dcp.save(checkpoint, path, rank, all_of)
    return 0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The checkpoint of two processes."""
    folder = tmp_path_factory.mktemp("dcp")
    path = folder / "last.ckpt"
    codes = fork(2, folder / "logs", lambda rank, pipe: write_by_one(rank, path)).wait()
    assert codes == [0, 0], (folder / "logs/run-0.log").read_text()
    return path


def test_parts_in_the_order_of_ranks_are_the_rows_of_parameters_and_of_their_optimizer(written):
    loaded = dcp.load(written)
    assert loaded["state_dict"].keys() == VALUES.keys()
    [optimizer] = loaded["optimizer_states"]
    for number, (name, value) in enumerate(VALUES.items()):
        assert torch.equal(loaded["state_dict"][name], value), name
        assert torch.equal(optimizer["state"][number]["momentum_buffer"], value), name
    assert torch.equal(loaded["view"], torch.arange(6.0))


def test_a_part_holds_its_rows_alone_where_torch_would_write_the_storage_they_lie_in(written):
    for rank in range(2):
        assert (written / f"part-{rank}.pt").stat().st_size < 16 * 1024


class Command:
    """Runs when it is unpickled."""

    def __init__(self, *words):
        self.words = words

    def __reduce__(self):
        return os.mkdir, self.words


@pytest.mark.parametrize("name", ["rest.pt", "part-1.pt"])
@pytest.mark.parametrize("damage", ["halved", "empty", "missing", "a list", "a command"])
def test_whatever_torch_says_of_a_file_that_it_cannot_read_is_an_error_of_the_user(written, tmp_path, name, damage):
    path = tmp_path / "some.ckpt"
    shutil.copytree(written, path)
    file = path / name
    content = file.read_bytes()
    file.unlink()
    if damage == "halved":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        file.touch()
    elif damage == "a list":
        torch.save([1], file)
    elif damage == "a command":
        torch.save({"parts": 2, "checkpoint": Command(str(tmp_path / "ran"))}, file)
    with pytest.raises(UserError, match=r"some\.ckpt: this sharded checkpoint is not whole \(.*; take another"):
        dcp.load(path)
    assert not (tmp_path / "ran").exists()


# ---- writing


@pytest.fixture
def first(tmp_path, monkeypatch):
    """The checkpoint of a first step, by one process."""
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    path = tmp_path / "checkpoints/last.ckpt"
    dcp.save({"global_step": 1, "w": torch.ones(2)}, path, 0, bool)
    return path


def assert_kept(path):
    assert dcp.load(path)["global_step"] == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", "last.ckpt-1"]


def test_a_real_limit_on_the_size_of_files_leaves_the_checkpoint_before(first, tmp_path):
    """Torch's writer raises no ``OSError`` there."""

    def job(rank, pipe):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises((OSError, RuntimeError)):
            dcp.save({"global_step": 2, "w": torch.zeros(100_000)}, first, 0, bool)
        return 7

    assert fork(1, tmp_path / "logs", job).wait() == [7]
    assert_kept(first)


def test_shards_that_one_process_cannot_write_leave_the_checkpoint_before_on_all(first, monkeypatch):
    """Two processes by turns: what each is told that all of them said is what the slower one said."""
    save = torch.save

    def full(value, file):
        if Path(file).name.startswith("part-"):
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        save(value, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        dcp.save({"global_step": 2, "w": torch.zeros(2)}, first, 0, bool)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="another process could not write"):
        dcp.save({"global_step": 2, "w": torch.zeros(2)}, first, 0, lambda fine: False)
    assert_kept(first)
