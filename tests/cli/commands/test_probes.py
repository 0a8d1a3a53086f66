"""What imports and what does not, without this process importing it; what a requirement lacks; which index is asked."""

from __future__ import annotations

import signal
import subprocess
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from adapters_pl.cli.commands import probes
from adapters_pl.cli.commands.probes import import_each, lacking, module_of

ROOT = Path(__file__).resolve().parents[3]


def test_every_dependency_is_imported_by_its_right_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [Requirement(line).name for line in [*project["dependencies"], *extras["peft"], *extras["quant"]]]
    assert [name for name in named if find_spec(module_of(name)) is None] == []


def test_the_packages_of_a_dependencys_extra_count(monkeypatch):
    listed = {"numpy": ["scipy>=999; extra == 'more'", "absent; extra == 'other'"], "scipy": []}
    monkeypatch.setattr(metadata, "requires", listed.get)
    assert lacking(Requirement("numpy")) == []
    assert lacking(Requirement("numpy[more]")) == [f"scipy {metadata.version('scipy')} is not >=999"]


def test_imports_that_fail_or_end_the_process_are_told_apart(tmp_path, monkeypatch):
    for name, program in (
        ("fails", "print('noise'); raise OSError('libcudart.so: cannot open\\nmore')"),
        ("killed", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        ("leaves", "import os; os._exit(3)"),
        ("works", "print('{not json')"),
    ):
        (tmp_path / f"{name}.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    came = import_each(["fails", "killed", "leaves", "works"])
    assert came["fails"]["error"] == "OSError: libcudart.so: cannot open"
    assert came["killed"]["error"] == f"the process ends with {signal.SIGSEGV.name}"
    assert came["leaves"]["error"] == "the process ends with exit code 3"
    assert came["works"] == {"name": "works"}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("global.index-url='https://a/simple'\ninstall.index-url='https://b/simple'\n", "https://b/simple"),
        ("global.index-url='https://a/simple'\nglobal.cert='x'\n", "https://a/simple"),
        ("global.extra-index-url='https://a/simple'\n", probes.PYPI),
        ("", probes.PYPI),
    ],
)
def test_the_index_is_pips(monkeypatch, listed, expected):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    done = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(probes.subprocess, "run", lambda *a, **k: done)
    assert probes.index_url() == expected
    monkeypatch.setenv("PIP_INDEX_URL", "https://c/simple")
    assert probes.index_url() == "https://c/simple"
