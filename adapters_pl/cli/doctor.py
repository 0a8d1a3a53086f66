"""``doctor``: what this machine has, and what would fail on it.

It is meant for a machine on which something is missing: this process imports nothing heavy, the libraries are
imported by children, and one that is absent, broken or brings its process down is a finding like any other.
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.client import HTTPException
from importlib import import_module, metadata
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, url2pathname, urlopen

from adapters_pl.inputs.cache import CACHE_VARIABLE, cache_folder, offline
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.inputs.masking import masked_url
from adapters_pl.training.planning.hardware import free_host_memory, total_host_memory, usable_cores

PACKAGE = "adapters-pl"
PYPI = "https://pypi.org/simple"

#: Seconds that the hub and the package index have for an answer, that a cache is counted, that imports may take.
NETWORK, COUNTING, IMPORTING = 3.0, 2.0, 120.0

#: What needs an extra.
NEEDS = {"peft": "PEFTAdapter", "quant": "--model.quantization 8bit or 4bit", "test": "make test"}

#: The module of a distribution, where that is not its name.
_MODULES = {"pyyaml": "yaml"}

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


def devices_of_torch() -> dict[str, Any]:
    """What torch says of its devices; runs in a child."""
    import torch

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    return {
        "gpus": [(p.name, p.total_memory) for p in properties],
        "mps": torch.backends.mps.is_available(),
        "built_for": torch.version.cuda or torch.version.hip,
        "warned": [first_line(UserError(w.message)) for w in warned],
    }


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
    spinning = not gpus and cores > 1 and policy.lower() != "passive"
    yield Finding(
        "devices",
        "OMP_WAIT_POLICY",
        policy or "not set",
        "processes that share these cores (--trainer.devices 2) slow each other down, since idle threads spin: "
        "export OMP_WAIT_POLICY=passive"
        if spinning
        else "",
    )


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
    return Finding(
        "devices", "memory", value, "fit needs 1 GiB for the smallest base: end other programs" if little else ""
    )


def _size(n: int | None) -> str:
    if n is None:
        return "not known"
    return f"{n / _GIB:.1f} GiB" if n >= _GIB / 10 else f"{n / 2**20:.1f} MiB"


# ---- Python and packages


def _import_each(names: Sequence[str], report: Any) -> None:
    """Import every module of ``names`` and write a line of JSON of each; runs in a child."""
    for name in names:
        said: dict[str, Any] = {"name": name}
        try:
            import_module(name)
            if name == "torch":
                said["devices"] = devices_of_torch()
        except (Exception, SystemExit) as error:
            said["error"] = f"{type(error).__name__}: {first_line(error)}"
        print(json.dumps(said), file=report, flush=True)


#: The child's program. What libraries print is thrown away; modules are found as this process finds them.
_CHILD = """
import json, os, sys
report = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.path[:] = json.loads(sys.argv[1])
from adapters_pl.cli.doctor import _import_each
_import_each(sys.argv[2:], report)
report.flush()
os._exit(0)
"""


def import_each(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What came of importing each module in a child: nothing, or its ``error``; and torch's ``devices``."""
    came: dict[str, dict[str, Any]] = {}
    while left := [name for name in names if name not in came]:
        command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), *left]
        why = ""
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=IMPORTING)
            if done.returncode == -signal.SIGINT:
                raise KeyboardInterrupt
            out = done.stdout
            why = f"the process ends with {_exit(done.returncode)}"
        except subprocess.TimeoutExpired as late:
            out, why = late.stdout or b"", f"not done after {IMPORTING:.0f} s"
        for line in out.decode("utf-8", "replace").splitlines():
            said = json.loads(line)
            came[said["name"]] = said
        if unfinished := [name for name in left if name not in came]:
            came[unfinished[0]] = {"error": why}
    return came


def _exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def module_of(distribution: str) -> str:
    """The module that a distribution is imported by."""
    return _MODULES.get(distribution.lower(), distribution.lower().replace("-", "_"))


def _version(distribution: str) -> str | None:
    """The version that is installed; ``None`` also where an installation is a ruin."""
    try:
        return metadata.version(distribution) or None
    except (metadata.PackageNotFoundError, KeyError):
        return None


def lacking(requirement: Any, seen: frozenset[str] = frozenset()) -> list[str]:
    """What an installed package's requirement lacks, in words, with the packages of the extras that it names."""
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion

    version = _version(requirement.name)
    if version is None:
        return [f"{requirement.name} is not installed"]
    try:
        fits = requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        fits = False
    words = [] if fits else [f"{requirement.name} {version} is not {requirement.specifier}"]
    for extra in requirement.extras:
        for line in metadata.requires(requirement.name) or []:
            further = Requirement(line)
            if further.marker and line not in seen and _only_by(further.marker, extra):
                words += lacking(further, seen | {line})
    return words


def _only_by(marker: Any, extra: str) -> bool:
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


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
        extra: [r for r in requirements if r.marker and _only_by(r.marker, extra)]
        for extra in about.get_all("Provides-Extra") or []
    }
    optional = [r for extra, group in extras.items() if extra != "test" for r in group]
    groups = [list(dict.fromkeys(module_of(r.name) for r in group if _version(r.name))) for group in (needed, optional)]
    with ThreadPoolExecutor(len(groups)) as pool:
        came = {name: said for result in pool.map(import_each, groups) for name, said in result.items()}
    for r in needed:
        wrong, remedy = _judge(r, came)
        problem = f"fit and test do not start, {wrong}: {remedy}" if wrong else ""
        findings.append(Finding("packages", r.name, _described(r), problem, bool(wrong)))
    for extra, group in extras.items():
        judged = [judgement for r in group if (judgement := _judge(r, came))[0]]
        wrongs = [wrong for wrong, _ in judged]
        # What is here and does not import is not mended by installing the extra again.
        broken = judged and not any(lacking(r) for r in group)
        remedy = judged[0][1] if broken else f"pip install '{PACKAGE}[{extra}]'"
        value = f"{'incomplete' if wrongs else 'complete'}: {', '.join(f'{r.name} {_described(r)}' for r in group)}"
        need = NEEDS.get(extra, f"what is for {extra}")
        several = f" and {len(wrongs) - 2} more" if len(wrongs) > 2 else ""
        problem = f"{need} does not work, {', '.join(wrongs[:2])}{several}: {remedy}"
        findings.append(Finding("extras", extra, value, problem if wrongs else ""))
    return findings, came.get("torch", {}).get("devices")


def _described(requirement: Any) -> str:
    return f"{_version(requirement.name) or 'missing'} ({requirement.specifier or 'any'})"


def _judge(requirement: Any, came: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """What is wrong with a package, by its version or by what came of importing it, and how to mend it; or nothing."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    plain = f"'{requirement.name}{extras}{requirement.specifier}'"
    if short := lacking(requirement):
        return ", ".join(short), f"pip install {plain}"
    error = came.get(module_of(requirement.name), {}).get("error")
    if not error:
        return "", ""
    if requirement.name != "torch" and error == came.get("torch", {}).get("error"):
        return f"{requirement.name} does not import for the same reason as torch", "mend torch first"
    return f"{requirement.name} does not import ({error})", f"pip install --force-reinstall {plain}"


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


def _held(folder: Path) -> str:
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


def folder(name: str, path: Path, enough: int, remedy: str, necessary: bool = True, held: bool = True) -> Finding:
    """A folder that is written into: where, how large, how much is free, and whether it can be written.

    Args:
        name: what it is called.
        path: where it is; it need not exist.
        enough: bytes below which its free space is reported.
        remedy: how to name another one.
        necessary: whether nothing works where it cannot be written.
        held: whether to count what is in it.
    """
    why = unwritable(path)
    above = next((p for p in (path, *path.parents) if p.is_dir()), None)
    try:
        free = shutil.disk_usage(above).free if above else None
    except OSError:
        free = None
    state = [f"{_held(path)} in it" if path.is_dir() else "not made yet"] if held else []
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
        yield folder("here", place, _GIB, "fit writes its run here, so go to another folder", held=False)
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


def index_url() -> str:
    """The package index that pip asks: by ``PIP_INDEX_URL``, by its configuration, or PyPI."""
    if given := os.environ.get("PIP_INDEX_URL"):
        return given
    try:
        command = [sys.executable, "-m", "pip", "config", "list"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return PYPI
    found = dict(re.findall(r"^(install|global)\.index-url=(.+)$", out, re.MULTILINE))
    value = found.get("install") or found.get("global")
    return str(ast.literal_eval(value)) if value else PYPI


def _answer(url: str) -> tuple[str, bool]:
    """What comes of asking ``url``, and whether that is wrong. It repeats nothing of the address."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "file":
            there = Path(url2pathname(parts.path)).is_dir()
            return "is there" if there else "no such folder", not there
        account, _, host = parts.netloc.rpartition("@")
        request = Request(urlunsplit(parts._replace(netloc=host)), method="HEAD", headers={"User-Agent": PACKAGE})
        if account:
            # Unredirected: another host that the answer names is not told.
            basic = base64.b64encode(unquote(account).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {basic}")
        with urlopen(request, timeout=NETWORK) as answer:
            return f"answers ({answer.status})", False
    except HTTPError as error:
        refused = error.code in (401, 403, 407) or error.code >= 500
        return f"{'refuses' if refused else 'answers'} ({error.code})", refused
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            return "no answer in time", True
        return f"cannot be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})", True
    except (ValueError, HTTPException):
        return "cannot be asked, as it is written", True


class Network:
    """Asks the hub and the package index at once, in the background.

    Each has ``NETWORK`` seconds; a name server that does not answer takes no longer either.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.answers: dict[str, tuple[str, bool]] = {}
        self.switch = offline()
        try:
            from huggingface_hub import constants
        except Exception:  # whatever a broken installation raises; the packages' findings say so
            hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        else:
            hub = constants.ENDPOINT
            self.switch = self.switch or ("HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None)
        if self.switch:
            return
        self.asked = [
            ("hub", hub, "bases and datasets that are not in the cache cannot be fetched"),
            ("package index", index_url(), "pip install fails; what is installed keeps working"),
        ]
        for name, url, _ in self.asked:
            Thread(target=self._ask, args=(name, url), daemon=True).start()
        self.until = time.monotonic() + NETWORK

    def _ask(self, name: str, url: str) -> None:
        self.answers[name] = _answer(url)

    def findings(self) -> Iterator[Finding]:
        """What they answered by now, or within what is left of their time."""
        if self.switch:
            yield Finding("network", "not asked", f"{self.switch} says to stay offline")
        while len(self.answers) < len(self.asked) and time.monotonic() < self.until:
            time.sleep(0.02)
        for name, url, fails in self.asked:
            answer, wrong = self.answers.get(name, ("no answer in time", True))
            problem = f"{fails}: check the address, its login, the connection and HTTPS_PROXY" if wrong else ""
            yield Finding("network", name, f"{masked_url(url)}: {answer}", problem)


# ---- terminal and limits


def limits() -> Iterator[Finding]:
    """The output's encoding, and what processes that load data need."""
    encoding = (getattr(sys.stdout, "encoding", None) or "not known").lower()
    plain = encoding.replace("-", "").replace("_", "") != "utf8"
    problem = "predictions with other characters cannot be printed: export PYTHONIOENCODING=utf-8" if plain else ""
    yield Finding("limits", "output", f"{encoding}, {_width()} columns", problem)
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


def _width() -> int:
    return shutil.get_terminal_size().columns


def examine() -> list[Finding]:
    """Everything, in the order in which it is printed."""
    with ThreadPoolExecutor(1) as pool:
        imports = pool.submit(packages)  # takes the longest
        network = Network()
        places = list(folders())
        found, seen_by_torch = imports.result()
    return [*devices(seen_by_torch), memory(), *found, *places, *network.findings(), *limits()]


def lines(findings: Sequence[Finding], width: int) -> Iterator[str]:
    """The findings as plain text of ``width`` columns; a path or an address that is longer than a line stays whole."""

    def wrap(text: str, first: str, later: str) -> list[str]:
        return textwrap.wrap(
            text,
            max(width, 20),
            initial_indent=first,
            subsequent_indent=later,
            break_long_words=False,
            break_on_hyphens=False,
        )

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
        text = "\n".join(lines(findings, _width()))
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 1 if missing else 0
