"""`plot_lr_finder`: the curve, the suggestion, and rejected arguments."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from finetunelib.errors import EmptyDataError, InvalidTypeError
from finetunelib.training import LRFinderResult
from finetunelib.visualization import plot_lr_finder
from visualization._plots.plotting import texts

RESULT = LRFinderResult(
    (0.001, 0.01, 0.1, 1.0), (2.0, 1.9, 1.0, 90.0), (2.0, 1.8, 1.1, 80.0), 0.02, "Steepest.", None
)


def test_the_plot_shows_the_descent_and_the_suggestion() -> None:
    """The divergence is above the panel, which would be flat otherwise."""
    figure = plot_lr_finder(RESULT, title="Which one?")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert low < 1.0
    assert 2.0 < high < 3.0
    dots, line, mark = axes.get_lines()
    assert np.array_equal(dots.get_ydata(), RESULT.losses)
    assert np.array_equal(line.get_ydata(), RESULT.smoothed)
    assert np.array_equal(mark.get_xdata(), [0.02, 0.02])
    found = texts(figure)
    assert {"Which one?", "Loss by learning rate", "learning rate", "0.02"} <= set(found)


def test_a_result_without_a_suggestion_says_so() -> None:
    """There is no line."""
    figure = plot_lr_finder(dataclasses.replace(RESULT, suggestion=None), dark=True)
    assert len(figure.axes[0].get_lines()) == 2
    assert "no suggestion" in texts(figure)


def test_other_values_are_rejected() -> None:
    """Anything but a result with losses."""
    wrong: Any = [0.1]
    with pytest.raises(InvalidTypeError, match="find_lr"):
        plot_lr_finder(wrong)
    with pytest.raises(EmptyDataError):
        plot_lr_finder(dataclasses.replace(RESULT, lrs=(), losses=(), smoothed=()))
