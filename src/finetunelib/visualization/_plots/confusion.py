"""`plot_confusion`: which classes a model takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from finetunelib._public import public
from finetunelib.data._batches import Data
from finetunelib.errors import EmptyDataError, InvalidArgumentError, InvalidTypeError
from finetunelib.visualization._plots.classify import check_class_names, judging, names_of
from finetunelib.visualization._plots.style import (
    SMALL,
    Theme,
    check_drawable,
    check_title,
    drawing,
    headline,
    new_figure,
    percent,
    quiet_axes,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A matrix of more classes would have cells smaller than a pixel of a large picture.
_MOST_CLASSES = 1000

#: Up to so many classes, cells hold two numbers, and one.
_TWO_NUMBERS, _ONE_NUMBER = 12, 30

#: Up to so many classes each has its name on the axes.
_ALL_NAMES = 60

#: The least share of a row at which the scale of mistakes ends: with numbers in the cells, and
#: without these, where color alone has to show a mistake.
_LEAST_TOP = (0.25, 0.1)

#: How many of the commonest mistakes are listed where cells are too small for numbers.
_LISTED = 12

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@public("finetunelib.visualization")
def plot_confusion(
    model: nn.Module,
    data: Data,
    *,
    class_names: Sequence[str] | None = None,
    normalize: bool = True,
    batch_size: int = 64,
    num_workers: int = 0,
    title: str | None = None,
    dark: bool = False,
) -> Figure:
    """Draw which classes a model predicts for the samples of each class.

    A row is a class as the data labels it, a column is a class as the model predicts it. What is
    right is blue, on the diagonal; mistakes are orange, on a scale of their own that ends at the
    largest of them (or somewhat above, where that is small), so that few are seen too. Cells hold
    numbers up to 30 classes, and both count and share up to 12; with more classes the commonest
    mistakes are listed at the side. Cells without a sample are empty, and a class that the data
    lacks says so.

    The model is run in eval mode and without gradients on the device that it is on. Its modes and
    the random states are restored. Targets of -100 are passed over, as cross-entropy does.

    Args:
        model: A classifier: it returns logits (or probabilities) `(batch, classes)`, or an object
            that has them in `.logits`. At least 2 classes, at most 1,000.
        data: Inputs and class indices, in one of the forms that `finetunelib.Trainer.evaluate`
            takes. It is read once, in its own order.
        class_names: A name for each output of the model; `None` numbers them from 0.
        normalize: Whether color and first number are shares of the row, so that rare classes are
            seen as well as common ones. `False` takes counts.
        batch_size: The samples in a batch, where the batches are made here. At least 1.
        num_workers: The processes that read a Dataset; 0 reads it in this one.
        title: What stands above in place of the share that is right.
        dark: Whether the picture is for a dark page.

    Returns:
        A figure that no window shows. In a notebook it is the last line of a cell; elsewhere
        `figure.savefig("confusion.png")` writes it.

    Raises:
        MissingDependencyError: Matplotlib is not installed: `pip install "finetunelib[plots]"`.
        InvalidTypeError: An argument is of the wrong kind, or the data of no known form.
        InvalidArgumentError: A number of names that is not the number of classes, too many
            classes, or a size that makes no sense.
        EmptyDataError: There is no labelled sample.
        InvalidInputError: The model cannot take the inputs.
        InvalidTargetError: The targets are no class indices of this model.
        DataError: The model does not return a row of finite logits for each sample.

    Example:
        >>> import torch
        >>> from finetunelib import build_mlp
        >>> from finetunelib.visualization import plot_confusion
        >>> data = (torch.randn(20, 4), torch.randint(0, 2, (20,)))
        >>> figure = plot_confusion(build_mlp(4, [], 2), data, class_names=["cat", "dog"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['cat', 'dog']
    """
    check_drawable(dark)
    check_title(title)
    check_class_names(class_names)
    if not isinstance(normalize, bool):
        raise InvalidTypeError(f"`normalize` must be True or False, but is {normalize!r}.")
    with judging(model, data, batch_size=batch_size, num_workers=num_workers) as judgement:
        classes = judgement.classes
        if classes > _MOST_CLASSES:
            raise InvalidArgumentError(
                f"`model` must have at most {_MOST_CLASSES} outputs for its mistakes to be drawn, "
                f"but has {classes}. Group the classes, or draw some of them."
            )
        names = names_of(class_names, classes)
        counts = torch.zeros(classes * classes, dtype=torch.int64)
        for judged in judgement.batches:
            cells = judged.targets * classes + judged.predicted
            counts += torch.bincount(cells, minlength=len(counts))
    if not counts.any():
        raise EmptyDataError("`data` holds no labelled sample: every target is -100.")
    return _draw(counts.view(classes, classes).numpy(), names, normalize, title, dark)


def _draw(
    counts: Counts, names: Sequence[str], normalize: bool, title: str | None, dark: bool
) -> Figure:
    classes = len(names)
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    listed = classes > _ONE_NUMBER
    with drawing(dark) as theme:
        side = _side(classes)
        figure = new_figure(side + (3.6 if listed else 1.9), side + 1.6)
        right, every = int(np.trace(counts)), int(totals.sum())
        what = "percent of each row" if normalize else "counts"
        headline(
            figure,
            theme,
            shortened(title, 60) if title else f"{percent(right / every)} right",
            f"{right:,} of {every:,} samples; {what}",
        )
        axes = figure.add_subplot()
        axes.set_aspect("equal")
        ground = _draw_cells(axes, theme, shares if normalize else counts, counts)
        if not listed:
            _write_numbers(axes, counts, shares, ground, normalize, side / classes)
            _write_totals(axes, theme, totals)
        _style(axes, theme, names)
        if listed:
            _list_mistakes(axes, theme, counts, shares, names)
    return figure


def _side(classes: int) -> float:
    """Return the length of the matrix's sides in inches."""
    if classes <= _TWO_NUMBERS:
        return max(0.58 * classes, 2.2)
    return min(0.33 * classes, 7.2) if classes <= _ONE_NUMBER else 6.4


def _draw_cells(axes: Axes, theme: Theme, values: Floats | Counts, counts: Counts) -> Floats:
    """Color the cells, the right ones and the mistakes by scales of their own.

    Returns:
        The color of each cell, `(classes, classes, 4)`.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    classes = len(counts)
    diagonal = np.eye(classes, dtype=bool)
    colors = np.zeros((classes, classes, 4))
    share = values.dtype == np.float64
    for ramp, part, least in (
        (theme.right, diagonal, 1.0 if share else 1),
        (theme.wrong, ~diagonal, _LEAST_TOP[classes > _ONE_NUMBER] if share else 1),
    ):
        hidden = np.ma.masked_where(~part | (counts == 0), values)
        top = max(float(values[part].max()), least)
        colormap = LinearSegmentedColormap.from_list("finetunelib", ramp)
        # Less than linear, so that small values stand off from none.
        norm = PowerNorm(0.7, 0.0, top)
        axes.imshow(hidden, cmap=colormap, norm=norm, interpolation="nearest")
        shown = part & (counts > 0)
        colors[shown] = colormap(norm(values[shown]))
    axes.set_facecolor(theme.empty)
    if classes <= _ALL_NAMES:
        # Gaps of the page's color between the cells.
        edges = np.arange(classes + 1) - 0.5
        width = 1.6 if classes <= _ONE_NUMBER else 0.6
        axes.hlines(edges, -0.5, classes - 0.5, color=theme.ground, linewidth=width)
        axes.vlines(edges, -0.5, classes - 0.5, color=theme.ground, linewidth=width)
    return colors


def _write_numbers(
    axes: Axes,
    counts: Counts,
    shares: Floats,
    ground: Floats,
    normalize: bool,
    cell: float,
) -> None:
    both = len(counts) <= _TWO_NUMBERS
    size = 10.0 if both else min(8.5, 26 * cell)
    for row, column in zip(*counts.nonzero(), strict=True):
        count, share = f"{counts[row, column]:,}", percent(float(shares[row, column]))
        first, second = (share, count) if normalize else (count, share)
        if not both:
            first = first.removesuffix("%")
        color = _readable_on(ground[row, column])
        axes.text(
            column,
            row - (0.12 if both else 0.0),
            first,
            ha="center",
            va="center",
            color=color,
            fontsize=_fitting(first, size, cell),
            fontweight="bold" if row == column else "normal",
        )
        if both:
            axes.text(
                column,
                row + 0.24,
                second,
                ha="center",
                va="center",
                color=color,
                fontsize=_fitting(second, 7.0, cell),
                alpha=0.85,
            )


def _fitting(text: str, size: float, cell: float) -> float:
    """Return a size of font in which a text fits into a cell of so many inches."""
    return min(size, 0.86 * cell * 72 / (0.62 * len(text)))


def _readable_on(color: Floats) -> str:
    """Return black or white, whichever is further from a color (as WCAG measures it)."""
    channels = color[:3]
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#101418"


def _style(axes: Axes, theme: Theme, names: Sequence[str]) -> None:
    """Write the classes along both sides: each name, or one in several where there are many."""
    classes = len(names)
    quiet_axes(axes, theme)
    axes.grid(visible=False)
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    step = 1 if classes <= _ALL_NAMES else 5 if classes <= 100 else 10 * -(-classes // 200)
    at = range(0, classes, step)
    short = [shortened(names[number], 18) for number in at]
    size = SMALL if classes <= _ONE_NUMBER or step > 1 else 5.5
    # Names that do not fit side by side are turned.
    room = 9 if classes <= 2 else 5 if classes <= _TWO_NUMBERS else 3
    turn: dict[str, Any] = {}
    if max(map(len, short)) > (1 if step == 1 and classes > _ONE_NUMBER else room):
        turn["rotation"] = 90.0
        if classes <= _TWO_NUMBERS:
            turn = {"rotation": 45.0, "ha": "right", "rotation_mode": "anchor"}
    axes.set_yticks(at, short, fontsize=size)
    axes.set_xticks(at, short, fontsize=size, **turn)


def _write_totals(axes: Axes, theme: Theme, totals: Counts) -> None:
    """Write how many samples each row has at its end, and into those that have none."""
    quiet: dict[str, Any] = {"color": theme.muted, "fontsize": SMALL}
    after, middle = len(totals) - 0.35, (len(totals) - 1) / 2
    axes.text(after, -0.6, "samples", va="bottom", **quiet)
    for row, total in enumerate(totals):
        axes.text(after, row, f"{total:,}", va="center", **quiet)
        if not total:
            axes.text(middle, row, "no samples", ha="center", va="center", **quiet)


def _list_mistakes(
    axes: Axes, theme: Theme, counts: Counts, shares: Floats, names: Sequence[str]
) -> None:
    """Write the commonest mistakes beside a matrix whose cells are too small for numbers."""
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
    place: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "va": "top",
    }
    axes.annotate(
        "Commonest mistakes", (1, 1), (14, 0), fontweight="bold", fontsize=SMALL + 1, **place
    )
    pairs = [divmod(int(cell), len(counts)) for cell in order]
    pairs = [pair for pair in pairs if wrong[pair]]
    for line, (label, predicted) in enumerate(pairs):
        down = -22 - 29 * line
        text = f"{shortened(names[label], 16)} as {shortened(names[predicted], 16)}"
        axes.annotate(text, (1, 1), (14, down), fontsize=SMALL + 0.5, **place)
        share = f"{counts[label, predicted]:,}, {percent(shares[label, predicted])} of the row"
        axes.annotate(share, (1, 1), (14, down - 12), fontsize=SMALL, color=theme.muted, **place)
    absent = [name for name, total in zip(names, counts.sum(1), strict=True) if not total]
    if not pairs:
        axes.annotate("none", (1, 1), (14, -22), color=theme.muted, **place)
    if absent:
        few = ", ".join(shortened(name, 12) for name in absent[:3])
        more = ", \N{HORIZONTAL ELLIPSIS}" if len(absent) > 3 else ""
        noun = "class" if len(absent) == 1 else "classes"
        text = f"{len(absent)} {noun} without samples:\n{few}{more}"
        down = -36 - 29 * max(len(pairs), 1)
        axes.annotate(text, (1, 1), (14, down), fontsize=SMALL, color=theme.muted, **place)
