"""`plot_confusion`: counts, the texts in cells, and rejected arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetunelib.data import TensorBatches, in_memory
from finetunelib.errors import (
    DataError,
    EmptyDataError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTargetError,
    InvalidTypeError,
)
from finetunelib.visualization import plot_confusion
from support_models import Function
from visualization._plots.plotting import Oracle, data_predicting, texts

#: Four cats, one of which is predicted as a dog; two correctly predicted dogs; no birds.
LABELS, PREDICTED = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]


def images(figure: Figure) -> list[Any]:
    """Return the masked arrays of correct predictions and of mistakes."""
    return [image.get_array() for image in figure.axes[0].get_images()]


def matrix(figure: Figure) -> list[list[float]]:
    """Return the values of the cells, 0 for empty cells."""
    right, wrong = images(figure)
    values: list[list[float]] = (np.ma.filled(right, 0) + np.ma.filled(wrong, 0)).tolist()
    return values


def cell(figure: Figure, row: int, column: int) -> list[str]:
    """Return the texts in a cell."""
    return [
        text.get_text()
        for text in figure.axes[0].texts
        if text.get_position()[0] == column and abs(text.get_position()[1] - row) < 0.4
    ]


def names(figure: Figure) -> tuple[list[str], list[str]]:
    """Return the names along both axes."""
    axes = figure.axes[0]
    return (
        [label.get_text() for label in axes.get_xticklabels()],
        [label.get_text() for label in axes.get_yticklabels()],
    )


def test_cells_show_percentage_of_row_and_count() -> None:
    """Rows are labels, columns are predictions, and empty cells have no text."""
    figure = plot_confusion(Oracle(3), data_predicting(PREDICTED, LABELS))
    assert matrix(figure) == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]
    assert cell(figure, 0, 0) == ["75%", "3"]
    assert cell(figure, 0, 1) == ["25%", "1"]
    assert cell(figure, 1, 0) == []
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == (
        "predicted class",
        "label",
    )


def test_without_normalize_counts_come_first() -> None:
    """With `normalize=False`, colors and first numbers are counts."""
    figure = plot_confusion(Oracle(3), data_predicting(PREDICTED, LABELS), normalize=False)
    assert matrix(figure) == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert cell(figure, 0, 0) == ["3", "75%"]


def test_correct_predictions_and_mistakes_have_separate_color_scales() -> None:
    """The diagonal is one image, and all other cells are another."""
    figure = plot_confusion(Oracle(3), data_predicting(PREDICTED, LABELS))
    right, wrong = images(figure)
    assert np.ma.getmaskarray(right).tolist() == (~np.diag([True, True, False])).tolist()
    assert np.flatnonzero(~np.ma.getmaskarray(wrong)).tolist() == [1]


def test_each_row_shows_its_number_of_samples() -> None:
    """A class without samples is marked, and does not cause a division by zero."""
    figure = plot_confusion(Oracle(3), data_predicting(PREDICTED, LABELS))
    assert cell(figure, 2, 1) == ["no samples"]
    end_of_row = figure.axes[0].get_xlim()[1]
    totals = [t.get_text() for t in figure.axes[0].texts if t.get_position()[0] > end_of_row]
    assert totals == ["samples", "4", "2", "0"]


def test_title_shows_accuracy_unless_given() -> None:
    """The default title is the accuracy, with the counts in the subtitle."""
    data = data_predicting(PREDICTED, LABELS)
    written = texts(plot_confusion(Oracle(3), data))
    assert "83% correct" in [text.strip() for text in written]
    assert "5 of 6 samples; percent of each row" in written
    titled = texts(plot_confusion(Oracle(3), data, title="Pets"))
    assert "Pets" in [text.strip() for text in titled]


def test_both_axes_show_class_names() -> None:
    """Names are shown literally, and long names are shortened."""
    class_names = ["cat", "$dog$", "a bird of a very rare kind"]
    figure = plot_confusion(Oracle(3), data_predicting(PREDICTED, LABELS), class_names=class_names)
    shown = ["cat", "$dog$", "a bird of a very…"]
    assert names(figure) == (shown, shown)
    assert names(plot_confusion(Oracle(3), data_predicting(PREDICTED, LABELS)))[0] == [
        "0",
        "1",
        "2",
    ]


@pytest.mark.parametrize(("classes", "numbers"), [(12, 2), (13, 1), (30, 1), (31, 0)])
def test_number_of_texts_per_cell_depends_on_number_of_classes(classes: int, numbers: int) -> None:
    """Smaller cells contain one number instead of two, and then none."""
    every = list(range(classes))
    figure = plot_confusion(Oracle(classes), data_predicting(every, every))
    assert len(cell(figure, 5, 5)) == numbers


def test_many_classes_have_a_list_of_mistakes() -> None:
    """If cells are too small for numbers, the most frequent mistakes are listed."""
    said = [3, 3, 3, 7, 7, *range(40)]
    labels = [1, 1, 1, 2, 2, *range(40)]
    figure = plot_confusion(Oracle(50), data_predicting(said, labels))
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written[:5] == [
        "Most frequent mistakes",
        "1 as 3",
        "3, 75% of the row",
        "2 as 7",
        "2, 67% of the row",
    ]
    assert written[-1].startswith("10 classes without samples:\n40, 41, 42")


@pytest.mark.parametrize(("classes", "most"), [(60, 60), (100, 20), (1000, 20)])
def test_axes_of_many_classes_name_only_some(classes: int, most: int) -> None:
    """The number of labels is limited, and the first class is always labelled."""
    every = list(range(classes))
    shown, _ = names(plot_confusion(Oracle(classes), data_predicting(every, every)))
    assert len(shown) <= most
    assert shown[0] == "0"


def test_two_classes_are_drawn() -> None:
    """The smallest matrix has four cells."""
    figure = plot_confusion(Oracle(2), data_predicting([0, 1, 1], [0, 1, 0]))
    assert matrix(figure) == [[0.5, 0.5], [0, 1]]


IMAGES, TARGETS = data_predicting(PREDICTED, LABELS)


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES.numpy(), TARGETS.numpy()),
        (IMAGES, TARGETS.to(torch.uint8)),
        TensorDataset(IMAGES, TARGETS),
        DataLoader(TensorDataset(IMAGES, TARGETS), batch_size=4),
        [(IMAGES[:1], TARGETS[:1]), (IMAGES[1:], TARGETS[1:])],
        [{"inputs": IMAGES, "labels": TARGETS}],
        TensorBatches(IMAGES, TARGETS, batch_size=4),
        in_memory(TensorDataset(IMAGES, TARGETS), progress=False),
    ],
    ids=["arrays", "bytes", "dataset", "loader", "batches", "mapping", "cut", "memory"],
)
def test_data_may_have_any_form_that_evaluate_accepts(data: Any) -> None:
    """Data for `Trainer.evaluate` can be passed unchanged."""
    assert matrix(plot_confusion(Oracle(3), data)) == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]


def test_batches_do_not_change_what_is_counted() -> None:
    """The counts do not depend on the batch size, even with a smaller last batch."""
    figure = plot_confusion(
        Oracle(3), data_predicting(PREDICTED, LABELS), batch_size=4, normalize=False
    )
    assert matrix(figure) == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_ignored_targets_are_not_counted() -> None:
    """Targets of -100 are ignored, as by cross-entropy."""
    figure = plot_confusion(Oracle(3), data_predicting([0, 1, 2], [0, -100, 1]), normalize=False)
    assert matrix(figure) == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_outputs_may_have_logits_attribute() -> None:
    """Outputs like those of transformers, with `.logits`, are accepted."""

    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    model = Function(lambda inputs: Output(Oracle(3)(inputs)))
    assert matrix(plot_confusion(model, (IMAGES, TARGETS)))[0] == [0.75, 0.25, 0]


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"class_names": ["a", "b"]}, InvalidArgumentError, "3 names.*got 2"),
        ({"class_names": "abc"}, InvalidTypeError, "`class_names`"),
        ({"class_names": ["a", 2, "c"]}, InvalidTypeError, r"`class_names\[1\]`.*2 \(int\)"),
        ({"normalize": 1}, InvalidTypeError, "`normalize`.*1"),
        ({"batch_size": 0}, InvalidArgumentError, "`batch_size`.*0"),
        ({"num_workers": -1}, InvalidArgumentError, "`num_workers`.*-1"),
    ],
)
def test_invalid_option_is_rejected(
    options: dict[str, Any], error: type[Exception], named: str
) -> None:
    """The message contains the argument and its value."""
    with pytest.raises(error, match=named):
        plot_confusion(Oracle(3), (IMAGES, TARGETS), **options)


@pytest.mark.parametrize(
    ("targets", "error", "named"),
    [
        (TARGETS.float(), InvalidTargetError, "torch.float32"),
        (torch.eye(3).long()[TARGETS], InvalidTargetError, r"\(6, 3\)"),
        (TARGETS + 2, InvalidTargetError, "0 to 2.*2 to 3"),
        (torch.full((6,), -100), EmptyDataError, "-100"),
    ],
)
def test_targets_that_are_not_class_indices_are_rejected(
    targets: Tensor, error: type[Exception], named: str
) -> None:
    """The message describes the targets."""
    with pytest.raises(error, match=named):
        plot_confusion(Oracle(3), (IMAGES, targets))


def test_invalid_target_in_later_batch_is_rejected() -> None:
    """All batches are checked, not only the first."""
    with pytest.raises(InvalidTargetError, match="from 0 to 9"):
        plot_confusion(Oracle(3), data_predicting([0, 0, 0, 0], [0, 0, 0, 9]), batch_size=2)


@pytest.mark.parametrize(
    ("outputs", "error", "named"),
    [
        (lambda inputs: inputs.flatten(1)[:, :1], DataError, r"\(6, 1\).*torch.cat"),
        (lambda inputs: inputs, DataError, r"\(6, 1, 2, 3\)"),
        (lambda inputs: inputs.flatten(1).long(), DataError, "int64"),
        (lambda inputs: [inputs], InvalidTypeError, "logits"),
        (lambda inputs: inputs @ inputs.new_zeros(4, 2), InvalidInputError, "`data`"),
        (lambda inputs: inputs.flatten(1) / 0, DataError, "sample 0 are not finite"),
        (lambda inputs: inputs.new_zeros(6, 1001), InvalidArgumentError, "1000.*1001"),
    ],
)
def test_model_that_is_not_a_classifier_is_rejected(
    outputs: Any, error: type[Exception], named: str
) -> None:
    """The message describes the outputs of the model."""
    with pytest.raises(error, match=named):
        plot_confusion(Function(outputs), (IMAGES, TARGETS))


def test_message_contains_index_of_non_finite_sample() -> None:
    """The index counts from the start of the data, not of the batch."""
    images, targets = data_predicting([0, 1, 2, 0], [0, 1, 2, 0], [0.9, 0.9, 0.9, float("nan")])
    with pytest.raises(DataError, match="sample 3 are not finite"):
        plot_confusion(Oracle(3), (images, targets), batch_size=2)


@pytest.mark.parametrize(
    ("model", "error", "named"),
    [
        (nn.Linear, InvalidTypeError, "`model`"),
        (nn.LazyLinear(3), InvalidArgumentError, "lazy"),
        (nn.Linear(6, 3, device="meta"), InvalidArgumentError, "meta"),
    ],
)
def test_model_that_cannot_predict_is_rejected(
    model: Any, error: type[Exception], named: str
) -> None:
    """Classes, lazy layers and meta tensors are rejected, each with its own message."""
    with pytest.raises(error, match=named):
        plot_confusion(model, (IMAGES, TARGETS))


@pytest.mark.parametrize(
    ("data", "error", "named"),
    [
        (IMAGES, InvalidTypeError, "single tensor"),
        ([IMAGES], InvalidTypeError, "pair"),
        ([(IMAGES, ["cat"])], InvalidTypeError, "targets of `data`"),
        ([], EmptyDataError, "`data`"),
        (3, InvalidTypeError, "int"),
    ],
)
def test_data_without_labels_is_rejected(data: Any, error: type[Exception], named: str) -> None:
    """The message describes the data."""
    with pytest.raises(error, match=named):
        plot_confusion(Oracle(3), data)


def test_iterator_is_read_completely() -> None:
    """The first batch of an iterator is counted, although it is also used for checks."""
    batches: Sequence[tuple[Tensor, Tensor]] = [
        (IMAGES[:2], TARGETS[:2]),
        (IMAGES[2:], TARGETS[2:]),
    ]
    assert sum(map(sum, matrix(plot_confusion(Oracle(3), iter(batches), normalize=False)))) == 6
