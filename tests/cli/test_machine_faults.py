"""What a machine does to a run: full disks, folders that go, signals, odd terminals, several commands at once, kill -9.

The last good checkpoint stays, one line says what happened, and nothing half written is taken for whole. A network that
falls silent is in ``distributed/test_two_hosts.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from adapters_pl import load_adapter
from adapters_pl.cli import main as cli
from adapters_pl.cli import training as lightning_cli
from adapters_pl.cli.main import INTERRUPTED, main
from adapters_pl.data.published import Source, cached_path
from adapters_pl.evaluation.journal import PartialAnswers
from adapters_pl.runs import run as runs
from adapters_pl.training import callbacks
from adapters_pl.training.callbacks import RunRecorder
from tests.helpers.kill_resume import fork, load

pytestmark = pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process with a GPU cannot be forked")

QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
LAST = Path("runs/lora-1/checkpoints/last.ckpt")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fit(here, make_base, rows_file, monkeypatch):
    """The words of a training of two epochs of nine steps, which writes ``last.ckpt`` every second step."""
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY", 2)
    words = ["fit", "--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(rows_file)]
    words += ["--data.val_size", "4", "--data.max_new_tokens", "3", "--data.eval_batch_size", "1", "--adapter", "LoRA"]
    return [*words, "--adapter.rank", "2", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1", *QUICK]


@pytest.fixture(scope="module")
def tested(tmp_path_factory, make_base):
    """A folder with a run that was trained and tested."""
    folder = tmp_path_factory.mktemp("tested")
    for name, question in (("rows", "Say"), ("sums", "What is")):
        rows = [{"instruction": f"{question} {a}.", "output": f"It is {a}.", "answer": str(a)} for a in range(8)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    words = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(folder / "rows.json")]
    words += ["--data.test_path", str(folder / "sums.json"), "--data.val_size", "0", "--data.max_new_tokens", "3"]
    words += ["--data.eval_batch_size", "2", "--adapter", "LoRA", "--trainer.max_steps", "2", *QUICK]
    with contextlib.chdir(folder):
        assert main(["fit", *words]) == 0
        assert main(["test", *QUICK]) == 0
    return folder


def untested(tested, folder):
    """A copy of the same run, before its test, in ``folder``."""
    run = shutil.copytree(tested / "runs", folder, dirs_exist_ok=True) / "lora-1"
    shutil.rmtree(run / "predictions")
    (run / "results.json").unlink()
    return run


@pytest.fixture
def trained(here, tested):
    """It in the folder one stands in."""
    return untested(tested, here / "runs")


def outcome(run):
    """What a test found."""
    found = json.loads((run / "results.json").read_text())["sets"]["sums"]
    return found["n"], found["accuracy"], (run / "predictions/sums.jsonl").read_text()


class At(Callback):
    """Does something the ``nth`` time that a hook runs."""

    def __init__(self, hook, nth, action):
        self.count = 0

        def act(trainer, *arguments, **named):
            self.count += 1
            if self.count == nth:
                action()

        setattr(self, hook, act)


@pytest.fixture
def at(monkeypatch):
    """Let something happen within ``fit``."""
    own = lightning_cli.checkpoint_callbacks

    def at(hook, nth, action):
        made = lambda *arguments: [At(hook, nth, action), *own(*arguments)]  # noqa: E731
        monkeypatch.setattr(lightning_cli, "checkpoint_callbacks", made)

    yield at
    monkeypatch.undo()


CHILDREN = []


@pytest.fixture(autouse=True)
def _children():
    """Nothing is left running by a test that fails."""
    yield
    while CHILDREN:
        CHILDREN.pop().kill()


class Child:
    """The console script in a process of its own, forked off this one; ``before(tell)`` runs in it first."""

    def __init__(self, folder, words, before=lambda tell: None, descriptors=(), log=None):
        self.log = (log or folder) / "run-0.log"

        def job(rank, pipe):
            os.chdir(folder)
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, m, closefd=False) for n, m in enumerate("rww"))
            sys.argv = ["adapters-pl", *words]
            # Tests that run in the background or under nohup ignore them.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            before(lambda event: os.write(pipe, f"{event}\n".encode()))
            try:
                cli.console()
            except SystemExit as done:
                return done.code or 0
            finally:
                sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()

        self.process = fork(1, log or folder, job)
        CHILDREN.append(self)
        self.events = self.process.events()

    @property
    def output(self):
        return self.log.read_text()

    def until(self, event):
        """Wait until it tells ``event``."""
        assert next(self.events, None) == event, self.output

    def wait(self):
        """The exit code; of a process that a signal ended, its number, negative."""
        for _ in self.events:
            pass
        return self.process.wait()[0]

    def kill(self):
        self.process.kill()


def complaints(text):
    """The lines that say what went wrong."""
    assert "Traceback" not in text, text
    words = ("error: ", "internal error", "interrupted")
    return [line for line in text.splitlines() if line.startswith(words)]


# ---- disks


@pytest.fixture
def disk(here):
    """A disk of four MiB at ``runs``; undone, however full or read-only it was left."""
    folder = here / "runs"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here (root is needed)")
    yield folder
    while os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk):
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def read_only(disk):
    # Over itself: a disk that has files open for writing can only be made read-only by an error of its own.
    subprocess.run(["mount", "-o", "bind,ro", disk, disk], check=True)


def remove(disk):
    shutil.rmtree(disk / "lora-1")


def mend(disk):
    if os.statvfs(disk).f_flag & os.ST_RDONLY:
        subprocess.run(["umount", disk], check=True)
    (disk / "ballast").unlink(missing_ok=True)


FAULTS = [(fill, "No space left on device"), (read_only, "Read-only file system"), (remove, "No such file")]
NAMES = ["full", "read-only", "removed"]
MOMENTS = {"start": ("setup", 1), "steps": ("on_train_batch_start", 6), "end": ("on_train_epoch_end", 2)}
#: A run that is removed before anything was written in it is made again.
CELLS = [
    pytest.param(*fault, *moment, id=f"{name}-{when}")
    for fault, name in zip(FAULTS, NAMES, strict=True)
    for when, moment in MOMENTS.items()
    if (name, when) != ("removed", "start")
]


@pytest.mark.parametrize(("fault", "reason", "hook", "nth"), CELLS)
def test_a_fault_of_the_disk_ends_training_with_one_line_and_keeps_the_last_checkpoint(
    fit, disk, at, capsys, monkeypatch, fault, reason, hook, nth
):
    at(hook, nth, lambda: fault(disk))
    code, err = main(fit), capsys.readouterr().err
    assert code == 1, err
    (line,) = complaints(err)
    assert reason in line
    assert "runs" in line
    if fault is remove:
        assert not LAST.exists()
        return
    if hook != "setup":
        assert str(LAST) in line
        assert load(LAST)["global_step"] in range(2, 19)
    assert not list(disk.rglob("checkpoints/.*"))
    mend(disk)
    monkeypatch.undo()
    os.chdir(disk.parent)
    assert main(["fit", "--ckpt_path", "last"] if hook != "setup" else fit) == 0
    steps = [load(path)["global_step"] for path in disk.glob("*/checkpoints/last.ckpt")]
    assert steps == [18]


@pytest.mark.parametrize("fault", [fill, read_only], ids=["full", "read-only"])
def test_a_run_that_cannot_be_made_is_an_error_of_one_line(fit, disk, capsys, fault):
    fault(disk)
    assert main(fit) == 1
    (line,) = complaints(capsys.readouterr().err)
    assert "runs" in line
    assert not list(disk.glob("lora*"))


@pytest.mark.parametrize(("fault", "reason"), FAULTS, ids=NAMES)
def test_a_fault_of_the_disk_ends_a_test_which_goes_on_when_that_is_mended(
    tested, disk, capsys, monkeypatch, fault, reason
):
    untested(tested, disk)
    count, own = [], RunRecorder.on_test_batch_end

    def batch_end(self, *arguments, **named):
        count.append(1)
        if len(count) == 3:
            fault(disk)
        own(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(RunRecorder, "on_test_batch_end", batch_end)
        assert main(["test", *QUICK]) == 1
    (line,) = complaints(capsys.readouterr().err)
    assert reason in line
    assert not (disk / "lora-1/predictions/sums.jsonl").exists()
    if fault is not remove:
        mend(disk)
        assert main(["test", *QUICK]) == 0
        found = json.loads((disk / "lora-1/results.json").read_text())["sets"]["sums"]
        assert (found["n"], found["resumed"] >= 4) == (8, True)


@pytest.mark.parametrize("merge", [[], ["--merge"]], ids=["adapter", "merged"])
@pytest.mark.parametrize("fault", [fill, read_only], ids=["full", "read-only"])
def test_an_export_onto_a_disk_that_refuses_it_leaves_nothing(tested, disk, capsys, fault, merge):
    shutil.copytree(tested / "runs", "elsewhere")
    fault(disk)
    words = ["export", "--out", "runs/out", "--ckpt_path", "elsewhere/lora-1", *merge]
    assert main(words) == 1
    (line,) = complaints(capsys.readouterr().err)
    assert line.startswith("error: --out runs/out ")
    assert [path.name for path in disk.iterdir() if path.name not in ("ballast", ".out.lock")] == []
    mend(disk)
    assert main(words) == 0
    assert list(disk.glob("out/*.safetensors"))


# ---- signals


def at_batch(nth, action):
    """In another process: let something happen within the ``nth`` batch of a training."""
    own = lightning_cli.checkpoint_callbacks
    lightning_cli.checkpoint_callbacks = lambda *a: [At("on_before_backward", nth, action), *own(*a)]


def sending(number, times=1, group=False):
    """A ``before`` that sends ``number`` to the training process (or its whole group) within its fifth batch."""
    send = os.killpg if group else os.kill

    def act():
        for _ in range(times):
            send(os.getpid(), number)

    return lambda tell: at_batch(5, act)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
@pytest.mark.parametrize("group", [False, True], ids=["one", "group"])
def test_a_signal_saves_and_says_so_in_one_line(fit, here, number, group):
    """Ctrl-C and a closed terminal reach the loader's processes, too."""
    child = Child(here, [*fit, "--data.num_workers", "1" if group else "0"], sending(number, group=group))
    assert child.wait() == INTERRUPTED, child.output
    assert complaints(child.output) == [f"interrupted; last checkpoint: {LAST}"]
    assert load(LAST)["global_step"] == 5


def test_the_second_interrupt_ends_at_once_with_the_last_checkpoint(fit, here):
    child = Child(here, fit, sending(signal.SIGINT, times=2))
    assert child.wait() == INTERRUPTED, child.output
    assert complaints(child.output) == [f"interrupted; last checkpoint: {LAST}"]
    assert load(LAST)["global_step"] == 4


def test_a_signal_that_is_to_be_ignored_ends_nothing(fit, here):
    """As by ``nohup``."""

    def before(tell):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sending(signal.SIGHUP)(tell)

    child = Child(here, fit, before)
    assert child.wait() == 0, child.output
    assert load(LAST)["global_step"] == 18


def after_batch(nth, action):
    """A ``before`` that does something when a test has kept its ``nth`` batch."""

    def before(tell):
        own, count = RunRecorder.on_test_batch_end, []

        def batch_end(self, *arguments, **named):
            own(self, *arguments, **named)
            count.append(1)
            if len(count) == nth:
                action(tell)

        RunRecorder.on_test_batch_end = batch_end

    return before


def halt(tell):
    """Wait to be killed."""
    tell("halted")
    while True:
        signal.pause()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_a_test_which_goes_on(trained, here, tested, number):
    child = Child(here, ["test", *QUICK], after_batch(2, lambda tell: os.kill(os.getpid(), number)))
    assert child.wait() == INTERRUPTED, child.output
    (line,) = complaints(child.output)
    assert line.endswith(str(LAST))
    assert main(["test", *QUICK]) == 0
    assert json.loads((trained / "results.json").read_text())["sets"]["sums"]["resumed"] == 4
    assert outcome(trained) == outcome(tested / "runs/lora-1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_an_export_which_leaves_nothing(trained, here, number):
    def before(tell):
        PreTrainedTokenizerBase.save_pretrained = lambda *arguments, **named: os.kill(os.getpid(), number)

    child = Child(here, ["export", "--out", "out", "--merge"], before)
    assert child.wait() == INTERRUPTED, child.output
    assert complaints(child.output) == ["interrupted"]
    assert [path.name for path in here.glob("*out*")] == [".out.lock"]


def test_a_terminal_that_is_closed_leaves_a_checkpoint(fit, here):
    """The kernel sends SIGHUP, and whatever is then written to the terminal is an error."""
    master, slave = pty.openpty()

    def before(tell):
        os.close(master)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        hangup = select.poll()
        hangup.register(0, 0)
        at_batch(5, lambda: (tell("ready"), hangup.poll()))

    child = Child(here, [*fit, "--trainer.enable_progress_bar", "true"], before, [slave, slave, slave])
    os.close(slave)
    child.until("ready")
    os.close(master)
    assert child.wait() == INTERRUPTED
    assert load(LAST)["global_step"] == 5
    assert not Path("runs/lora-1/crash.log").exists()


# ---- odd terminals


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_dumb_terminal_and_one_of_forty_columns_show_what_a_wide_one_does(fit, here, command, terminal):
    if command == "test":
        assert main(fit) == 0
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    words = {"fit": [*fit, "--trainer.enable_progress_bar", "true"], "test": ["test", *QUICK[:2]]}[command]
    child = Child(here, words, lambda tell: os.environ.update(TERM=terminal), [slave, slave, slave])
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(master, 4096):
            shown += piece
    os.close(master)
    text = shown.decode()
    assert child.wait() == 0, text
    assert not complaints(text)
    assert not [line for line in text.splitlines() if line.startswith(("│", "┃")) and "…" in line], text
    assert "runs/lora-1" in text


@pytest.mark.parametrize("closed", [[0], [0, 1, 2]], ids=["stdin", "all three"])
def test_closed_standard_streams_are_no_fault(fit, here, closed):
    def before(tell):
        for number in closed:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)

    child = Child(here, [*fit, "--data.num_workers", "1"], before)
    assert child.wait() == 0, child.output
    assert not complaints(child.output)
    assert load(LAST)["global_step"] == 18
    assert main(["test", *QUICK]) == 0


def test_a_locale_without_characters_shows_question_marks(trained, here):
    """A process of its own: its encoding is chosen when it starts."""
    environment = {**os.environ, "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(Path(cli.__file__).parents[1]), *sys.path[1:]])}
    words = [sys.executable, "-m", "adapters_pl", "test", *QUICK[:2]]
    done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Testing" in done.stdout
    assert not complaints(done.stderr)
    assert not list(here.rglob("crash.log"))


def test_what_is_no_character_is_written_as_it_can_be_read_again(tmp_path):
    """A byte of an argument that is no UTF-8, half of a pair in a row."""
    run, odd = runs.Run(tmp_path), {"command": "adapters-pl fit \udcc3", "row": "\ud83d"}
    assert json.loads(run.write("environment.json", odd).read_text(encoding="utf-8")) == odd


# ---- several processes in one folder


class Gate:
    """Where processes wait until all of them may go on."""

    def __init__(self):
        self.way, self.lock = os.pipe()

    def wait(self):
        """In another process."""
        os.close(self.lock)
        os.read(self.way, 1)

    def open(self):
        os.close(self.lock)
        os.close(self.way)


def test_two_trainings_begun_at_the_same_moment_have_a_run_each(fit, here):
    gate = Gate()

    def before(tell):
        own = runs.Run.create.__func__

        def create(cls, *arguments):
            tell("ready")
            gate.wait()
            return own(cls, *arguments)

        runs.Run.create = classmethod(create)

    (here / "logs").mkdir()
    folders = [here, here / "logs"]
    children = [Child(here, fit, before, log=folder) for folder in folders]
    for child in children:
        child.until("ready")
    gate.open()
    assert [child.wait() for child in children] == [0, 0], [child.output for child in children]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["latest", "lora-1", "lora-2"]
    for name in ("lora-1", "lora-2"):
        run = Path("runs", name)
        assert {"config.yaml", "environment.json", "metrics.csv"} <= {path.name for path in run.iterdir()}
        assert load(run / "checkpoints/last.ckpt")["global_step"] == 18
        steps = [line for line in (run / "metrics.csv").read_text().splitlines() if line.split(",")[-2]]
        assert len(steps) == len(set(steps))
    assert Path("runs/latest").read_text() in ("lora-1\n", "lora-2\n")


def test_a_test_takes_the_last_checkpoint_of_a_training_that_goes_on(fit, here):
    gate = Gate()
    child = Child(here, fit, lambda tell: at_batch(8, lambda: (tell("ready"), gate.wait())))
    child.until("ready")
    assert main(["test", *QUICK]) == 0
    found = outcome(LAST.parents[1])
    gate.open()
    assert child.wait() == 0, child.output
    assert load(LAST)["global_step"] == 18
    assert outcome(LAST.parents[1]) == found


def test_a_second_test_of_a_run_is_refused_until_the_first_has_ended(trained, here, tested, capsys):
    child = Child(here, ["test", *QUICK], after_batch(2, halt))
    child.until("halted")
    assert main(["test", *QUICK]) == 1
    (line,) = complaints(capsys.readouterr().err)
    assert "another test writes in" in line
    child.kill()
    assert main(["test", *QUICK]) == 0
    assert json.loads((trained / "results.json").read_text())["sets"]["sums"]["resumed"] == 4
    assert outcome(trained) == outcome(tested / "runs/lora-1")
    assert main(["test", *QUICK]) == 0


def test_a_run_is_trained_by_one_process_at_a_time(fit, here, capsys):
    child = Child(here, fit, lambda tell: at_batch(6, lambda: halt(tell)))
    child.until("halted")
    assert main(["fit", "--ckpt_path", "last"]) == 1
    (line,) = complaints(capsys.readouterr().err)
    assert "another fit writes in" in line
    child.kill()
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert load(LAST)["global_step"] == 18


def test_two_exports_to_one_place_do_not_meet(trained, here, capsys):
    export = ["export", "--out", "out"]
    child = Child(here, export, halving("adapter_config.json"))
    child.until("halted")
    assert main(export) == 1
    (line,) = complaints(capsys.readouterr().err)
    assert "another export writes --out out" in line
    child.kill()
    assert main(export) == 0


def test_a_file_system_without_locks_is_no_fault(trained, monkeypatch):
    monkeypatch.setattr("filelock.FileLock.acquire", lambda *_, **__: (_ for _ in ()).throw(NotImplementedError))
    assert main(["test", *QUICK]) == 0


def test_results_that_two_processes_write_at_once_are_all_there(tmp_path):
    gate = Gate()

    def job(first):
        def merge(rank, pipe):
            os.write(pipe, b"ready\n")
            gate.wait()
            for number in range(first, first + 30):
                runs.Run(tmp_path).merge_results({str(number): {"n": 1}})
            return 0

        return merge

    processes = [fork(1, tmp_path, job(first)) for first in (0, 30)]
    for process in processes:
        assert next(process.events()) == "ready"
    gate.open()
    assert [process.wait() for process in processes] == [[0], [0]]
    assert len(runs.Run(tmp_path).results()["sets"]) == 60


# ---- kill -9


def halving(name):
    """A ``before`` that halts where half of what becomes ``name`` is written beside it."""

    def before(tell):
        own = os.replace

        def replace(source, target):
            if Path(target).name != name:
                return own(source, target)
            if Path(source).is_file():
                os.truncate(source, Path(source).stat().st_size // 2)
            halt(tell)

        os.replace = replace

    return before


def removing(tell):
    PartialAnswers.remove = lambda self: halt(tell)


MOMENTS_OF_A_TEST = {
    "beginning": halving("sums.partial.jsonl"),
    "two batches": after_batch(2, halt),
    "predictions": halving("sums.jsonl"),
    "results": halving("results.json"),
    "tidying up": removing,
}


@pytest.mark.parametrize("before", MOMENTS_OF_A_TEST.values(), ids=MOMENTS_OF_A_TEST)
def test_a_test_that_is_killed_goes_on_to_the_same_results(trained, here, tested, before):
    child = Child(here, ["test", *QUICK], before)
    child.until("halted")
    child.kill()
    assert runs.Run(trained).results().keys() >= set()  # it is JSON, if it is there
    assert main(["test", *QUICK]) == 0
    assert outcome(trained) == outcome(tested / "runs/lora-1")
    assert [path.name for path in (trained / "predictions").iterdir()] == ["sums.jsonl"]


def at_tokenizer(tell):
    PreTrainedTokenizerBase.save_pretrained = lambda *arguments, **named: halt(tell)


@pytest.mark.parametrize(
    ("words", "before"),
    [
        (["--merge"], at_tokenizer),
        (["--merge"], halving("out")),
        ([], halving("adapter_config.json")),
        ([], halving("out")),
    ],
    ids=["merged, half", "merged, whole", "adapter, half", "adapter, whole"],
)
def test_an_export_that_is_killed_leaves_nothing_that_could_be_taken_for_whole(trained, here, make_base, words, before):
    export = ["export", "--out", "out", *words]
    child = Child(here, export, before)
    child.until("halted")
    child.kill()
    assert not (here / "out").exists()
    assert main(export) == 0
    assert [path.name for path in here.glob(".out*")] == [".out.lock"]
    ids = torch.tensor([[1, 40, 41]])
    expected = AutoModelForCausalLM.from_pretrained(make_base())
    load_adapter(expected, trained)
    model = AutoModelForCausalLM.from_pretrained("out" if words else make_base())
    if not words:
        load_adapter(model, "out")
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, atol=1e-5, rtol=0)


def test_an_export_that_is_killed_as_soon_as_it_writes_is_absent_or_whole(trained, here):
    child = Child(here, ["export", "--out", "out", "--merge"])
    while not list(here.glob(".out*")) and not (here / "out").exists():
        assert os.waitid(os.P_PID, child.process.pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, child.output
    child.kill()
    if (here / "out").exists():
        AutoModelForCausalLM.from_pretrained("out")


CONTENT = b"[" + b" " * 200_000 + b"]"
RELATIVE = "dataset/AddSub/test.json"


@pytest.fixture
def published(monkeypatch, here):
    """A server with one published file, of which it sends half and waits, until ``server.gate`` is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(CONTENT) - begin))
            self.end_headers()
            half = len(CONTENT) // 2
            with contextlib.suppress(OSError):
                self.wfile.write(CONTENT[begin : max(begin, half)])
                self.wfile.flush()
                self.server.gate.wait()
                self.wfile.write(CONTENT[max(begin, half) :])

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.gate = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/{RELATIVE}"
    sha1 = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    source = Source(RELATIVE, url, sha1, len(CONTENT), 1, ("instruction",), "ODC-By-1.0", None, "nobody")
    monkeypatch.setattr("adapters_pl.cli.commands.data.sources", lambda: {RELATIVE: source})
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(here / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "ADAPTERS_PL_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("moment", ["half", "whole"])
def test_a_download_that_is_killed_leaves_no_file_under_the_final_name(published, here, moment):
    fetch = ["data", "fetch", "AddSub"]
    target = cached_path(RELATIVE)
    part = target.with_name("test.json.part")
    if moment == "whole":
        published.gate.set()
    child = Child(here, fetch, halving("test.json") if moment == "whole" else lambda tell: None)
    if moment == "whole":
        child.until("halted")
    while not (part.is_file() and part.stat().st_size):
        assert os.waitid(os.P_PID, child.process.pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, child.output
    child.kill()
    assert not target.exists()
    published.gate.set()
    assert main(fetch) == 0
    assert target.read_bytes() == CONTENT
    assert not part.exists()
