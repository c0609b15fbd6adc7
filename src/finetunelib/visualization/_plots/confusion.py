"""`plot_confusion`: which classes a model confuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from finetunelib._public import public
from finetunelib.data._batches import Data
from finetunelib.errors import EmptyDataError, InvalidArgumentError, InvalidTypeError
from finetunelib.visualization._plots.classify import (
    check_class_names,
    class_labels,
    predicting,
)
from finetunelib.visualization._plots.confusion_drawing import (
    Counts,
    draw_cells,
    label_axes,
    list_mistakes,
    number_texts,
    write_numbers,
    write_totals,
)
from finetunelib.visualization._plots.confusion_layout import Layout
from finetunelib.visualization._plots.style import (
    check_drawable,
    check_title,
    drawing,
    headline,
    new_figure,
    percent,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: With more classes, a cell would be smaller than a pixel of a large picture.
_MOST_CLASSES = 1000


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
    """Draw a confusion matrix: the classes that a model predicts for the samples of each class.

    Rows are labels, columns are predictions. Correct predictions, on the diagonal, are blue.
    Mistakes are orange, with a color scale of their own that makes small numbers visible. Cells
    contain a percentage and a count for up to 12 classes, and one of them for up to 30. With more
    classes, the most frequent mistakes are listed next to the matrix. Cells without samples are
    empty, and classes without samples are marked.

    The model runs in eval mode, without gradients, on its current device. Its modes and the random
    states are restored. Targets of -100 are ignored, as by `torch.nn.CrossEntropyLoss`.

    Args:
        model: A classifier that returns logits or probabilities `(batch, classes)`, or an object
            with these in `.logits`. It must have 2 to 1,000 classes.
        data: Inputs and class indices, in any form that `finetunelib.Trainer.evaluate` accepts.
            It is read once, in order.
        class_names: A name for each output of the model. `None` numbers the classes from 0.
        normalize: Whether colors and the first numbers are fractions of the row, which shows rare
            classes as clearly as frequent ones. If `False`, they are counts.
        batch_size: The number of samples per batch if `data` is not batched, at least 1.
        num_workers: The number of processes that load a Dataset. 0 loads it in this process.
        title: The title. `None` shows the percentage of correct predictions.
        dark: Whether to use colors for a dark page.

    Returns:
        A figure, which is not opened in a window. A notebook shows it as the last line of a cell;
        `figure.savefig("confusion.png")` writes it to a file.

    Raises:
        MissingDependencyError: If matplotlib is not installed:
            `pip install "finetunelib[plots]"`.
        InvalidTypeError: If an argument or the data has an unsupported type.
        InvalidArgumentError: If the number of names differs from the number of classes, there are
            too many classes, or a size is out of range.
        EmptyDataError: If there are no labelled samples.
        InvalidInputError: If the model does not accept the inputs.
        InvalidTargetError: If the targets are not class indices of this model.
        DataError: If the model does not return finite logits for each sample.

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
        raise InvalidTypeError(f"`normalize` must be True or False, got {normalize!r}.")
    with predicting(model, data, batch_size=batch_size, num_workers=num_workers) as predictions:
        classes = predictions.classes
        if classes > _MOST_CLASSES:
            raise InvalidArgumentError(
                f"`model` must have at most {_MOST_CLASSES} outputs for a confusion matrix, got "
                f"{classes}. Group the classes, or select some of them."
            )
        names = class_labels(class_names, classes)
        counts = torch.zeros(classes * classes, dtype=torch.int64)
        for batch in predictions.batches:
            cells = batch.targets * classes + batch.predicted
            counts += torch.bincount(cells, minlength=len(counts))
    if not counts.any():
        raise EmptyDataError("`data` contains no labelled samples: every target is -100.")
    return _draw(
        counts.view(classes, classes).numpy(), names, normalize=normalize, title=title, dark=dark
    )


def _draw(
    counts: Counts, names: Sequence[str], *, normalize: bool, title: str | None, dark: bool
) -> Figure:
    layout = Layout.of(len(names))
    totals = counts.sum(1)
    fractions = counts / np.maximum(totals, 1)[:, None]
    with drawing(dark) as theme:
        figure = new_figure(*layout.figure_size)
        correct, samples = int(np.trace(counts)), int(totals.sum())
        unit = "percent of each row" if normalize else "counts"
        headline(
            figure,
            theme,
            shortened(title, 60) if title else f"{percent(correct / samples)} correct",
            f"{correct:,} of {samples:,} samples; {unit}",
        )
        axes = figure.add_subplot()
        axes.set_aspect("equal")
        colors = draw_cells(axes, theme, layout, counts, fractions if normalize else counts)
        if not layout.lists_mistakes:
            first, second = number_texts(counts, fractions, layout, normalize=normalize)
            write_numbers(axes, layout, first, second, colors)
            write_totals(axes, theme, totals)
        label_axes(axes, theme, layout, names)
        if layout.lists_mistakes:
            list_mistakes(axes, theme, counts, fractions, names)
    return figure
