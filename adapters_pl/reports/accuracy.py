"""How many answers are right: by set, by where the training rows come from, and for what cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from adapters_pl.evaluation.published import Beside, published_beside
from adapters_pl.inputs.errors import UserError
from adapters_pl.reports.collect import mean_accuracy
from adapters_pl.reports.comparison import Tested, compare, differences, read_run
from adapters_pl.reports.drawing import in_rows, log_scale, new_figure, plain_ticks
from adapters_pl.reports.section import Figure, Section, Shown, listed
from adapters_pl.reports.tables import Column, Table
from adapters_pl.reports.texts import in_one_line

_RUN = (Column("key"), Column("run"))
#: The most sets with a panel of their own.
_PANELS = 24


def accuracy(shown: Sequence[Shown]) -> Section:
    """Every set of every run with its interval, the base alone, what was published, and a paired test."""
    section = Section("accuracy", "Accuracy by set")
    tested = [one for one in shown if one.run.sets]
    if untested := [one.called for one in shown if not one.run.sets]:
        section.missing.append(f"Without test results: {listed(untested)} (adapters-pl test --ckpt_path RUN).")
    if not tested:
        return section
    names = _set_names(tested)
    beside = {one.letter: _published(one) for one in tested}
    if len(names) > _PANELS:
        section.missing.append(f"Of {len(names)} sets the first {_PANELS} are drawn; the table has all.")
    if partial := [one.letter for one in tested if len(one.run.sets) < len(names)]:
        section.missing.append(f"Not tested on every set, and empty there: {listed(partial)}.")
    section.parts.append(
        Figure(
            "accuracy",
            "Every run on every set",
            f"Accuracy in % of all rows of a set; n: {_rows_of(tested, names)}. Bars are 95% intervals over rows "
            "(Wilson); hollow diamonds are the base alone"
            + (
                "; crosses are the published row of the same base and method that stands first in the table below."
                if any(beside.values())
                else "."
            ),
            lambda: _draw_sets(tested, names, beside),
        )
    )
    section.parts.append(_set_table(tested, names))
    if any(beside.values()):
        section.parts.append(_published_table(tested, beside))
    section.parts += _paired(tested, section.missing)
    return section


def _set_names(tested: Sequence[Shown]) -> list[str]:
    return list(dict.fromkeys(name for one in tested for name in one.run.sets))


def _rows_of(tested: Sequence[Shown], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        counts = sorted({one.run.sets[name]["n"] for one in tested if name in one.run.sets})
        parts.append(f"{name} {' or '.join(f'{n:,}' for n in counts)}")
    return listed(parts)


def _draw_sets(tested: Sequence[Shown], names: Sequence[str], beside: dict[str, list[Beside]]) -> Any:
    averaged = len(names) > 1 and any(mean_accuracy(one.run, names) is not None for one in tested)
    panels = [*names[:_PANELS], *(["average"] if averaged else [])]
    rows, columns = in_rows(len(panels))
    height = rows * (0.75 + 0.27 * max(2, len(tested)))
    figure, axes = new_figure(rows, columns, 9.6 if columns > 1 else 7, height, sharex=True, sharey=True)
    for axis, name in zip(axes, panels, strict=False):
        counts = {one.run.sets[name]["n"] for one in tested if name in one.run.sets}
        n = f"  (n = {counts.pop():,})" if len(counts) == 1 else ""
        axis.set_title(in_one_line(name, 28) + (n if name in names else f" of {len(names)} sets"))
        for place, one in enumerate(tested):
            if name in names:
                _draw_result(axis, place, one, one.run.sets.get(name), _first_share(beside[one.letter], name))
            elif (share := mean_accuracy(one.run, names)) is not None:
                axis.plot([100 * share], [place], one.look.marker, color=one.look.color)
        axis.set_xlim(-3, 103)
        axis.set_ylim(len(tested) - 0.4, -0.6)
        axis.set_yticks(range(len(tested)), [one.label for one in tested])
        axis.grid(axis="y", visible=False)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis in axes[max(0, len(panels) - columns) : len(panels)]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("accuracy, %")
    return figure


def _draw_result(axis: Any, place: int, one: Shown, figures: dict[str, Any] | None, published: float | None) -> None:
    if figures is None:
        return
    if figures["interval"]:
        low, high = figures["interval"]
        axis.plot([100 * low, 100 * high], [place, place], "-", color=one.look.color, linewidth=2.2, alpha=0.6)
    if figures["base_accuracy"] is not None:
        axis.plot([100 * figures["base_accuracy"]], [place], "D", color="#555555", markerfacecolor="white", zorder=3)
    if published is not None:
        axis.plot([100 * published], [place], "x", color="black", markersize=7, markeredgewidth=1.6, zorder=4)
    axis.plot([100 * figures["accuracy"]], [place], one.look.marker, color=one.look.color, zorder=5)


def _set_table(tested: Sequence[Shown], names: Sequence[str]) -> Table:
    columns = (
        *(Column("set"), *_RUN, Column("n", "count"), Column("accuracy, %", "percent", "accuracy")),
        *(Column("low", "percent"), Column("high", "percent"), Column("base alone, %", "percent", "base_accuracy")),
        *(Column("gain, points", "points", "gain"), Column("no answer", "count", "unparsed")),
        *(Column("cut", "count", "truncated"), Column("protocol")),
    )
    table = Table("accuracy", "Accuracy by set, with 95% intervals", columns)
    table.note = "“No answer” and “cut” count texts in which no answer was found, and those that met the token limit."
    for name in names:
        for one in tested:
            if (found := one.run.sets.get(name)) is None:
                continue
            low, high = found["interval"] or (None, None)
            share, base = found["accuracy"], found["base_accuracy"]
            gain = None if base is None else share - base
            counts = [found.get(key) if isinstance(found.get(key), int) else None for key in ("unparsed", "truncated")]
            protocol = found.get("settings", {}).get("protocol") or one.run.results.get("protocol")
            table.rows.append(
                [name, one.letter, one.run.name, found["n"], share, low, high, base, gain, *counts, protocol]
            )
    if len(names) > 1:
        for one in tested:
            if (share := mean_accuracy(one.run, names)) is not None:
                table.rows.append([f"average of {len(names)}", one.letter, one.run.name, None, share, *[None] * 7])
    return table


# ---- what was published


def _published(one: Shown) -> list[Beside]:
    """The published rows of the same base and method; none where nothing can be told from what the run recorded."""
    tested = one.run.results.get("config")
    if not isinstance(tested, dict):
        return []
    return [row for row in published_beside(one.run.sets, tested, one.run.config) if row.same_method]


def _first_share(rows: Sequence[Beside], name: str) -> float | None:
    return next((row.row.accuracy[name] for row in rows if name in row.sets), None)


def _published_table(tested: Sequence[Shown], beside: dict[str, list[Beside]]) -> Table:
    columns = (
        *_RUN,
        *(Column("set"), Column("ours, %", "percent", "ours"), Column("published, %", "percent", "published")),
        *(Column("difference, points", "points", "difference"), Column("published for"), Column("source")),
        Column("its conditions that are not ours"),
    )
    table = Table("published", "Beside what was published for the same base and method", columns)
    for one in tested:
        for row in beside[one.letter]:
            for name in row.sets:
                ours, theirs = one.run.sets[name]["accuracy"], row.row.accuracy[name]
                about = [row.row.name, row.row.source, "; ".join(row.differences)]
                table.rows.append([one.letter, one.run.name, name, ours, theirs, ours - theirs, *about])
    return table


# ---- whether differences could be chance


def _paired(tested: Sequence[Shown], missing: list[str]) -> list[Table]:
    """Every run against the first that has predictions, row by row."""
    read: list[tuple[Shown, Tested]] = []
    for one in tested:
        try:
            found = read_run(one.run.path, one.run.protocol)
        except UserError as error:
            missing.append(f"Not compared row by row: {one.said(error)}")
            continue
        if found.answers:
            read.append((one, found))
    if len(read) < 2:
        return []
    (first, answers), *others = read
    columns = (
        *(Column("set"), *_RUN, Column("rows", "count"), Column("difference, points", "points", "difference")),
        *(Column("low", "points"), Column("high", "points"), Column("only this right", "count")),
        *(Column(f"only {first.letter} right", "count", "only_first_right"), Column("p", "p")),
    )
    table = Table("paired", f"Against {first.label}, row by row", columns)
    for other, theirs in others:
        compared = compare(answers, theirs)
        for pair in compared:
            difference = pair.accuracies[1] - pair.accuracies[0]
            counts = [*pair.interval, pair.better, pair.worse, pair.p]
            table.rows.append([pair.set, other.letter, other.run.name, pair.n, difference, *counts])
        if not compared:
            missing.append(f"{other.letter} has no tested row in common with {first.letter}.")
        missing += [
            f"{first.letter} and {other.letter}: {note}." for note in differences(answers.results, theirs.results)
        ]
    table.note = (
        "Over the rows that both answered: 95% interval of the difference by a paired bootstrap, p of McNemar's exact "
        f"test, two-sided. The p-values are not corrected for their number ({len(table.rows)})."
    )
    return [table] if table.rows else []


# ---- in and out of distribution


def distribution(shown: Sequence[Shown]) -> Section:
    """The mean over the sets that the training rows were drawn from, and over the others."""
    section = Section("distribution", "In and out of distribution")
    known: list[tuple[Shown, dict[str, list[str]]]] = []
    for one in shown:
        parts = {
            part: [name for name, figures in one.run.sets.items() if figures.get("distribution") == part]
            for part in ("in", "out")
        }
        if any(parts.values()):
            known.append((one, parts))
    if not known:
        section.missing.append(
            "For no run is it known which of its tested sets the training rows were drawn from; it is for the "
            "published training mixtures, and for a set's own training rows."
        )
        return section
    section.text.append(
        "A set is in distribution where training rows were drawn from its own training part, and out of it otherwise."
    )
    columns = (*_RUN, Column("distribution"), Column("sets"), Column("n", "count"))
    table = Table(
        "distribution", "Mean accuracy by distribution", (*columns, Column("accuracy, %", "percent", "accuracy"))
    )
    means: list[tuple[Shown, dict[str, float]]] = []
    for one, parts in known:
        found = {}
        for part, names in parts.items():
            if (share := mean_accuracy(one.run, names)) is not None:
                found[part] = share
                n = sum(one.run.sets[name]["n"] for name in names)
                table.rows.append([one.letter, one.run.name, part, listed(names, 20), n, share])
        means.append((one, found))
    caption = "Mean accuracy of the sets in %, each set weighing the same; filled: in distribution, hollow: out of it."
    section.parts += [
        Figure("distribution", "Mean accuracy in and out of distribution", caption, lambda: _draw_distribution(means)),
        table,
    ]
    return section


def _draw_distribution(means: Sequence[tuple[Shown, dict[str, float]]]) -> Any:
    figure, (axis,) = new_figure(1, 1, 7, 1 + 0.32 * max(2, len(means)))
    for place, (one, found) in enumerate(means):
        if len(found) == 2:
            axis.plot([100 * share for share in found.values()], [place, place], "-", color=one.look.color, alpha=0.5)
        for part, share in found.items():
            face = one.look.color if part == "in" else "white"
            axis.plot([100 * share], [place], one.look.marker, color=one.look.color, markerfacecolor=face, markersize=8)
    axis.set_yticks(range(len(means)), [one.label for one, _ in means])
    axis.set_ylim(len(means) - 0.4, -0.6)
    axis.set_xlim(-3, 103)
    axis.set_xlabel("mean accuracy, %")
    axis.grid(axis="y", visible=False)
    return figure


# ---- for what cost

_COSTS: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("trainable_parameters", "trainable parameters", float),
    ("seconds", "training time, s", float),
    ("peak_bytes", "peak memory, GiB", lambda value: value / 2**30),
)


def cost(shown: Sequence[Shown]) -> Section:
    """Mean accuracy against what was trained, how long it took, and the most memory it had."""
    section = Section("cost", "Accuracy and what it cost")
    recorded = [one for one in shown if one.run.effort]
    if without := [one.called for one in shown if not one.run.effort]:
        section.missing.append(f"Nothing recorded of what training took (no fit.json): {listed(without)}.")
    if not recorded:
        return section
    tested = [one for one in recorded if one.run.sets]
    common = [name for name in _set_names(tested) if all(name in one.run.sets for one in tested)]
    if tested and not common:
        common = list(tested[0].run.sets)
        others = [one.called for one in tested if mean_accuracy(one.run, common) is None]
        section.missing.append(
            f"Not tested on the sets of {tested[0].letter} ({listed(common)}), and without a point: {listed(others)}."
        )
    columns = (
        *(*_RUN, Column("method"), Column("trainable parameters", "count")),
        *(Column("training time, s", "seconds", "seconds"), Column("peak memory, GiB", "gib", "peak_bytes")),
        *(Column("steps", "count"), Column("device")),
        Column("mean accuracy, %", "percent", "mean_accuracy"),
    )
    table = Table("cost", "What training took, and the mean accuracy", columns)
    points: list[tuple[Shown, float]] = []
    for one in recorded:
        took, share = one.run.effort, mean_accuracy(one.run, common)
        values = [took.get(key) for key, *_ in _COSTS]
        steps = took.get("steps") if isinstance(took.get("steps"), int) else None
        table.rows.append([one.letter, one.run.name, one.run.method, *values, steps, took.get("device"), share])
        if share is not None:
            points.append((one, share))
    table.note = "Peak memory is the GPU's, or on a CPU that of the process; time is without loading the base."
    if points:
        n = sum(points[0][0].run.sets[name]["n"] for name in common)
        caption = (
            f"Mean accuracy in % over {len(common)} sets ({listed(common)}; n = {n:,} rows of the first run), "
            "against what training took. Letters as in the table."
        )
        section.parts.append(
            Figure("cost", "Mean accuracy against parameters, time and memory", caption, lambda: _draw_cost(points))
        )
    section.parts.append(table)
    return section


def _draw_cost(points: Sequence[tuple[Shown, float]]) -> Any:
    figure, axes = new_figure(1, 3, 9.6, 3.2, sharey=True)
    for axis, (key, label, scaled) in zip(axes, _COSTS, strict=True):
        known = [(one, scaled(one.run.effort[key]), 100 * share) for one, share in points if key in one.run.effort]
        for one, x, y in known:
            axis.plot([x], [y], one.look.marker, color=one.look.color, markersize=8)
            axis.annotate(one.letter, (x, y), textcoords="offset points", xytext=(7, 5))
        if not log_scale(axis, "x", [x for _, x, _ in known], 5) and key == "trainable_parameters":
            plain_ticks(axis.xaxis)
        axis.set_xlabel(label)
        axis.margins(0.15)
    axes[0].set_ylabel("mean accuracy, %")
    return figure
