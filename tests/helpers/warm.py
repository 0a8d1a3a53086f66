"""Python processes that need not import anything: each is forked off one that has everything.

``run`` and ``Process`` take some of the arguments of ``subprocess.run`` and ``subprocess.Popen``. The child has the
arguments, the environment, the folder, the streams and the exit code of ``python -m MODULE``, ``python -c PROGRAM`` or
``python FILE``; signals reach it, and it ends as an interpreter ends. Importing takes seconds, and forking does not.

What is not as in a real start: variables that a library reads when it is imported (``HF_HOME``), the locale, limits of
resources, the order of imports and what they print, and that ``adapters_pl`` is the one of this checkout. A test of
these starts a process by ``subprocess``.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from select import select
from types import ModuleType
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
#: What the commands and the tests' programs import, also inside of functions.
MODULES = [
    *("torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.distributed.checkpoint.state_dict"),
    *("lightning.pytorch", "lightning.pytorch.loggers", "lightning.pytorch.strategies", "torchmetrics.text"),
    *("transformers", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"),
    *("tokenizers", "peft", "safetensors.torch", "scipy.stats", "adapters_pl"),
    "adapters_pl.cli.training",
    *(f"adapters_pl.cli.commands.{command}" for command in ("plan", "export", "data", "compare", "doctor", "study")),
]
_LONGEST_REQUEST = 1 << 17


class Process:
    """A forked child, with the part of ``subprocess.Popen`` that tests use. What it writes goes to files, not pipes."""

    def __init__(
        self,
        words: Sequence[Any],
        cwd: Any = None,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        text: bool = False,
        network: str | None = None,
    ) -> None:
        """Start the child; ``words`` begin with ``sys.executable``, ``network`` names the namespace that it is in."""
        assert words[0] == sys.executable, words
        self.args = [str(word) for word in words]
        self.returncode: int | None = None
        self._text = text
        self._written: list[IO[bytes] | None] = []
        streams: list[int] = [os.open(os.devnull, os.O_RDONLY)]
        for number, given in ((1, stdout), (2, stderr)):
            file = tempfile.TemporaryFile() if given == subprocess.PIPE else None  # noqa: SIM115
            self._written.append(file)
            if file:
                streams.append(file.fileno())
            elif given == subprocess.STDOUT:
                streams.append(streams[1])
            elif given is None or isinstance(given, int):
                streams.append(number if given is None else given)
            else:
                streams.append(given.fileno())
        environment = dict(os.environ if env is None else env)
        request = {"words": self.args[1:], "cwd": os.path.abspath(cwd or os.getcwd()), "env": environment}
        request["network"] = network
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        way, log = _origin(os.getpid())
        with theirs:
            content = json.dumps(request).encode()
            assert len(content) < _LONGEST_REQUEST, "the arguments and the environment are too long"
            with suppress(BrokenPipeError):
                socket.send_fds(way, [content], [*streams, theirs.fileno()])
        os.close(streams[0])
        self._lines = self._status.makefile("rb")
        begun = self._lines.readline()
        if not begun:
            log.seek(0)
            raise RuntimeError(log.read().decode())
        self.pid = int(begun)

    def poll(self) -> int | None:
        """The exit code, if the child has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as ``subprocess`` gives it."""
        if self.returncode is None:
            if not select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """What the child wrote to each stream that is a ``PIPE``, when it has ended."""
        self.wait(timeout)
        found: list[Any] = [None, None]
        for i, file in enumerate(self._written):
            if file:
                file.seek(0)
                content = file.read()
                found[i] = content.decode("utf-8", "replace").replace("\r\n", "\n") if self._text else content
                file.close()
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the child has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the child at once."""
        self.send_signal(signal.SIGKILL)


def run(
    words: Sequence[Any],
    cwd: Any = None,
    env: Mapping[str, str] | None = None,
    capture_output: bool = False,
    text: bool = False,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[Any]:
    """Start a child and wait for its end."""
    pipe = subprocess.PIPE if capture_output else None
    process = Process(words, cwd, env, pipe, pipe, text)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


@cache
def _origin(owner: int) -> tuple[socket.socket, IO[bytes]]:
    """The way to the process off which children of process ``owner`` are forked, and what importing printed.

    It ends when this end of the way is closed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # No library may start a thread while it is imported: a forked child would lack it.
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    log = tempfile.TemporaryFile()  # noqa: SIM115
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.warm", str(theirs.fileno())],
            env={**os.environ, **alone, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours, log


def _serve(way: socket.socket) -> dict[str, Any] | None:
    """Fork a child for every request. Returns the request within a child, and ``None`` when no more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        content, descriptors, _, _ = socket.recv_fds(way, _LONGEST_REQUEST, 4)
        if not content:
            return None
        # The process between waits for the child, and tells its exit code; nobody waits for that process itself.
        between = os.fork()
        if between:
            for descriptor in descriptors:
                os.close(descriptor)
            while _reaped():
                continue
            continue
        way.close()
        child = os.fork()
        if child:
            with socket.socket(fileno=descriptors[3]) as status:
                status.sendall(b"%d\n" % child)
                for descriptor in {*descriptors[:3], 0, 1, 2}:
                    os.close(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                try:
                    status.sendall(b"%d\n" % code)
                finally:
                    os._exit(0)
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        for descriptor in descriptors:
            os.close(descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return json.loads(content)


def _reaped() -> bool:
    """Whether a process between had ended, and is forgotten now."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _become(request: dict[str, Any], libraries: list[str]) -> None:
    """Go on as ``python`` with the request's words would."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None
    if request["network"]:
        _enter(request["network"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    named = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, *words = request["words"]
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    sys.path[:] = [first, *named, *libraries]
    try:
        if kind == "-m":
            sys.argv = words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *words[1:]]
            sys.modules["__main__"] = module = ModuleType("__main__")
            exec(compile(words[0], "<string>", "exec"), vars(module))
        else:
            sys.argv = [kind, *words]
            runpy.run_path(kind, run_name="__main__")
    except KeyboardInterrupt as error:  # which ends python by the signal, after all else
        sys.excepthook(type(error), error, error.__traceback__)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _enter(network: str) -> None:
    """As ``ip netns exec`` does."""
    with open(f"/run/netns/{network}") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"the network {network} cannot be entered")


def _main() -> None:
    way = socket.socket(fileno=int(sys.argv[1]))
    libraries = [path for path in sys.path if path and Path(path) != ROOT]
    for name in MODULES:
        import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    assert len(threads) == 1, f"importing has started {threads[1:]}, which a forked child would lack"
    request = _serve(way)
    if request is not None:
        torch.set_num_threads(1)  # makes the pool that the fork has lost; of two threads that came first, one fails
        _become(request, libraries)


if __name__ == "__main__":
    _main()
