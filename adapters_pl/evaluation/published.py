"""What was published for the same bases and sets, and under which conditions: the rows of ``published.json``."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, TypeGuard

import numpy as np

#: How a base's path or hub id is recognised. Later LLaMAs and those of others are other models.
_BASES = {
    "LLaMA-7B": r"(?<![a-z])(?<!open[-_])llama(?:-?1)?[-_]7b",
    "LLaMA-13B": r"(?<![a-z])(?<!open[-_])llama(?:-?1)?[-_]13b",
    "LLaMA-2-7B": r"(?<![a-z])llama-?2[-_]7b(?!-chat)",
    "LLaMA-3-8B": r"(?<![a-z])llama-?3[-_]8b(?!-instruct)",
    "BLOOMz-7B": r"bloomz[-_]7b1?(?!-mt)",
    "BLOOM-7B": r"bloom[-_]7b1?",
    "GPT-J-6B": r"gpt-?j[-_]6b",
}
#: What the tables call a method. AdapterH and AdapterP are series adapters behind both sublayers and behind the MLP.
_METHODS = {
    "PrefixTuning": ("Prefix",),
    "SeriesAdapter": ("Series", "AdapterH", "AdapterP"),
    "ParallelAdapter": ("Parallel",),
    "LoRA": ("LoRA",),
    "IA3": ("IA3",),
}


@dataclass(frozen=True)
class Conditions:
    """What two accuracies should share to be compared; ``None`` is what a source does not say.

    Attributes:
        trained_on: the training set's class name.
        loss_on: the tokens that count in the loss: those of the response, or all.
        lr: peak learning rate.
        epochs: how often the training rows were gone through.
        extractor: who reads the answer in a text: a protocol's name, or ``whole text``, which is compared as it is.
    """

    trained_on: str | None = None
    loss_on: Literal["response", "all"] | None = None
    lr: float | None = None
    epochs: float | None = None
    extractor: str | None = None

    def differences(self, ours: Conditions) -> list[str]:
        """Where both say something else: ``lr 3e-4, ours 1e-4`` and so on."""
        found = []
        for field in fields(self):
            theirs, own = getattr(self, field.name), getattr(ours, field.name)
            if theirs is not None and own is not None and theirs != own:
                found.append(f"{field.name.replace('_', ' ')} {_shown(theirs)}, ours {_shown(own)}")
        return found


@dataclass(frozen=True)
class Published:
    """One row of a published table.

    Attributes:
        base: as the tables call it.
        method: as the tables call it; ``None`` for a model that was asked without training.
        conditions: how the accuracies came about.
        source: arXiv id and table, or README.
        accuracy: by set, in 0..1.
    """

    base: str
    method: str | None
    conditions: Conditions
    source: str
    accuracy: Mapping[str, float]

    @property
    def name(self) -> str:
        """Base and method."""
        return f"{self.base} {self.method}" if self.method else self.base


@dataclass(frozen=True)
class Beside:
    """A published row beside the results of one of our tests.

    Attributes:
        row: what was published.
        same_method: whether it is our adapter's method, or another one on the same base.
        sets: those that both have an accuracy for, in our order.
        ours: the mean of our accuracies over ``sets``, in 0..1.
        theirs: the mean of the published ones.
        differences: the conditions that both state and that differ, as :meth:`Conditions.differences` words them.
    """

    row: Published
    same_method: bool
    sets: tuple[str, ...]
    ours: float
    theirs: float
    differences: tuple[str, ...]


@cache
def published_rows() -> tuple[Published, ...]:
    """Every row, in the file's order; a later table of one source corrects an earlier one and stands before it."""
    file = importlib.resources.files("adapters_pl.evaluation") / "published.json"
    names = [field.name for field in fields(Conditions)]
    return tuple(
        Published(
            row["base"],
            row["method"],
            Conditions(**{name: row[name] for name in names}),
            row["source"],
            {set_name: percent / 100 for set_name, percent in row["accuracy"].items()},
        )
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]
    )


def base_name(base: str) -> str | None:
    """The published name of a base, given its path or hub id; ``None`` if nothing was published for it."""
    return next((name for name, pattern in _BASES.items() if re.search(pattern + r"(?!\d)", base.lower())), None)


def published_beside(
    sets: Mapping[str, Any], tested: Mapping[str, Any], trained: Mapping[str, Any] | None = None
) -> list[Beside]:
    """The published rows for a test's base that share a set with it.

    Nothing stands beside a test of the base alone, and nothing raises: what a configuration does not say in the form
    that adapters-pl writes counts as not said.

    Args:
        sets: the figures by set, ``sets`` of ``results.json``.
        tested: the test's configuration, ``config`` of ``results.json``.
        trained: the configuration that the adapter was trained with, its run's ``config.yaml``; without it nothing is
            known of its training.

    Returns:
        Rows of our method first, as ``published.json`` orders them; then those of others, the best first.
    """
    base, methods = base_name(str(_argument(tested, "model", "base"))), _methods(tested)
    if not methods:
        return []
    known = {name: figures["accuracy"] for name, figures in sets.items() if _is_number(figures.get("accuracy"))}
    found = []
    for row in published_rows():
        if row.base == base and (common := tuple(name for name in known if name in row.accuracy)):
            ours = sum(known[name] for name in common) / len(common)
            theirs = sum(row.accuracy[name] for name in common) / len(common)
            notes = row.conditions.differences(_conditions(trained, [sets[name] for name in common]))
            found.append(Beside(row, row.method in methods, common, ours, theirs, tuple(notes)))
    return sorted(found, key=lambda beside: (not beside.same_method, 0 if beside.same_method else -beside.theirs))


def references() -> list[Published]:
    """GPT-3.5 and ChatGPT, which were asked without training, each with all its sets."""
    found: dict[str, Published] = {}
    for row in published_rows():
        if row.method is None:
            known = found.get(row.base, row)
            found[row.base] = Published(
                row.base, None, known.conditions, known.source, {**known.accuracy, **row.accuracy}
            )
    return list(found.values())


# ---- our side


def _conditions(trained: Mapping[str, Any] | None, sets: Collection[Mapping[str, Any]]) -> Conditions:
    """What we trained with, and how the answers in the figures of ``sets`` were read."""
    protocols = {str(figures["settings"]["protocol"]) for figures in sets if "protocol" in figures.get("settings", {})}
    extractor = protocols.pop() if len(protocols) == 1 else None
    if trained is None:
        return Conditions(extractor=extractor)
    lr, on_prompt = _argument(trained, "model", "lr"), _argument(trained, "data", "train_on_prompt")
    if trained.get("optimizer") or _argument(trained, "model", "optimizer"):
        lr = None  # which has its own
    return Conditions(
        _class_name(trained.get("data")),
        ("all" if on_prompt else "response") if isinstance(on_prompt, bool) else None,
        float(lr) if _is_number(lr) else None,
        _epochs(trained.get("trainer")),
        extractor,
    )


def _epochs(trainer: Any) -> float | None:
    """How often the rows are gone through, where nothing else ends the training."""
    if not isinstance(trainer, Mapping) or trainer.get("max_steps", -1) not in (-1, None) or trainer.get("max_time"):
        return None
    epochs = trainer.get("max_epochs")
    return float(epochs) if _is_number(epochs) and epochs > 0 else None


def _methods(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the tables call the one adapter of a configuration; nothing for none, several, or one that they lack."""
    adapter = config.get("adapter")
    adapters = adapter if isinstance(adapter, list) else [adapter]
    if len(adapters) != 1:
        return ()
    name = _class_name(adapters[0])
    if name == "LoRA":
        if _argument({"adapter": adapters[0]}, "adapter", "dora") is True:
            return ("DoRA",)
        if _argument({"adapter": adapters[0]}, "adapter", "init") == "pissa":
            return ("PiSSA",)
    return _METHODS.get(name or "", ())


def _argument(config: Mapping[str, Any], section: str, name: str) -> Any:
    """An argument of the section's class, under ``init_args`` or beside it; ``None`` if it is not there."""
    given = config.get(section)
    for where in _mappings(given):
        if name in where:
            return where[name]
    return None


def _mappings(given: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(given, Mapping):
        if isinstance(given.get("init_args"), Mapping):
            yield given["init_args"]
        yield given


def _class_name(given: Any) -> str | None:
    """The class that a section names, without its package."""
    path = given.get("class_path") if isinstance(given, Mapping) else given
    return path.rpartition(".")[2] if isinstance(path, str) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """``3e-4`` for a learning rate, and everything else as it is."""
    if isinstance(value, float) and 0 < value < 0.1:
        return np.format_float_scientific(value, trim="-", exp_digits=1)
    return f"{value:g}" if _is_number(value) else str(value)
