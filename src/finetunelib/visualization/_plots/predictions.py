"""`plot_predictions`: the images on which a model is wrong, most confident mistakes first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from finetunelib._arguments import check_at_least
from finetunelib._public import public
from finetunelib._typing import TensorLike
from finetunelib.data._batches import Data
from finetunelib.errors import EmptyDataError
from finetunelib.visualization._plots.classify import (
    PredictedBatch,
    check_class_names,
    class_labels,
    predicting,
)
from finetunelib.visualization._plots.images import (
    ImageConverter,
    Pixels,
    ToImage,
    image_inputs,
    pixels_of,
)
from finetunelib.visualization._plots.style import (
    SMALL,
    TEXT,
    Theme,
    check_drawable,
    check_title,
    drawing,
    headline,
    new_figure,
    percent,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The characters of a class name that fit above an image.
_LONGEST = 18

#: The widths of an image and of a character above it, and the characters that fit, in inches.
_IMAGE_WIDTH, _CHARACTER_WIDTH, _FITTING = 1.75, 0.085, 11


@dataclass(frozen=True, slots=True)
class _Case:
    """One sample with its prediction. `sample` is a copy of its inputs."""

    index: int
    label: int
    predicted: int
    confidence: float
    sample: Tensor = field(repr=False)

    @property
    def right(self) -> bool:
        return self.label == self.predicted


@public("finetunelib.visualization")
def plot_predictions(
    model: nn.Module,
    data: Data,
    *,
    class_names: Sequence[str] | None = None,
    count: int = 16,
    to_image: ToImage | None = None,
    mean: float | Sequence[float] | TensorLike | None = None,
    std: float | Sequence[float] | TensorLike | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    title: str | None = None,
    dark: bool = False,
) -> Figure:
    """Draw images with their predicted classes, most confident mistakes first.

    The most confident mistakes reveal wrong labels, similar classes, and gaps in the training data.
    Above each image are the predicted class and its probability, then the label and the sample's
    index in the data, from 0. If there are fewer than `count` mistakes, the least confident correct
    predictions follow, marked with a tick instead of a cross.

    Images have the shape `(height, width)`, with 1 or 3 channels first, last or not at all. Bytes
    range from 0 to 255. Floats are drawn unchanged if all images shown are in [0, 1]. Other floats
    need `mean` and `std` to undo their normalization; without them, the range of each image is
    stretched to [0, 1].

    The model runs in eval mode, without gradients, on its current device. Its modes and the random
    states are restored. Only the images shown are kept in memory. Targets of -100 are ignored, as
    by `torch.nn.CrossEntropyLoss`.

    Args:
        model: A classifier that returns logits or probabilities `(batch, classes)`, or an object
            with these in `.logits`.
        data: Images and class indices, in any form that `finetunelib.Trainer.evaluate` accepts. It
            is read once, in order.
        class_names: A name for each output of the model. `None` numbers the classes from 0.
        count: The largest number of images, at least 1.
        to_image: A function from the inputs of one sample, a tensor on the CPU, to its image. It is
            needed for flat inputs (`lambda sample: sample.reshape(28, 28)`) and for other numbers
            of channels (`lambda sample: sample[:3]`).
        mean: The mean that was subtracted from the images: one number, or one per channel.
        std: The standard deviation that the images were then divided by, in the same form, above 0.
        batch_size: The number of samples per batch if `data` is not batched, at least 1.
        num_workers: The number of processes that load a Dataset. 0 loads it in this process.
        title: The title. `None` shows the percentage of mistakes.
        dark: Whether to use colors for a dark page.

    Returns:
        A figure, which is not opened in a window. A notebook shows it as the last line of a cell;
        `figure.savefig("mistakes.png")` writes it to a file. Its axes are the images in order.

    Raises:
        MissingDependencyError: If matplotlib is not installed:
            `pip install "finetunelib[plots]"`.
        InvalidTypeError: If an argument or the data has an unsupported type.
        InvalidArgumentError: If the number of names differs from the number of classes, `mean` or
            `std` is given without the other or with `to_image`, or a size is out of range.
        EmptyDataError: If there are no labelled samples.
        InvalidInputError: If the model does not accept the inputs, or they are not images.
        InvalidTargetError: If the targets are not class indices of this model.
        DataError: If the model does not return finite logits for each sample.

    Example:
        >>> import torch
        >>> from finetunelib import build_mlp
        >>> from finetunelib.visualization import plot_predictions
        >>> data = (torch.rand(20, 1, 8, 8), torch.randint(0, 2, (20,)))
        >>> model = build_mlp(64, [], 2)
        >>> figure = plot_predictions(model, data, class_names=["cat", "dog"], count=4)
        >>> len(figure.axes)
        4
    """
    check_drawable(dark)
    check_title(title)
    check_class_names(class_names)
    check_at_least(1, count=count)
    converter = ImageConverter.of(to_image, mean, std)
    with predicting(model, data, batch_size=batch_size, num_workers=num_workers) as predictions:
        names = class_labels(class_names, predictions.classes)
        # Check that the inputs are images before the whole data is read.
        converter.convert(image_inputs(predictions.first_inputs)[0].cpu().clone())
        shortlist = _Shortlist(count)
        for batch in predictions.batches:
            shortlist.add(batch)
    if not shortlist.samples:
        raise EmptyDataError("`data` contains no labelled samples: every target is -100.")
    pixels = pixels_of([converter.convert(case.sample) for case in shortlist.cases])
    return _draw(shortlist, pixels, names, title=title, dark=dark)


class _Shortlist:
    """The cases to draw among all samples so far, and the numbers of samples and mistakes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._wrong: list[_Case] = []
        self._right: list[_Case] = []
        self.samples = 0
        self.mistakes = 0

    def add(self, batch: PredictedBatch) -> None:
        """Consider the samples of a batch."""
        wrong = batch.targets != batch.predicted
        self.samples += len(wrong)
        self.mistakes += int(wrong.sum())
        candidates = self._candidates(batch, wrong, descending=True)
        self._wrong = sorted([*self._wrong, *candidates], key=lambda case: -case.confidence)
        del self._wrong[self._count :]
        candidates = self._candidates(batch, ~wrong, descending=False)
        self._right = sorted([*self._right, *candidates], key=lambda case: case.confidence)
        del self._right[max(self._count - len(self._wrong), 0) :]

    @property
    def cases(self) -> list[_Case]:
        """The cases to draw, in order."""
        return [*self._wrong, *self._right]

    @property
    def order(self) -> str:
        """A description of which cases are drawn, and in which order."""
        if not self._right:
            return "most confident mistakes first"
        return "all of them, then the least confident" if self._wrong else "least confident first"

    def _candidates(self, batch: PredictedBatch, among: Tensor, *, descending: bool) -> list[_Case]:
        """Return the cases of a batch that may be drawn, by confidence."""
        rows = among.nonzero().flatten()
        order = batch.confidence[rows].argsort(descending=descending, stable=True)
        images = image_inputs(batch.inputs)
        return [
            _Case(
                index=batch.start + int(batch.rows[row]),
                label=int(batch.targets[row]),
                predicted=int(batch.predicted[row]),
                confidence=float(batch.confidence[row]),
                # A copy, because a view would keep the whole batch in memory.
                sample=images[batch.rows[row]].detach().cpu().clone(),
            )
            for row in rows[order[: self._count]]
        ]


def _draw(
    shortlist: _Shortlist,
    pixels: Sequence[Pixels],
    names: Sequence[str],
    *,
    title: str | None,
    dark: bool,
) -> Figure:
    cases = shortlist.cases
    columns = _columns(len(cases))
    rows = math.ceil(len(cases) / columns)
    tallest = max(image.shape[0] / image.shape[1] for image in pixels)
    width = _width(cases, names)
    height = min(max((width - 0.2) * tallest, 0.8), 2 * width) + 0.5
    mistakes = percent(shortlist.mistakes / shortlist.samples)
    with drawing(dark) as theme:
        figure = new_figure(max(width * columns + 0.2, 4.2), height * rows + 0.75)
        headline(
            figure,
            theme,
            shortened(title, 40) if title else f"{mistakes} wrong",
            f"{shortlist.mistakes:,} of {shortlist.samples:,} samples; {shortlist.order}",
        )
        for position, (case, image) in enumerate(zip(cases, pixels, strict=True)):
            axes = figure.add_subplot(rows, columns, position + 1)
            _draw_case(axes, theme, case, image, names)
    return figure


def _columns(cases: int) -> int:
    """Return the number of images per row: about as many as rows, and at most 8."""
    return cases if cases <= 4 else min(math.ceil(math.sqrt(cases)), 8)


def _width(cases: Sequence[_Case], names: Sequence[str]) -> float:
    """Return the width of an image in inches, with space for the names above it."""
    longest = max(len(names[number]) for case in cases for number in (case.label, case.predicted))
    return _IMAGE_WIDTH + _CHARACTER_WIDTH * max(0, min(longest, _LONGEST) - _FITTING)


def _draw_case(axes: Axes, theme: Theme, case: _Case, image: Pixels, names: Sequence[str]) -> None:
    hue = theme.series[0] if case.right else theme.series[1]
    axes.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="antialiased")
    axes.set_anchor("NW")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=hue, linewidth=2.0)
    mark = "\N{CHECK MARK}" if case.right else "\N{BALLOT X}"
    predicted = shortened(names[case.predicted], _LONGEST)
    label = shortened(names[case.label], _LONGEST)
    axes.set_title(
        f"{mark} {predicted}  {percent(case.confidence)}",
        color=hue,
        fontsize=TEXT + 0.5,
        pad=16,
    )
    axes.annotate(
        f"label {label}  #{case.index:,}",
        (0, 1),
        (0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=SMALL - 0.5,
        color=theme.muted,
        annotation_clip=False,
    )
