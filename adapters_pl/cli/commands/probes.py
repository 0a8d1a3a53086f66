"""What ``doctor`` looks at things with: does a module import, is a requirement met, does an address answer.

Modules are imported by processes that they may bring down. Nothing heavy is imported here.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from http.client import HTTPException
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, url2pathname, urlopen

from adapters_pl.inputs.errors import first_line

PACKAGE = "adapters-pl"
PYPI = "https://pypi.org/simple"

#: Seconds that the hub and the package index have for an answer.
NETWORK = 3.0
#: Seconds that imports may take.
IMPORTING = 120.0

#: The module of a distribution, where that is not its name.
_MODULES = {"pyyaml": "yaml"}


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
        "warned": [first_line(Warning(w.message)) for w in warned],
    }


def _import_each(names: Sequence[str], report: Any) -> None:
    """Import every module of ``names`` and write a line of JSON of each; runs in a child."""
    for name in names:
        result: dict[str, Any] = {"name": name}
        try:
            import_module(name)
            if name == "torch":
                result["devices"] = devices_of_torch()
        except (Exception, SystemExit) as error:
            result["error"] = f"{type(error).__name__}: {first_line(error)}"
        print(json.dumps(result), file=report, flush=True)


#: The child's program. What libraries print is thrown away; modules are found as this process finds them.
_CHILD = """
import json, os, sys
report = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.path[:] = json.loads(sys.argv[1])
from adapters_pl.cli.commands.probes import _import_each
_import_each(sys.argv[2:], report)
report.flush()
os._exit(0)
"""


def import_each(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What came of importing each module in a child: nothing, or its ``error``; and torch's ``devices``."""
    imports: dict[str, dict[str, Any]] = {}
    while left := [name for name in names if name not in imports]:
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
            result = json.loads(line)
            imports[result["name"]] = result
        if unfinished := [name for name in left if name not in imports]:
            imports[unfinished[0]] = {"error": why}
    return imports


def _exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def module_of(distribution: str) -> str:
    """The module that a distribution is imported by."""
    return _MODULES.get(distribution.lower(), distribution.lower().replace("-", "_"))


def version_of(distribution: str) -> str | None:
    """The version that is installed; ``None`` also where an installation is a ruin."""
    try:
        return metadata.version(distribution) or None
    except (metadata.PackageNotFoundError, KeyError):
        return None


def lacking(requirement: Any, seen: frozenset[str] = frozenset()) -> list[str]:
    """What an installed package's requirement lacks, in words, with the packages of the extras that it names."""
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion

    version = version_of(requirement.name)
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
            if further.marker and line not in seen and only_by(further.marker, extra):
                words += lacking(further, seen | {line})
    return words


def only_by(marker: Any, extra: str) -> bool:
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def described(requirement: Any) -> str:
    """The version that is installed, and the versions that are needed."""
    return f"{version_of(requirement.name) or 'missing'} ({requirement.specifier or 'any'})"


def judgement_of(requirement: Any, imports: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """What is wrong with a package, by its version or by what came of importing it, and how to mend it; or nothing."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    plain = f"'{requirement.name}{extras}{requirement.specifier}'"
    if short := lacking(requirement):
        return ", ".join(short), f"pip install {plain}"
    error = imports.get(module_of(requirement.name), {}).get("error")
    if not error:
        return "", ""
    if requirement.name != "torch" and error == imports.get("torch", {}).get("error"):
        return f"{requirement.name} does not import for the same reason as torch", "mend torch first"
    return f"{requirement.name} does not import ({error})", f"pip install --force-reinstall {plain}"


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


def answer_of(url: str) -> tuple[str, bool]:
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
