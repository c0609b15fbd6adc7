"""Whether a monitored value has improved."""

from __future__ import annotations

import math
from typing import Any

import pytest

from finetunelib.callbacks._improvement import Improvement
from finetunelib.errors import InvalidArgumentError


def improvements(values: list[float], *, monitor: str = "val_loss", **options: Any) -> list[bool]:
    """Return which values of a series are improvements."""
    improvement = Improvement(monitor, options.pop("mode", None), **options)
    return [improvement.update(value) for value in values]


def test_first_finite_value_is_an_improvement() -> None:
    """There is no earlier value to compare it with."""
    assert improvements([5.0]) == [True]


@pytest.mark.parametrize(
    ("mode", "expected"), [("min", [True, True, False]), ("max", [True, False, True])]
)
def test_mode_decides_what_is_better(mode: Any, expected: list[bool]) -> None:
    """Lower is better with "min", and higher with "max"."""
    assert improvements([2.0, 1.0, 3.0], mode=mode) == expected


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [("val_loss", True), ("train_loss", True), ("val_accuracy", False), ("lr", False)],
)
def test_lower_is_better_only_for_losses_by_default(monitor: str, expected: bool) -> None:
    """Names that end in `loss` should fall, and all others should rise."""
    assert improvements([2.0, 1.0], monitor=monitor) == [True, expected]


def test_mode_overrules_the_name() -> None:
    """With `mode="max"` a loss should rise."""
    assert improvements([2.0, 1.0], mode="max") == [True, False]


def test_equal_value_is_not_an_improvement() -> None:
    """A constant value never counts."""
    assert improvements([1.0, 1.0]) == [True, False]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_gain_must_be_larger_than_min_delta(mode: Any) -> None:
    """A change of exactly `min_delta` does not count."""
    sign = -1.0 if mode == "min" else 1.0
    values = [0.0, sign * 0.25, sign * 0.5, sign * 0.75]
    assert improvements(values, mode=mode, min_delta=0.5) == [True, False, False, True]


def test_gain_is_measured_from_the_best_and_not_from_the_last() -> None:
    """Small changes count once their sum exceeds `min_delta`."""
    assert improvements([3.0, 5.0, 2.5], min_delta=1.0) == [True, False, False]
    assert improvements([3.0, 2.5, 2.0, 1.5], min_delta=1.0) == [True, False, False, True]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_value_that_is_not_finite_is_never_an_improvement(mode: Any, value: float) -> None:
    """It never counts, and later values are compared as usual."""
    assert improvements([value, 1.0, value, 1.0], mode=mode) == [False, True, False, False]


def test_best_is_nan_before_the_first_finite_value() -> None:
    """There is no best value yet."""
    improvement = Improvement("val_loss", None)
    assert math.isnan(improvement.best)
    improvement.update(math.inf)
    assert math.isnan(improvement.best)
    improvement.update(2.0)
    improvement.update(3.0)
    assert improvement.best == 2.0


def test_monitor_that_is_measured_is_accepted() -> None:
    """A measured name is accepted; the error for another one lists all measured names."""
    Improvement("val_f1", None).check_measured(["train_loss", "val_f1"])
    with pytest.raises(InvalidArgumentError) as caught:
        Improvement("val_f1", None).check_measured(["train_loss", "train_f1"])
    assert "'val_f1'" in str(caught.value)
    assert "train_loss, train_f1" in str(caught.value)


def test_hint_to_pass_validation_data_is_for_val_names() -> None:
    """The hint to pass validation data is given for `val_` names only."""
    with pytest.raises(InvalidArgumentError, match="validation data"):
        Improvement("val_loss", None).check_measured(["train_loss"])
    with pytest.raises(InvalidArgumentError) as caught:
        Improvement("loss", None).check_measured(["train_loss"])
    assert "validation data" not in str(caught.value)


@pytest.mark.parametrize("mode", ["minimum", "", 1], ids=repr)
def test_unknown_mode_is_an_error_that_shows_it(mode: Any) -> None:
    """A misspelled mode raises an error."""
    with pytest.raises(InvalidArgumentError) as caught:
        Improvement("val_loss", mode)
    assert "`mode`" in str(caught.value)
    assert repr(mode) in str(caught.value)


@pytest.mark.parametrize("delta", [-0.1, math.nan], ids=repr)
def test_min_delta_below_zero_is_an_error_that_shows_it(delta: float) -> None:
    """A negative value would count losses as improvements."""
    with pytest.raises(InvalidArgumentError) as caught:
        Improvement("val_loss", None, delta)
    assert "`min_delta`" in str(caught.value)
    assert str(delta) in str(caught.value)
