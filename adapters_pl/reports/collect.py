"""What lies in the directories of runs and studies, as far as it can be read.

A directory may be a stranger's, half written, or of an earlier version: whatever is wrong with a file is a line beside
the run, and the rest of it is shown.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from adapters_pl.evaluation.metrics import mean_of_sets
from adapters_pl.evaluation.results import by_protocol
from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.untrusted import MOST_BYTES, at_most, has_shape, load_config_file, read_json, reading
from adapters_pl.runs import effort
from adapters_pl.runs.at_once import locked
from adapters_pl.runs.run import Run

T = TypeVar("T")

#: What marks a run's directory, and a study's.
_OF_RUN = ("config.yaml", "environment.json", "results.json", effort.FILE, "trial.json", "crash.log")
_OF_STUDY = "study.yaml"
#: The arguments of a method that say how large it is, in the order of preference.
SIZES = ("rank", "bottleneck", "reduction_factor", "projection", "virtual_tokens")

#: The most sets of a run, and keys of a study, that are looked at.
MOST_SETS, MOST_KEYS = 500, 100

#: No step has so many digits.
_DIGITS = 16

Curve = list[tuple[int, float]]


@dataclass
class RunSeen:
    """One run's directory.

    Attributes:
        path: of the directory.
        name: of the run; with its study's before it, where it is a trial.
        config: ``config.yaml``, else the configuration in ``results.json``.
        results: ``results.json``.
        protocol: by which the tests were made that are looked at; the tests that stand, if not given.
        sets: the figures of the tested sets, by name.
        effort: ``fit.json``.
        trial: ``trial.json``.
        curves: the columns of ``metrics.csv``: (step, value) in the order of the file.
        problems: what could not be read, a line each.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    protocol: str | None = None
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    effort: dict[str, Any] = field(default_factory=dict)
    trial: dict[str, Any] | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def adapters(self) -> list[tuple[str, dict[str, Any]]]:
        """Class name and arguments of every adapter."""
        given = self.config.get("adapter")
        return [_class_of(one) for one in (given if isinstance(given, list) else [given]) if isinstance(one, dict)]

    @property
    def method(self) -> str:
        """The adapters' classes with their sizes, or that there is none."""
        return " + ".join(_described(*one) for one in self.adapters) or "base alone"

    @property
    def base(self) -> str:
        """The base as it was named; of a path its last part."""
        base = str(_class_of(self.config.get("model"))[1].get("base") or "")
        return Path(base).name or base

    @property
    def trained_on(self) -> str:
        """The class of the data module."""
        return _class_of(self.config.get("data"))[0]

    @property
    def seed(self) -> int | None:
        """What everything random was drawn by."""
        seed = self.config.get("seed_everything")
        return seed if has_shape(seed, int) else None

    @property
    def average(self) -> float | None:
        """The mean accuracy of the sets, in 0..1."""
        return mean_accuracy(self, list(self.sets))

    @property
    def when(self) -> str:
        """When something last happened, in UTC; by what was recorded, else by the directory."""
        dates = [str(figures.get("date") or "") for figures in self.sets.values()]
        known = max([*dates, str(self.effort.get("written", ""))], default="")
        if not known:
            known = datetime.fromtimestamp(self.path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        return known[:16].replace("T", " ")

    @property
    def state(self) -> str:
        """``complete``, ``running``, ``interrupted``, ``crashed``, ``tested`` (nothing was trained); a trial's own.

        A training or a trial that was killed says that it is running, but nothing holds its lock.
        """
        if self.trial is not None:
            own = str(self.trial["state"])
            return "interrupted" if own == "running" and not _is_held(self.path / ".trial.lock") else own
        state = self.effort.get("state")
        if state is None:  # of an earlier version
            if (self.path / "crash.log").is_file():
                return "crashed"
            if not (self.path / "checkpoints").is_dir():
                return "tested" if self.sets else "empty"
            return "complete" if (self.path / "adapter").is_dir() else "interrupted"
        return "interrupted" if state == "running" and not _is_held(self.path / ".fit.lock") else str(state)


@dataclass
class StudySeen:
    """A study's directory.

    Attributes:
        path: of the directory.
        name: of the study.
        about: ``study.yaml``.
        trials: its runs, by number.
        problems: what could not be read, a line each.
    """

    path: Path
    name: str
    about: dict[str, Any] = field(default_factory=dict)
    trials: list[RunSeen] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The varied configuration keys, and the values of each that occur among the trials."""
        given = self.about.get("axes")
        found: dict[str, list[Any]] = {key: [] for key in islice(given, MOST_KEYS)} if isinstance(given, dict) else {}
        for trial in self.trials:
            for key, value in (trial.trial or {}).get("values", {}).items():
                values = found.setdefault(key, [])
                if value not in values:
                    values.append(value)
        return found


def mean_accuracy(run: RunSeen, names: Sequence[str]) -> float | None:
    """The mean accuracy over the named sets, in 0..1; ``None`` where there is none, or one was not tested."""
    return mean_of_sets({name: float(figures["accuracy"]) for name, figures in run.sets.items()}, names)


def find(name: str, root: Path, protocol: str | None = None) -> RunSeen | StudySeen:
    """The run or study called ``name``: a path, or a name below ``root``; its tests by ``protocol``, if one is given.

    Raises:
        UserError: it is neither; the message lists what is there.
    """
    for path in (Path(os.path.expanduser(name)), root / name):
        if path.is_dir():
            if (path / _OF_STUDY).is_file():
                return read_study(path, protocol)
            if _is_run(path):
                return read_run_directory(path, protocol=protocol)
            inside = [found.name for found in _below(path)]
            there = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
            if inside:
                raise UserError(f"{path} is no run but a folder of them; name some of them: {', '.join(inside[:40])}")
            raise UserError(f"{path} is no run and no study; there is {', '.join(there[:40]) or 'nothing'} in it.")
    known = [path.name for path in _below(root)] if root.is_dir() else []
    raise UserError(f"'{name}' is no run and no study, here or in {root}: {did_you_mean(name, known)}")


def find_all(names: Sequence[str], root: Path, protocol: str | None = None) -> list[RunSeen | StudySeen]:
    """Each of :func:`find`, once, and where two have one name with their folders before it.

    Raises:
        UserError: a name is neither a run's nor a study's.
    """
    found = list({one.path.resolve(): one for one in (find(name, root, protocol) for name in names)}.values())
    often = [name for name, count in Counter(one.name for one in found).items() if count > 1]
    for one in found:
        if one.name in often:
            one.name = f"{one.path.resolve().parent.name}/{one.name}"
    return found


def below(root: Path) -> list[RunSeen | StudySeen]:
    """Every run and study directly below ``root``, by name; the numbers in names count as numbers."""
    return [read_study(path) if (path / _OF_STUDY).is_file() else read_run_directory(path) for path in _below(root)]


def read_run_directory(path: Path, prefix: str = "", protocol: str | None = None) -> RunSeen:
    """What can be read of a run."""
    run, seen = Run(path), RunSeen(path, prefix + (path.name or path.resolve().name), protocol=protocol)

    def tried(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except UserError as error:
            seen.problems.append(str(error))
            return otherwise

    seen.results = tried(run.results, {})
    if protocol is not None:
        seen.results, _ = by_protocol(seen.results, protocol)
    seen.sets = _sets(seen.results)
    if (count := len(seen.results.get("sets", {}))) > MOST_SETS:
        seen.problems.append(f"results.json has {count:,} sets, of which {MOST_SETS:,} are looked at.")
    if (path / "config.yaml").is_file():
        seen.config = tried(lambda: load_config_file(run.own("config.yaml")), {})
    elif isinstance(recorded := seen.results.get("config"), dict):
        seen.config = recorded
    took = effort.read_effort(run) or {}
    odd = [key for key in ("trainable_parameters", "seconds", "peak_bytes") if not is_number(took.get(key))]
    seen.effort = {key: value for key, value in took.items() if key not in odd}
    if (path / "trial.json").is_file():
        seen.trial = tried(lambda: _trial(run.own("trial.json")), None)
    seen.curves = tried(lambda: _curves(run.own("metrics.csv")), {})
    return seen


def read_study(path: Path, protocol: str | None = None) -> StudySeen:
    """What can be read of a study and its trials."""
    study, seen = Run(path), StudySeen(path, path.name or path.resolve().name)
    try:
        seen.about = load_config_file(study.own(_OF_STUDY))
    except UserError as error:
        seen.problems.append(str(error))
    for folder in sorted((each for each in path.glob("trial-*") if each.is_dir()), key=_by_number):
        try:
            seen.trials.append(read_run_directory(study.own(folder.name), f"{seen.name}/", protocol))
        except UserError as error:
            seen.problems.append(str(error))
    return seen


def _sets(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sets with figures that can be shown; of others, and of further figures, nothing is left."""
    found = {}
    for name, figures in islice(results.get("sets", {}).items(), MOST_SETS):
        if not has_shape(figures, {"n": int, "accuracy": (int, float)}) or figures["n"] < 1:
            continue
        if not is_share(figures["accuracy"]) or not is_number(figures["n"]):
            continue
        interval, base = figures.get("interval"), figures.get("base_accuracy")
        known = isinstance(interval, list) and len(interval) == 2 and all(is_share(bound) for bound in interval)
        checked = {"interval": interval if known else None, "base_accuracy": base if is_share(base) else None}
        found[name] = {**figures, **checked}
    return found


def is_share(value: Any) -> bool:
    """Whether ``value`` is a number in 0..1."""
    return is_number(value) and 0 <= value <= 1


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number that can be reckoned with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _trial(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not has_shape(found, {"state": str, "values": dict}):
        raise UserError(f"{path}: is not what a study writes.")
    if len(found["values"]) > MOST_KEYS:
        raise UserError(f"{path}: has values for {len(found['values']):,} keys, over {MOST_KEYS}.")
    return found


def _curves(path: Path) -> dict[str, Curve]:
    """The columns of ``metrics.csv`` but ``step`` and ``epoch``, without what is no finite number."""
    if not path.is_file():
        return {}
    found: dict[str, Curve] = {}
    with reading(path):
        content = at_most(path, MOST_BYTES)
        if len(content) > MOST_BYTES:
            raise UserError(f"{path}: holds more than {MOST_BYTES >> 20} MiB.")
        for row in csv.DictReader(io.StringIO(content.decode(), newline="")):
            step = row.get("step") or ""
            if not (step.isascii() and step.isdigit() and len(step) < _DIGITS):
                continue
            for key, text in row.items():
                if key not in (None, "step", "epoch") and text and is_number(value := float(text)):
                    found.setdefault(key, []).append((int(step), value))
    return found


def _class_of(section: Any) -> tuple[str, dict[str, Any]]:
    """The class name and the arguments of a section of a configuration."""
    if not isinstance(section, dict):
        return "", {}
    arguments = section.get("init_args")
    return str(section.get("class_path", "")).rpartition(".")[2], arguments if isinstance(arguments, dict) else section


def _described(name: str, arguments: dict[str, Any]) -> str:
    size = next((key for key in SIZES if arguments.get(key) is not None), None)
    variants = [label for key, label in (("dora", "DoRA"), ("rslora", "rsLoRA")) if arguments.get(key) is True]
    words = [*variants, *([f"{size.replace('_', ' ')} {arguments[size]}"] if size else [])]
    return f"{name} ({', '.join(words)})" if words else name


def _is_held(lock: Path) -> bool:
    """Whether a process holds ``lock``; where that cannot be tried it may be."""
    if not lock.is_file():
        return False
    try:
        with locked(lock) as free:
            return not free
    except OSError:
        return True


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in _OF_RUN) or (path / "checkpoints").is_dir()


def _below(root: Path) -> list[Path]:
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted((path for path in folders if (path / _OF_STUDY).is_file() or _is_run(path)), key=_by_number)


def _by_number(path: Path) -> tuple[str, int]:
    head, _, tail = path.name.rpartition("-")
    return (head, int(tail)) if tail.isdecimal() else (path.name, -1)
