"""The run directory: the one place that knows where results, configurations and checkpoints lie."""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adapters_pl.compat.dcp import is_sharded
from adapters_pl.compat.lightning import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from adapters_pl.inputs.errors import UserError, first_line, system_error
from adapters_pl.inputs.masking import masked_values, masked_words
from adapters_pl.inputs.untrusted import has_shape, load_config_file, read_json
from adapters_pl.runs.at_once import locked, replacing

DEFAULT_ROOT = "runs"
#: The command that goes on with a training.
GO_ON = "adapters-pl fit --ckpt_path last"
#: All of the environment that a run records: they name its SLURM job.
RECORDED_VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
_PACKAGES = ["adapters-pl", "torch", "lightning", "transformers", "datasets", "torchmetrics", "jsonargparse", "peft"]


class Run:
    """One run's directory: ``<root>/<recipe>-<n>/``.

    It holds ``config.yaml``, ``environment.json``, ``fit.json``, ``metrics.csv``, ``checkpoints/{last,best}.ckpt``,
    ``predictions/<set>.jsonl`` (``<set>.partial.jsonl`` while a test is under way), ``predicted/<set>.jsonl`` of
    ``predict``, ``results.json``, and ``crash.log`` if it crashed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Whether this process has made the directory.
        self.made_here = False

    @classmethod
    def joined(cls, root: Path, recipe: str) -> Run:
        """A new run, of which this may be one process of many: rank 0 makes it, :meth:`agree` tells the others."""
        return cls.create(root, recipe) if _is_rank_0() else cls(root)

    @classmethod
    def named(cls, path: Path) -> Run:
        """A new run in a directory of the user's choice, which may be there but holds no run that was trained.

        Raises:
            UserError: it does, or the directory cannot be made.
        """
        run = cls(path)
        if any(run.checkpoints.glob("*.ckpt")):
            raise UserError(
                f"--run_dir {path} holds a run already: go on in it with --ckpt_path {path}, or name another."
            )
        if _is_rank_0():
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--run_dir {path} cannot be made: {error.strerror}; name another.") from error
        run.refuse_links()
        return run

    def agree(self, broadcast: Callable[[str], str]) -> None:
        """Take over rank 0's directory; ``broadcast`` hands its value to all processes."""
        self.path = Path(broadcast(str(self.path)))

    @classmethod
    def create(cls, root: Path, recipe: str) -> Run:
        """Make the next free directory of ``recipe`` below ``root``; two runs never share one.

        Raises:
            UserError: ``root`` is a run itself, or cannot be made.
        """
        if (root / "environment.json").is_file():
            raise UserError(
                f"'{root}' holds a run already. Name the folder of runs with --trainer.default_root_dir, "
                f"or go on in this one with --ckpt_path {root}."
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            taken = [int(tail) for path in root.glob(f"{recipe}-*") if (tail := path.name[len(recipe) + 1 :]).isdigit()]
            number = max(taken, default=0) + 1
            while True:
                try:
                    (root / f"{recipe}-{number}").mkdir()
                except FileExistsError:
                    number += 1
                else:
                    run = cls(root / f"{recipe}-{number}")
                    run.made_here = True
                    return run
        except OSError as error:
            raise UserError(
                f"The run directory '{root}' cannot be made: {error.strerror}. "
                "Name another folder with --trainer.default_root_dir."
            ) from error

    @classmethod
    def latest(cls, root: Path) -> Run:
        """The newest training run below ``root``.

        Raises:
            UserError: there is none; the message says how to begin.
        """
        pointer = root / "latest"
        name = _text(pointer).strip() if pointer.is_file() else ""
        if name and (Path(name).name != name or name == ".."):
            raise UserError(f"{pointer} names '{name[:80]}', which is no run in '{root}'; name one with --ckpt_path.")
        if not name or not (root / name).is_dir():
            raise UserError(
                f"No run in '{root}' yet. Begin with: adapters-pl fit --config quickstart.yaml "
                "(or name a checkpoint with --ckpt_path, or another folder with --trainer.default_root_dir)."
            )
        return cls(root / name)

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> Run | None:
        """The run that ``checkpoint`` lies in, if it lies in one."""
        folder = Path(os.path.abspath(checkpoint)).parent.parent
        if not (folder / "config.yaml").is_file():
            return None
        run = cls(folder)
        run.refuse_links()
        return run

    def refuse_links(self, otherwise: str = "name another checkpoint") -> None:
        """Raise ``UserError`` where something in this run is a link to elsewhere: what is written would land there.

        Args:
            otherwise: what else can be done about what is no file and no folder.
        """
        here = self.path.parent.resolve() / self.path.name
        for path in (self.path, *self.path.rglob("*")):
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} is neither a file nor a folder; remove it, or {otherwise}.")
            if path.is_dir() and path.suffix in (".yaml", ".json", ".jsonl", ".csv", ".log"):
                raise UserError(f"{path} is a folder where a file is written; remove it, or {otherwise}.")
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(here):
                raise UserError(
                    f"{path} is a link that leads out of its run, to {os.readlink(path)}; nothing is written there. "
                    "Put a copy in its place, or remove it."
                )

    @classmethod
    def of_requeued_job(cls, root: Path) -> Run | None:
        """The run below ``root`` that this SLURM job had begun, by the same command, before it was put back into the
        queue; ``None`` where this is the job's first time, or it had saved nothing yet.
        """
        job = slurm_job()
        if not job or os.environ.get("SLURM_RESTART_COUNT", "0").strip() in ("", "0"):
            return None
        for file in sorted(root.glob("*/environment.json"), key=lambda path: path.stat().st_mtime, reverse=True):
            try:
                about, run = read_json(file), cls(file.parent)
            except UserError:
                continue  # then it is none that this job has begun
            same = (about.get("slurm_job"), about.get("command")) == (job, command_line())
            if same and (run.checkpoints / "last.ckpt").exists():
                return run
        return None

    def mark_latest(self) -> None:
        """Make this the run that ``test`` takes when nothing is named."""
        with writing(self.path.parent / "latest", self.checkpoints):
            _write_atomically(self.path.parent / "latest", as_text("latest", self.path.name + "\n"))

    @property
    def ckpt_path(self) -> str:
        """What ``--ckpt_path`` is given for this run's last checkpoint, from where the command was typed."""
        return "last" if self.path.parent == Path(DEFAULT_ROOT) else shlex.quote(str(self.path))

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, which: str) -> Path:
        """``last.ckpt`` or ``best.ckpt``; raises ``UserError`` if this run has none."""
        path = self.checkpoints / f"{which}.ckpt"
        if not path.is_file() and not is_sharded(path):
            there = ", ".join(sorted(p.name for p in self.checkpoints.glob("*.ckpt"))) or "none"
            raise UserError(f"{self.path} has no {which}.ckpt (checkpoints there: {there}).")
        return path

    def own(self, name: str) -> Path:
        """The path of what is called ``name`` in this run, for reading it.

        Raises:
            UserError: it is a link, or lies behind one, that leads out of the run.
        """
        path = self.path / name
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.path)):
            raise UserError(f"{path} is a link that leads out of its run, and is not read; put a copy in its place.")
        return path

    def write(self, name: str, content: Any) -> Path:
        """Write ``content`` under ``name``, whole or not at all, in the form of :func:`as_text`.

        Secrets are masked; but rows (``.jsonl``) are data, and are written as they are.

        Raises:
            UserError: the system refused.
        """
        path = self.path / name
        with self.writing(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_atomically(path, as_text(name, content if name.endswith(".jsonl") else masked_values(content)))
        return path

    def writing(self, name: str, again: str | None = None) -> AbstractContextManager[None]:
        """:func:`writing`, for what is called ``name`` in this run."""
        return writing(self.path / name, self.checkpoints, again)

    def trained_with(self) -> dict[str, Any] | None:
        """The configuration in ``config.yaml``; ``None`` where nothing was trained, or where it cannot be read."""
        try:
            file = self.own("config.yaml")
            return load_config_file(file) if file.is_file() else None
        except UserError:
            return None

    def results(self) -> dict[str, Any]:
        """The contents of ``results.json``, empty before the first test.

        Raises:
            UserError: the file is no JSON, or lies elsewhere.
        """
        path = self.own("results.json")
        if not path.exists():
            return {}
        try:
            found = read_json(path)
        except UserError as error:
            raise UserError(f"{error} Move it away and test again.") from error
        if not all(has_shape(found.get(part, {}), {str: {"n": int}}) for part in ("sets", "others")) or not all(
            isinstance(figures.get("settings", {}), dict)
            for part in ("sets", "others")
            for figures in found.get(part, {}).values()
        ):
            raise UserError(f"{path} is not what a test writes; move it away and test again.")
        return found

    def merge_results(self, sets: dict[str, dict[str, Any]], **about: Any) -> Path:
        """Put the results of ``sets`` into ``results.json``, beside those of other sets already there."""
        # A training, a validation and a test of this run may do it at the same moment.
        with self.writing("results.json"), locked(self.path / ".results.lock", wait=True):
            results = self.results()
            return self.write("results.json", {**results, **about, "sets": {**results.get("sets", {}), **sets}})


def as_text(name: str, content: Any) -> bytes:
    """``content`` in the form that the ending of ``name`` tells: ``.json``, ``.jsonl`` (a list, a line each), text.

    What is no character (half of a pair, a byte of a path in another encoding) is written as JSON escapes it.
    """
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    elif name.endswith(".json"):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    else:
        text = content
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def writing(path: Path, checkpoints: Path, again: str | None = None, when: str = "") -> Iterator[None]:
    """Word what the system says where it refuses to let ``path`` be written.

    Args:
        path: what is written within it.
        checkpoints: the folder of the run's checkpoints, of which the last is named.
        again: the command that goes on once that is mended; this one if not given.
        when: what follows the word "written" in the message.

    Raises:
        UserError: the system refused; with its folder, the reason, what is kept, and the remedy.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refused = system_error(error)
        if refused is None:
            raise
        there = sorted(checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        kept = f"the last good one is {there[-1]}" if there else "none had been written before"
        if path.suffix != ".ckpt":
            kept = f"the last checkpoint is {there[-1]}" if there else "there is no checkpoint"
        remedy = _REMEDIES.get(refused.errno or 0, "See to that disk")
        raise UserError(
            f"{path.parent}: {path.name} could not be written{when} ({refused.strerror}); {kept}\n"
            f"{remedy}, then: {again or command_line()}"
        ) from error


_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room there"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Make it writable"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "The folder was removed or moved; leave it in its place"),
}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); remove it, or mend it.") from error


def _is_rank_0() -> bool:
    """Whether this is the first process of the first node; known before the processes have found each other."""
    for launcher in (TorchElasticEnvironment, SLURMEnvironment):
        if launcher.detect():
            return launcher().global_rank() == 0
    alone = LightningEnvironment()
    return alone.node_rank() == 0 and alone.local_rank() == 0


def _write_atomically(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def slurm_job() -> str | None:
    """The SLURM job that this process belongs to, as ``scontrol`` calls it."""
    job, array, task = map(os.environ.get, RECORDED_VARIABLES)
    return f"{array}_{task}" if array else job


def command_line() -> str:
    """The command that repeats this run; in the place of a secret it has ``***``."""
    return shlex.join(["adapters-pl", *masked_words(sys.argv[1:])])


def repeating(checkpoint: str | None) -> str:
    """The command that repeats a test: this one, with the checkpoint by name where it was found by itself."""
    words = sys.argv[1:]
    named = any(word.partition("=")[0] == "--ckpt_path" for word in words)
    absolute = [] if checkpoint is None or named else ["--ckpt_path", str(Path(checkpoint).resolve())]
    return shlex.join(["adapters-pl", *masked_words([*words, *absolute])])


def environment() -> dict[str, Any]:
    """What a result depends on beside its configuration: command, versions, machine, state of the sources."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": command_line(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "git": _git_state(),
        "slurm_job": slurm_job(),
    }


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
