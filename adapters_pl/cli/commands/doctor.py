"""``doctor``: what this machine has, and what would fail on it.

It is meant for a machine on which something is missing: this process imports nothing heavy, the libraries are
imported by children, and one that is absent, broken or brings its process down is a finding like any other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any

from adapters_pl.cli.commands.probes import (
    NETWORK,
    PACKAGE,
    answer_of,
    described,
    import_each,
    index_url,
    judgement_of,
    lacking,
    module_of,
    only_by,
    version_of,
)
from adapters_pl.inputs.cache import CACHE_VARIABLE, cache_folder, offline
from adapters_pl.inputs.errors import first_line
from adapters_pl.inputs.masking import masked_url
from adapters_pl.training.hardware import free_host_memory, total_host_memory, usable_cores

#: Seconds that a cache is counted.
COUNTING = 2.0

#: What needs an extra.
NEEDS = {
    "peft": "PEFTAdapter",
    "quant": "--model.quantization 8bit or 4bit",
    "gguf": "--model.base FILE.gguf",
    "vllm": "--model.engine vllm",
    "test": "make test",
}

_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        section: what it belongs to.
        name: of the thing.
        value: what was found.
        problem: what would fail because of it and how to mend that, or nothing.
        necessary: whether nothing works until it is mended.
    """

    section: str
    name: str
    value: str
    problem: str = ""
    necessary: bool = False


# ---- devices and memory


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "not known"


def devices(found: dict[str, Any] | None) -> Iterator[Finding]:
    """The CPU and the GPUs; ``found`` is what :func:`devices_of_torch` says, ``None`` where torch does not import."""
    cores, all_cores = usable_cores(), os.cpu_count() or 1
    yield Finding("devices", "CPU", f"{_cpu_model()}, {cores:g} of {all_cores} cores for this process")
    if found is None:
        yield Finding("devices", "GPU", "not known: torch does not import")
        return
    gpus = [f"{name}, {memory / _GIB:.1f} GiB" for name, memory in found["gpus"]]
    value = "; ".join(f"{gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(gpus)) or "none that torch can use"
    problem = "; ".join(dict.fromkeys(found["warned"])) if gpus else ""
    if not gpus and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/gpus").is_dir()):
        problem = f"there is an NVIDIA driver, but fit would run on the CPU: {_why_no_gpu(found)}"
    yield Finding("devices", "GPU", value, problem)
    yield Finding("devices", "MPS", "yes" if found["mps"] else "no")
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    spinning = (
        "processes that share these cores (--trainer.devices 2) slow each other down, since idle threads spin: "
        "export OMP_WAIT_POLICY=passive"
    )
    shared = not gpus and cores > 1 and policy.lower() != "passive"
    yield Finding("devices", "OMP_WAIT_POLICY", policy or "not set", spinning if shared else "")


def _why_no_gpu(found: dict[str, Any]) -> str:
    if not found["built_for"]:
        return "this torch is built without CUDA. Install the one for your driver: https://pytorch.org/get-started"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU. Unset it."
    said = f" torch says: {'; '.join(found['warned'])}" if found["warned"] else ""
    return f"the driver may be too old for CUDA {found['built_for']}. Look at nvidia-smi, update the driver.{said}"


def memory() -> Finding:
    """The host's memory."""
    free, total = free_host_memory(), total_host_memory()
    value = f"{_size(free)} free of {_size(total)}"
    little = free is not None and free < _GIB
    problem = "fit needs 1 GiB for the smallest base: end other programs" if little else ""
    return Finding("devices", "memory", value, problem)


def _size(n: int | None) -> str:
    if n is None:
        return "not known"
    return f"{n / _GIB:.1f} GiB" if n >= _GIB / 10 else f"{n / 2**20:.1f} MiB"


# ---- Python and packages


def packages() -> tuple[list[Finding], dict[str, Any] | None]:
    """Python, every dependency against its range, the extras; and the devices that torch sees."""
    python = f"{platform.python_version()} ({sys.executable})"
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet

        about = metadata.metadata(PACKAGE)
        requirements = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    except ImportError as error:  # a distribution that is not there is an ImportError too
        if isinstance(error, metadata.PackageNotFoundError):
            name, value, remedy = PACKAGE, "is not installed", "pip install -e . in the checkout, or the wheel"
        else:
            name, value, remedy = "packaging", "does not import", "pip install packaging"
        problem = f"which packages and versions are needed is not known, so that any command may fail: {remedy}"
        unknown = [Finding("packages", "Python", python), Finding("packages", name, value, problem, True)]
        return unknown, import_each(["torch"])["torch"].get("devices")
    wanted = about["Requires-Python"] or "any"
    old = wanted != "any" and platform.python_version() not in SpecifierSet(wanted)
    problem = f"{PACKAGE} does not run on it: make a new environment with Python {wanted}" if old else ""
    findings = [Finding("packages", "Python", f"{python}, needs {wanted}", problem, old)]

    # torch first: where it does not import, others do not for the same reason.
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    needed.sort(key=lambda r: (r.name != "torch", r.name))
    extras = {
        extra: [r for r in requirements if r.marker and only_by(r.marker, extra)]
        for extra in about.get_all("Provides-Extra") or []
    }
    optional = [r for extra, group in extras.items() if extra != "test" for r in group]
    groups = [
        list(dict.fromkeys(module_of(r.name) for r in group if version_of(r.name))) for group in (needed, optional)
    ]
    with ThreadPoolExecutor(len(groups)) as pool:
        imports = {name: said for result in pool.map(import_each, groups) for name, said in result.items()}
    for r in needed:
        wrong, remedy = judgement_of(r, imports)
        problem = f"fit and test do not start, {wrong}: {remedy}" if wrong else ""
        findings.append(Finding("packages", r.name, described(r), problem, bool(wrong)))
    for extra, group in extras.items():
        judged = [judgement for r in group if (judgement := judgement_of(r, imports))[0]]
        wrongs = [wrong for wrong, _ in judged]
        # What is here and does not import is not mended by installing the extra again.
        broken = judged and not any(lacking(r) for r in group)
        remedy = judged[0][1] if broken else f"pip install '{PACKAGE}[{extra}]'"
        value = f"{'incomplete' if wrongs else 'complete'}: {', '.join(f'{r.name} {described(r)}' for r in group)}"
        need = NEEDS.get(extra, f"what is for {extra}")
        several = f" and {len(wrongs) - 2} more" if len(wrongs) > 2 else ""
        problem = f"{need} does not work, {', '.join(wrongs[:2])}{several}: {remedy}"
        findings.append(Finding("extras", extra, value, problem if wrongs else ""))
    return findings, imports.get("torch", {}).get("devices")


# ---- folders


def unwritable(folder: Path) -> str:
    """Why no file can be written in ``folder``, or in what exists above it; nothing where one can."""
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    return ""


def _bytes_below(folder: Path) -> str:
    """The size of what lies below ``folder``; of a large cache what was counted within ``COUNTING`` seconds."""
    total, until = 0, time.monotonic() + COUNTING
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                found = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            total += found.st_size
        if time.monotonic() > until:
            return f"more than {_size(total)}"
    return _size(total)


def folder(name: str, path: Path, enough: int, remedy: str, necessary: bool = True, counted: bool = True) -> Finding:
    """A folder that is written into: where, how large, how much is free, and whether it can be written.

    Args:
        name: what it is called.
        path: where it is; it need not exist.
        enough: bytes below which its free space is reported.
        remedy: how to name another one.
        necessary: whether nothing works where it cannot be written.
        counted: whether to count what is in it.
    """
    why = unwritable(path)
    above = next((p for p in (path, *path.parents) if p.is_dir()), None)
    try:
        free = shutil.disk_usage(above).free if above else None
    except OSError:
        free = None
    state = [f"{_bytes_below(path)} in it" if path.is_dir() else "not made yet"] if counted else []
    value = f"{path}: {', '.join([*state, f'{_size(free)} free', 'not writable' if why else 'writable'])}"
    if why:
        return Finding("folders", name, value, f"nothing can be written there ({why}): {remedy}", necessary)
    scarce = free is not None and free < enough
    return Finding("folders", name, value, f"less than {_size(enough)} is free: {remedy}" if scarce else "")


def folders() -> Iterator[Finding]:
    """The current folder and both caches."""
    try:
        here = Path.cwd()
    except OSError as error:
        problem = f"runs cannot be written ({error.strerror or error}): go to a folder that exists"
        yield Finding("folders", "here", "is gone", problem, True)
    else:
        # Runs go into a folder of their own, which may not be writable where this one is.
        place = here / "runs" if (here / "runs").exists() else here
        yield folder("here", place, _GIB, "fit writes its run here, so go to another folder", counted=False)
    remedy = f"data fetch and fit keep files there; name another folder with {CACHE_VARIABLE}"
    yield folder("data cache", cache_folder(), _GIB, remedy)
    try:
        from huggingface_hub import constants
    except Exception as error:  # whatever a broken installation raises
        yield Finding("folders", "hub cache", f"not known: huggingface_hub does not import ({first_line(error)})")
        return
    remedy = "a base of 7B parameters takes 14 GB there; name another folder with HF_HOME"
    needed = not constants.HF_HUB_OFFLINE
    yield folder("hub cache", Path(constants.HF_HUB_CACHE), 15 * _GIB, remedy, necessary=needed)


# ---- network


def network() -> Iterator[Finding]:
    """Whether the hub and the package index answer.

    Both are asked at once. Each has ``NETWORK`` seconds; a name server that does not answer takes no longer either.
    """
    switch = offline()
    try:
        from huggingface_hub import constants
    except Exception:  # whatever a broken installation raises; the packages' findings say so
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    else:
        hub = constants.ENDPOINT
        switch = switch or ("HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None)
    if switch:
        yield Finding("network", "not asked", f"{switch} says to stay offline")
        return
    addresses = (
        ("hub", hub, "bases and datasets that are not in the cache cannot be fetched"),
        ("package index", index_url(), "pip install fails; what is installed keeps working"),
    )
    answers: dict[str, tuple[str, bool]] = {}
    for name, url, _ in addresses:
        # Not a pool's: the program would wait for those when it ends.
        Thread(target=lambda name, url: answers.update({name: answer_of(url)}), args=(name, url), daemon=True).start()
    until = time.monotonic() + NETWORK
    while len(answers) < len(addresses) and time.monotonic() < until:
        time.sleep(0.02)
    for name, url, fails in addresses:
        answer, wrong = answers.get(name, ("no answer in time", True))
        problem = f"{fails}: check the address, its login, the connection and HTTPS_PROXY" if wrong else ""
        yield Finding("network", name, f"{masked_url(url)}: {answer}", problem)


# ---- terminal and limits


def limits() -> Iterator[Finding]:
    """The output's encoding, and what processes that load data need."""
    encoding = (getattr(sys.stdout, "encoding", None) or "not known").lower()
    plain = encoding.replace("-", "").replace("_", "") != "utf8"
    problem = "predictions with other characters cannot be printed: export PYTHONIOENCODING=utf-8" if plain else ""
    yield Finding("limits", "output", f"{encoding}, {shutil.get_terminal_size().columns} columns", problem)
    try:
        import resource
    except ImportError:  # not on this system
        pass
    else:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        few = files != resource.RLIM_INFINITY and files < 1024
        problem = "--data.num_workers can end in 'Too many open files': ulimit -n 4096" if few else ""
        yield Finding("limits", "open files", "any" if files == resource.RLIM_INFINITY else str(files), problem)
    if os.path.isdir("/dev/shm"):
        usage = shutil.disk_usage("/dev/shm")
        small = usage.free < 256 * 2**20
        problem = "--data.num_workers can end in a bus error: start the container with --shm-size 1g" if small else ""
        yield Finding("limits", "/dev/shm", f"{_size(usage.free)} free of {_size(usage.total)}", problem)


# ---- the command


def examine() -> list[Finding]:
    """Everything, in the order in which it is printed; the checks that take a while run at the same time."""
    with ThreadPoolExecutor() as pool:
        installed, places, answers = (pool.submit(_listed, check) for check in (packages, folders, network))
    found, seen_by_torch = installed.result()
    return [*devices(seen_by_torch), memory(), *found, *places.result(), *answers.result(), *limits()]


def _listed(check: Callable[[], Iterable[Any]]) -> list[Any]:
    return list(check())


def lines(findings: Sequence[Finding], width: int) -> Iterator[str]:
    """The findings as plain text of ``width`` columns; a path or an address that is longer than a line stays whole."""

    def wrap(text: str, first: str, later: str) -> list[str]:
        wrapper = textwrap.TextWrapper(max(width, 20), first, later, break_long_words=False, break_on_hyphens=False)
        return wrapper.wrap(text)

    label = 2 + max(len(finding.name) for finding in findings)
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            yield section
        if width >= 60:
            yield from wrap(finding.value, f"  {finding.name:<{label}}", " " * (label + 2))
        else:
            yield f"  {finding.name}"
            yield from wrap(finding.value, " " * 4, " " * 4)
        if finding.problem:
            yield from wrap(finding.problem, f"  {'error' if finding.necessary else 'note'}: ", " " * 4)
    missing = missing_of(findings)
    yield ""
    if missing:
        yield from wrap(f"Mend what is necessary first: {', '.join(missing)}.", "", "")
    else:
        yield "Nothing necessary is missing."


def missing_of(findings: Sequence[Finding]) -> list[str]:
    """The names of what is necessary and has a problem."""
    return [finding.name for finding in findings if finding.problem and finding.necessary]


def main(given: argparse.Namespace, debug: bool = False) -> int:
    """Print what this machine has; 1 if something necessary is missing."""
    findings = examine()
    missing = missing_of(findings)
    if given.json:
        print(json.dumps({"missing": missing, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        text = "\n".join(lines(findings, shutil.get_terminal_size().columns))
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 1 if missing else 0
