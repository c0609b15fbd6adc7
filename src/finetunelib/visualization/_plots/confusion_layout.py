"""The sizes of a confusion matrix, which depend on the number of classes.

Lengths are in inches, font sizes and line widths in points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetunelib.visualization._plots.style import SMALL

#: The largest matrices whose cells have room for two numbers, and for one.
_TWO_NUMBERS, _ONE_NUMBER = 12, 30

#: The largest matrix that names every class on its axes, and whose cells are separated by gaps.
_EVERY_LABEL = 60

#: The space around the matrix: labels and title, then row totals or the list of mistakes.
_SPACE_ABOVE, _SPACE_FOR_TOTALS, _SPACE_FOR_LIST = 1.6, 1.9, 3.6


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of one matrix.

    Attributes:
        classes: The number of classes.
        side: The length of the matrix's sides.
        numbers_per_cell: How many numbers a cell contains: 2, 1 or 0.
        number_size: The largest font size of a cell's first number.
        smallest_scale: The least fraction of a row at which the color scale of mistakes ends.
            Without numbers in the cells, color alone has to show a mistake.
        gap: The width of the lines between cells, or `None` without lines.
        label_step: One class in every `label_step` is named on the axes.
        label_size: The font size of these names.
        horizontal_length: The number of characters of the longest name that is not rotated.
    """

    classes: int
    side: float
    numbers_per_cell: int
    number_size: float
    smallest_scale: float
    gap: float | None
    label_step: int
    label_size: float
    horizontal_length: int

    @classmethod
    def of(cls, classes: int) -> Layout:
        """Return the layout of a matrix of `classes` classes."""
        if classes <= _TWO_NUMBERS:
            return cls._with_two_numbers(classes)
        if classes <= _ONE_NUMBER:
            return cls._with_one_number(classes)
        return cls._with_list(classes)

    @property
    def cell(self) -> float:
        """The length of a cell's sides."""
        return self.side / self.classes

    @property
    def lists_mistakes(self) -> bool:
        """Whether mistakes are listed at the side, because cells contain no numbers."""
        return self.numbers_per_cell == 0

    @property
    def figure_size(self) -> tuple[float, float]:
        """The width and height of the figure."""
        right = _SPACE_FOR_LIST if self.lists_mistakes else _SPACE_FOR_TOTALS
        return self.side + right, self.side + _SPACE_ABOVE

    def label_rotation(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the properties that rotate the labels below the matrix if they are too long."""
        if max(map(len, labels)) <= self.horizontal_length:
            return {}
        if self.numbers_per_cell == 2:
            return {"rotation": 45.0, "ha": "right", "rotation_mode": "anchor"}
        return {"rotation": 90.0}

    @classmethod
    def _with_two_numbers(cls, classes: int) -> Layout:
        return cls(
            classes,
            side=max(0.58 * classes, 2.2),
            numbers_per_cell=2,
            number_size=10.0,
            smallest_scale=0.25,
            gap=1.6,
            label_step=1,
            label_size=SMALL,
            horizontal_length=9 if classes == 2 else 5,
        )

    @classmethod
    def _with_one_number(cls, classes: int) -> Layout:
        side = min(0.33 * classes, 7.2)
        return cls(
            classes,
            side=side,
            numbers_per_cell=1,
            number_size=min(8.5, 26 * side / classes),
            smallest_scale=0.25,
            gap=1.6,
            label_step=1,
            label_size=SMALL,
            horizontal_length=3,
        )

    @classmethod
    def _with_list(cls, classes: int) -> Layout:
        step = _label_step(classes)
        return cls(
            classes,
            side=6.4,
            numbers_per_cell=0,
            number_size=0.0,
            smallest_scale=0.1,
            gap=0.6 if classes <= _EVERY_LABEL else None,
            label_step=step,
            label_size=5.5 if step == 1 else SMALL,
            horizontal_length=1 if step == 1 else 3,
        )


def _label_step(classes: int) -> int:
    """Return the distance between labels: at most 60 labels up to 60 classes, then at most 20."""
    if classes <= _EVERY_LABEL:
        return 1
    if classes <= 100:
        return 5
    return 10 * -(-classes // 200)
