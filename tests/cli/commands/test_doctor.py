"""``adapters-pl doctor``, on machines that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import namedtuple
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub import constants

from adapters_pl.cli.commands import doctor
from adapters_pl.cli.commands.doctor import Finding, lines
from adapters_pl.cli.commands.probes import answer_of
from adapters_pl.cli.main import main
from adapters_pl.inputs.masking import masked_url
from adapters_pl.training import hardware

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "lightning", "transformers", "datasets", "rich")
NO_GPU = {"gpus": [], "mps": False, "built_for": None, "warned": []}


def finding(findings, name):
    (found,) = [f for f in findings if f.name == name]
    return found


@pytest.fixture
def declared(monkeypatch):
    """Let the installed package require what the test names, with every module importing well."""

    def declare(*requirements, python=">=3.11"):
        real = metadata.requires
        about = Message()
        about["Requires-Python"] = python
        about["Provides-Extra"] = "peft"
        monkeypatch.setattr(metadata, "metadata", lambda name: about)
        monkeypatch.setattr(
            metadata, "requires", lambda name: list(requirements) if name == "adapters-pl" else real(name)
        )
        monkeypatch.setattr(doctor, "import_each", lambda names: {name: {"name": name} for name in names})

    return declare


@pytest.fixture
def server():
    """A server on this machine that answers as ``status`` says, and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            requests.append((self.path, self.headers.get("Authorization")))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *arguments):
            pass

    requests, status = [], [200]
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield namedtuple("Server", "url requests status")(f"http://127.0.0.1:{running.server_port}", requests, status)
    running.shutdown()
    running.server_close()


@pytest.fixture
def online(monkeypatch, server):
    """Downloads are allowed, and both addresses lead to this machine."""
    for name in ("HF_HUB_OFFLINE", "ADAPTERS_PL_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")


# ---- the command


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What a whole run prints in 40 columns of ASCII, and its exit code."""
    here = tmp_path_factory.mktemp("h\u00e9re")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHON"))},
        **{"PYTHONPATH": str(ROOT), "COLUMNS": "40", "TERM": "dumb", "LANG": "C", "PYTHONIOENCODING": "ascii"},
        **{"ADAPTERS_PL_CACHE": str(here / "cache"), "HF_HUB_OFFLINE": "1"},
    }
    done = subprocess.run(
        [sys.executable, "-m", "adapters_pl", "doctor"], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_narrow_plain_terminal_reads_it_all(printed):
    code, out = printed
    assert code == 0, out
    assert out.isascii()
    assert "h\\xe9re" in out
    assert all(len(line) <= 40 or " " not in line.strip() for line in out.splitlines()), out
    for section in ("devices", "packages", "extras", "folders", "network", "limits"):
        assert f"\n{section}\n" in f"\n{out}"
    assert f"  torch\n    {metadata.version('torch')} (" in out
    words = " ".join(out.split())
    assert "network not asked HF_HUB_OFFLINE says to stay offline limits" in words
    assert "cannot be printed: export PYTHONIOENCODING=utf-8" in words
    assert out.endswith("\nNothing necessary is missing.\n")


def test_json_says_the_same_and_the_exit_code_what_is_necessary(monkeypatch, capsys):
    found = [
        Finding("packages", "torch", "missing", "nothing works: pip install torch", True),
        Finding("extras", "peft", "incomplete", "PEFTAdapter does not work"),
        Finding("limits", "open files", "20000"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["missing"] == ["torch"]
    assert [Finding(**entry) for entry in report["findings"]] == found
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "  error: nothing works: pip install torch\n" in out
    assert "  note: PEFTAdapter does not work\n" in out
    assert out.endswith("Mend what is necessary first: torch.\n")
    del found[0]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("Nothing necessary is missing.\n")


def test_long_values_go_on_below_themselves_and_paths_stay_whole():
    path = "/a/very-long/path/" + "x" * 60
    shown = list(lines([Finding("folders", "here", f"{path}: 1 GiB free and some more words for a second line")], 60))
    assert any(path in line for line in shown)
    assert shown[0] == "folders"
    assert all(line.startswith("  here") or line.startswith(" " * 8) for line in shown[1:-2])


def test_it_takes_help_and_json_alone(capsys):
    assert main(["doctor", "--help"]) == 0
    assert "--json" in capsys.readouterr().out
    assert main(["doctor", "--fix"]) == 1
    assert capsys.readouterr().err == ("error: doctor: unrecognized arguments: --fix. See: adapters-pl doctor --help\n")


def test_this_process_imports_nothing_heavy():
    program = (
        "import sys; from adapters_pl.cli.commands import doctor; "
        "doctor.import_each = lambda names: {n: {} for n in names}; "
        f"doctor.examine(); print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert done.stdout == "[]\n"


# ---- packages


def test_what_fits_is_no_problem(declared):
    declared(
        "numpy>=1", "jsonargparse[signatures]>=4", "nothing-of-ours; python_version < '3'", "peft; extra == 'peft'"
    )
    findings, _ = doctor.packages()
    assert [(f.name, f.problem) for f in findings] == [
        ("Python", ""),
        ("jsonargparse", ""),
        ("numpy", ""),
        ("peft", ""),
    ]
    assert finding(findings, "numpy").value == f"{metadata.version('numpy')} (>=1)"


def test_a_missing_and_an_old_package_are_errors_with_their_remedy(declared):
    declared("no-such-package>=3", "numpy>=999", "pyyaml<1")
    findings, _ = doctor.packages()
    missing, old = finding(findings, "no-such-package"), finding(findings, "numpy")
    assert (missing.value, missing.necessary, old.necessary) == ("missing (>=3)", True, True)
    assert "no-such-package is not installed: pip install 'no-such-package>=3'" in missing.problem
    assert f"numpy {metadata.version('numpy')} is not >=999: pip install 'numpy>=999'" in old.problem
    assert finding(findings, "pyyaml").necessary


def test_a_ruined_installation_counts_as_missing(declared, monkeypatch):
    declared("numpy>=1")
    monkeypatch.setattr(metadata, "version", lambda name: None)  # what comes of a folder without METADATA
    assert finding(doctor.packages()[0], "numpy").value == "missing (>=1)"


def test_an_incomplete_extra_is_a_note(declared):
    declared("numpy>=1", "peft>=999; extra == 'peft'", "absent; extra == 'peft'", "gone; extra == 'peft'")
    extra = finding(doctor.packages()[0], "peft")
    assert (
        extra.value == f"incomplete: peft {metadata.version('peft')} (>=999), absent missing (any), gone missing (any)"
    )
    assert extra.problem.startswith("PEFTAdapter does not work, peft ")
    assert extra.problem.endswith(", absent is not installed and 1 more: pip install 'adapters-pl[peft]'")
    assert not extra.necessary


def test_an_old_python_is_an_error(declared):
    declared("numpy", python=">=99")
    python = finding(doctor.packages()[0], "Python")
    assert python.necessary
    assert "make a new environment with Python >=99" in python.problem


@pytest.mark.parametrize("lacks", ["adapters-pl", "packaging"])
def test_where_nothing_can_be_judged_that_is_said(monkeypatch, lacks):
    monkeypatch.setattr(doctor, "import_each", lambda names: {"torch": {"error": "ImportError: no"}})
    if lacks == "packaging":
        monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    else:
        monkeypatch.setattr(doctor, "PACKAGE", "no-such-package")
    findings, seen = doctor.packages()
    assert seen is None
    assert [f.necessary for f in findings] == [False, True]
    assert "which packages and versions are needed is not known" in findings[1].problem


def test_a_broken_torch_is_told_once(declared, monkeypatch):
    declared("torch", "lightning", "numpy", "peft; extra == 'peft'")
    broken = {"error": "OSError: libtorch.so"}
    answers = {"torch": broken, "lightning": broken, "numpy": {}, "peft": broken}
    monkeypatch.setattr(doctor, "import_each", lambda names: {name: answers[name] for name in names})
    findings, seen = doctor.packages()
    assert seen is None
    assert "torch does not import (OSError: libtorch.so): pip install --force-reinstall 'torch'" in findings[1].problem
    lightning = finding(findings, "lightning").problem
    assert "does not import for the same reason as torch: mend torch first" in lightning
    assert finding(findings, "peft").problem.endswith("for the same reason as torch: mend torch first")
    assert finding(findings, "numpy").problem == ""
    assert "torch does not import" in finding(list(doctor.devices(seen)), "GPU").value


# ---- devices, folders, limits


def test_gpus_are_counted_by_kind():
    gpus = [("Big", 80 * 2**30), ("Small", 2**30), ("Big", 80 * 2**30)]
    found = list(doctor.devices({**NO_GPU, "gpus": gpus, "warned": ["too old an architecture"]}))
    assert finding(found, "GPU").value == "2 x Big, 80.0 GiB; 1 x Small, 1.0 GiB"
    assert finding(found, "GPU").problem == "too old an architecture"


@pytest.mark.parametrize(
    ("seen", "visible", "reason"),
    [
        (NO_GPU, None, "built without CUDA"),
        ({**NO_GPU, "built_for": "12.8"}, "-1", "CUDA_VISIBLE_DEVICES hides"),
        ({**NO_GPU, "built_for": "12.8", "warned": ["found version 11"]}, None, "CUDA 12.8. Look at nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_a_note_with_its_cause(monkeypatch, seen, visible, reason):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(doctor.shutil, "which", {"nvidia-smi": "/bin/nvidia-smi"}.get)
    gpu = finding(list(doctor.devices(seen)), "GPU")
    assert reason in gpu.problem
    assert all(line in gpu.problem for line in seen["warned"])


@pytest.mark.parametrize(("policy", "cores", "said"), [("", 2.0, True), ("passive", 2.0, False), ("", 1.0, False)])
def test_spinning_threads_are_a_note_where_cores_are_shared(monkeypatch, policy, cores, said):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(doctor, "usable_cores", lambda: cores)
    assert bool(finding(list(doctor.devices(NO_GPU)), "OMP_WAIT_POLICY").problem) == said


def test_cores_and_memory_are_those_of_the_container(monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "limit").write_text("1073741824\n")
    monkeypatch.setattr(hardware, "_CPU_CGROUPS", ((tmp_path / "cpu.max",),))
    monkeypatch.setattr(hardware, "_CGROUPS", ((tmp_path, "limit", "used"),))
    assert hardware.usable_cores() == 0.5
    assert hardware.total_host_memory() == 2**30
    for name, text in (("cpu.max", "max 100000\n"), ("limit", "max\n")):
        (tmp_path / name).write_text(text)
    assert hardware.usable_cores() >= 1
    assert hardware.total_host_memory() > 2**30


def test_an_unwritable_cache_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(tmp_path / "file" / "cache"))  # no folder can be made there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    here, data, hub = doctor.folders()
    assert (here.necessary, data.necessary, hub.necessary) == (False, True, True)
    assert "not writable" in data.value
    assert "another folder with ADAPTERS_PL_CACHE" in data.problem
    assert "another folder with HF_HOME" in hub.problem
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # then it is only read
    assert not list(doctor.folders())[2].necessary


def test_a_cache_is_counted_and_a_missing_one_is_not_made(monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    assert "not made yet" in doctor.folder("data cache", cache, 0, "").value
    assert not cache.exists()
    (cache / "data").mkdir(parents=True)
    (cache / "data" / "file").write_bytes(b"x" * 3 * 2**20)
    assert "3.0 MiB in it" in doctor.folder("data cache", cache, 0, "").value
    assert [path.name for path in cache.rglob("*")] == ["data", "file"]


def test_a_full_disk_is_a_note(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(100, 99, 1)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    found = doctor.folder("here", tmp_path, 2**30, "go elsewhere")
    assert found.problem == "less than 1.0 GiB is free: go elsewhere"
    assert not found.necessary


def test_a_runs_folder_that_cannot_be_written_is_an_error(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file in its place")
    here = next(doctor.folders())
    assert here.necessary
    assert str(tmp_path / "runs") in here.value


def test_small_limits_are_notes(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 256))
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: namedtuple("u", "total free")(2**26, 2**26))
    found = list(doctor.limits())
    assert "ulimit -n 4096" in finding(found, "open files").problem
    assert "--shm-size" in finding(found, "/dev/shm").problem
    assert not any(f.necessary for f in found)


# ---- network


def test_the_hub_and_the_index_answer(online, server):
    hub, index = doctor.network()
    assert (hub.value, hub.problem) == (f"{server.url}: answers (200)", "")
    assert (index.value, index.problem) == (f"{server.url}/simple: answers (200)", "")
    assert sorted(path or "/" for path, _ in server.requests) == ["/", "/simple"]


@pytest.mark.parametrize(("status", "wrong"), [(404, False), (405, False), (401, True), (403, True), (502, True)])
def test_a_refusal_is_told_from_an_answer(online, server, status, wrong):
    server.status[0] = status
    for found in doctor.network():
        assert f"({status})" in found.value
        assert bool(found.problem) == wrong
        assert not found.necessary


def test_a_hub_that_is_not_there_is_a_note(online, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub, index = doctor.network()
    assert hub.value == "http://127.0.0.1:9: cannot be reached (Connection refused)"
    assert "cannot be fetched: check the address" in hub.problem
    assert not hub.necessary
    assert index.problem == ""


def test_a_silent_network_holds_nothing_up(online, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(doctor, "answer_of", lambda url: (never.wait(30), False))
    monkeypatch.setattr(doctor, "NETWORK", 0.1)
    assert [found.value.endswith(": no answer in time") for found in doctor.network()] == [True, True]
    never.set()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "ADAPTERS_PL_OFFLINE"])
def test_offline_nobody_is_asked(online, server, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    (found,) = doctor.network()
    assert found.value == f"{name} says to stay offline"
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "{scheme}://SECRET:pass@{host}/simple",
        "{scheme}://me:SECRET@{host}/simple?x=1",
        "{scheme}://SECRET@{host}/simple",
        "{scheme}://me:SEC/SECRET?SECRET@{host}/simple",
        "{scheme}://{host}/simple?token=SECRET&auth=SECRET#f=SECRET",
        "{scheme}://{host}/aB3SECRETSECRET9x/simple/",
        "http://me:SECRET@127.0.0.1:9/simple",
        "http://me:SECRET@[broken/simple",
        "https://me:SECRET@{host}/simple",
    ],
)
def test_credentials_are_never_printed(online, server, monkeypatch, url, capsys):
    scheme, _, host = server.url.partition("://")
    url = url.format(scheme=scheme, host=host)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(doctor, "examine", lambda: list(doctor.network()))
    for flags in ([], ["--json"]):
        main(["doctor", *flags])
        out, err = capsys.readouterr()
        assert "SEC" not in out + err
        assert "package index" in out


def test_a_login_is_told_to_its_host_alone(online, server, monkeypatch):
    host = server.url.partition("://")[2]
    assert answer_of(f"http://me:se%40cret@{host}/simple") == ("answers (200)", False)
    assert server.requests == [("/simple", "Basic bWU6c2VAY3JldA==")]


def test_masking_keeps_what_is_no_secret():
    for url in ("https://pypi.org/simple", "https://huggingface.co", "file:///opt/pypi/simple", "http://[::1]:80/a"):
        assert masked_url(url) == url
