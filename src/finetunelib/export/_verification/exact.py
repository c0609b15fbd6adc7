"""Compares integers and booleans, which must be equal unless rounding decides them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetunelib.export._batches.arrays import Array

#: If rounding decides more than this fraction of the values, their agreement proves little.
_MOST_TIES = 0.01


@dataclass(frozen=True, slots=True)
class ExactResult:
    """The largest difference, and what is wrong or doubtful, as the end of a sentence."""

    largest: float
    problem: str | None = None
    doubt: str | None = None


def compare_exactly(ours: Array, theirs: Array, rounding: Callable[[], list[Array]]) -> ExactResult:
    """Compare the integers or booleans of a file with those of a model.

    Args:
        ours: The model's values.
        theirs: The file's values.
        rounding: Returns the model's values after changes the size of rounding. A value that they
            change may differ in the file, such as the index of the larger of two equal numbers.
    """
    differs = np.asarray(ours != theirs)
    if not differs.any():
        return ExactResult(0.0)
    ties = np.zeros_like(differs)
    for other in rounding():
        if other.shape == ours.shape:
            ties |= other != ours
    # Python integers, because a difference of two 64-bit integers may not fit in 64 bits.
    largest = float(
        max(
            abs(int(a) - int(b))
            for a, b in zip(ours[differs][:1000], theirs[differs][:1000], strict=True)
        )
    )
    if not (differs & ~ties).any():
        doubt = None
        if ties.mean() > _MOST_TIES and ties.sum() > 1:
            doubt = f"is decided by rounding for {ties.mean():.1%} of its values"
        return ExactResult(largest, doubt=doubt)
    index = tuple(int(i) for i in np.argwhere(differs & ~ties)[0])
    return ExactResult(
        largest,
        problem=(
            f"must be equal in the file and the model, but {int(differs.sum())} of {ours.size} "
            f"values differ: at index {index} the file has {theirs[index]} and the model "
            f"{ours[index]}."
        ),
    )
