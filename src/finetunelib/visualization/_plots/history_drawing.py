"""Draws the panels and legends of a history plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from finetunelib.visualization._plots.history_lines import Line
from finetunelib.visualization._plots.style import LIGHT, Theme, quiet_axes, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: The marker shapes, which distinguish runs that have the same color.
_MARKERS = ("o", "s", "^", "D")

#: The lines of several sets of validation data, if colors distinguish runs.
_SETS: tuple[Any, ...] = ("-", (0, (1, 1)), (0, (5, 1, 1, 1)))

#: The largest number of runs that can be distinguished by color and marker.
MOST_RUNS = len(LIGHT.series) * len(_MARKERS)

_MARKER_SIZE, _CROSS_SIZE = 4.5, 5.5
_WIDTH, _DASHED_WIDTH = 1.9, 1.5

#: The space around the epochs, in epochs; the first is a fraction of their number.
_MARGIN, _LEAST_MARGIN, _MOST_MARGIN = 0.03, 0.15, 0.6

#: The characters of a name that a legend shows, and the widths of its parts in inches.
_LONGEST_NAME, _HANDLE_WIDTH, _CHARACTER_WIDTH = 32, 0.65, 0.085

_Location: TypeAlias = Literal["outside lower left", "outside lower right"]


def draw_panel(
    axes: Axes, theme: Theme, lines: Sequence[Line], *, single_run: bool, mark_all: bool
) -> None:
    """Draw the lines of one quantity.

    Args:
        axes: Where to draw.
        theme: The colors.
        lines: The lines.
        single_run: Whether colors distinguish training and validation, rather than runs.
        mark_all: Whether each value has a marker, rather than the last one of a line.
    """
    for line in lines:
        color, marker = _color_and_marker(theme, line, single_run=single_run)
        values = [value if math.isfinite(value) else math.nan for value in line.values]
        (drawn,) = axes.plot(
            line.positions, values, color=color, **_stroke(line, single_run=single_run)
        )
        drawn.set_gid(f"{line.run}:{line.part}")
        drawn.set(
            marker=marker, markersize=_MARKER_SIZE, markevery=_marked(values, mark_all=mark_all)
        )
        gaps = non_finite_positions(line)
        if gaps:
            axes.plot(
                gaps,
                [0.0] * len(gaps),
                linestyle="none",
                marker="x",
                markersize=_CROSS_SIZE,
                markeredgewidth=1.4,
                color=color,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=5,
            )


def style_panel(
    axes: Axes, theme: Theme, quantity: str, axis: str, first: float, last: float
) -> None:
    """Write the title of a panel, and set its axes to the positions from `first` to `last`."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(_heading(quantity))
    quiet_axes(axes, theme)
    axes.grid(axis="y")
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(theme.muted)
    margin = max(_MARGIN * (last - first), _LEAST_MARGIN) if last > first else _MOST_MARGIN
    # The left edge stays above 0, because there is no epoch 0 and no step 0.
    most = _MOST_MARGIN if axis == "epoch" else _MOST_MARGIN * first
    axes.set_xlim(first - min(margin, most), last + margin)
    axes.xaxis.set_major_locator(
        MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    )
    axes.set_xlabel(axis)


def draw_legends(
    figure: Figure, theme: Theme, runs: Sequence[str], parts: Sequence[Line], *, non_finite: bool
) -> None:
    """Draw the legends below the panels.

    Args:
        figure: The figure.
        theme: The colors.
        runs: The names of the runs.
        parts: A line of each part of the data that is drawn.
        non_finite: Whether crosses are drawn, which need an entry.
    """
    single_run = len(runs) == 1
    run_entries = [] if single_run else list(_run_entries(theme, runs))
    other_entries = [
        *_part_entries(theme, parts, runs[0] if single_run else "", single_run=single_run),
        *(_cross_entries(theme) if non_finite else []),
    ]
    every_entry = run_entries + other_entries
    if run_entries and other_entries and _columns(figure, every_entry) >= len(every_entry):
        _draw_legend(figure, run_entries, "outside lower left")
        _draw_legend(figure, other_entries, "outside lower right")
    elif every_entry:
        _draw_legend(figure, every_entry, "outside lower left")


def non_finite_positions(line: Line) -> list[float]:
    """Return the positions whose value is not finite."""
    return [
        position
        for position, value in zip(line.positions, line.values, strict=True)
        if not math.isfinite(value)
    ]


def _color_and_marker(theme: Theme, line: Line, *, single_run: bool) -> tuple[str, str]:
    if single_run:
        if line.part == "training":
            return theme.series[1], _MARKERS[0]
        others = [theme.series[0], *theme.series[2:]]
        return others[line.set_number % len(others)], _MARKERS[0]
    colors = len(theme.series)
    return theme.series[line.run % colors], _MARKERS[line.run // colors]


def _stroke(line: Line, *, single_run: bool) -> dict[str, Any]:
    """Return the line style of a part: dashed for training.

    If the colors distinguish runs, several sets of validation data differ by their dashes.
    """
    if line.part != "training":
        dashes = "-" if single_run else _SETS[line.set_number % len(_SETS)]
        return {"linewidth": _WIDTH, "linestyle": dashes, "zorder": 3}
    return {
        "linewidth": _DASHED_WIDTH,
        "linestyle": (0, (3.2, 1.6)),
        "zorder": 2,
        "alpha": 1.0 if single_run else 0.75,
    }


def _marked(values: Sequence[float], *, mark_all: bool) -> list[int]:
    """Return the indices of values with a marker: all, or the last and those between gaps."""
    finite = [number for number, value in enumerate(values) if not math.isnan(value)]
    if mark_all:
        return finite
    known = set(finite)
    isolated = [n for n in finite if n - 1 not in known and n + 1 not in known]
    return sorted({*isolated, *finite[-1:]})


def _heading(quantity: str) -> str:
    if quantity == "lr":
        return "Learning rate"
    words = quantity.replace("_", " ")
    return shortened(words[:1].upper() + words[1:], 40)


def _columns(figure: Figure, entries: Sequence[tuple[Line2D, str]]) -> int:
    """Return the number of legend entries that fit next to each other."""
    widest = max(len(shortened(name, _LONGEST_NAME)) for _, name in entries)
    return max(1, int(figure.get_figwidth() / (_HANDLE_WIDTH + _CHARACTER_WIDTH * widest)))


def _draw_legend(
    figure: Figure, entries: Sequence[tuple[Line2D, str]], location: _Location
) -> None:
    # Names are set afterwards, because a legend omits names that begin with an underscore.
    legend = figure.legend(
        [handle for handle, _ in entries],
        ["name"] * len(entries),
        loc=location,
        ncols=min(len(entries), _columns(figure, entries)),
        handlelength=2.4,
        borderaxespad=0.2,
    )
    for text, (_, name) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(shortened(name, _LONGEST_NAME))


def _run_entries(theme: Theme, runs: Sequence[str]) -> Iterator[tuple[Line2D, str]]:
    from matplotlib.lines import Line2D

    for number, name in enumerate(runs):
        color, marker = _color_and_marker(theme, Line(number, "", (), ()), single_run=False)
        handle = Line2D(
            [], [], color=color, marker=marker, markersize=_MARKER_SIZE, linewidth=_WIDTH
        )
        yield handle, name


def _part_entries(
    theme: Theme, parts: Sequence[Line], run: str, *, single_run: bool
) -> Iterator[tuple[Line2D, str]]:
    from matplotlib.lines import Line2D

    for part in parts:
        color = theme.muted
        if single_run:
            color, _ = _color_and_marker(theme, part, single_run=True)
        handle = Line2D([], [], color=color)
        handle.set(**_stroke(part, single_run=single_run))
        yield handle, f"{run}, {part.part}" if run else part.part


def _cross_entries(theme: Theme) -> Iterator[tuple[Line2D, str]]:
    from matplotlib.lines import Line2D

    cross = Line2D([], [], color=theme.muted, marker="x", markersize=_CROSS_SIZE, linestyle="none")
    yield cross, "not finite"
