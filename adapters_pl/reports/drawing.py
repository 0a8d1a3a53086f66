"""How figures look, and how they become files: for any screen, any paper, and without colour."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.etree import ElementTree

from adapters_pl.inputs.errors import UserError

#: A run's colour, marker and line, in its place: told apart by each of them. The colours are those of Okabe and Ito
#: (2008), which people with any colour vision tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#777777")
_MARKERS = ("o", "s", "^", "p", "v", "P", "X", "*", "<", ">", "h")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_INK, _GRID = "#222222", "#d9d9d9"
#: Fonts with the characters of more languages, of which those are used that are here. SVG files hold texts as texts.
_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic", "Noto Emoji"),
)
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two dollars is no formula
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


class Look(NamedTuple):
    """How a run, or a group of runs, looks in every figure."""

    color: str
    marker: str
    line: Any


class Drawn(NamedTuple):
    """A figure's files, and the same as a part of a page."""

    svg: bytes
    png: bytes
    inline: str


def look(place: int) -> Look:
    """The look of the run in this place; those of 440 places differ."""
    return Look(_COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)], _LINES[place % len(_LINES)])


def require_matplotlib() -> None:
    """Raise ``UserError`` where the optional libraries are missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import pandas  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"report draws with {error.name}, which is not here: pip install 'adapters-pl[report]'"
        ) from None


@contextmanager
def styled() -> Iterator[None]:
    """Within it figures look as all of ours do, and nothing says that a font lacks a character."""
    import matplotlib
    from matplotlib import font_manager

    log = logging.getLogger("matplotlib.font_manager")
    level, here = log.level, set(font_manager.get_font_names())
    style: Any = {**_STYLE, "font.family": ["DejaVu Sans", *(font for font in _FONTS if font in here)]}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing.*")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def new_figure(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Any, list[Any]]:
    """A figure of ``rows`` times ``columns`` axes, in inches, and its axes row by row; it belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **how)
    return figure, list(axes.flat)


def log_scale(axis: Any, which: str, values: Sequence[float], times: float) -> bool:
    """Make an axis logarithmic if ``values`` are positive and span more than a factor of ``times``.

    Args:
        axis: of matplotlib.
        which: ``x`` or ``y``.
        values: that are shown on it.
        times: how many.

    Returns:
        Whether it was done.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    if not values or min(values) <= 0 or max(values) <= times * min(values):
        return False
    getattr(axis, f"set_{which}scale")("log")
    side = getattr(axis, f"{which}axis")
    side.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 30 * min(values) else (1,)))
    side.set_minor_formatter(NullFormatter())
    plain_ticks(side)
    return True


def plain_ticks(side: Any) -> None:
    """Write the numbers of an axis as 0.05, 20 and 100k; those of matplotlib would be formulas."""
    from matplotlib.ticker import EngFormatter, FuncFormatter

    thousands = EngFormatter(sep="")
    side.set_major_formatter(FuncFormatter(lambda value, _: thousands(value) if value >= 1000 else f"{value:g}"))


def whole_steps(axis: Any) -> None:
    """Number optimizer steps by whole ones."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def in_rows(panels: int) -> tuple[int, int]:
    """How many rows and columns so many panels are put in."""
    columns = 2 if panels == 4 else min(3, panels)
    return -(-panels // columns), columns


def drawn(figure: Any, name: str, title: str) -> Drawn:
    """The figure's files; drawn within :func:`styled`.

    Args:
        figure: a figure of matplotlib.
        name: of its files; what has a name within it begins with this one.
        title: what is read to those who cannot see it.
    """
    import matplotlib

    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    figure.savefig(png, format="png", dpi=160, metadata={"Title": title.encode("ascii", "replace").decode()})
    return Drawn(svg.getvalue(), png.getvalue(), _inline(svg.getvalue(), name, title))


def _inline(svg: bytes, name: str, title: str) -> str:
    """The drawing as a part of a page: as wide as there is room, and with names of its own."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)  # of matplotlib's making a moment ago
    for parent in root.findall(".//*/..", {}):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # a style would be the whole page's
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif value.startswith("#") and key == f"{{{_XLINK}}}href":
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    # In rem: texts are as large in every figure, and never too small to be read.
    width = float(root.attrib["viewBox"].split()[2]) * 1.42 / 16
    lines = "stroke-linejoin: round; stroke-linecap: butt"  # what stood in the style that was taken out
    root.set("style", f"max-width: {width:.1f}rem; min-width: {0.56 * width:.1f}rem; {lines}")
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode")
