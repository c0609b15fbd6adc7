"""Compares columns and channels whose scale is much smaller than that of the whole output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetunelib.export._batches.arrays import Array

#: A column whose spread is this many times smaller than that of the output has its own scale.
_RATIO = 1000.0

#: A column that varies by less than this fraction of its magnitude is constant.
_SMALLEST_SPREAD = 1e-4

#: An error counts as rounding up to this multiple of the effect of changes the size of rounding.
_ROUNDING = 10.0

#: Below this fraction of the magnitude of the output, a difference is ignored.
_NEGLIGIBLE = 1e-9

#: Below this fraction of the magnitude of the output (at most 1), a difference may be rounding.
_DOUBTFUL = 1e-6


@dataclass(frozen=True, slots=True)
class ColumnResult:
    """Whether a small column varies, and what is wrong or doubtful, as the end of a sentence."""

    varies: bool = False
    problem: str | None = None
    doubt: str | None = None


def small_columns(
    spreads: Array | None,
    ours: Array,
    theirs: Array,
    tolerance: float,
    rounding: Callable[[], list[Array]],
) -> ColumnResult:
    """Compare the columns of one batch whose scale is small, each relative to its own spread.

    Columns are along the first and the last axis of a sample, such as the channels of a feature
    map or the features of a token.

    Args:
        spreads: The range of each value over the samples of all batches, of the shape of a sample.
            `None` if this batch has samples of another shape, which are not compared.
        ours: The model's values, samples along the first axis.
        theirs: The file's values.
        tolerance: The largest error allowed, as a fraction of a column's spread.
        rounding: Returns the model's values after changes the size of rounding.
    """
    if spreads is None or not spreads.ndim or not ours.size:
        return ColumnResult()
    varies, doubt = False, None
    for axis in sorted({0, spreads.ndim - 1}):
        if spreads.shape[axis] < 2:
            continue
        found = _along(axis, spreads, ours, theirs, tolerance, rounding)
        if found.problem:
            return found
        varies, doubt = varies or found.varies, doubt or found.doubt
    return ColumnResult(varies, doubt=doubt)


def _along(
    axis: int,
    spreads: Array,
    ours: Array,
    theirs: Array,
    tolerance: float,
    rounding: Callable[[], list[Array]],
) -> ColumnResult:
    spread = _by_column(spreads[np.newaxis], axis)
    size = _by_column(np.abs(ours), axis)
    varying = spread > _SMALLEST_SPREAD * size
    small = spread * _RATIO < spread.max()
    varies = bool((small & varying).any())
    error = _by_column(np.abs(ours - theirs), axis)
    failing = small & (error > tolerance * np.where(varying, spread, size))
    failing &= error > _NEGLIGIBLE * size.max()
    if failing.any():
        noise = np.zeros_like(error)
        for other in rounding():
            if other.shape == ours.shape:
                noise = np.maximum(noise, _by_column(np.abs(other - ours), axis))
        failing &= error > _ROUNDING * noise
    if not failing.any():
        return ColumnResult(varies)
    column = int(np.argmax(np.where(failing, error, -1.0)))
    if error[column] <= _DOUBTFUL * min(1.0, float(size.max())):
        return ColumnResult(
            varies,
            doubt=(
                f"has a column ({column} of axis {axis + 1}) whose values are as small as the "
                "rounding of the others; return it as a separate output"
            ),
        )
    return ColumnResult(
        varies,
        problem=(
            f"differs in column {column} of axis {axis + 1} by up to {error[column]:.3g} between "
            f"the file and the model, where that column varies by {spread[column]:.3g} over the "
            f"samples; allowed is {tolerance:.3g} of it."
        ),
    )


def _by_column(values: Array, axis: int) -> Array:
    """Return the largest value of each column along an axis of the samples."""
    others = tuple(other for other in range(values.ndim) if other != axis + 1)
    return np.asarray(values.max(axis=others))
