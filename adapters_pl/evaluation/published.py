"""The numbers that were published for the same bases, methods and sets; ``published.json`` says where."""

from __future__ import annotations

import importlib.resources
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

#: How a base's path or hub id is recognised. Later LLaMAs and those of others are other models.
_BASES = {
    "LLaMA-7B": r"(?<![a-z])(?<!open[-_])llama(?:-?1)?[-_]7b",
    "LLaMA-13B": r"(?<![a-z])(?<!open[-_])llama(?:-?1)?[-_]13b",
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
}


@dataclass(frozen=True)
class Published:
    """One line of a published table.

    Attributes:
        name: base and method, or the model alone.
        accuracy: by set, in 0..1.
        source: where it stands.
    """

    name: str
    accuracy: dict[str, float]
    source: str


@cache
def _table() -> dict[str, Any]:
    file = importlib.resources.files("adapters_pl.evaluation") / "published.json"
    return json.loads(file.read_text(encoding="utf-8"))


def base_name(base: str) -> str | None:
    """The published name of a base, given its path or hub id; ``None`` if nothing was published for it."""
    return next((name for name, pattern in _BASES.items() if re.search(pattern + r"(?!\d)", base.lower())), None)


def published(base: str, method: str | None, protocol: str) -> list[Published]:
    """What was published for ``base`` and ``method`` by this protocol, the newest first; a later table corrects.

    Args:
        base: a path or hub id.
        method: the adapter's class name; ``None`` for the base alone, for which nothing was published.
        protocol: other protocols' numbers are not comparable.
    """
    table, name = _table(), base_name(base)
    if protocol != table["protocol"]:
        return []
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in table["rows"]:
        if row["base"] == name and row["method"] in _METHODS.get(method or "", ()):
            # Arithmetic and commonsense stand in two tables of one source.
            found.setdefault((row["method"], row["source"]), {}).update(_shares(row))
    return [Published(f"{name} {called}", rows, table["sources"][source]) for (called, source), rows in found.items()]


def _shares(row: dict[str, Any]) -> dict[str, float]:
    return {set_name: value / 100 for set_name, value in row["accuracy"].items()}


def references(protocol: str) -> list[Published]:
    """GPT-3.5 and ChatGPT, which were asked without training, by this protocol's tables."""
    table = _table()
    if protocol != table["protocol"]:
        return []
    found: dict[str, Published] = {}
    for row in table["references"]:
        known = found.get(row["base"], Published(row["base"], {}, table["sources"][row["source"]]))
        found[row["base"]] = Published(row["base"], {**known.accuracy, **_shares(row)}, known.source)
    return list(found.values())
