"""``make audit``: what it finds in the pins, and that it says which checks ran."""

from __future__ import annotations

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.helpers import audit
from tests.helpers.audit import ADVISORIES, check_advisories, check_ranges, check_withdrawn, main, pins_of

ROOT = Path(__file__).resolve().parents[1]
PROJECT = {
    "name": "adapters-pl",
    "dependencies": ["torch>=2.9.1", "PyYAML>=6"],
    "optional-dependencies": {"peft": ["peft>=0.21"], "test": ["adapters-pl[peft]", "types-PyYAML"]},
}
PINS = pins_of("# pins\ntorch==2.13.0\npyyaml==6.0.3\npeft==0.21.2\ntypes_pyyaml==6.0.12.20261113  # stubs\n")


@pytest.fixture
def index():
    """A package index on this machine; a name that it has no page for is a 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/").split("/")[-1]
            files = pages.get(name)
            self.send_response(404 if files is None else 200)
            self.end_headers()
            self.wfile.write(files.encode() if isinstance(files, str) else json.dumps({"files": files}).encode())

        def log_message(self, *arguments):
            pass

    pages = {}
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/simple", pages
    running.shutdown()
    running.server_close()


@pytest.fixture
def services(monkeypatch):
    """What pip-audit prints, by service; a service that is not here ends with an error."""
    printed = {}

    def run(command, **options):
        service = command[command.index("-s") + 1]
        out = json.dumps(printed[service]) if service in printed else ""
        return subprocess.CompletedProcess(command, 0 if out else 1, out, "")

    monkeypatch.setattr(audit.subprocess, "run", run)
    return printed


# ---- ranges


def test_the_pins_of_this_project_agree_with_its_ranges():
    project = audit.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert check_ranges(project, pins_of((ROOT / "constraints.txt").read_text())).findings == []


def test_pins_out_of_range_and_dependencies_without_one_are_found():
    assert check_ranges(PROJECT, PINS).findings == []
    pins = pins_of("torch==2.5.0\npyyaml==6.0.3\ntypes-pyyaml==6.0")
    assert check_ranges(PROJECT, pins).findings == [
        "torch==2.5.0 is not >=2.9.1, which pyproject.toml asks for",
        "peft is a dependency and has no pin in constraints.txt",
    ]


def test_a_lowest_version_with_a_known_weakness_is_a_note():
    (note,) = check_ranges(PROJECT, PINS).notes
    assert note.startswith("pyproject.toml allows torch 2.9.1: CVE-2026-24747: ")


@pytest.mark.parametrize("line", ["torch>=2", "torch", "torch==2.*", "torch==2,<3"])
def test_a_line_that_pins_nothing_is_refused(line):
    with pytest.raises(ValueError, match="no pin; write name==version"):
        pins_of(line)


# ---- withdrawn


def test_withdrawn_and_unknown_pins_are_found(index):
    address, pages = index
    pages["torch"] = [
        {"filename": "torch-2.13.0-cp311-none-any.whl", "yanked": "broken"},
        {"filename": "torch-2.13.0.tar.gz", "yanked": True},
        {"filename": "torch-2.12.0.tar.gz", "yanked": False},
        {"filename": "torch-0.1.exe"},
    ]
    pages["pyyaml"] = [{"filename": "pyyaml-6.0.3.tar.gz", "yanked": False}]
    # One file of a version is withdrawn: pip installs the others.
    pages["peft"] = [
        {"filename": "peft-0.21.2.tar.gz", "yanked": True},
        {"filename": "peft-0.21.2-py3-none-any.whl", "yanked": False},
    ]
    pages["types-pyyaml"] = [{"filename": "types_pyyaml-6.0.tar.gz"}]
    checked = check_withdrawn(address, PINS)
    assert checked.said == "withdrawn: asked 127.0.0.1 about 4 pins."
    assert checked.findings == [
        "torch==2.13.0 was withdrawn (yanked) from the index",
        "types-pyyaml==6.0.12.20261113 is not in the index",
    ]
    del pages["peft"]
    assert check_withdrawn(address, PINS).said == "withdrawn: asked 127.0.0.1 about 3 pins; 1 were not answered."


def test_an_index_that_does_not_answer_is_said_and_no_finding(index):
    address, pages = index
    pages["torch"] = "<html>no JSON here</html>"
    for silent, why in (("http://me:secret@127.0.0.1:9/simple", "URLError"), (address, "JSONDecodeError")):
        checked = check_withdrawn(silent, PINS)
        assert checked.said == f"withdrawn: not checked, since 127.0.0.1 does not answer ({why})."
        assert checked.findings == ()
    assert check_withdrawn("http://me:secret@[broken", PINS).said.endswith("PIP_INDEX_URL is no address.")


def test_an_index_is_asked_without_the_password(index):
    address, pages = index
    pages["torch"] = [{"filename": "torch-2.13.0.tar.gz"}]
    checked = check_withdrawn(address.replace("//", "//me:secret@"), {"torch": PINS["torch"]})
    assert checked.said == "withdrawn: asked 127.0.0.1 about 1 pins."


# ---- advisories


def entry(name, *weaknesses):
    return {"name": name, "version": "1", "vulns": [{"id": i, "fix_versions": fixed} for i, fixed in weaknesses]}


def test_a_service_that_answers_is_named_with_what_it_knows(services):
    services["pypi"] = {
        "dependencies": [
            entry("torch", ("CVE-1", ["2", "3"])),
            entry("peft", ("GHSA-2", [])),
            {"name": "pyyaml", "skip_reason": "not found"},
            entry("types-pyyaml"),
        ]
    }
    checked = check_advisories(Path("constraints.txt"), PINS)
    assert checked.said == "advisories: pip-audit asked the service pypi about 3 pins; 1 are unknown to it."
    assert checked.findings == ["torch==1: CVE-1, mended in 2 or 3", "peft==1: GHSA-2, mended in no version yet"]


def test_a_service_that_knows_nothing_is_not_one_that_was_asked(services):
    services["pypi"] = {"dependencies": [{"name": name, "skip_reason": "not found"} for name in PINS]}
    checked = check_advisories(Path("constraints.txt"), PINS)
    assert "no service was asked" in checked.said
    assert f"compared with the {len(ADVISORIES)} advisories in tests/helpers/audit.py alone" in checked.said
    services["osv"] = {"dependencies": [entry(name) for name in PINS]}
    assert check_advisories(Path("constraints.txt"), PINS).said == (
        "advisories: pip-audit asked the service osv about 4 pins."
    )


def test_without_a_service_the_list_here_counts(services):
    pins = {**PINS, **pins_of("torch==2.5.1+cpu\npyarrow==14.0.0")}
    found = check_advisories(Path("constraints.txt"), pins).findings
    assert [line.split(" is ")[0] for line in found] == ["torch==2.5.1+cpu", "torch==2.5.1+cpu", "pyarrow==14.0.0"]
    assert found[2].endswith(": CVE-2023-47248: IPC and Parquet files run code")


def test_the_list_here_names_direct_dependencies_and_advisories():
    project = audit.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {audit.canonicalize_name(audit.Requirement(line).name) for line in project["dependencies"]}
    for name, versions, words in ADVISORIES:
        assert name in direct
        assert SpecifierSet(versions)
        assert words.startswith(("CVE-", "GHSA-"))


# ---- the command


@pytest.mark.parametrize(("pin", "code"), [("2.13.0", 0), ("2.9.0", 1), ("", 1)])
def test_the_exit_code_tells_whether_anything_has_to_be_mended(tmp_path, monkeypatch, services, capsys, pin, code):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "adapters-pl"\ndependencies = ["torch>=2.9.1"]\n')
    (tmp_path / "constraints.txt").write_text(f"torch=={pin}\n" if pin else "torch\n")
    assert main(tmp_path) == code
    out = capsys.readouterr().out
    if pin:
        assert [line.split(":")[0] for line in out.splitlines() if line[0] != " "][:3] == [
            "ranges",
            "withdrawn",
            "advisories",
        ]
    assert ("finding: " in out) == (code == 1)
    assert out.endswith("Nothing has to be mended.\n") == (code == 0)
