"""The run directory: the one place that knows where results, configurations and checkpoints lie."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adapters_pl.errors import UserError

DEFAULT_ROOT = "runs"
_HANDED = "ADAPTERS_PL_RUN"
_PACKAGES = (
    "adapters-pl",
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "torchmetrics",
    "jsonargparse",
    "peft",
)


class Run:
    """One run's directory: ``<root>/<recipe>-<n>/``.

    It holds ``config.yaml``, ``environment.json``, ``metrics.csv``, ``checkpoints/{last,best}.ckpt``,
    ``predictions/<set>.jsonl`` (``<set>.partial.jsonl`` while a test is under way), ``results.json``, and
    ``crash.log`` if it crashed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, root: Path, recipe: str) -> Run:
        """Make the next free directory of ``recipe`` below ``root``; two runs never share one."""
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"The run directory '{root}' cannot be made: {error.strerror}.") from error
        taken = [int(tail) for path in root.glob(f"{recipe}-*") if (tail := path.name[len(recipe) + 1 :]).isdigit()]
        number = max(taken, default=0) + 1
        while True:
            try:
                (root / f"{recipe}-{number}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return cls(root / f"{recipe}-{number}")

    @classmethod
    def latest(cls, root: Path) -> Run:
        """The newest training run below ``root``.

        Raises:
            UserError: there is none; the message says how to begin.
        """
        pointer = root / "latest"
        name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        if not name or not (root / name).is_dir():
            raise UserError(
                f"No run in '{root}' yet. Begin with: adapters-pl fit --config quickstart.yaml "
                "(or name a checkpoint with --ckpt_path, or another folder with --trainer.default_root_dir)."
            )
        return cls(root / name)

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> Run | None:
        """The run that ``checkpoint`` lies in, if it lies in one."""
        folder = checkpoint.resolve().parent.parent
        return cls(folder) if (folder / "config.yaml").is_file() else None

    @classmethod
    def of_launcher(cls) -> Run | None:
        """The run that the process which launched this one has made."""
        path = os.environ.get(_HANDED)
        return cls(Path(path)) if path else None

    @contextmanager
    def handed_on(self) -> Iterator[None]:
        """Within it, :meth:`of_launcher` gives this run in the processes that this one launches (DDP's)."""
        before = os.environ.get(_HANDED)
        os.environ[_HANDED] = str(self.path)
        try:
            yield
        finally:
            os.environ.pop(_HANDED)
            if before is not None:
                os.environ[_HANDED] = before

    def mark_latest(self) -> None:
        """Make this the run that ``test`` takes when nothing is named."""
        _write_atomically(self.path.parent / "latest", self.path.name + "\n")

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, which: str) -> Path:
        """``last.ckpt`` or ``best.ckpt``; raises ``UserError`` if this run has none."""
        path = self.checkpoints / f"{which}.ckpt"
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in self.checkpoints.glob("*.ckpt"))) or "none"
            raise UserError(f"{self.path} has no {which}.ckpt (checkpoints there: {there}).")
        return path

    def write(self, name: str, content: Any) -> Path:
        """Write ``content`` under ``name``, whole or not at all.

        The name's ending tells the form: ``.json``, ``.jsonl`` (a list, a line each), else text.
        """
        if name.endswith(".jsonl"):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        elif name.endswith(".json"):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        else:
            text = content
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, text)
        return path

    def keep_metrics(self) -> None:
        """Put ``metrics.csv`` aside under a number: the logger that goes on in this run begins a new one."""
        metrics = self.path / "metrics.csv"
        if metrics.is_file():
            number = len(list(self.path.glob("metrics.*.csv"))) + 1
            os.replace(metrics, self.path / f"metrics.{number}.csv")

    def merge_results(self, sets: dict[str, dict[str, Any]], **about: Any) -> Path:
        """Put the results of ``sets`` into ``results.json``, beside those of other sets already there."""
        path = self.path / "results.json"
        results: dict[str, Any] = {}
        if path.is_file():
            try:
                results = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise UserError(f"{path} is no valid JSON ({error}); move it away and test again.") from error
        results = {**results, **about, "sets": {**results.get("sets", {}), **sets}}
        return self.write("results.json", results)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def command_line() -> str:
    """The command that repeats this run."""
    return shlex.join(["adapters-pl", *sys.argv[1:]])


def repeating(checkpoint: str | None) -> str:
    """The command that repeats a test: this one, with the checkpoint by name where it was found by itself."""
    words = sys.argv[1:]
    named = any(word.partition("=")[0] == "--ckpt_path" for word in words)
    absolute = [] if checkpoint is None or named else ["--ckpt_path", str(Path(checkpoint).resolve())]
    return shlex.join(["adapters-pl", *words, *absolute])


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
    }


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
