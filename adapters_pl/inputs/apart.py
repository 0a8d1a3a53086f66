"""Running what a stranger wrote (a pattern, a chat template) in a process of its own, which can be ended."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
from typing import Any

#: Seconds that a process has to begin, before anything of a stranger's is in it.
_BEGINS = 60

#: What such a process runs after the definition of ``answer``: one request a line, one answer a line.
_LOOP = """
import json, sys, time
try:
    import resource
    with open("/proc/self/statm") as held:
        most = int(held.read().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
except (ImportError, OSError, ValueError):
    pass
out, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    began = time.process_time()
    found = answer(json.loads(line))
    print(json.dumps([found, time.process_time() - began]), file=out, flush=True)
"""


class Apart:
    """A Python process that answers requests one after the other, begun when it is first asked.

    Args:
        program: source that defines ``answer(request)``; a request and what it returns are values of JSON.
        memory: the bytes that answers may take beyond those of the program, where the system can limit that (Linux).
    """

    def __init__(self, program: str, memory: int = 2**30) -> None:
        path = f"import sys\nsys.path[:] = {[each for each in sys.path if each]!r}\n"
        self._program = path + program + _LOOP.replace("MEMORY", str(memory))
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        atexit.register(self.end)

    def ask(self, request: Any, seconds: float) -> tuple[Any, float] | None:
        """The answer and the seconds of computing that it took; ``None`` if it took longer or the process broke."""
        if self._process is None or self._owner != os.getpid():  # one that was inherited belongs to the other process
            # A Ctrl-C is for the process that asks.
            how: Any = {"text": True, "bufsize": 1, "stderr": subprocess.DEVNULL, "start_new_session": True}
            how |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
            self._process = subprocess.Popen([sys.executable, "-I", "-c", self._program], **how)
            self._owner = os.getpid()
            self._answer(None, _BEGINS)
        found = self._answer(request, seconds)
        if found is None:
            self.end()
        return found

    def _answer(self, request: Any, seconds: float) -> tuple[Any, float] | None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            ready, _, _ = select.select([self._process.stdout], [], [], seconds)
            line = self._process.stdout.readline() if ready else ""
        except OSError:  # it has ended
            return None
        return tuple(json.loads(line)) if line else None

    def end(self) -> None:
        """End the process; it begins anew when it is asked again."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()
