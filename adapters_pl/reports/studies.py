"""A study: accuracy along each varied key, one line for each combination of the others, over seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev
from typing import Any

from adapters_pl.evaluation.metrics import mean_interval
from adapters_pl.reports.collect import RunSeen, StudySeen, is_number, mean_accuracy
from adapters_pl.reports.drawing import in_rows, log_scale, look, new_figure
from adapters_pl.reports.section import Figure, Section, listed
from adapters_pl.reports.tables import Column, Form, Table
from adapters_pl.reports.texts import in_one_line
from adapters_pl.studies.asked import telling_apart

#: The most sets that have a panel each beside their average, and the most lines in a panel.
_PANELS, _LINES = 5, 8
#: The most keys along which there is a figure.
_KEYS = 12
#: The most combinations of values in a figure.
_COMBINATIONS = 40
_INTERVAL = "The 95% interval is that of the mean over seeds, by Student's t; it is wide where seeds are few."
_LOSS = "lowest validation loss"


@dataclass(frozen=True)
class _Measure:
    """What is compared: accuracies of tested sets, or where nothing was tested the validation loss."""

    names: tuple[str, ...]
    tested: bool

    def all(self) -> list[str]:
        """What the tables have: the sets, and their average before them."""
        if not self.tested or len(self.names) == 1:
            return list(self.names)
        return [f"average of {len(self.names)} sets", *self.names]

    def panels(self) -> list[str]:
        """What has a panel: all, where the sets are few."""
        return self.all() if len(self.names) <= _PANELS else self.all()[:1]

    def of(self, trial: RunSeen, panel: str) -> float | None:
        """A trial's value in a panel; accuracies in 0..1."""
        if not self.tested:
            return min((value for _, value in trial.curves.get("val_loss", [])), default=None)
        return mean_accuracy(trial, [panel] if panel in self.names else list(self.names))

    @property
    def form(self) -> Form:
        """How values are shown."""
        return "percent" if self.tested else "loss"

    @property
    def label(self) -> str:
        """What the vertical axis is called."""
        return "accuracy, %" if self.tested else f"{_LOSS}, nats a token"


@dataclass(frozen=True)
class _Point:
    """The trials of one value of the axis, and of one combination of the other keys: their values over seeds."""

    x: Any
    group: str
    values: tuple[float, ...]


def study_section(study: StudySeen, number: int) -> Section:
    """Curves along every varied key, and all trials.

    Args:
        study: what was read of it.
        number: among the studies of the report.
    """
    called = in_one_line(study.name, 60)
    section = Section(f"study-{number}", f"Study {called}", missing=[_said(study, line) for line in study.problems])
    complete = [trial for trial in study.trials if trial.trial is not None and trial.state == "complete"]
    states = [f"{len(list(them))} {state}" for state, them in groupby(sorted(trial.state for trial in study.trials))]
    section.text.append(f"{len(study.trials)} trials: {listed(states) or 'none yet'}.")
    section.missing += [_said(study, line) for trial in study.trials for line in trial.problems]
    if lost := [trial.name for trial in study.trials if trial.trial is None]:
        section.missing.append(f"Without a trial.json that can be read, and left out of the curves: {listed(lost)}.")
    measure = _measure(complete)
    several = [key for key, values in study.axes.items() if len(values) > 1 and not _is_seed(key)]
    if not complete:
        section.missing.append("No trial is complete, so there is no curve.")
    elif measure is None:
        section.missing.append("No complete trial was tested or validated, so there is no curve.")
    elif not several:
        section.missing.append("No key but the seed has more than one value, so there is nothing to compare.")
    else:
        varied = [key for key in telling_apart([_values(trial) for trial in complete]) if not _is_seed(key)]
        section.parts += _combinations(complete, measure, varied, f"study-{number}")
        if len(several) > _KEYS:
            section.missing.append(f"Of {len(several)} keys with several values the first {_KEYS} have curves.")
        for place, key in enumerate(several[:_KEYS], start=1):
            if found := _along(complete, measure, varied, key, f"study-{number}-{place}"):
                section.parts += found
            else:
                section.missing.append(f"No curve along {_short(key)}: no two trials differ in it alone.")
    if study.trials:
        section.parts.append(_trials(study, measure, f"study-{number}-trials"))
    return section


def _said(study: StudySeen, line: str) -> str:
    return in_one_line(line.replace(str(study.path), study.name), 300)


def _measure(complete: Sequence[RunSeen]) -> _Measure | None:
    tested = [trial for trial in complete if trial.sets]
    names = tuple(name for name in (tested[0].sets if tested else ()) if all(name in trial.sets for trial in tested))
    if names:
        return _Measure(names, True)
    return _Measure((_LOSS,), False) if any(trial.curves.get("val_loss") for trial in complete) else None


def _values(trial: RunSeen) -> dict[str, Any]:
    values: dict[str, Any] = (trial.trial or {}).get("values", {})
    return values


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] in ("seed", "seed_everything")


def _combinations(
    complete: Sequence[RunSeen], measure: _Measure, varied: Sequence[str], name: str
) -> list[Figure | Table]:
    """Every combination of values but the seed, and its table."""
    every = {panel: _points(complete, measure, varied, None, panel) for panel in measure.all()}
    points = {panel: every[panel] for panel in measure.panels()}
    first = next(iter(points.values()))
    rows = [point.group for point in first]
    columns = (Column("shown"), Column("combination"), *_statistics(measure))
    table = Table(name, f"Every combination, {measure.label}", columns, note=_INTERVAL)
    table.rows = [[panel, point.group, *_numbers(point)] for panel, found in every.items() for point in found]
    best = sorted(first, key=lambda point: mean(point.values), reverse=measure.tested)[:_COMBINATIONS]
    kept = [row for row in rows if row in {point.group for point in best}]
    caption = f"{_capital(measure.label)}; {_of_seeds(points)}."
    if len(kept) < len(rows):
        caption += f" The {len(kept)} best of {len(rows)}; the table has all."
    figure = Figure(name, "Every combination", caption, lambda: _draw_combinations(points, kept, measure))
    return [figure, table]


def _along(
    complete: Sequence[RunSeen], measure: _Measure, varied: Sequence[str], key: str, name: str
) -> list[Figure | Table]:
    """The figure along ``key``, and its table; nothing where no trials differ in it alone."""
    every: dict[str, list[_Point]] = {}
    for panel in measure.all():
        found = _points(complete, measure, varied, key, panel)
        several = Counter(point.group for point in found)
        every[panel] = [point for point in found if several[point.group] > 1]
    points = {panel: every[panel] for panel in measure.panels()}
    groups = list(dict.fromkeys(point.group for found in points.values() for point in found))
    if not groups:
        return []
    short, others = in_one_line(_short(key), 40), any(groups)
    columns = (
        *(Column("shown"), Column(short, "text", key), *([Column("other keys")] if others else [])),
        *_statistics(measure),
    )
    table = Table(name, f"Along {short}, {measure.label}", columns, note=_INTERVAL)
    for panel, found in every.items():
        for point in found:
            table.rows.append([panel, _text(point.x), *([point.group] if others else []), *_numbers(point)])
    caption = f"{_capital(measure.label)}, by {short}; {_of_seeds(points)}."
    if len(groups) > _LINES:
        caption += f" The first {_LINES} of {len(groups)} combinations of the other keys; the table has all."
    title = f"{_capital(measure.label).partition(',')[0]} along {short}"
    return [Figure(name, title, caption, lambda: _draw(points, groups, measure, short)), table]


def _statistics(measure: _Measure) -> list[Column]:
    headings = ("mean", "95% low", "95% high", "least", "most", "sd over seeds")
    return [Column("seeds", "count"), *(Column(heading, measure.form) for heading in headings)]


def _numbers(point: _Point) -> list[Any]:
    spread = stdev(point.values) if len(point.values) > 1 else None
    return [len(point.values), *mean_interval(point.values), min(point.values), max(point.values), spread]


def _of_seeds(points: dict[str, list[_Point]]) -> str:
    counts = sorted({len(point.values) for found in points.values() for point in found})
    if counts == [1]:
        return "one trial a point, so there is no interval over seeds"
    return (
        "small points are seeds, bars reach from the least to the most of them, large points are their means; "
        f"n = {' or '.join(map(str, counts))} trials a point"
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _points(
    complete: Sequence[RunSeen], measure: _Measure, varied: Sequence[str], key: str | None, panel: str
) -> list[_Point]:
    """What the trials have found, by the value of ``key`` and the other varied keys that a trial has."""
    found: dict[tuple[str, str], tuple[Any, list[float]]] = {}
    order: dict[str, list[tuple[int, float, str]]] = {}
    for trial in complete:
        values = _values(trial)
        value = measure.of(trial, panel)
        if value is None or (key is not None and key not in values):
            continue
        others = [other for other in varied if other != key and other in values]
        group = ", ".join(f"{_short(other)} {_text(values[other])}" for other in others)
        order[group] = [_order(values[other]) for other in others]
        x = values[key] if key is not None else None
        found.setdefault((group, _text(x)), (x, []))[1].append(value)
    points = [_Point(x, group, tuple(values)) for (group, _), (x, values) in found.items()]
    return sorted(points, key=lambda point: (order[point.group], _order(point.x)))


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if is_number(value) else (1, 0.0, _text(value))


def _short(key: str) -> str:
    return key.removesuffix(".class_path").replace(".init_args.", ".").rpartition(".")[2] or key


def _text(value: Any) -> str:
    """A key's value in a word: a class by its name and arguments, anything else as it is written."""
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        arguments = value.get("init_args")
        own = [f"{k} {_text(v)}" for k, v in arguments.items()] if isinstance(arguments, dict) else []
        return in_one_line(" ".join([value["class_path"].rpartition(".")[2], *own]), 60)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return in_one_line(text.removesuffix(".yaml").removeprefix("methods/").removeprefix("models/"), 60)


def _draw_combinations(points: dict[str, list[_Point]], kept: Sequence[str], measure: _Measure) -> Any:
    scale = 100 if measure.tested else 1
    rows, columns = in_rows(len(points))
    height = rows * (0.8 + 0.26 * max(2, len(kept)))
    figure, axes = new_figure(rows, columns, 9.6 if columns > 1 else 7, height, sharex=measure.tested, sharey=True)
    style = look(0)
    for axis, (panel, found) in zip(axes, points.items(), strict=False):
        axis.set_title(in_one_line(panel, 30))
        for point in found:
            if point.group not in kept:
                continue
            place, values = kept.index(point.group), [scale * value for value in point.values]
            axis.plot([min(values), max(values)], [place, place], "-", color=style.color, linewidth=2.2, alpha=0.5)
            if len(values) > 1:
                axis.plot(values, [place] * len(values), "|", color=style.color, markersize=8)
            axis.plot([mean(values)], [place], style.marker, color=style.color)
        axis.set_yticks(range(len(kept)), [in_one_line(group, 44) for group in kept])
        axis.set_ylim(len(kept) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
    for axis in axes[len(points) - columns : len(points)]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(measure.label)
    for axis in axes[len(points) :]:
        axis.remove()
    return figure


def _draw(points: dict[str, list[_Point]], groups: Sequence[str], measure: _Measure, short: str) -> Any:
    everything = [point for found in points.values() for point in found]
    xs = list(dict.fromkeys(_text(point.x) for point in sorted(everything, key=lambda point: _order(point.x))))
    numeric = {_text(point.x): float(point.x) for point in everything if is_number(point.x)}
    as_numbers = len(numeric) == len(xs)
    at = numeric if as_numbers else {x: float(place) for place, x in enumerate(xs)}
    scale = 100 if measure.tested else 1
    rows, columns = in_rows(len(points))
    figure, axes = new_figure(rows, columns, 9.6 if columns > 1 else 6, 3.1 * rows + 0.4, sharey=measure.tested)
    handles: dict[str, Any] = {}
    for axis, (panel, found) in zip(axes, points.items(), strict=False):
        axis.set_title(in_one_line(panel, 30))
        logarithmic = as_numbers and log_scale(axis, "x", list(at.values()), 7)
        for place, group in enumerate(groups[:_LINES]):
            own, style = [point for point in found if point.group == group], look(place)
            # Beside each other, so that each bar can be seen.
            aside = place - (min(len(groups), _LINES) - 1) / 2
            where = [_aside(at[_text(point.x)], aside, list(at.values()), logarithmic) for point in own]
            means = [scale * mean(point.values) for point in own]
            low = [m - scale * min(point.values) for m, point in zip(means, own, strict=True)]
            high = [scale * max(point.values) - m for m, point in zip(means, own, strict=True)]
            line = axis.errorbar(
                *(where, means),
                yerr=[low, high],
                color=style.color,
                marker=style.marker,
                linestyle=style.line if as_numbers else "",  # there is nothing between two methods
                capsize=3,
            )
            handles.setdefault(group, line)
            for x, point in zip(where, own, strict=True):
                if len(point.values) > 1:
                    seeds = [scale * value for value in point.values]
                    axis.plot([x] * len(seeds), seeds, ".", color=style.color, alpha=0.6, markersize=4)
        if logarithmic:
            axis.minorticks_off()
        axis.set_xticks([at[x] for x in xs], xs, rotation=0 if sum(map(len, xs)) < 90 / columns else 20)
        axis.set_xlabel(short)
        axis.margins(x=0.08)
    for axis in axes[:: max(1, columns)]:
        axis.set_ylabel(measure.label)
    for axis in axes[len(points) :]:
        axis.remove()
    if list(handles) != [""]:
        count = min(3, len(handles))
        labels = [in_one_line(group, 44) for group in handles]
        figure.legend(list(handles.values()), labels, loc="outside lower left", ncols=count, handlelength=3.4)
    return figure


def _aside(x: float, places: float, xs: Sequence[float], logarithmic: bool) -> float:
    """``x`` moved by so many times a fiftieth of what ``xs`` span."""
    low, high = min(xs), max(xs)
    return x * (high / low) ** (places / 50) if logarithmic else x + places * (high - low) / 50


def _trials(study: StudySeen, measure: _Measure | None, name: str) -> Table:
    keys, panels = list(study.axes), measure.all() if measure else []
    form = measure.form if measure else "text"
    columns = (
        *(Column("trial"), *(Column(in_one_line(_short(key), 30), "text", key) for key in keys), Column("state")),
        *(Column(panel, form) for panel in panels),
        *(Column("trainable parameters", "count"), Column("training time, s", "seconds", "seconds")),
        *(Column("peak memory, GiB", "gib", "peak_bytes"), Column("error")),
    )
    title = f"Every trial{f'; {measure.label}' if measure else ''}"
    table = Table(name, title, columns)
    for trial in study.trials:
        about = trial.trial or {"values": {}}
        values = [_text(about["values"][key]) if key in about["values"] else None for key in keys]
        shares = [measure.of(trial, panel) for panel in panels] if measure else []
        took = [trial.effort.get(key) for key in ("trainable_parameters", "seconds", "peak_bytes")]
        error = about.get("error") or trial.effort.get("error")
        table.rows.append([trial.path.name, *values, trial.state, *shares, *took, error])
    return table
