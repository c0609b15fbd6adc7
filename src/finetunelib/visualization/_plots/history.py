"""`plot_history`: the loss and metrics of training runs, per epoch or step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from finetunelib._public import public
from finetunelib.training import History
from finetunelib.visualization._plots.history_drawing import (
    MOST_RUNS,
    draw_legends,
    draw_panel,
    non_finite_positions,
    style_panel,
)
from finetunelib.visualization._plots.history_lines import (
    axis_of,
    lines_of,
    parts_of,
    positions_of,
    quantities_of,
    runs_of,
)
from finetunelib.visualization._plots.style import (
    check_drawable,
    check_title,
    drawing,
    headline,
    new_figure,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Runs of more rows have a marker on the last row only.
_MOST_MARKED = 15

_PANELS_PER_ROW = 3


@public("finetunelib.visualization")
def plot_history(
    history: History | Mapping[str, History],
    *,
    metrics: Sequence[str] | None = None,
    title: str | None = None,
    dark: bool = False,
) -> Figure:
    """Draw the loss and metrics of one training run, or compare several runs.

    Each quantity has a panel. Training is dashed and validation is solid. If there are several
    runs, each has its own color. Several sets of validation data are lines of the same panel. A
    marker ends each line, which shows where a run stopped early. Values that are not finite leave a
    gap, with a cross on the axis below.

    Training values are averages over an epoch in which the model was still improving; validation
    values are measured at the end of it. If rows follow steps (`validate_every_n_steps`), the
    horizontal axis has the steps instead of the epochs, for all runs.

    Args:
        history: The result of `fit` or `History.from_json`, or up to 24 of them by name, in the
            order of the legend.
        metrics: The quantities to draw, without `train_` and `val_`, such as
            `["loss", "accuracy"]`. `None` draws the loss and all metrics. `"lr"`, `"seconds"` and
            `"samples_per_second"` are drawn only if named.
        title: A line above the panels.
        dark: Whether to use colors for a dark page.

    Returns:
        A figure, which is not opened in a window. A notebook shows it as the last line of a cell;
        `figure.savefig("history.png")` writes it to a file. Its axes are the panels in order.

    Raises:
        MissingDependencyError: If matplotlib is not installed:
            `pip install "finetunelib[plots]"`.
        InvalidTypeError: If `history` or another argument has an unsupported type.
        InvalidArgumentError: If a metric was not measured, or there are too many runs.
        EmptyDataError: If there are no runs, or a run has no epochs.

    Example:
        >>> from finetunelib.training import History
        >>> from finetunelib.visualization import plot_history
        >>> history = History([{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}])
        >>> figure = plot_history({"first try": history})
        >>> figure.axes[0].get_title("left")
        'Loss'
    """
    check_drawable(dark)
    check_title(title)
    runs = runs_of(history, MOST_RUNS)
    quantities = quantities_of(runs, metrics)
    axis = axis_of(runs)
    lines = {quantity: list(lines_of(runs, quantity, axis)) for quantity in quantities}
    every_line = [line for panel in lines.values() for line in panel]
    first = min(positions_of(run, axis)[0] for run in runs.values())
    last = max(positions_of(run, axis)[-1] for run in runs.values())
    with drawing(dark) as theme:
        columns = min(len(quantities), _PANELS_PER_ROW)
        rows = math.ceil(len(quantities) / columns)
        figure = new_figure(max(4.2 * columns, 5.0), 2.9 * rows + 0.5)
        if title:
            headline(figure, theme, shortened(title, 30 * columns))
        for position, quantity in enumerate(quantities):
            axes = figure.add_subplot(rows, columns, position + 1)
            draw_panel(
                axes,
                theme,
                lines[quantity],
                single_run=len(runs) == 1,
                mark_all=max(map(len, runs.values())) <= _MOST_MARKED,
            )
            style_panel(axes, theme, quantity, axis, first, last)
        parts = parts_of(every_line)
        non_finite = any(map(non_finite_positions, every_line))
        draw_legends(figure, theme, list(runs), parts, non_finite=non_finite)
    return figure
