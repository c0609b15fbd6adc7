"""Integers are compared exactly, and small columns relative to their own spread."""

from __future__ import annotations

import numpy as np
import pytest

from finetunelib.export._batches.arrays import Array
from finetunelib.export._verification.comparison import examine

_COUNTS = np.arange(60).reshape(20, 3) * 1000


def _columns(*scales: float) -> Array:
    values: Array = np.random.default_rng(0).normal(size=(20, len(scales))) * np.array(scales)
    return values


def test_integers_that_differ_by_one_are_found() -> None:
    """The magnitude of the integers does not matter."""
    actual = _COUNTS.copy()
    actual[7, 1] += 1
    finding = examine("counts", [_COUNTS], [actual], 1e-3)
    assert finding.problem is not None
    assert "index (7, 1)" in finding.problem


def test_integers_beyond_float64_precision_are_compared_exactly() -> None:
    """A conversion to float64 would hide the difference."""
    expected = _COUNTS + 2**60
    assert examine("ids", [expected], [expected + 1], 1e-3).problem is not None


def test_a_tie_may_be_resolved_either_way() -> None:
    """A value that rounding changes in the model may differ in the file."""
    actual = _COUNTS.copy()
    actual[7, 1] += 1
    finding = examine("ids", [_COUNTS], [actual], 1e-3, rounding=lambda number: [actual])
    assert (finding.problem, finding.doubt) == (None, None)


def test_values_that_depend_on_rounding_are_inconclusive() -> None:
    """If rounding decides many values, the output is noise."""
    finding = examine("ids", [_COUNTS], [_COUNTS + 1], 1e-3, rounding=lambda number: [_COUNTS + 1])
    assert finding.problem is None
    assert finding.doubt is not None


@pytest.mark.parametrize("axis", [1, 2])
def test_a_wrong_small_column_is_found(axis: int) -> None:
    """The other columns along the axis vary 10,000 times as much."""
    expected = _columns(1e4, 1e4, 1.0)
    expected = np.stack([expected, expected + 1], 1 if axis == 2 else 2)
    index = (..., 2) if axis == 2 else (slice(None), 2)
    actual = expected.copy()
    actual[index] *= 1.5
    finding = examine("out", [expected], [actual], 1e-3)
    assert finding.problem is not None
    assert f"column 2 of axis {axis}" in finding.problem


def test_a_small_column_of_rounding_errors_is_not_an_error() -> None:
    """Differences that rounding explains are not a mismatch."""
    expected = _columns(1e4, 1e-3)
    actual = expected.copy()
    actual[:, 1] *= 1.5
    rounded = expected.copy()
    rounded[:, 1] *= 0.7
    finding = examine("out", [expected], [actual], 1e-3, rounding=lambda number: [rounded])
    assert (finding.problem, finding.doubt) == (None, None)


def test_columns_of_similar_scale_share_a_tolerance() -> None:
    """The tolerance of each column is relative to the spread of the whole output."""
    expected = _columns(1.0, 10.0, 200.0)
    actual = expected.copy()
    actual[:, 0] += 0.05
    assert examine("out", [expected], [actual], 1e-3).problem is None


def test_an_empty_output_is_inconclusive() -> None:
    """There are no values to compare."""
    finding = examine("boxes", [np.zeros((0, 4))], [np.zeros((0, 4))], 1e-3)
    assert finding.problem is None
    assert finding.doubt is not None
    assert "empty" in finding.doubt


def test_the_batch_may_be_another_axis() -> None:
    """The first axis of the state of a recurrent layer is its number of layers."""
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(2, size, 5)) for size in (1, 2, 7)]
    finding = examine("state", states, states, 1e-3, batch_sizes=[1, 2, 7])
    assert finding.varies
    assert finding.comparisons[0].spread == pytest.approx(
        float(np.ptp(np.concatenate(states, 1), axis=1).max())
    )
