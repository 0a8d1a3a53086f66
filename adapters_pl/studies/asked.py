"""What a study asks for: a file with axes over keys of the configuration, and the cells that they make."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.masking import masked_values
from adapters_pl.inputs.untrusted import has_shape, load_config_file
from adapters_pl.runs import recipes

#: What the forms of every study begin with, by the form's name.
FORMS = "study/_forms.yaml"
#: The seed's key, which ``seed`` is short for, and what moves with it: the order of rows and which are held out.
SEED, ROWS_SEED = "seed_everything", "data.seed"
#: The axis whose values are files or recipes, and not values of a key.
CONFIG = "config"
#: The most trials of a study.
MOST_CELLS = 10_000
#: The quantity that the trials are compared by.
QUANTITY = "accuracy, the mean over the test sets"

#: Keys that say where a trial runs and not what it is: workers of one study may differ in them.
_OF_MACHINE = (
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.num_nodes", "trainer.default_root_dir"),
    *("trainer.enable_progress_bar", "data.root", "data.num_workers"),
)
_OF_FILE = ("configs", "set", "axes", "sampler", "pruner", "forms")
_OF_FORM = ("configs", "set", "axes", "sampler", "pruner")
#: What the ends of a range are less than.
_MOST = 1e300
_RANGE = {"low", "high", "log", "step"}
_SAMPLERS = {"random": ("trials", "seed"), "tpe": ("trials", "seed")}
_PRUNERS = {
    "median": ("n_startup_trials", "n_warmup_steps", "n_min_trials"),
    "halving": ("min_resource", "reduction_factor", "min_early_stopping_rate"),
    "hyperband": ("min_resource", "max_resource", "reduction_factor"),
}

Values = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A study as it was asked for.

    Attributes:
        name: of the study and its directory.
        configs: files or recipes that every trial begins with.
        settings: keys with their values, over those.
        grids: axes by key. The cells of a grid are the product of its axes, a study's those of all its grids. Where
            trials are sampled there is one grid, and an axis may be a range ``{low, high, log, step}``.
        sampler: ``None`` for every cell once; else its name, ``trials`` and ``seed``.
        pruner: ``None``, or its name and arguments.
        typed: further words of the command line, which every trial is given.
    """

    name: str
    configs: tuple[str, ...]
    settings: Values
    grids: tuple[dict[str, Any], ...]
    sampler: Values | None = None
    pruner: Values | None = None
    typed: tuple[str, ...] = ()

    @property
    def axes(self) -> dict[str, Any]:
        """Every axis with all its values, or its range."""
        found: dict[str, Any] = {}
        for grid in self.grids:
            for key, values in grid.items():
                known = found.setdefault(key, [] if isinstance(values, list) else values)
                if isinstance(known, list):
                    known += [value for value in values if value not in known]
        return found

    def cells(self) -> list[Values]:
        """The values of every cell of the grids, each cell once."""
        found: dict[str, Values] = {}
        for grid in self.grids:
            for values in itertools.product(*grid.values()):
                cell = dict(zip(grid, values, strict=True))
                found.setdefault(json.dumps(cell, sort_keys=True), cell)
        return list(found.values())

    @property
    def trials(self) -> int:
        """How many trials there are."""
        return self.sampler["trials"] if self.sampler else len(self.cells())

    def samples(self) -> list[Values]:
        """Cells in which every value of an axis stands at least once: all of a grid, few where trials are sampled."""
        if not self.sampler:
            return self.cells()
        ends = {key: v if isinstance(v, list) else [v["low"], v["high"]] for key, v in self.grids[0].items()}
        first = {key: values[0] for key, values in ends.items()}
        return [first, *({**first, key: value} for key, values in ends.items() for value in values[1:])]

    def words(self, values: Values) -> list[str]:
        """The words that follow ``fit`` in the trial of these values; what it varies wins over all else."""
        chosen = dict(values)
        files = [*self.configs, *([chosen.pop(CONFIG)] if chosen.get(CONFIG) else [])]
        chosen.pop(CONFIG, None)
        if SEED in chosen and ROWS_SEED not in {**self.settings, **chosen}:
            chosen[ROWS_SEED] = chosen[SEED]
        words = [word for file in files for word in ("--config", file)]
        words += [f"--{key}={_text(value)}" for key, value in self.settings.items()]
        return [*words, *self.typed, *(f"--{key}={_text(value)}" for key, value in chosen.items())]

    def document(self) -> dict[str, Any]:
        """What ``study.yaml`` says: what was asked, without secrets and without what belongs to one machine."""
        typed, configs = _typed(self.typed)
        settings = {**self.settings, **typed}
        found = {
            "name": self.name,
            "quantity": QUANTITY,
            "configs": [*self.configs, *(name for name in configs if not name.startswith("trainer/"))],
            "set": {key: value for key, value in settings.items() if key not in _OF_MACHINE},
            "axes": self.axes,
            "grids": list(self.grids),
            "sampler": self.sampler or "grid",
            "pruner": self.pruner,
        }
        return json.loads(json.dumps(masked_values(found)))


def read(names: Sequence[str], form: str | None, name: str | None, typed: Sequence[str]) -> Asked:
    """The study that a command names.

    Args:
        names: what was given to ``--config``: the study, and files that every trial is given.
        form: which of its forms; the first if not given.
        name: what to call it; by its file and form if not given.
        typed: further words for every trial.

    Raises:
        UserError: no study is named, or it is not as it should be.
    """
    contents = [(given, path, load_config_file(path)) for given in names for path in recipes.find(given)]
    studies = [(path, content) for _, path, content in contents if "axes" in content or "forms" in content]
    if len(studies) != 1:
        listed = ", ".join(
            sorted(found for found in recipes.available() if found.startswith("study/") and "_" not in found)
        )
        raise UserError(f"study takes one --config with axes and was given {len(studies)}. There is {listed}.")
    path, content = studies[0]
    more = [given for given in names if recipes.find(given) != [path]]
    own, chosen = _in_form(path, content, form)
    stem = f"{path.stem}-{chosen}" if chosen else path.stem
    called = name or stem
    if not called or Path(called).name != called or called.startswith(".") or not called.isprintable():
        raise UserError(
            f"--name {called}: give a name without slashes that can be printed; runs are looked for in a folder of "
            "this name."
        )
    sampler = _chosen(own.get("sampler"), _SAMPLERS, "sampler", path)
    grids = _grids(own["axes"], path, sampled=sampler is not None)
    if sampler is not None and not (isinstance(trials := sampler.setdefault("trials", None), int) and trials > 0):
        raise UserError(f"{path}: sampler: say how many trials it draws: {{name: {sampler['name']}, trials: 20}}.")
    asked = Asked(
        called,
        tuple(_texts(own.get("configs", []), "configs", path)),
        _mapping(own.get("set", {}), "set", path),
        grids,
        sampler,
        _chosen(own.get("pruner"), _PRUNERS, "pruner", path),
        (*(word for given in more for word in ("--config", given)), *typed),
    )
    cells = 0 if sampler else sum(math.prod(map(len, grid.values())) for grid in grids)
    if (sampler["trials"] if sampler else cells) > MOST_CELLS:
        raise UserError(
            f"{path}: its axes make more than {MOST_CELLS:,} cells; sample some: sampler: {{name: random}}."
        )
    return asked


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two documents of a study differ in, a line each."""
    said = []
    for part in ("axes", "set"):
        one, other = there.get(part) or {}, here.get(part) or {}
        for key in dict.fromkeys([*one, *other]):
            if one.get(key) != other.get(key):
                before, now = (_text(side[key]) if key in side else "not given" for side in (one, other))
                said.append(f"{key} is {before} there, and {now} here")
    for part in ("configs", "sampler", "pruner", "grids"):
        if there.get(part) != here.get(part) and not (part == "grids" and said):
            said.append(f"{part} is {_text(there.get(part))} there, and {_text(here.get(part))} here")
    return said


def label(value: Any) -> str | int | float | bool | None:
    """A value as Optuna can hold it: what is no number and no text as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


# ---- the file


def _in_form(path: Path, content: dict[str, Any], form: str | None) -> tuple[dict[str, Any], str | None]:
    """The study in the chosen form, and the form's name."""
    for key in content:
        if key not in _OF_FILE:
            raise UserError(f"{path}: unknown key '{key}' of a study: {did_you_mean(key, _OF_FILE)}")
    forms = _mapping(content.get("forms", {}), "forms", path)
    if form is not None and form not in forms:
        raise UserError(f"--form {form}: {path} has no such form: {did_you_mean(form, forms)}")
    chosen = form or next(iter(forms), None)
    layers = [{key: content[key] for key in _OF_FORM if key in content}]
    if chosen is not None:
        common = load_config_file(recipes.find(FORMS)[0]) if FORMS in recipes.available() else {}
        layers += [_mapping(each.get(chosen) or {}, f"the form {chosen}", path) for each in (common, forms)]
    found: dict[str, Any] = {}
    for layer in layers:
        for key in layer:
            if key not in _OF_FORM:
                raise UserError(f"{path}: unknown key '{key}' of a form: {did_you_mean(key, _OF_FORM)}")
        settings = {**found.get("set", {}), **_mapping(layer.get("set", {}), "set", path)}
        found = {**found, **layer, "set": settings}
    if "axes" not in found:
        raise UserError(f"{path}: says no axes; give a mapping from keys to the values that they take.")
    return found, chosen


def _grids(axes: Any, path: Path, sampled: bool) -> tuple[dict[str, Any], ...]:
    listed = axes if isinstance(axes, list) else [axes]
    if not listed or not all(isinstance(grid, dict) and grid for grid in listed):
        raise UserError(f"{path}: axes is a mapping from keys to lists of values, or a list of such mappings.")
    if sampled and len(listed) > 1:
        raise UserError(f"{path}: a sampled study has one mapping of axes, and this has {len(listed)}.")
    found = []
    for grid in listed:
        own: dict[str, Any] = {}
        for key, given in grid.items():
            full = SEED if key == "seed" else str(key)
            own[full] = _axis(full, given, path, sampled)
        found.append(own)
    return tuple(found)


def _axis(key: str, given: Any, path: Path, sampled: bool) -> Any:
    if isinstance(given, dict):
        if not {"low", "high"} <= given.keys() <= _RANGE:
            raise UserError(f"{path}: axis {key}: give a list of values, or a range {{low: 1.0e-5, high: 1.0e-2}}.")
        if not sampled:
            raise UserError(f"{path}: axis {key} is a range, of which a grid has no cells: name a sampler, or values.")
        numbers = [given["low"], given["high"]]
        if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers) or numbers[0] >= numbers[1]:
            raise UserError(f"{path}: axis {key}: low and high of a range are numbers, the lower one first.")
        if not all(-_MOST < n < _MOST for n in numbers):
            raise UserError(f"{path}: axis {key}: low and high of a range lie between {-_MOST:g} and {_MOST:g}.")
        step, log = given.get("step"), given.get("log", False)
        if not isinstance(log, bool):
            raise UserError(f"{path}: axis {key}: log of a range is true or false.")
        whole = int if all(isinstance(n, int) for n in numbers) else (int, float)
        if step is not None and not (has_shape(step, whole) and 0 < step < _MOST and not log):
            raise UserError(
                f"{path}: axis {key}: step of a range is a number above 0, a whole one between whole numbers, and goes "
                "without log."
            )
        if log and numbers[0] <= 0:
            raise UserError(f"{path}: axis {key}: a range on a logarithmic scale begins above 0.")
        return dict(given)
    values = given if isinstance(given, list) else [given]
    if not values:
        raise UserError(f"{path}: axis {key} has no values.")
    if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
        raise UserError(f"{path}: axis {key} has a value twice: {_text(values)}.")
    if key == CONFIG:
        _texts([value for value in values if value is not None], f"axis {key}", path)
    return values


def _chosen(given: Any, known: Mapping[str, Sequence[str]], what: str, path: Path) -> Values | None:
    """A sampler or a pruner by its name, or by a mapping with its name and arguments."""
    if given in (None, "grid", "none"):
        return None
    found = dict(given) if isinstance(given, dict) else {"name": given}
    name = found.get("name")
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{path}: {what}: there is no '{name}': {did_you_mean(str(name), known)}")
    for key, value in found.items():
        if key != "name" and key not in known[name]:
            raise UserError(f"{path}: {what}: {name} takes no '{key}': {did_you_mean(key, known[name])}")
        if key != "name" and not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            raise UserError(f"{path}: {what}: {key} is {value}; it must be a whole number.")
    return found


def _mapping(value: Any, what: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} should hold keys with their values, but is {_text(value)[:80]}.")
    return value


def _texts(value: Any, what: str, path: Path) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in values):
        raise UserError(f"{path}: {what} should be names of files or recipes, but is {_text(value)[:80]}.")
    return values


def _typed(words: Sequence[str]) -> tuple[Values, list[str]]:
    """Keys and values of typed words, and the files among them."""
    settings: Values = {}
    configs: list[str] = []
    left = list(words)
    while left:
        key, equals, value = left.pop(0).removeprefix("--").partition("=")
        if not equals and left and not left[0].startswith("--"):
            value = left.pop(0)
        if key == CONFIG:
            configs.append(value)
        else:
            settings[key] = value
    return settings, configs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def telling_apart(trials: Sequence[Values]) -> list[str]:
    """The keys that tell trials apart, but for the seed; all of them, where none does.

    They are those of several values, and of those that only some trials have the ones without which two that differ
    would look alike, or a trial would have none of the keys.
    """
    keys = list(dict.fromkeys(key for values in trials for key in values if key not in (SEED, ROWS_SEED)))
    texts = {key: [json.dumps(values[key]) if key in values else "" for values in trials] for key in keys}
    several = {key for key in keys if len(set(texts[key]) - {""}) > 1}
    alike = [0] * len(trials)
    shown: set[str] = set()
    for key in sorted(keys, key=lambda key: key not in several):
        kinds: dict[tuple[int, str], int] = {}
        finer = [kinds.setdefault(kind, len(kinds)) for kind in zip(alike, texts[key], strict=True)]
        if key in several or len(kinds) > len(set(alike)):
            alike, shown = finer, {*shown, key}
    own = [key for key in keys if len(set(texts[key])) > 1]
    for values in trials:
        if shown.isdisjoint(values):
            shown.update(key for key in own if key in values)
    return [key for key in keys if key in shown] or keys
