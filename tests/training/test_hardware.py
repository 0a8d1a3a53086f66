"""What the machine has, and what a run asks for that it has not."""

from __future__ import annotations

import os

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from adapters_pl.cli.main import main
from adapters_pl.training import hardware
from adapters_pl.training.adapted import BaseSource
from adapters_pl.training.hardware import PROCESS, device_count, free_host_memory, free_memory


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus", "expected"),
    [
        (None, None, 0, ("cpu", 1)),
        ("auto", "auto", 4, ("cuda", 4)),
        ("gpu", -1, 4, ("cuda", 4)),
        ("gpu", 2, 4, ("cuda", 2)),
        ("cuda", "3", 4, ("cuda", 3)),
        ("gpu", "[0,2]", 4, ("cuda", 2)),
        ("gpu", "0,", 4, ("cuda", 1)),
        ("gpu", [1, 2, 3], 4, ("cuda", 3)),
        ("gpu", 8, 0, ("cuda", 8)),
        ("gpu", "auto", 0, ("cuda", 1)),
        ("cpu", "auto", 4, ("cpu", 1)),
        ("cpu", 2, 4, ("cpu", 2)),
        ("mps", "auto", 0, ("mps", 1)),
    ],
)
def test_devices_are_what_was_asked_for(monkeypatch, accelerator, devices, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert device_count(accelerator, devices) == expected


# ---- free memory


def test_the_hosts_memory_is_what_the_kernel_says():
    free = free_host_memory()
    assert 2**27 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [
        ("2000000000", "900000000", "inactive_file 400000000\n", 1_500_000_000),
        ("2000000000", "900000000", "cache 1\ntotal_inactive_file 100000000\n", 1_200_000_000),
        ("1000", "2000", "inactive_file 0\n", 0),
        ("2000000000", "900000000", "", 1_100_000_000),
    ],
)
def test_a_container_has_what_its_limit_leaves_and_can_drop_files(monkeypatch, tmp_path, limit, used, cached, free):
    for name, text in (("limit", limit), ("used", used), ("memory.stat", cached)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(hardware, "_CGROUPS", ((tmp_path, "limit", "used"),))
    assert free_host_memory() == free


@pytest.mark.parametrize("limit", ["max", None])
def test_a_container_without_a_limit_has_the_machines_memory(monkeypatch, tmp_path, limit):
    monkeypatch.setattr(hardware, "_CGROUPS", ())
    machine = free_host_memory()
    if limit:
        (tmp_path / "limit").write_text(limit)
        (tmp_path / "memory.stat").write_text("")
        (tmp_path / "used").write_text("0")
    monkeypatch.setattr(hardware, "_CGROUPS", ((tmp_path, "limit", "used"),))
    assert free_host_memory() == pytest.approx(machine, rel=0.2)


def test_processes_share_the_hosts_memory_and_each_has_its_libraries(monkeypatch):
    monkeypatch.setattr(hardware, "free_host_memory", lambda: 10 * PROCESS)
    assert free_memory("cpu", 1) == 10 * PROCESS
    assert free_memory("cpu", 4) == 7 * PROCESS // 4
    assert free_memory("cpu", 64) == 0
    monkeypatch.setattr(hardware, "free_host_memory", lambda: None)
    assert free_memory("cpu", 1) is None


def test_a_gpus_memory_is_cudas(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 7))
    assert free_memory("cuda", 3) == 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert free_memory("cuda", 1) is None


# ---- what is missing


@pytest.fixture
def fit(tmp_path, monkeypatch, make_base, rows_file):
    """A training that must end before the base's weights are read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BaseSource, "load", lambda source, device: pytest.fail("weights were loaded"))
    given = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(rows_file)]
    return lambda *arguments: main(["fit", "--adapter", "LoRA", *given, *arguments])


DDP = ["--trainer.strategy.class_path", "lightning.pytorch.strategies.DDPStrategy", "--trainer.devices", "2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--trainer.accelerator", "gpu"], "there is no GPU here that torch can use: pass --trainer.accelerator cpu"),
        (["--trainer.accelerator", "cuda"], "there is no GPU here that torch can use: pass --trainer.accelerator cpu"),
        (["--trainer.accelerator", "gpu", "--trainer.devices", "4"], "there is no GPU here that torch can use"),
        (["--trainer.accelerator", "abacus"], "trainer: You selected an invalid accelerator name"),
        (["--trainer.devices", "4096"], "on a CPU a device is a process, and there are"),
        (["--trainer.devices", "0"], "trainer: `Trainer(devices='0')` value is not a valid input"),
        (["--trainer.devices", "two"], "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
        (["--trainer.num_nodes", "0"], "trainer.num_nodes is 0; it must be at least 1."),
        (["--trainer.strategy", "ddpp"], "trainer.strategy: there is none called 'ddpp': did you mean 'ddp'"),
        ([*DDP, "--trainer.strategy.process_group_backend", "nccl"], "nccl needs GPUs. Leave it out"),
        (["--trainer.precision", "16-mixed"], "16-mixed needs a GPU. On a CPU pass bf16-mixed or 32-true."),
        (["--trainer.precision", "transformer-engine"], "trainer: Requirement 'transformer_engine"),
        (["--model.attn_implementation", "flash_attention_2"], "flash_attention_2 needs a GPU. On a CPU pass sdpa"),
        (["--model.attn_implementation", "eagre"], "--model.attn_implementation eagre: "),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_is_not_here_is_refused_in_one_line_before_weights_are_read(fit, capsys, tmp_path, given, message):
    assert fit(*given) == 1
    error = capsys.readouterr().err
    assert message in error
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [error.splitlines()[-1]]
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("4", "GPUs 0, 1, 2, 3 were asked for and only 0 is here (they count from 0): pass --trainer.devices auto."),
        ("0,3", "GPUs 0, 3 were asked for and only 0 is here"),
    ],
)
def test_more_gpus_than_there_are(fit, capsys, monkeypatch, devices, message):
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    for name in ("lightning.fabric.accelerators.cuda", "lightning.fabric.utilities.device_parser"):
        monkeypatch.setattr(f"{name}.torch.cuda.device_count", lambda: 1)
    assert fit("--trainer.accelerator", "cuda", "--trainer.devices", devices) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("processes", "refused"), [(2, False), (3, True)])
def test_two_processes_are_always_allowed(monkeypatch, processes, refused):
    from lightning.pytorch import Trainer

    from adapters_pl import UserError
    from adapters_pl.training.hardware import refuse_missing

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    trainer = Trainer(accelerator="cpu", devices=processes, strategy="ddp", logger=False, enable_checkpointing=False)
    if not refused:
        refuse_missing(trainer, None, None)
        return
    with pytest.raises(UserError, match=r"there are 1 cores here. Pass --trainer.devices 2 or less"):
        refuse_missing(trainer, None, None)
