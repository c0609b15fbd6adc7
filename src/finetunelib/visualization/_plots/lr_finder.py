"""`plot_lr_finder`: the losses of a learning-rate range test."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finetunelib._public import public
from finetunelib.errors import EmptyDataError, InvalidTypeError
from finetunelib.training import LRFinderResult
from finetunelib.visualization._plots.style import (
    SMALL,
    Theme,
    check_drawable,
    check_title,
    drawing,
    headline,
    new_figure,
    quiet_axes,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How far above the smoothed losses before the divergence the panel reaches, in their range.
_ROOM = 0.35


@public("finetunelib.visualization")
def plot_lr_finder(
    result: LRFinderResult, *, title: str | None = None, dark: bool = False
) -> Figure:
    """Draw the losses of a learning-rate range test.

    Dots are the losses of the steps, and the line is the smoothed loss. A vertical line marks the
    suggestion. The upper edge cuts off the losses after the divergence.

    Args:
        result: The result of `finetunelib.training.find_lr`.
        title: A line above the panel.
        dark: Whether to use colors for a dark page.

    Returns:
        A figure, which is not opened in a window. A notebook shows it as the last line of a cell;
        `figure.savefig("lr.png")` writes it to a file.

    Raises:
        MissingDependencyError: If matplotlib is not installed:
            `pip install "finetunelib[plots]"`.
        InvalidTypeError: If an argument has an unsupported type.
        EmptyDataError: If the test has no finite loss.

    Example:
        >>> from finetunelib.training import LRFinderResult
        >>> from finetunelib.visualization import plot_lr_finder
        >>> result = LRFinderResult(
        ...     (0.01, 0.1, 1.0), (2.0, 1.0, 3.0), (2.0, 1.2, 2.8), 0.01, "An example.", None
        ... )
        >>> plot_lr_finder(result).axes[0].get_xscale()
        'log'
    """
    check_drawable(dark)
    check_title(title)
    if not isinstance(result, LRFinderResult):
        raise InvalidTypeError(
            "`result` must be an LRFinderResult, which `find_lr` returns, got "
            f"{type(result).__name__}."
        )
    if not result.lrs:
        raise EmptyDataError("`result` has no losses to draw: the first loss was not finite.")
    with drawing(dark) as theme:
        figure = new_figure(5.6, 3.4)
        if title:
            headline(figure, theme, shortened(title, 50))
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.plot(result.lrs, result.losses, ".", color=theme.series[0], markersize=4, alpha=0.45)
        axes.plot(result.lrs, result.smoothed, color=theme.series[0], linewidth=1.9)
        axes.set_ylim(*_limits(result))
        _mark(axes, theme, result)
        axes.set_title("Loss by learning rate")
        quiet_axes(axes, theme)
        axes.grid(axis="y")
        axes.spines["bottom"].set_visible(True)
        axes.spines["bottom"].set_color(theme.muted)
        axes.set_xlabel("learning rate")
    return figure


def _limits(result: LRFinderResult) -> tuple[float, float]:
    """Return the range of losses to show: not the divergence, which would flatten the rest."""
    count = len(result.smoothed)
    lowest = min(range(count), key=result.smoothed.__getitem__)
    before = [*result.losses[: lowest + 1], *result.smoothed[: lowest + 1]]
    low, high = min(before), max(before)
    room = _ROOM * (high - low) or 0.1 * abs(high) or 1.0
    return low - 0.3 * room, high + room


def _mark(axes: Axes, theme: Theme, result: LRFinderResult) -> None:
    """Draw the line of the suggestion with its value, or write that there is none."""
    if result.suggestion is None:
        axes.text(0.02, 0.03, "no suggestion", transform=axes.transAxes, color=theme.muted)
        return
    axes.axvline(result.suggestion, color=theme.series[1], linewidth=1.5)
    places = [math.log10(lr) for lr in (result.lrs[0], result.suggestion, result.lrs[-1])]
    right = places[1] - places[0] > (places[2] - places[0]) / 2
    axes.annotate(
        f"{result.suggestion:.2g}",
        (result.suggestion, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if right else 4, -4),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        color=theme.series[1],
        fontsize=SMALL + 1,
    )
