"""What this machine has: devices and free memory; and what a run asks for that it has not.

The heavy libraries are imported where they are needed: ``adapters-pl doctor`` asks for the host's part without them.
"""

from __future__ import annotations

import os
import platform
import re
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters_pl.inputs.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

#: What a process of ours takes before it has a model: Python and its libraries (0.5 GiB measured).
PROCESS = 600 * 2**20

#: Where a container's limit and use of memory are told, in either version of control groups.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)

#: Where a container's share of the cores is told: microseconds of use, and in which period.
_CPU_CGROUPS = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)


def device_count(accelerator: Any, devices: Any) -> tuple[str, int]:
    """What ``--trainer.accelerator`` and ``--trainer.devices`` come to: ``cuda`` or another kind, and how many.

    As many as are asked for, whether they are here or not.
    """
    import torch

    gpus = torch.cuda.device_count()
    kinds = {"auto": "cuda" if gpus else "cpu", "gpu": "cuda"}
    kind = kinds.get(str(accelerator or "auto"), str(accelerator))
    every = max(1, gpus) if kind == "cuda" else 1
    words = str(devices if devices is not None else "auto").strip("[] ")
    if words in ("auto", "-1"):
        return kind, every
    if "," in words or isinstance(devices, list):
        return kind, len([word for word in words.split(",") if word.strip()])
    return kind, int(words) if words.isdigit() else every


def free_memory(accelerator: str, processes: int) -> int | None:
    """Bytes that each of ``processes`` may still take on its device; ``None`` where that is not known.

    On a GPU what is free once CUDA is loaded; in the host's memory this process's libraries are there already.
    """
    if accelerator == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    free = free_host_memory()
    return None if free is None else max(0, free - (processes - 1) * PROCESS) // processes


def free_host_memory() -> int | None:
    """Bytes of the machine's memory that are free or can be freed, within the container's limit if there is one."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
    for folder, limit, used in _CGROUPS:
        with _limited():
            # Files that were read count as used until the memory is wanted for something else.
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            taken = int((folder / used).read_text()) - (int(cached[1]) if cached else 0)
            free = min(free, int((folder / limit).read_text()) - taken)
    return max(0, free)


def total_host_memory() -> int | None:
    """Bytes of the machine's memory, or of the container's limit where that is less."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
    for folder, limit, _ in _CGROUPS:
        with _limited():
            total = min(total, int((folder / limit).read_text()))
    return total


def peak_memory(again: bool = True) -> int:
    """The most bytes that this process has had: on the GPU if there is one, else of the host's memory.

    Args:
        again: forget it, and begin to look again.
    """
    import torch

    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        if again:
            torch.cuda.reset_peak_memory_stats()
        return peak
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if again:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    if found:
        return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name() -> str:
    """What the GPU or else the CPU of this process is called."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", about.read_text(), re.MULTILINE) if about.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def usable_cores() -> float:
    """CPU cores that this process may use: those it is bound to, or what the container's limit comes to if less."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for files in _CPU_CGROUPS:
        with _limited():
            quota, period = (int(word) for path in files for word in path.read_text().split())
            if quota > 0:  # -1 is no limit
                cores = min(cores, quota / period)
    return cores


def _limited() -> AbstractContextManager[None]:
    """Within it the files of a control group are read: there may be no such group, or no limit ("max")."""
    return suppress(OSError, ValueError)


def refuse_missing(trainer: Trainer, precision: Any, attention: str | None) -> None:
    """Fail at once where a run asks for what the machine has not, instead of when the base is loaded.

    Args:
        trainer: of the run, which has found its devices.
        precision: as it was asked for; Lightning replaces some.
        attention: the attention's implementation.

    Raises:
        UserError: more processes than CPU cores, or something of CUDA's on a CPU.
    """
    from lightning.pytorch.accelerators import CPUAccelerator

    from adapters_pl.compat.lightning import process_group_backend

    if not isinstance(trainer.accelerator, CPUAccelerator):
        return
    cores = os.cpu_count() or 1
    # Two processes on one core are slow, but show whether a run works with several.
    most = max(2, cores)
    if trainer.num_devices > most:
        raise UserError(
            f"--trainer.devices {trainer.num_devices}: on a CPU a device is a process, and there are {cores} cores "
            f"here. Pass --trainer.devices {most} or less."
        )
    if str(precision) in ("16", "16-mixed"):
        raise UserError(f"--trainer.precision {precision} needs a GPU. On a CPU pass bf16-mixed or 32-true.")
    if attention and "flash" in attention:
        raise UserError(f"--model.attn_implementation {attention} needs a GPU. On a CPU pass sdpa or eager.")
    if process_group_backend(trainer) == "nccl":
        raise UserError("process_group_backend nccl needs GPUs. Leave it out: on a CPU it is gloo.")
