"""`plot_predictions`: the images that a model is most sure about, and wrong."""

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
from finetunelib.visualization._plots.classify import Judged, check_class_names, judging, names_of
from finetunelib.visualization._plots.images import (
    Imaging,
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

#: The characters of a class's name that fit over an image.
_LONGEST = 18


@dataclass(frozen=True, slots=True)
class _Case:
    """One sample and what the model said of it; the image is a copy of its inputs."""

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
    """Draw images with what a model predicts for them, its most confident mistakes first.

    These show the most: wrong labels, classes that look alike, what the data lacks. Each image
    has the predicted class and its probability above it, and under that the label and the sample's
    place in the data, from 0. Where there are fewer mistakes than places, the right predictions
    that the model is least sure of follow, marked with a tick instead of a cross.

    Images are `(height, width)`, or have 1 or 3 channels before or after these. Bytes go from 0 to
    255. Floats are taken as they are where all that are shown lie in [0, 1]; else `mean` and `std`
    say how they were normalized, and without these each image is stretched from its darkest value
    to its brightest.

    The model is run in eval mode and without gradients on the device that it is on. Its modes and
    the random states are restored. Only the images that are shown are kept in memory. Targets of
    -100 are passed over, as cross-entropy does.

    Args:
        model: A classifier: it returns logits (or probabilities) `(batch, classes)`, or an object
            that has them in `.logits`. At least 2 classes.
        data: Images and class indices, in one of the forms that `finetunelib.Trainer.evaluate`
            takes; in mappings the images are under `pixel_values`, or the only tensor besides
            `labels`. It is read once, in its own order.
        class_names: A name for each output of the model; `None` numbers them from 0.
        count: How many images to draw, at least 1.
        to_image: A function from the inputs of one sample, a tensor on the CPU, to its image. For
            inputs that are flat (`lambda sample: sample.reshape(28, 28)`) or have other channels
            (`lambda sample: sample[:3]`).
        mean: What was taken off each channel, one number or one a channel.
        std: What each channel was divided by after that, in the same form, above 0.
        batch_size: The samples in a batch, where the batches are made here. At least 1.
        num_workers: The processes that read a Dataset; 0 reads it in this one.
        title: What stands above in place of the share that is wrong.
        dark: Whether the picture is for a dark page.

    Returns:
        A figure that no window shows. In a notebook it is the last line of a cell; elsewhere
        `figure.savefig("mistakes.png")` writes it. Its axes are the images in order.

    Raises:
        MissingDependencyError: Matplotlib is not installed: `pip install "finetunelib[plots]"`.
        InvalidTypeError: An argument is of the wrong kind, or the data of no known form.
        InvalidArgumentError: A number of names that is not the number of classes, one of `mean`
            and `std` without the other or beside `to_image`, or a size that makes no sense.
        EmptyDataError: There is no labelled sample.
        InvalidInputError: The model cannot take the inputs, or they are no images.
        InvalidTargetError: The targets are no class indices of this model.
        DataError: The model does not return a row of finite logits for each sample.

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
    imaging = Imaging.of(to_image, mean, std)
    with judging(model, data, batch_size=batch_size, num_workers=num_workers) as judgement:
        names = names_of(class_names, judgement.classes)
        # Inputs that are no images are found before the pass and not after it.
        imaging.image(image_inputs(judgement.first_inputs)[0].cpu().clone())
        shortlist = _Shortlist(count)
        for judged in judgement.batches:
            shortlist.add(judged)
    if not shortlist.samples:
        raise EmptyDataError("`data` holds no labelled sample: every target is -100.")
    cases = shortlist.cases()
    pixels = pixels_of([imaging.image(case.sample) for case in cases])
    return _draw(cases, pixels, names, shortlist, title, dark)


class _Shortlist:
    """The cases worth showing of all that were seen, and nothing else of them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._wrong: list[_Case] = []
        self._right: list[_Case] = []
        self.samples = 0
        self.mistakes = 0

    def add(self, judged: Judged) -> None:
        """Take in a batch."""
        wrong = judged.targets != judged.predicted
        self.samples += len(wrong)
        self.mistakes += int(wrong.sum())
        surest = self._chosen(judged, wrong, descending=True)
        self._wrong = sorted([*self._wrong, *surest], key=lambda case: -case.confidence)
        del self._wrong[self._count :]
        least_sure = self._chosen(judged, ~wrong, descending=False)
        self._right = sorted([*self._right, *least_sure], key=lambda case: case.confidence)
        del self._right[max(self._count - len(self._wrong), 0) :]

    def cases(self) -> list[_Case]:
        """Return what is to be shown, in order."""
        return [*self._wrong, *self._right]

    def _chosen(self, judged: Judged, among: Tensor, *, descending: bool) -> list[_Case]:
        """Return the cases of a batch that may be shown."""
        rows = among.nonzero().flatten()
        order = judged.confidence[rows].argsort(descending=descending, stable=True)
        images = image_inputs(judged.inputs)
        return [
            _Case(
                index=judged.start + int(judged.rows[row]),
                label=int(judged.targets[row]),
                predicted=int(judged.predicted[row]),
                confidence=float(judged.confidence[row]),
                # A copy, since a view would keep the whole batch.
                sample=images[judged.rows[row]].detach().cpu().clone(),
            )
            for row in rows[order[: self._count]]
        ]


def _draw(
    cases: Sequence[_Case],
    pixels: Sequence[Pixels],
    names: Sequence[str],
    shortlist: _Shortlist,
    title: str | None,
    dark: bool,
) -> Figure:
    columns = _columns(len(cases))
    rows = math.ceil(len(cases) / columns)
    tallest = max(image.shape[0] / image.shape[1] for image in pixels)
    share = shortlist.mistakes / shortlist.samples
    with drawing(dark) as theme:
        width = _width(cases, names)
        height = min(max((width - 0.2) * tallest, 0.8), 2 * width) + 0.5
        figure = new_figure(max(width * columns + 0.2, 4.2), height * rows + 0.75)
        headline(
            figure,
            theme,
            shortened(title, 40) if title else f"{percent(share)} wrong",
            f"{shortlist.mistakes:,} of {shortlist.samples:,} samples; {_order(cases)}",
        )
        for position, (case, image) in enumerate(zip(cases, pixels, strict=True)):
            axes = figure.add_subplot(rows, columns, position + 1)
            _draw_case(axes, theme, case, image, names)
    return figure


def _columns(cases: int) -> int:
    """Return how many images stand side by side: about as many as below each other, and 8."""
    return cases if cases <= 4 else min(math.ceil(math.sqrt(cases)), 8)


def _width(cases: Sequence[_Case], names: Sequence[str]) -> float:
    """Return the width of an image in inches, with room for the names over it."""
    longest = max(len(names[number]) for case in cases for number in (case.label, case.predicted))
    return 1.75 + 0.085 * max(0, min(longest, _LONGEST) - 11)


def _order(cases: Sequence[_Case]) -> str:
    wrong = sum(not case.right for case in cases)
    if wrong == len(cases):
        return "the surest mistakes first"
    return "all of them, then the least sure" if wrong else "the least sure first"


def _draw_case(axes: Axes, theme: Theme, case: _Case, image: Pixels, names: Sequence[str]) -> None:
    hue = theme.series[0] if case.right else theme.series[1]
    axes.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="antialiased")
    axes.set_anchor("NW")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=hue, linewidth=2.0)
    mark = "\N{CHECK MARK}" if case.right else "\N{BALLOT X}"
    said = shortened(names[case.predicted], _LONGEST)
    label = shortened(names[case.label], _LONGEST)
    axes.set_title(
        f"{mark} {said}  {percent(case.confidence)}",
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
