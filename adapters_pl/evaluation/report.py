"""From judged answers to accuracies, and from accuracies to the tables at the end of a test.

The numbers that were published for the same bases and sets stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adapters_pl.evaluation.metrics import mean_of_sets, wilson_interval
from adapters_pl.evaluation.published import Beside, published_beside, references

Results = dict[str, dict[str, Any]]

#: What a result may hold beside its accuracy, and what the table calls it.
_FURTHER = {"accuracy_normalised": "per character"}


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


# ---- what was published for the same base


#: Of the other methods that were published for a base, the best are shown.
_MOST_OTHERS = 5


def published_table(sets: Results, tested: Mapping[str, Any], trained: Mapping[str, Any] | None = None) -> Group | None:
    """Our accuracies beside what was published for the same base and sets; ``None`` if nothing was.

    A table for each published row of the method, with GPT-3.5 and ChatGPT beside it; below it stands where it comes
    from, and which of its conditions are not ours. The best other methods follow in one table. The arguments are
    those of :func:`~adapters_pl.evaluation.published.published_beside`.
    """
    rows = published_beside(sets, tested, trained)
    same, others = [row for row in rows if row.same_method], [row for row in rows if not row.same_method]
    shown: list[RenderableType] = [part for row in same for part in (_beside(sets, row), _source(row))]
    if most := max((len(row.sets) for row in others), default=0):
        # An average over fewer sets is another one.
        best = [row for row in others if len(row.sets) == most][:_MOST_OTHERS]
        shown += [_others(best), *(_source(row, f"{row.row.method}: ") for row in best)]
    return Group(*shown) if shown else None


def _beside(sets: Results, beside: Beside) -> Table:
    row = beside.row
    others = [other for other in references() if other.accuracy.keys() & set(beside.sets)]
    table = Table(title=f"Published for {row.name}, in %", title_justify="left")
    for heading in ("set", "ours", "published", "difference", *(other.name for other in others)):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name in beside.sets:
        ours, theirs = sets[name]["accuracy"], row.accuracy[name]
        table.add_row(
            name,
            percent(ours),
            percent(theirs),
            points(ours, theirs),
            *(percent(other.accuracy.get(name)) for other in others),
        )
    if len(beside.sets) > 1:
        table.add_section()
        table.add_row(
            f"average of {len(beside.sets)}",
            percent(beside.ours),
            percent(beside.theirs),
            points(beside.ours, beside.theirs),
            *(percent(mean_of_sets(other.accuracy, beside.sets)) for other in others),
        )
    return table


def _others(rows: Sequence[Beside]) -> Table:
    count = len(rows[0].sets)
    mean_of = f"mean of {count} sets" if count > 1 else rows[0].sets[0]
    table = Table(title=f"Other methods on {rows[0].row.base}, {mean_of}, in %", title_justify="left")
    for heading in ("method", "ours", "published", "difference"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for beside in rows:
        ours, theirs = beside.ours, beside.theirs
        table.add_row(beside.row.method, percent(ours), percent(theirs), points(ours, theirs))
    return table


def _source(beside: Beside, whose: str = "") -> Text:
    """Where a row comes from and what of it is not ours, below its table and as wide as the terminal."""
    differs = [f"published: {'; '.join(beside.differences)}"] if beside.differences else []
    return Text(whose + "\n".join([beside.row.source, *differs]))


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal, or a dash."""
    return "-" if share is None else f"{100 * share:.1f}"


def points(share: float | None, other: float | None) -> str:
    """By how many percentage points ``share`` is above ``other``, or a dash."""
    return "-" if share is None or other is None else f"{100 * (share - other):+.1f}"
