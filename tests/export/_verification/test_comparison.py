"""The four checks of the outputs of a file against those of a model."""

from __future__ import annotations

import numpy as np
import pytest

from finetunelib.export._batches.arrays import Array
from finetunelib.export._verification.comparison import Finding, examine

TOLERANCE = 1e-3


def values(rows: int = 6, columns: int = 50, seed: int = 0) -> Array:
    """Return outputs that vary from sample to sample."""
    return np.random.default_rng(seed).normal(size=(rows, columns))


def verdict(expected: Array, actual: Array, tolerance: float = TOLERANCE) -> Finding:
    """Compare one output in two batches."""
    cut = len(expected) // 3
    return examine("out", [expected[:cut], expected[cut:]], [actual[:cut], actual[cut:]], tolerance)


def test_equal_outputs_pass_all_checks() -> None:
    """There is one comparison per batch, with an error of 0 and ratios of 1."""
    finding = verdict(values(), values())
    assert (finding.problem, finding.varies) == (None, True)
    assert [numbers.batch_size for numbers in finding.comparisons] == [2, 4]
    for numbers in finding.comparisons:
        assert (numbers.error, numbers.norm_ratio, numbers.argmax_agreement) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("where", ["model", "file"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_side(where: str, value: float) -> None:
    """The problem says whether NaN or infinity is in the model or in the file."""
    expected, actual = values(), values()
    (expected if where == "model" else actual)[4, 3] = value
    finding = verdict(expected, actual)
    assert finding.problem is not None
    assert f"of the {where} has values that are not finite" in finding.problem
    assert finding.batch == 1


def test_nan_on_both_sides_is_a_problem() -> None:
    """A model that returns NaN cannot be verified."""
    broken = values()
    broken[0, 0] = np.nan
    assert verdict(broken, broken).problem is not None


def test_one_wrong_value_is_found() -> None:
    """The error is relative to the spread, and the problem names the batch."""
    actual = values()
    actual[5, 7] += 0.05
    finding = verdict(values(), actual)
    assert finding.problem is not None
    assert "at batch size 4 differs by up to 0.05" in finding.problem


def test_values_that_all_shrink_a_little_fail_by_their_norm() -> None:
    """Each value is within the tolerance, but the norm of the outputs is not."""
    expected = values()
    mean = expected.mean(axis=0)
    actual = mean + (expected - mean) * (1 - 1.5e-3)
    finding = verdict(expected, actual)
    assert finding.problem is not None
    assert "times the norm" in finding.problem
    assert finding.comparisons[0].norm_ratio == pytest.approx(1 - 1.5e-3, abs=1e-4)
    assert finding.comparisons[0].error < TOLERANCE


def test_a_changed_class_fails_although_each_value_is_close() -> None:
    """The two largest values differ by less than the tolerance, but are not tied, and swap."""
    expected = values(columns=3)
    spread = np.ptp(expected, axis=0).max()
    expected[4, 1] = expected[4].max() + 1.0
    expected[4, 0] = expected[4, 1] - 0.3 * TOLERANCE * spread
    actual = expected.copy()
    actual[4, 0] += 0.7 * TOLERANCE * spread
    finding = verdict(expected, actual)
    assert finding.problem is not None
    assert "largest value at a different index" in finding.problem
    assert "25.0%" in finding.problem


def test_a_tie_is_not_a_changed_class() -> None:
    """If two classes have almost equal values, rounding may decide between them."""
    expected = values(columns=3)
    expected[4, 1] = expected[4, 0] = expected[4].max() + 1.0
    actual = expected.copy()
    actual[4, 0] -= 1e-7
    assert verdict(expected, actual).problem is None


def test_one_number_per_sample_is_not_compared_by_its_norm() -> None:
    """The norm of a sample close to the mean is almost 0."""
    expected = np.array([[0.0], [1.0], [-1.0], [2.0], [-2.0], [1e-9]])
    finding = verdict(expected, expected + 1e-6)
    assert finding.problem is None


def test_outputs_that_do_not_vary_are_reported() -> None:
    """If constants agree, the result is inconclusive. If they differ, it is a problem."""
    constant = np.ones((6, 3))
    assert verdict(constant, constant) == Finding(
        verdict(constant, constant).comparisons, varies=False
    )
    assert verdict(constant, constant + 0.1).problem is not None


def test_the_tolerance_decides() -> None:
    """The same difference passes with a larger tolerance."""
    actual = values()
    actual[0, 0] += 0.01
    assert verdict(values(), actual, 1e-1).problem is None
    assert verdict(values(), actual, 1e-4).problem is not None
