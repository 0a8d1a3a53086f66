"""The helper that forks python processes off one that has imported everything: they are as real ones are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONGEST
from tests.helpers import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is read")

ROOT = Path(__file__).parent
SAYS = "import sys; print('torch' in sys.modules); "


@pytest.fixture(autouse=True)
def _interrupts():
    """A suite that runs in the background ignores Ctrl-C, and so would the real processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def both(words, **settings):
    """What a real process does, and what a forked one."""
    return [
        (done.returncode, done.stdout, done.stderr)
        for start in (subprocess.run, warm.run)
        for done in [start([sys.executable, *words], capture_output=True, text=True, **settings)]
    ]


@pytest.mark.parametrize(
    "program",
    [
        "import os, sys; print(sys.argv, os.getcwd(), sys.path[0], os.environ['ONE'], 'PATH' in os.environ, __name__)",
        "import sys; sys.exit('said at the end')",
        "import sys; sys.exit(7)",
        "import atexit; atexit.register(print, 'last'); print('first', end='')",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal, sys; sys.excepthook = lambda *_: print('hook'); os.kill(os.getpid(), signal.SIGINT)",
        "import os, sys; print(sys.stdin.read(), os.isatty(0), os.isatty(1)); print('wrong', file=sys.stderr)",
        "import signal; print([str(signal.getsignal(n)).split(' at 0x')[0] for n in (2, 10, 13, 15, 17)])",
        "import os; print(sorted(os.listdir('/proc/self/fd')))",
        "import os; print(os.getpgid(0) == os.getpgid(os.getppid()), len(os.listdir('/proc/self/task')))",
    ],
)
def test_a_program_ends_and_prints_as_in_a_real_process(tmp_path, program):
    environment = {"PYTHONPATH": str(tmp_path), "ONE": "1", "OMP_NUM_THREADS": "1"}
    real, forked = both(["-c", program, "a", "b c"], cwd=tmp_path, env=environment)
    assert forked == real


def test_a_file_and_a_module_are_the_main_module(tmp_path):
    (tmp_path / "file.py").write_text("import sys, __main__; print(sys.argv, sys.path[0], __main__.__spec__ is None)")
    module = "import sys, __main__; print(sys.argv, sys.path[0], __main__.__spec__.name, sys.modules['os'].sep)"
    (tmp_path / "module.py").write_text(module)
    (tmp_path / "elsewhere").mkdir()
    for words in (["../file.py", "x"], [str(tmp_path / "file.py")], ["-m", "module", "y"]):
        folder = tmp_path if words[0] == "-m" else tmp_path / "elsewhere"
        real, forked = both(words, cwd=folder, env={"OMP_NUM_THREADS": "1"})
        assert forked == real
        assert real[0] == 0


def test_an_error_is_printed_as_python_does():
    real, forked = both(["-c", "1 / 0"])
    assert forked[0] == real[0] == 1
    assert forked[2].splitlines()[-1] == real[2].splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_everything_heavy_is_there_and_two_run_side_by_side(tmp_path):
    wait = f"{SAYS}import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
    process = warm.Process([sys.executable, "-c", wait], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    assert warm.run([sys.executable, "-c", "open('go', 'w')"], cwd=tmp_path).returncode == 0
    assert process.communicate(60) == ("True\n", None)
    assert process.returncode == 0


def test_a_child_gets_signals_and_is_killed_when_its_time_is_over():
    sleep = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    read, write = os.pipe()
    process = warm.Process(sleep, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
    assert b"KeyboardInterrupt" in process.communicate()[1]
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(sleep, timeout=0.1)


def test_the_longest_files_are_there_and_named_once():
    assert [file for file in LONGEST if not (ROOT / file).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
