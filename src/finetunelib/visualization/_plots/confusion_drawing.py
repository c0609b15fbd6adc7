"""Draws a confusion matrix: cells, numbers, labels, row totals and the list of mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetunelib.visualization._plots.confusion_layout import Layout
from finetunelib.visualization._plots.style import (
    SMALL,
    Theme,
    percent,
    quiet_axes,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

#: The largest number of mistakes in the list, and the characters of a class name in it.
_LISTED, _LISTED_NAME = 12, 16

#: The characters of a class name on the axes.
_LABEL = 18

#: Below 1, because a linear scale would hide small values.
_SCALE_EXPONENT = 0.7

#: The centers of a cell's two numbers, as fractions of the cell below its center.
_FIRST_NUMBER, _SECOND_NUMBER = -0.12, 0.24
_SECOND_NUMBER_SIZE = 7.0

#: The part of a cell's width that a number may take, and a digit's width as a part of its height.
_FILLED_WIDTH, _DIGIT_WIDTH = 0.86, 0.62
_POINTS_PER_INCH = 72

#: The list of mistakes, in points from the matrix's upper right corner.
_LIST_LEFT, _LIST_TOP, _LIST_STEP, _LIST_LINE = 14, -22, -29, -12


def draw_cells(
    axes: Axes, theme: Theme, layout: Layout, counts: Counts, values: Floats | Counts
) -> Floats:
    """Color the cells; correct predictions and mistakes each have a scale of their own.

    Args:
        axes: Where to draw.
        theme: The colors.
        layout: The sizes.
        counts: The number of samples in each cell, `(classes, classes)`.
        values: What the color shows: fractions of the rows, or the counts.

    Returns:
        The color of each cell, `(classes, classes, 4)`.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    diagonal = np.eye(layout.classes, dtype=bool)
    colors = np.zeros((*counts.shape, 4))
    are_fractions = values.dtype == np.float64
    smallest_scale = layout.smallest_scale if are_fractions else 1
    for ramp, part, smallest in (
        (theme.right, diagonal, 1),
        (theme.wrong, ~diagonal, smallest_scale),
    ):
        colormap = LinearSegmentedColormap.from_list("finetunelib", ramp)
        norm = PowerNorm(_SCALE_EXPONENT, 0.0, max(float(values[part].max()), smallest))
        hidden = np.ma.masked_where(~part | (counts == 0), values)
        axes.imshow(hidden, cmap=colormap, norm=norm, interpolation="nearest")
        shown = part & (counts > 0)
        colors[shown] = colormap(norm(values[shown]))
    axes.set_facecolor(theme.empty)
    if layout.gap is not None:
        edges = np.arange(layout.classes + 1) - 0.5
        line: dict[str, Any] = {"color": theme.ground, "linewidth": layout.gap}
        axes.hlines(edges, -0.5, layout.classes - 0.5, **line)
        axes.vlines(edges, -0.5, layout.classes - 0.5, **line)
    return colors


def write_numbers(
    axes: Axes, layout: Layout, first: npt.NDArray[Any], second: npt.NDArray[Any], colors: Floats
) -> None:
    """Write one or two numbers into each cell that has samples.

    Args:
        axes: Where to write.
        layout: The sizes.
        first: The text of the first number of each cell, empty for a cell without samples.
        second: The text of the second number.
        colors: The colors of the cells.
    """
    both = layout.numbers_per_cell == 2
    for row, column in zip(*(first != "").nonzero(), strict=True):
        text = str(first[row, column])
        centered: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "color": _readable_on(colors[row, column]),
        }
        axes.text(
            column,
            row + (_FIRST_NUMBER if both else 0.0),
            text,
            fontsize=_fitting_size(text, layout.number_size, layout.cell),
            fontweight="bold" if row == column else "normal",
            **centered,
        )
        if both:
            text = str(second[row, column])
            axes.text(
                column,
                row + _SECOND_NUMBER,
                text,
                fontsize=_fitting_size(text, _SECOND_NUMBER_SIZE, layout.cell),
                alpha=0.85,
                **centered,
            )


def number_texts(
    counts: Counts, fractions: Floats, layout: Layout, *, normalize: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the first and second number of each cell as text, empty for cells without samples."""
    # With one number per cell the subtitle gives the unit.
    unit = "%" if layout.numbers_per_cell == 1 else ""
    as_count, as_percent = (np.full(counts.shape, "", dtype=object) for _ in range(2))
    for cell in zip(*counts.nonzero(), strict=True):
        as_count[cell] = f"{counts[cell]:,}"
        as_percent[cell] = percent(float(fractions[cell])).removesuffix(unit)
    return (as_percent, as_count) if normalize else (as_count, as_percent)


def label_axes(axes: Axes, theme: Theme, layout: Layout, names: Sequence[str]) -> None:
    """Write the class names along both sides: all of them, or some if there are many."""
    quiet_axes(axes, theme)
    axes.grid(visible=False)
    axes.set_xlim(-0.5, layout.classes - 0.5)
    axes.set_ylim(layout.classes - 0.5, -0.5)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    named = range(0, layout.classes, layout.label_step)
    labels = [shortened(names[number], _LABEL) for number in named]
    axes.set_yticks(named, labels, fontsize=layout.label_size)
    axes.set_xticks(named, labels, fontsize=layout.label_size, **layout.label_rotation(labels))


def write_totals(axes: Axes, theme: Theme, totals: Counts) -> None:
    """Write the number of samples at the end of each row, and mark rows without samples."""
    quiet: dict[str, Any] = {"color": theme.muted, "fontsize": SMALL}
    end, middle = len(totals) - 0.35, (len(totals) - 1) / 2
    axes.text(end, -0.6, "samples", va="bottom", **quiet)
    for row, total in enumerate(totals):
        axes.text(end, row, f"{total:,}", va="center", **quiet)
        if not total:
            axes.text(middle, row, "no samples", ha="center", va="center", **quiet)


def list_mistakes(
    axes: Axes, theme: Theme, counts: Counts, fractions: Floats, names: Sequence[str]
) -> None:
    """List the most frequent mistakes next to a matrix whose cells contain no numbers."""

    def write(text: str, down: int, **options: Any) -> None:
        axes.annotate(
            text,
            (1, 1),
            (_LIST_LEFT, down),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            **options,
        )

    mistakes = most_frequent_mistakes(counts)
    write("Most frequent mistakes", 0, fontweight="bold", fontsize=SMALL + 1)
    for line, (label, predicted) in enumerate(mistakes):
        down = _LIST_TOP + _LIST_STEP * line
        label_name, predicted_name = (
            shortened(names[number], _LISTED_NAME) for number in (label, predicted)
        )
        write(f"{label_name} as {predicted_name}", down, fontsize=SMALL + 0.5)
        text = f"{counts[label, predicted]:,}, {percent(fractions[label, predicted])} of the row"
        write(text, down + _LIST_LINE, fontsize=SMALL, color=theme.muted)
    if not mistakes:
        write("none", _LIST_TOP, color=theme.muted)
    absent = [name for name, total in zip(names, counts.sum(1), strict=True) if not total]
    if absent:
        down = _LIST_TOP - 14 + _LIST_STEP * max(len(mistakes), 1)
        write(_absent_text(absent), down, fontsize=SMALL, color=theme.muted)


def most_frequent_mistakes(counts: Counts) -> list[tuple[int, int]]:
    """Return up to twelve pairs of a label and the class predicted for it, most frequent first."""
    mistakes = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_LISTED]
    pairs = [divmod(int(cell), len(counts)) for cell in order]
    return [pair for pair in pairs if mistakes[pair]]


def _absent_text(absent: Sequence[str]) -> str:
    first = ", ".join(shortened(name, 12) for name in absent[:3])
    more = ", \N{HORIZONTAL ELLIPSIS}" if len(absent) > 3 else ""
    noun = "class" if len(absent) == 1 else "classes"
    return f"{len(absent)} {noun} without samples:\n{first}{more}"


def _fitting_size(text: str, largest: float, cell: float) -> float:
    """Return the font size, at most `largest`, at which a text fits into a cell."""
    return min(largest, _FILLED_WIDTH * cell * _POINTS_PER_INCH / (_DIGIT_WIDTH * len(text)))


def _readable_on(color: Floats) -> str:
    """Return black or white, whichever has more contrast with a color (by WCAG's formula)."""
    channels = color[:3]
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#101418"
