"""From judged answers to accuracies, and from accuracies to the tables at the end of a test.

The numbers that were published for the same bases, methods and sets stand beside them; ``published.json`` says where
they come from.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rich.console import Group
from rich.table import Table

from adapters_pl.evaluation.metrics import wilson_interval

Results = dict[str, dict[str, Any]]

#: What a result may hold beside its accuracy, and what the table calls it.
_FURTHER = {"accuracy_normalised": "per character"}


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


def summarize(
    records: Sequence[dict[str, Any]], seconds: float | None = None, tokens: int | None = None
) -> dict[str, Any]:
    """The result of one set: accuracies in 0..1, with ``base_accuracy`` only where the base was tested too.

    Args:
        records: one a row.
        seconds: that the answers took, of the slowest process, without those taken over from an interrupted test.
        tokens: that were written in them, by all processes.

    Returns:
        ``n``, ``accuracy``, ``interval`` (95%, Wilson), ``base_accuracy``; ``unparsed`` texts, in which no answer
        was found; ``truncated`` ones, which met the token limit; ``seconds``, ``tokens_per_second``. With several
        samples ``pass@k`` and the mean over samples, with scored options ``accuracy_normalised``.
    """
    n = len(records)
    correct = sum(record["correct"] for record in records)
    with_base = [record["base_correct"] for record in records if "base_correct" in record]
    result: dict[str, Any] = {
        "n": n,
        "accuracy": correct / n,
        "interval": list(wilson_interval(correct, n)),
        "base_accuracy": sum(with_base) / n if with_base else None,
        "unparsed": sum(record["prediction"] is None for record in records),
        "truncated": sum(record["finish"] == "length" for record in records),
    }
    if seconds is not None:
        result["seconds"] = round(seconds, 3)
        result["tokens_per_second"] = round(tokens / seconds, 1) if tokens and seconds else None
    if all("correct_normalised" in record for record in records):
        result["accuracy_normalised"] = sum(record["correct_normalised"] for record in records) / n
    if all("passed" in record for record in records):
        samples = len(records[0]["samples"])
        result["samples"] = samples
        result[f"pass@{samples}"] = sum(record["passed"] for record in records) / n
        result["mean_accuracy"] = sum(sum(record["sample_correct"]) for record in records) / (n * samples)
    return result


def macro_average(sets: Results) -> dict[str, Any] | None:
    """The mean of the sets' accuracies, each set weighing the same, as the papers report it; none for one set."""
    if len(sets) < 2:
        return None
    bases = [result["base_accuracy"] for result in sets.values()]
    return {
        "accuracy": sum(result["accuracy"] for result in sets.values()) / len(sets),
        "base_accuracy": sum(bases) / len(bases) if all(base is not None for base in bases) else None,
        "sets": list(sets),
    }


def results_table(sets: Results, adapter: str | None) -> Table:
    """Set, n, base alone, with adapter, its interval, difference; percentages, the difference in points.

    Where there are several samples pass@k follows, where options were scored the accuracy by the score per character.
    Several sets are followed by their average.
    """
    table = Table(title=f"Accuracy in %{f', {adapter}' if adapter else ', base alone'}", title_justify="left")
    table.add_column("set")
    # Marked by what the training mixture was drawn from, where that is known.
    marked = any(result.get("distribution") for result in sets.values())
    if marked:
        table.add_column("distribution")
    keys = sorted({key for result in sets.values() for key in result})
    further = {key: _FURTHER.get(key, key) for key in keys if key in _FURTHER or key.startswith("pass@")}
    for heading in ("n", "base alone", "with adapter", "95% interval", "difference", *further.values()):
        table.add_column(heading, justify="right")
    rows = list(sets.items())
    if average := macro_average(sets):
        rows.append((f"average of {len(sets)}", average))
    for name, result in rows:
        accuracy, base = result["accuracy"], result["base_accuracy"]
        if adapter is None:
            accuracy, base = None, accuracy
        if result is average:
            table.add_section()
        table.add_row(
            name,
            *([result.get("distribution") or ""] if marked else []),
            str(result.get("n", "")),
            percent(base),
            percent(accuracy),
            "-".join(percent(bound) for bound in result["interval"]) if "interval" in result else "",
            points(accuracy, base),
            *(percent(result[key]) if key in result else "" for key in further),
        )
    return table


# ---- what was published for the same bases, methods and sets


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


def published_table(sets: Results, base: str, method: str | None, protocol: str) -> Group | None:
    """Our accuracies beside what was published for the same base, method and protocol; ``None`` if nothing was.

    A table for each source and variant of the method; GPT-3.5 and ChatGPT stand beside them.
    """
    others = [other for other in references(protocol) if other.accuracy.keys() & sets.keys()]
    tables = [
        _beside(sets, same, others) for same in published(base, method, protocol) if same.accuracy.keys() & sets.keys()
    ]
    return Group(*tables) if tables else None


def _beside(sets: Results, same: Published, others: list[Published]) -> Table:
    table = Table(title=f"Published for {same.name}, in %", title_justify="left")
    table.caption, table.caption_justify = same.source, "left"
    for heading in ("set", "ours", "published", "difference", *(other.name for other in others)):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, result in sets.items():
        table.add_row(
            name,
            percent(result["accuracy"]),
            percent(same.accuracy.get(name)),
            points(result["accuracy"], same.accuracy.get(name)),
            *(percent(other.accuracy.get(name)) for other in others),
        )
    common = {name: result["accuracy"] for name, result in sets.items() if name in same.accuracy}
    if len(common) > 1:
        # The average of all, ours as well, is over the sets of this table alone.
        ours, theirs = _mean(common, common), _mean(same.accuracy, common)
        table.add_section()
        table.add_row(
            f"average of {len(common)}",
            percent(ours),
            percent(theirs),
            points(ours, theirs),
            *(percent(_mean(other.accuracy, common)) for other in others),
        )
    return table


def _mean(accuracy: Mapping[str, float], names: Collection[str]) -> float | None:
    """The mean over the named sets; ``None`` where one of them is not known."""
    values = [accuracy[name] for name in names if name in accuracy]
    return sum(values) / len(values) if len(values) == len(names) else None


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal, or a dash."""
    return "-" if share is None else f"{100 * share:.1f}"


def points(share: float | None, other: float | None) -> str:
    """By how many percentage points ``share`` is above ``other``, or a dash."""
    return "-" if share is None or other is None else f"{100 * (share - other):+.1f}"
