"""`plot_history`: lines, values, legends, and rejected arguments."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetunelib import Trainer, build_mlp
from finetunelib.errors import EmptyDataError, InvalidArgumentError, InvalidTypeError
from finetunelib.training import History
from finetunelib.visualization import plot_history
from visualization._plots.plotting import texts


def history(*losses: float, first: int = 1, **others: list[float]) -> History:
    """Return a history of training losses and other columns."""
    return History(
        [
            {
                "epoch": number + first,
                "step": 10 * (number + first),
                "train_loss": loss,
                **{name: values[number] for name, values in others.items()},
                "lr": 0.1,
                "seconds": 1.0,
            }
            for number, loss in enumerate(losses)
        ]
    )


def panels(figure: Figure) -> list[str]:
    """Return the titles of a figure's panels."""
    return [axes.get_title("left") for axes in figure.axes]


def line(axes: Axes, run: int, part: str) -> Line2D:
    """Return the line of one run and part."""
    return next(drawn for drawn in axes.get_lines() if drawn.get_gid() == f"{run}:{part}")


def points(drawn: Line2D) -> list[list[float]]:
    """Return the points of a line."""
    found: list[list[float]] = drawn.get_xydata().tolist()  # type: ignore[union-attr]  # pyright: ignore[reportAttributeAccessIssue]
    return found


def epochs(drawn: Line2D) -> list[float]:
    """Return the epochs of the points of a line."""
    return [epoch for epoch, _ in points(drawn)]


def values(drawn: Line2D) -> list[float]:
    """Return the values of the points of a line."""
    return [value for _, value in points(drawn)]


def legend(figure: Figure) -> list[str]:
    """Return the texts of the legends."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_each_quantity_has_a_panel() -> None:
    """A panel contains training and validation values of one quantity."""
    figure = plot_history(
        history(2, 1, val_loss=[3, 2], train_accuracy=[0.1, 0.2], val_accuracy=[0.3, 0.4])
    )
    assert panels(figure) == ["Loss", "Accuracy"]
    loss, accuracy = figure.axes
    assert points(line(loss, 0, "training")) == [[1, 2], [2, 1]]
    assert points(line(loss, 0, "validation")) == [[1, 3], [2, 2]]
    assert values(line(accuracy, 0, "validation")) == [0.3, 0.4]
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]
    assert legend(figure) == ["training", "validation"]


def test_parts_differ_in_more_than_color() -> None:
    """Training is dashed and validation is solid, so they differ without color."""
    axes = plot_history(history(2, 1, val_loss=[3, 2])).axes[0]
    assert line(axes, 0, "training").is_dashed()
    assert not line(axes, 0, "validation").is_dashed()


def test_run_without_validation_has_one_line() -> None:
    """Without validation values, neither a line nor a legend entry mentions validation."""
    figure = plot_history(history(2, 1))
    assert len(figure.axes[0].get_lines()) == 1
    assert legend(figure) == ["training"]


def test_single_epoch_is_a_marker_inside_the_panel() -> None:
    """A single point, which has no line, is visible as a marker."""
    axes = plot_history(history(2)).axes[0]
    drawn = line(axes, 0, "training")
    assert (drawn.get_marker(), drawn.get_markevery()) == ("o", [0])
    left, right = axes.get_xlim()
    assert left < 1 < right
    assert 1 in axes.get_xticks()


def test_runs_have_colors_and_names() -> None:
    """Both lines of a run have the same color, and the legend names the runs in order."""
    runs = {"slow": history(4, 3, val_loss=[5, 4]), "_fast": history(2, 1, val_loss=[3, 2])}
    figure = plot_history(runs)
    axes = figure.axes[0]
    colors = {
        (run, part): line(axes, run, part).get_color()
        for run in (0, 1)
        for part in ("training", "validation")
    }
    assert colors[0, "training"] == colors[0, "validation"] != colors[1, "validation"]
    assert legend(figure) == ["slow", "_fast", "training", "validation"]


def test_24_runs_have_distinct_colors_and_markers() -> None:
    """No two of the largest number of runs share both color and marker."""
    figure = plot_history({f"run {n}": history(n, n + 1) for n in range(24)})
    looks = {(drawn.get_color(), drawn.get_marker()) for drawn in figure.axes[0].get_lines()}
    assert len(looks) == 24


def test_run_that_stopped_early_ends_where_it_stopped() -> None:
    """The axis extends to the end of the longest run, and a marker ends the shorter one."""
    long, short = history(*range(40, 0, -1)), history(*range(20, 0, -1))
    axes = plot_history({"long": long, "stopped": short}).axes[0]
    drawn = line(axes, 1, "training")
    assert len(epochs(drawn)) == 20
    assert drawn.get_markevery() == [19]
    assert axes.get_xlim()[1] > 40


def test_epoch_numbers_are_those_of_the_rows() -> None:
    """A history that starts at a later epoch is drawn at its own epochs."""
    axes = plot_history(history(2, 1, first=7)).axes[0]
    assert epochs(line(axes, 0, "training")) == [7, 8]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_value_is_a_gap_with_a_cross(value: float) -> None:
    """The value does not affect the scale, and a cross marks its epoch."""
    figure = plot_history(history(3, value, 1))
    axes = figure.axes[0]
    np.testing.assert_array_equal(values(line(axes, 0, "training")), [3, math.nan, 1])
    (cross,) = [drawn for drawn in axes.get_lines() if drawn.get_marker() == "x"]
    assert epochs(cross) == [2]
    assert legend(figure) == ["training", "not finite"]
    assert axes.get_ylim()[1] < 4


def test_point_between_gaps_has_a_marker() -> None:
    """In a long run, a value without neighbors would be invisible without a marker."""
    losses = [1.0] * 20
    losses[5] = losses[7] = math.nan
    assert line(plot_history(history(*losses)).axes[0], 0, "training").get_markevery() == [6, 19]


def test_panel_without_finite_values_has_crosses() -> None:
    """A run that diverged in its first epoch can be drawn."""
    figure = plot_history(history(math.nan, math.nan))
    assert "not finite" in texts(figure)


def test_missing_value_has_no_cross() -> None:
    """An epoch without a value is skipped, unlike a non-finite value."""
    run = History([{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1, "val_loss": 4}])
    figure = plot_history(run)
    assert epochs(line(figure.axes[0], 0, "validation")) == [2]
    assert "not finite" not in legend(figure)


def test_history_from_json_can_be_drawn(tmp_path: Path) -> None:
    """The JSON file of a history contains all values that are drawn."""
    data = (torch.randn(20, 4), torch.randint(0, 2, (20,)))
    fitted = Trainer(build_mlp(4, [], 2), progress=False).fit(data, data, epochs=2)
    figure = plot_history(History.from_json(fitted.to_json(tmp_path / "history.json")))
    assert panels(figure) == ["Loss", "Accuracy"]
    assert values(line(figure.axes[0], 0, "validation")) == fitted["val_loss"]


def test_metrics_selects_and_orders_panels() -> None:
    """Columns such as the learning rate are drawn only if named."""
    run = history(2, 1, train_accuracy=[0.1, 0.2], val_top5_accuracy=[0.3, 0.4])
    assert panels(plot_history(run)) == ["Loss", "Accuracy", "Top5 accuracy"]
    assert panels(plot_history(run, metrics=["lr", "loss"])) == ["Learning rate", "Loss"]


def test_title_is_drawn_once() -> None:
    """The figure contains the title once."""
    assert texts(plot_history(history(1), title="Ten digits")).count("Ten digits") == 1


def test_dollar_signs_in_names_are_literal() -> None:
    """A name is not parsed as a formula."""
    figure = plot_history({"$a_b$": history(1), "$\\frac$": history(2)})
    assert {"$a_b$", "$\\frac$"} <= set(texts(figure))


@pytest.mark.parametrize(
    ("passed", "named"),
    [
        ([1.0, 0.5], "list"),
        ({"a": [1.0]}, "'a' to an object of type list"),
        ({3: History([{"train_loss": 1.0}])}, "3 to an object"),
        (Trainer(build_mlp(2, [], 2), progress=False), r"Pass `trainer\.history`"),
    ],
)
def test_other_types_are_rejected(passed: object, named: str) -> None:
    """The message contains the type, and for a Trainer what to pass instead."""
    with pytest.raises(InvalidTypeError, match=named):
        plot_history(passed)  # type: ignore[arg-type]  # the error is the point


@pytest.mark.parametrize(
    ("passed", "named"),
    [
        (History(), "`history` contains no epochs"),
        ({}, "empty mapping"),
        ({"a": History()}, r"`history\['a'\]`"),
    ],
)
def test_empty_history_is_rejected(passed: object, named: str) -> None:
    """Histories without epochs, and mappings without histories, raise `EmptyDataError`."""
    with pytest.raises(EmptyDataError, match=named):
        plot_history(passed)  # type: ignore[arg-type]  # the error is the point


def test_too_many_runs_are_rejected() -> None:
    """The message contains the limit and the number of runs."""
    with pytest.raises(InvalidArgumentError, match=r"at most 24 runs.*25"):
        plot_history({str(n): history(1) for n in range(25)})


@pytest.mark.parametrize(
    ("metrics", "error", "named"),
    [
        (["f1"], InvalidArgumentError, "'f1'.*loss, lr, seconds"),
        ("loss", InvalidTypeError, "'loss'"),
        ([], InvalidArgumentError, "empty"),
    ],
)
def test_invalid_metrics_are_rejected(
    metrics: list[str], error: type[Exception], named: str
) -> None:
    """The message contains the value, and for an unknown name the available ones."""
    with pytest.raises(error, match=named):
        plot_history(history(1), metrics=metrics)


def test_history_without_measurements_is_rejected() -> None:
    """The message lists the columns of the history."""
    with pytest.raises(InvalidArgumentError, match="epoch, lr"):
        plot_history(History([{"epoch": 1, "lr": 0.1}]))


def by_steps(*steps: float, epochs: int = 2) -> History:
    """Return a history with several rows in an epoch."""
    return History(
        [
            {"epoch": 1 + n * epochs // len(steps), "step": step, "train_loss": 1 / step}
            for n, step in enumerate(steps)
        ]
    )


def test_rows_that_follow_steps_are_drawn_over_the_steps() -> None:
    """Several of them have the same epoch. The axis starts above 0."""
    axes = plot_history(by_steps(100, 200, 300, 350)).axes[0]
    assert epochs(line(axes, 0, "training")) == [100, 200, 300, 350]
    assert axes.get_xlabel() == "step"
    left, right = axes.get_xlim()
    assert 0 < left < 100
    assert right > 350


def test_all_runs_have_the_same_axis() -> None:
    """A run of whole epochs next to one that was validated more often."""
    axes = plot_history({"often": by_steps(5, 10, 15), "epochs": history(1.0, 0.5)}).axes[0]
    assert epochs(line(axes, 0, "training")) == [5, 10, 15]
    assert epochs(line(axes, 1, "training")) == [10, 20]


def test_whole_epochs_are_drawn_over_the_epochs() -> None:
    """Also if their steps are known, or some rows have none."""
    assert plot_history(history(1.0, 0.5)).axes[0].get_xlabel() == "epoch"
    without = History([{"epoch": 1.0, "train_loss": 1.0}, {"epoch": 1.0, "train_loss": 0.5}])
    assert plot_history(without).axes[0].get_xlabel() == "epoch"


def test_validation_sets_are_lines_of_the_panel_of_their_quantity() -> None:
    """A metric whose name ends like another one keeps its panel."""
    row = {"epoch": 1, "train_loss": 1.0, "train_hard_loss": 2.0, "val_a_loss": 3.0}
    row |= {"val_a_hard_loss": 4.0, "val_b_loss": 5.0, "val_b_hard_loss": 6.0}
    figure = plot_history(History([row]))
    assert [axes.get_title("left") for axes in figure.axes] == ["Loss", "Hard loss"]
    values = [[np.ravel(x.get_ydata())[0] for x in axes.get_lines()] for axes in figure.axes]
    assert values == [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]
    colors = {line.get_color() for line in figure.axes[0].get_lines()}
    assert len(colors) == 3
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["training", "validation, a", "validation, b"]
    several = plot_history({"one": History([row]), "two": History([row])})
    assert len({str(line.get_linestyle()) for line in several.axes[0].get_lines()}) > 1
