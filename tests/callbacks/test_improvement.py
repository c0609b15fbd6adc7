"""Whether a monitored value has improved."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetunelib.callbacks._improvement import Improvement
from finetunelib.errors import InvalidArgumentError
from finetunelib.training import History, TrainContext, TrainState
from finetunelib.training._callbacks.measured import Comparison


def improvements(values: list[float], *, monitor: str = "val_loss", **options: Any) -> list[bool]:
    """Return which values of a series are improvements."""
    improvement = Improvement(monitor, options.pop("mode", "min"), **options)
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
    improvement = Improvement("val_loss", "min")
    assert math.isnan(improvement.best)
    improvement.update(math.inf)
    assert math.isnan(improvement.best)
    improvement.update(2.0)
    improvement.update(3.0)
    assert improvement.best == 2.0


# The direction


def context_of(**directions: Any) -> TrainContext:
    """Return the context of a run that measures two losses and a score."""
    model = nn.Linear(1, 1)
    return TrainContext(
        model,
        torch.optim.SGD(model.parameters()),
        TrainState(),
        History(),
        Comparison(
            ("train_loss", "val_loss", "val_score", "lr"),
            {"train_loss": "min", "val_loss": "min", **directions},
        ),
    )


@pytest.mark.parametrize(
    ("monitor", "mode", "directions", "lower"),
    [
        ("val_loss", None, {}, True),
        ("train_loss", None, {}, True),
        ("val_score", None, {"val_score": "max"}, False),
        ("val_score", None, {"val_score": "min"}, True),
        ("val_score", "min", {}, True),
        ("val_score", "max", {}, False),
        ("lr", "max", {}, False),
    ],
)
def test_direction_is_the_known_one_or_the_mode(
    monitor: str, mode: Any, directions: dict[str, Any], lower: bool
) -> None:
    """The name of a column says nothing about its direction."""
    improvement = Improvement(monitor, mode)
    improvement.start(context_of(**directions))
    assert [improvement.update(value) for value in (2.0, 1.0)] == [True, lower]
    assert [improvement.update(value) for value in (3.0,)] == [not lower]


@pytest.mark.parametrize("monitor", ["val_score", "lr"])
def test_unknown_direction_is_an_error_that_asks_for_the_mode(monitor: str) -> None:
    """Following the hint works."""
    with pytest.raises(InvalidArgumentError, match=rf"{monitor}.*mode="):
        Improvement(monitor, None).start(context_of())
    Improvement(monitor, "max").start(context_of())


def test_monitor_that_is_not_measured_is_an_error_with_the_near_name() -> None:
    """The message lists what is measured."""
    with pytest.raises(InvalidArgumentError, match=r"val_loss, val_score.*mean 'val_score'"):
        Improvement("val_scor", "max").start(context_of())


# The best value of this run


def test_best_value_counts_in_the_same_run_with_the_same_data_only() -> None:
    """It is forgotten in another run, and if the data of the column has changed."""
    improvement, first = Improvement("val_loss", None), context_of()
    assert not improvement.start(first)
    improvement.update(0.5)
    again = replace(first, comparison=replace(first.comparison, same_data=frozenset({"val"})))
    assert improvement.start(again)
    assert improvement.best == 0.5
    other_data = replace(
        first, comparison=replace(first.comparison, same_data=frozenset({"train"}))
    )
    assert not improvement.start(other_data)
    assert math.isnan(improvement.best)
    improvement.update(0.5)
    assert not improvement.start(replace(again, history=History()))
    improvement.update(0.5)
    assert improvement.start(replace(again, history=History(), resumed_from=Path("run")))


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
