"""Hostile and careless inputs through the real command line, and how each ended.

``python -m tests.helpers.hostile_inputs`` tries every case in a fresh folder and measures a promise: a bad input ends
with exit code 1, in a line or two that name the file or the key; never with a traceback, an internal error or a hang,
never with a file written elsewhere, lost, or with a stranger's code run. ``--out`` gets a JSON line a case.

One process imports everything and forks a child for every case. The cases are in :mod:`tests.helpers.hostile_cases`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from zlib import crc32

HERE = os.getcwd()
# What PYTHONPATH names is what is tried, also where this file lies in another tree.
_NAMED = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
sys.path[:] = [*_NAMED, *(path for path in sys.path if path not in _NAMED)]
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.update(GIT_CEILING_DIRECTORIES="/", COLUMNS="120")

KILLED_AFTER, HANGS_AFTER = 21.0, 20.0
MEMORY, FILE_SIZE = 10 << 30, 1 << 30
#: Families of cases of which many are alike.
LARGE = ("adapter", "model", "data", "trainer", "recorded", "lightning", "adapterdir", "base", "file", "results")
LARGE += ("study", "report", "runs", "gguf")
#: A verdict that is no news.
GOOD = ("answered", "fine")


@dataclass
class Case:
    """One input.

    Attributes:
        name: family and what is wrong.
        arguments: of the command line.
        spoil: changes the prepared folder, which is the current one.
        expect: ``refused``, ``fine`` or ``any``.
        says: patterns that the message of a refusal has to hold.
        how: what ``spoil`` does, for the report.
        environment: variables beside the usual ones.
        within: seconds.
        leads_out: whether the user himself has the run written elsewhere.
        books: a folder in which a command keeps what it has done, also where it then ends with an error.
        after: looks, in the same folder, at what the command has left; raises ``AssertionError`` with what is wrong.
    """

    name: str
    arguments: list[str]
    spoil: Callable[[], Any] | None = None
    expect: str = "refused"
    says: tuple[str, ...] = ()
    how: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    leads_out: bool = False
    within: float = HANGS_AFTER
    books: str = ""
    after: Callable[[], Any] | None = None


def prepare(folder: Path) -> None:
    """A base, rows, a finished and tested run, and an exported adapter, all named by relative paths."""
    os.chdir(folder)
    sys.path.insert(1, HERE)
    from tests.conftest import sums, tiny_model, tiny_tokenizer

    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    Path("sums.json").write_text(json.dumps(sums()))
    import torch

    from adapters_pl.cli.main import main
    from tests.helpers.hostile_cases import ADAPTERS, QUIET, fit, prepare_more

    longer = ["--trainer.max_steps", "2", "--data.val_size", "2", "--trainer.log_every_n_steps", "1"]
    assert run_main(main, fit("LoRA", "--adapter.rank", "2", *longer)) == 0
    assert run_main(main, ["test", *QUIET]) == 0
    assert run_main(main, ["export", "--out", "adapter"]) == 0
    for adapter in ADAPTERS:  # also for what they import
        run_main(main, ["plan", "--model.base", "base", "--adapter", adapter, *ADAPTERS[adapter]])
    prepare_more()
    here = f"{folder.resolve()}/"

    def relative(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {relative(key): relative(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [relative(value) for value in tree]
        return tree.replace(here, "") if isinstance(tree, str) else tree

    for file in [*Path("runs/lora-1").rglob("*"), *Path("adapter").rglob("*")]:
        if file.suffix == ".ckpt":
            stored = torch.load(file, weights_only=True)
            ours = relative(stored["adapters_pl"])
            torch.save({**stored, "adapters_pl": ours}, file)
        elif file.suffix in (".json", ".yaml", ".jsonl"):
            file.write_text(file.read_text().replace(here, ""))
    modules = [name for name in sys.modules if not name.startswith(("tests", "__"))]
    (folder.parent / "modules.json").write_text(json.dumps(modules))


def run_main(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """The entry point, as the console script calls it."""
    sys.argv = ["adapters-pl", *arguments]
    return main(arguments)


def forked(work: Callable[[], int], out: Path, seconds: float | None = None) -> int:
    """Start ``work`` in a child, with its output in ``out``, and return the child's id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
        try:
            code = work()
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def snapshot(folder: Path) -> dict[str, str]:
    """What lies in ``folder``: a digest, a link's target or a kind for every path."""
    found = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(top, name)
            about = os.lstat(path)
            if stat.S_ISLNK(about.st_mode):
                what = f"link to {os.readlink(path)}"
            elif stat.S_ISDIR(about.st_mode):
                what = "folder"
            elif not stat.S_ISREG(about.st_mode):
                what = "device"
            elif about.st_size > 8 << 20:
                what = f"{about.st_size} bytes of {about.st_mtime_ns}"
            else:
                what = hashlib.md5(Path(path).read_bytes()).hexdigest()
            found[os.path.relpath(path, folder)] = what
    return found


#: What is asked for the state of the sources, what takes for ever elsewhere, and what downloads without building.
_OUR_PROGRAMS = ("'git'", "'uname'", "answer(json.loads(line))", "'download', '--no-deps', '--only-binary', ':all:'")


def watch(folder: Path, noted: dict[str, Any]) -> None:
    """Note what is written outside of ``folder``, which programs are started, and who is called."""
    own = str(folder.resolve())
    writes = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.symlink": 1, "os.link": 1}

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        path: Any = None
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            writing = isinstance(mode, str) and any(letter in mode for letter in "wax+")
            if writing or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                path = arguments[0]
        elif event in writes:
            path = arguments[writes[event]]
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            # What may take for ever is done by a process of our own that can be ended (``adapters_pl.inputs.apart``).
            if not any(word in str(arguments[:2]) for word in _OUR_PROGRAMS):
                noted.setdefault("programs", []).append(str(arguments[:2])[:200])
        elif event == "socket.getaddrinfo":
            noted.setdefault("hosts", []).append(str(arguments[0])[:80])
        if isinstance(path, (str, bytes)):
            full = os.path.abspath(os.fsdecode(path))
            if not full.startswith((own, "/dev/", "/proc/self", "/tmp/torchinductor")) and "__pycache__" not in full:
                noted.setdefault("written", []).append(full)

    sys.addaudithook(look)


def attempt(case: Case, folder: Path) -> int:
    """Run a case in its folder; its current folder is ``here`` below it."""
    from adapters_pl.cli.main import main

    os.chdir(folder / "here")
    os.environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"), **case.environment)
    tempfile.tempdir = str(folder / "tmp")
    noted: dict[str, Any] = {}
    try:
        if case.spoil:
            case.spoil()
        (folder / "before.json").write_text(json.dumps([snapshot(folder / part) for part in PARTS]))
    except BaseException:
        (folder / "spoilt").write_text(traceback.format_exc())
        raise
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(int(KILLED_AFTER) + 9)  # where nobody is left to kill it
    before = set(sys.modules)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # as the console script does
    watch(folder, noted)
    try:
        code = run_main(main, case.arguments)
        if case.after and not code:
            try:
                case.after()
            except AssertionError as error:
                (folder / "unsafe").write_text(str(error) or traceback.format_exc().splitlines()[-3])
        return code
    finally:
        new = set(sys.modules) - before
        noted["strange"] = sorted(new & {"this", "antigravity", "evil", "mine"})
        (folder / "noted.json").write_text(json.dumps(noted))


PARTS = ("here", "elsewhere", "home", "tmp")
#: What a terminal obeys instead of showing it.
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ADVICE = re.compile(r"weights_only[`']?\s*(=|to|argument)?.{0,20}False|trust_remote_code\s*=\s*True|\[y/N\]")


def judge(case: Case, folder: Path, code: int, seconds: float, killed: bool) -> dict[str, Any]:
    """How a case ended."""
    out, error = ((folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr"))
    lines = [line for line in error.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith(("error:", "internal error:", "interrupted"))]
    message = lines[starts[-1] :] if starts else lines[-3:]
    if case.books and not starts:  # what failed is said in lines of its own
        starts, message = [0], [line for line in out.splitlines() if re.search(r"^trial \d.*\) failed: ", line)]
    file = folder / "before.json"
    before = json.loads(file.read_text()) if file.is_file() else [{} for _ in PARTS]
    after = [snapshot(folder / part) for part in PARTS]
    noted = json.loads((folder / "noted.json").read_text()) if (folder / "noted.json").is_file() else {}
    lost = sorted(path for path, what in before[0].items() if after[0].get(path) != what)
    left = sorted(path for path in after[0] if path not in before[0])
    outside = sorted(
        f"{part}/{path}"
        for part, old, new in zip(PARTS[1:3], before[1:3], after[1:3], strict=True)
        for path in {*old, *new}
        if old.get(path) != new.get(path)
    )
    canary = any("canary" in path for path in outside)
    outside += [path for path in noted.get("written", []) if not path.startswith(os.environ["HF_HOME"])]
    text = "\n".join(message)
    reason = ""
    if (folder / "spoilt").is_file():
        verdict, reason = "broken-case", (folder / "spoilt").read_text().strip().splitlines()[-1]
    elif killed or seconds > case.within:
        verdict, reason = "hang", f"{seconds:.0f} s"
    elif canary or noted.get("strange") or noted.get("programs"):
        verdict, reason = "ran-code", str(noted.get("strange") or noted.get("programs") or "canary")
    elif "Traceback (most recent call last)" in error + out or code == 99:
        verdict = "traceback"
    elif code < 0:
        verdict, reason = "crash", signal.Signals(-code).name
    elif code == 2 or "internal error" in error:
        verdict = "internal"
    elif found := _UNSHOWN.search(error + out):
        verdict, reason = "escapes", ascii(found[0])
    elif (folder / "unsafe").is_file():
        verdict, reason = "unsafe", (folder / "unsafe").read_text()[:300]
    elif outside and not case.leads_out:
        verdict, reason = "outside", ", ".join(outside[:3])
    elif code and (lost := [path for path in lost if not case.books or not path.startswith(case.books)]):
        verdict, reason = "lost", ", ".join(lost[:3])
    elif code and ADVICE.search(error + out):
        verdict, reason = "advice", ADVICE.search(error + out)[0]  # type: ignore[index]
    elif code == 0:
        verdict = "accepted" if case.expect == "refused" else "fine"
    elif code != 1:
        verdict, reason = "unclear", f"exit code {code}"
    elif case.expect == "fine":
        verdict = "overrefused"
    elif missing := [pattern for pattern in case.says if not re.search(pattern, text, re.IGNORECASE | re.DOTALL)]:
        verdict, reason = "unclear", f"says nothing of {missing[0]}"
    elif not starts or not message:
        verdict, reason = "unclear", "no line begins with error:"
    elif len(message) > 3 or len(text) > 800:
        verdict, reason = "unclear", f"{len(message)} lines, {len(text)} characters"
    else:
        verdict = "answered"
    return {
        "name": case.name,
        "verdict": verdict,
        "reason": reason,
        "command": ["adapters-pl", *case.arguments],
        "how": case.how,
        "expect": case.expect,
        "rc": code,
        "seconds": round(seconds, 2),
        "message": [line[:400] for line in message[:4]],
        "noise": (starts[-1] if starts else 0),
        "left": [path for path in left if not path.endswith(".pyc")][:6] if code else [],
        "temporary": sorted(set(after[3]) - set(before[3]))[:3],
        "hosts": sorted(set(noted.get("hosts", []))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="a regular expression that a case's name holds")
    parser.add_argument("--out", type=Path, help="a JSON line for every case")
    parser.add_argument("--bad", type=Path, help="every case that did not end well, for reading")
    parser.add_argument("--all", action="store_true", help="also the cases that resemble others: 4,500, an hour")
    parser.add_argument("--keep", action="store_true", help="keep the folders of cases that did not end well")
    parser.add_argument("--list", action="store_true", help="name the cases only")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="hostile-inputs-"))
    os.environ["HF_HOME"] = str(place / "hub")
    (place / "hub").mkdir()
    (place / "prepared").mkdir()
    code = os.waitstatus_to_exitcode(
        os.waitpid(forked(lambda: prepare(place / "prepared") or 0, place), 0)[1]  # type: ignore[func-returns-value]
    )
    if code:
        print((place / "stdout").read_text(), (place / "stderr").read_text(), sep="\n")
        return 1
    started = time.monotonic()
    for name in json.loads((place / "modules.json").read_text()):
        try:
            import_module(name)
        except Exception:  # parts of libraries that only they import
            continue
    import adapters_pl

    sys.path.append(HERE)
    from tests.helpers.hostile_cases import cases

    sys.path.remove(HERE)
    sys.path[:] = [path for path in sys.path if path in _NAMED or (path and path != HERE)]
    todo = [case for case in cases() if re.search(given.only, case.name) and (given.all or chosen(case.name))]
    todo.sort(key=lambda case: crc32(case.name.encode("utf-8", "replace")))  # so that a part shows something of all
    names = Counter(case.name for case in todo)
    assert not (twice := [name for name, count in names.items() if count > 1]), f"two cases are called {twice}"
    print(f"{len(todo)} cases; adapters_pl is {adapters_pl.__file__} (imported in {time.monotonic() - started:.0f} s)")
    if given.list:
        print(*(case.name for case in todo), sep="\n")
        return 0
    import torch

    torch.set_num_threads(1)
    import gc

    gc.freeze()
    started = time.monotonic()
    running: dict[int, tuple[Case, Path, float]] = {}
    killed: set[int] = set()
    found: list[dict[str, Any]] = []
    out = given.out.open("w") if given.out else None
    queue = list(enumerate(todo))[::-1]
    while queue or running:
        while queue and len(running) < given.jobs:
            number, case = queue.pop()
            folder = place / f"{number:04d}"
            for part in PARTS[1:]:
                (folder / part).mkdir(parents=True)
            shutil.copytree(place / "prepared", folder / "here", symlinks=True)
            child = forked(lambda case=case, folder=folder: attempt(case, folder), folder)  # type: ignore[misc]
            running[child] = (case, folder, time.monotonic())
        for child, (case, folder, began) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            seconds = time.monotonic() - began
            if not done:
                if seconds > KILLED_AFTER and child not in killed:
                    os.killpg(child, signal.SIGKILL)
                    killed.add(child)
                continue
            del running[child]
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what it may have started
            result = judge(case, folder, os.waitstatus_to_exitcode(status), seconds, child in killed)
            found.append(result)
            if out:
                out.write(json.dumps(result) + "\n")
                out.flush()
            if not (given.keep and result["verdict"] not in GOOD):
                shutil.rmtree(folder, ignore_errors=True)
            if len(found) % 50 == 0:
                print(f"  {len(found)} cases, {time.monotonic() - started:.0f} s", flush=True)
                if given.bad:
                    given.bad.write_text(listing(found), encoding="utf-8", errors="backslashreplace")
        time.sleep(0.01)
    summarise(found)
    print(f"{len(found)} cases in {time.monotonic() - started:.0f} s; adapters_pl is {adapters_pl.__file__}")
    if given.bad:
        given.bad.write_text(listing(found), encoding="utf-8", errors="backslashreplace")
    if given.keep:
        print(f"folders: {place}")
    else:
        shutil.rmtree(place, ignore_errors=True)
    return int(any(result["verdict"] not in GOOD for result in found))


def chosen(name: str) -> bool:
    """Whether a case is among those that are tried unasked: of the large families a part, by its name."""
    return name.partition("/")[0] not in LARGE or crc32(name.encode("utf-8", "replace")) % 100 < 28


def summarise(found: list[dict[str, Any]]) -> None:
    """A line a family, a column a verdict."""
    table = Counter((result["name"].partition("/")[0], result["verdict"]) for result in found)
    verdicts = sorted({verdict for _, verdict in table}, key=lambda verdict: (verdict not in GOOD, verdict))
    families = list(dict.fromkeys(family for family, _ in table))
    print(f"{'':<14}", *(f"{verdict:>11}" for verdict in (*verdicts, "all")))
    for family in (*families, "all"):
        counts = [
            sum(n for (f, v), n in table.items() if v == verdict and family in (f, "all")) for verdict in verdicts
        ]
        print(f"{family:<14}", *(f"{count or '.':>11}" for count in (*counts, sum(counts))))


def listing(found: list[dict[str, Any]]) -> str:
    """Every case that did not end well, and those that left something behind."""
    lines = []
    for result in sorted(found, key=lambda result: (result["verdict"], result["name"])):
        if result["verdict"] not in GOOD:
            command = " ".join(
                word if len(word) < 200 else f"{word[:80]}...({len(word)})" for word in result["command"]
            )
            lines += [f"{result['verdict'].upper()}  {result['name']}  rc {result['rc']}, {result['seconds']} s"]
            lines += [f"    $ {command}"]
            lines += [f"    where: {result['how']}"] if result["how"] else []
            lines += [f"    because: {result['reason']}"] if result["reason"] else []
            lines += [f"    | {line}" for line in result["message"][:3]]
    littered = [result for result in found if result["rc"] == 1 and result["left"]]
    lines += ["", "Refused, and yet something new is left in the folder:"]
    lines += [f"  {result['name']}: {', '.join(result['left'])}" for result in littered]
    lines += ["", "Ended well, and may be nonsense all the same:"]
    lines += [f"  {result['name']}" for result in found if result["verdict"] == "fine" and result["expect"] == "any"]
    lines += ["", "Left in the folder of temporary files:"]
    lines += [f"  {r['name']}: {', '.join(r['temporary'])}" for r in found if r["temporary"] and r["verdict"] != "hang"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
