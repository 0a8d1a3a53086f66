"""Are the pins of ``constraints.txt`` within the ranges, not withdrawn, without known weaknesses? ``make audit``.

The ranges are checked always. Withdrawn (yanked) pins are known where the package index answers, known weaknesses where
an advisory service does; where none does, the pins are compared with the short list below, and a line says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

if TYPE_CHECKING or find_spec("packaging"):
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.utils import (
        InvalidSdistFilename,
        InvalidWheelFilename,
        canonicalize_name,
        parse_sdist_filename,
        parse_wheel_filename,
    )
    from packaging.version import InvalidVersion, Version
else:  # an environment that could install nothing still has pip's own copy
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.specifiers import SpecifierSet
    from pip._vendor.packaging.utils import (
        InvalidSdistFilename,
        InvalidWheelFilename,
        canonicalize_name,
        parse_sdist_filename,
        parse_wheel_filename,
    )
    from pip._vendor.packaging.version import InvalidVersion, Version

TIMEOUT = 10
#: The advisory services that pip-audit knows.
SERVICES = ("pypi", "osv")

#: Known weaknesses of direct dependencies: package, versions that have it, advisory. Only what is certain.
ADVISORIES = (
    ("filelock", "<3.20.1", "CVE-2025-68146: a link put in a lock's place has its target truncated"),
    ("filelock", "<3.20.3", "CVE-2026-22701: the same race in SoftFileLock"),
    ("torch", "<2.10.0", "CVE-2026-24747: a checkpoint corrupts memory in spite of weights_only=True"),
    ("transformers", "<5.3.0", "CVE-2026-4372: a base's config.json runs code without trust_remote_code"),
    ("torch", "<2.6.0", "CVE-2025-32434: torch.load runs code in spite of weights_only=True"),
    ("transformers", "<4.36.0", "CVE-2023-6730: pickled files of RAG models run code"),
    ("transformers", "<4.38.0", "CVE-2024-3568: pickled TensorFlow checkpoints run code"),
    ("pyarrow", ">=0.14.0,<14.0.1", "CVE-2023-47248: IPC and Parquet files run code"),
    ("pyyaml", "<5.4", "CVE-2020-14343: full_load runs code"),
)

Pins = dict[str, Version]


@dataclass(frozen=True)
class Checked:
    """One check: a line that says what was done, what was found, and what else is worth knowing."""

    said: str
    findings: Sequence[str] = ()
    notes: Sequence[str] = ()


def pins_of(text: str) -> Pins:
    """The pins of a constraints file, by normalised name; raises ``ValueError`` for a line that is none."""
    pins: Pins = {}
    for line in text.splitlines():
        if not (line := line.partition("#")[0].strip()):
            continue
        requirement = Requirement(line)
        specifiers = list(requirement.specifier)
        if len(specifiers) != 1 or specifiers[0].operator != "==" or specifiers[0].version.endswith("*"):
            raise ValueError(f"constraints.txt: '{line}' is no pin; write name==version.")
        pins[canonicalize_name(requirement.name)] = Version(specifiers[0].version)
    return pins


def check_ranges(project: Mapping[str, Any], pins: Pins) -> Checked:
    """Every direct dependency is pinned, within its range."""
    groups = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    requirements = [Requirement(line) for lines in groups for line in lines]
    direct = [r for r in requirements if canonicalize_name(r.name) != canonicalize_name(project["name"])]
    findings, notes = [], []
    for requirement in direct:
        notes += [
            f"pyproject.toml allows {requirement.name} {lowest.version}: {words}"
            for lowest in requirement.specifier
            for name, versions, words in ADVISORIES
            if lowest.operator == ">=" and name == canonicalize_name(requirement.name)
            if SpecifierSet(versions).contains(lowest.version)
        ]
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None:
            findings.append(f"{requirement.name} is a dependency and has no pin in constraints.txt")
        elif not requirement.specifier.contains(pin, prereleases=True):
            findings.append(f"{requirement.name}=={pin} is not {requirement.specifier}, which pyproject.toml asks for")
    said = f"ranges: compared {len(pins)} pins with {len(direct)} direct dependencies of pyproject.toml."
    return Checked(said, findings, notes)


def _versions(files: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Version, bool]]:
    """The version of every file that an index lists, and whether it was withdrawn."""
    for file in files:
        name = file["filename"]
        try:
            version = parse_wheel_filename(name)[1] if name.endswith(".whl") else parse_sdist_filename(name)[1]
        except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
            continue
        yield version, bool(file.get("yanked"))


def _withdrawn(index: str, name: str, pin: Version) -> str:
    """What is wrong with a pin by the index, or nothing; raises ``OSError`` or ``ValueError`` if it does not say."""
    headers = {"Accept": "application/vnd.pypi.simple.v1+json", "User-Agent": "adapters-pl"}
    with urlopen(Request(f"{index.rstrip('/')}/{name}/", headers=headers), timeout=TIMEOUT) as answer:
        listed = json.load(answer)
    yanked = [gone for version, gone in _versions(listed["files"]) if version == pin]
    if not yanked:
        return f"{name}=={pin} is not in the index"
    return f"{name}=={pin} was withdrawn (yanked) from the index" if all(yanked) else ""


def check_withdrawn(index: str, pins: Pins) -> Checked:
    """No pin was withdrawn, as far as the index says."""
    try:
        parts = urlsplit(index)
    except ValueError:
        return Checked("withdrawn: not checked, since PIP_INDEX_URL is no address.")
    host = parts.hostname or "the index"  # the whole address may hold a password, which nobody is told
    index = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def ask(pin: tuple[str, Version]) -> str | Exception:
        try:
            return _withdrawn(index, *pin)
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            return error

    first, *rest = pins.items()
    answers = [ask(first)]
    if isinstance(answers[0], str):  # else there is nobody to ask
        with ThreadPoolExecutor(4) as pool:
            answers += pool.map(ask, rest)
    replies = [answer for answer in answers if isinstance(answer, str)]
    if not replies:
        return Checked(f"withdrawn: not checked, since {host} does not answer ({type(answers[0]).__name__}).")
    silent = f"; {len(pins) - len(replies)} were not answered" if len(replies) < len(pins) else ""
    return Checked(f"withdrawn: asked {host} about {len(replies)} pins{silent}.", [words for words in replies if words])


def ask_service(service: str, constraints: Path) -> list[dict[str, Any]] | None:
    """What pip-audit says of each pin by one service; ``None`` where it says nothing."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", "-r", str(constraints), "-s", service, "--timeout", str(TIMEOUT)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):  # it is not installed, or met an error
        return None


def check_advisories(constraints: Path, pins: Pins) -> Checked:
    """No pin has a known weakness: by a service, else by the list here."""
    for service in SERVICES:
        dependencies = ask_service(service, constraints) or []
        # A service that knows none of the packages is one that cannot be reached, though pip-audit calls it a success.
        known = [entry for entry in dependencies if "skip_reason" not in entry]
        if not known:
            continue
        findings = [
            f"{entry['name']}=={entry['version']}: {weakness['id']}, mended in {_or(weakness['fix_versions'])}"
            for entry in known
            for weakness in entry["vulns"]
        ]
        silent = f"; {len(pins) - len(known)} are unknown to it" if len(known) < len(pins) else ""
        return Checked(f"advisories: pip-audit asked the service {service} about {len(known)} pins{silent}.", findings)
    findings = [
        f"{name}=={pins[name]} is {versions}: {words}"
        for name, versions, words in ADVISORIES
        if name in pins and SpecifierSet(versions).contains(pins[name], prereleases=True)
    ]
    said = "advisories: no service was asked (pip-audit is not installed, or reaches none); "
    return Checked(f"{said}compared with the {len(ADVISORIES)} advisories in tests/helpers/audit.py alone.", findings)


def _or(versions: Sequence[str]) -> str:
    return " or ".join(versions) or "no version yet"


def main(root: Path) -> int:
    """Run the checks on the checkout ``root`` and print a line of each; 1 if anything was found."""
    constraints = root / "constraints.txt"
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        pins = pins_of(constraints.read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"  finding: {error}")
        return 1
    index = os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    found = 0
    for checked in (check_ranges(project, pins), check_withdrawn(index, pins), check_advisories(constraints, pins)):
        print(checked.said)
        for finding in checked.findings:
            print(f"  finding: {finding}")
        for note in checked.notes:
            print(f"  note: {note}")
        found += len(checked.findings)
    print(f"To mend: {found}." if found else "Nothing has to be mended.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[2]))
