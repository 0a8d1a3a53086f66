"""How training went: curves of loss and accuracy, and what of the base's knowledge was lost on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from adapters_pl.inputs.untrusted import has_shape
from adapters_pl.reports.collect import Curve, is_number
from adapters_pl.reports.drawing import log_scale, new_figure, whole_steps
from adapters_pl.reports.section import Figure, Section, Shown, listed
from adapters_pl.reports.tables import Column, Table

#: The curves of ``metrics.csv`` that are shown, and what they are called.
_CURVES = {
    "train_loss": "training loss, nats a token",
    "val_loss": "validation loss, nats a token",
    "val_accuracy": "validation accuracy, %",
}
#: The most points of a curve; longer ones are shown as means of so many parts.
_POINTS = 60
_RUN = (Column("key"), Column("run"))


def learning(shown: Sequence[Shown]) -> Section:
    """Losses and accuracies by optimizer step."""
    section = Section("learning", "Learning curves")
    curves = {
        name: [(one, thinned(one.run.curves[name])) for one in shown if one.run.curves.get(name)] for name in _CURVES
    }
    if without := [one.called for one in shown if not any(one.run.curves.get(name) for name in _CURVES)]:
        section.missing.append(f"Without a curve in metrics.csv: {listed(without)}.")
    present = [name for name, found in curves.items() if found]
    if not present:
        return section
    longest = max(len(one.run.curves[name]) for name in present for one, _ in curves[name])
    caption = "The scale of the losses is logarithmic where they span more than a factor of 20."
    if longest > _POINTS:
        caption += f" A curve of more than {_POINTS} logged values is shown as the means of {_POINTS} equal parts."
    section.parts.append(
        Figure("learning", "Loss and accuracy by optimizer step", caption, lambda: _draw_curves(present, curves))
    )
    columns = (*_RUN, Column("curve"), Column("step", "step"), Column("value", "loss"))
    table = Table("learning", "Points of the curves; accuracies in 0..1", columns)
    for name in present:
        for one, points in curves[name]:
            table.rows += [[one.letter, one.run.name, name, step, value] for step, value in points]
    section.parts.append(table)
    return section


def thinned(curve: Curve) -> list[tuple[float, float]]:
    """The curve as it is, or the means of :data:`_POINTS` equal parts of it."""
    count = len(curve)
    if count <= _POINTS:
        return [(float(step), value) for step, value in curve]
    bounds = [count * i // _POINTS for i in range(_POINTS + 1)]
    parts = [curve[low:high] for low, high in pairwise(bounds)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def _draw_curves(present: Sequence[str], curves: dict[str, list[tuple[Shown, list[tuple[float, float]]]]]) -> Any:
    figure, axes = new_figure(1, len(present), 9.6 if len(present) > 1 else 6, 3.6)
    handles: dict[str, Any] = {}
    for axis, name in zip(axes, present, strict=True):
        scale = 100 if name == "val_accuracy" else 1
        for one, points in curves[name]:
            xs, ys = [step for step, _ in points], [scale * value for _, value in points]
            (line,) = axis.plot(
                *(xs, ys),
                color=one.look.color,
                linestyle=one.look.line,
                marker=one.look.marker,
                markevery=max(1, len(xs) // 6),
                markersize=4.5,
            )
            handles.setdefault(one.label, line)
        values = [value for _, points in curves[name] for _, value in points]
        if scale == 1:
            log_scale(axis, "y", values, 20)
        whole_steps(axis)
        axis.set_xlabel("optimizer step")
        axis.set_title(_CURVES[name])
    columns = min(4, len(handles))
    figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=columns, handlelength=3.4)
    return figure


# ---- what was forgotten


def forgetting(shown: Sequence[Shown]) -> Section:
    """The loss on general text with the adapter and without."""
    section = Section("forgetting", "What was forgotten")
    found = [(one, about) for one in shown if (about := _general(one)) is not None]
    if without := [one.called for one in shown if _general(one) is None]:
        section.missing.append(
            f"No loss on general text in {listed(without)}: test with --data.general_text python, or a file of text."
        )
    if not found:
        return section
    section.text.append(
        "The mean loss of a token on text that has nothing to do with what was trained. Where it is higher with the "
        "adapter than without, something of what the base knew is lost. Bases with different tokenizers, and different "
        "texts, are not comparable."
    )
    columns = (
        *(*_RUN, Column("base"), Column("text"), Column("tokens", "count"), Column("before", "loss", "base_loss")),
        *(Column("after", "loss", "loss"), Column("change", "loss"), Column("perplexity, times", "ratio")),
    )
    table = Table("forgetting", "Loss of a token on general text, nats", columns)
    for one, about in found:
        change = about["loss"] - about["base_loss"]
        times = math.exp(min(change, 50.0))
        numbers = [about["tokens"], about["base_loss"], about["loss"], change, times]
        table.rows.append([one.letter, one.run.name, one.run.base, about.get("text"), *numbers])
    tokens = sorted({about["tokens"] for _, about in found})
    caption = (
        "Loss of a token in nats: hollow before, which is the base alone, filled after, with the adapter; "
        f"n = {' or '.join(f'{n:,}' for n in tokens)} tokens."
    )
    section.parts += [
        Figure("forgetting", "Loss on general text before and after", caption, lambda: _draw_forgetting(found)),
        table,
    ]
    return section


def _general(one: Shown) -> dict[str, Any] | None:
    about = one.run.results.get("general_text")
    if not isinstance(about, dict) or not has_shape(about.get("tokens"), int):
        return None
    return about if all(is_number(about.get(key)) for key in ("tokens", "loss", "base_loss")) else None


def _draw_forgetting(found: Sequence[tuple[Shown, dict[str, Any]]]) -> Any:
    figure, (axis,) = new_figure(1, 1, 7, 1 + 0.32 * max(2, len(found)))
    for place, (one, about) in enumerate(found):
        before, after = about["base_loss"], about["loss"]
        axis.plot([before, after], [place, place], "-", color=one.look.color, alpha=0.5)
        axis.plot([before], [place], one.look.marker, color=one.look.color, markerfacecolor="white", markersize=8)
        axis.plot([after], [place], one.look.marker, color=one.look.color, markersize=8)
    axis.set_yticks(range(len(found)), [one.label for one, _ in found])
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.set_xlabel("loss, nats a token")
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    return figure
