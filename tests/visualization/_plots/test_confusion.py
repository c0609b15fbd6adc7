"""`plot_confusion`: what is counted, what is written into the cells, and what is refused."""

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
from visualization._plots.plotting import Answers, answering, texts

#: Four cats of which one is taken for a dog, two dogs that are right; no bird.
LABELS, SAID = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]


def images(figure: Figure) -> list[Any]:
    """Return the masked arrays of the right ones and of the mistakes."""
    return [image.get_array() for image in figure.axes[0].get_images()]


def matrix(figure: Figure) -> list[list[float]]:
    """Return the values of the cells, 0 where a cell is empty."""
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


def test_cells_hold_the_share_of_their_row_and_the_count() -> None:
    """Rows are labels and columns predictions; nothing is written into empty cells."""
    figure = plot_confusion(Answers(3), answering(SAID, LABELS))
    assert matrix(figure) == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]
    assert cell(figure, 0, 0) == ["75%", "3"]
    assert cell(figure, 0, 1) == ["25%", "1"]
    assert cell(figure, 1, 0) == []
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == (
        "predicted class",
        "label",
    )


def test_counts_come_first_where_they_are_asked_for() -> None:
    """Without normalizing, color and first number are counts."""
    figure = plot_confusion(Answers(3), answering(SAID, LABELS), normalize=False)
    assert matrix(figure) == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert cell(figure, 0, 0) == ["3", "75%"]


def test_right_ones_and_mistakes_have_hues_of_their_own() -> None:
    """The diagonal is one image, everything else another."""
    figure = plot_confusion(Answers(3), answering(SAID, LABELS))
    right, wrong = images(figure)
    assert np.ma.getmaskarray(right).tolist() == (~np.diag([True, True, False])).tolist()
    assert np.flatnonzero(~np.ma.getmaskarray(wrong)).tolist() == [1]


def test_rows_say_how_many_samples_they_have() -> None:
    """A class that the data lacks is marked, and divides nothing by zero."""
    figure = plot_confusion(Answers(3), answering(SAID, LABELS))
    assert cell(figure, 2, 1) == ["no samples"]
    at_the_end = figure.axes[0].get_xlim()[1]
    totals = [t.get_text() for t in figure.axes[0].texts if t.get_position()[0] > at_the_end]
    assert totals == ["samples", "4", "2", "0"]


def test_headline_says_how_many_are_right() -> None:
    """The share and the numbers that it comes from stand above, unless a title does."""
    data = answering(SAID, LABELS)
    written = texts(plot_confusion(Answers(3), data))
    assert "83% right" in [text.strip() for text in written]
    assert "5 of 6 samples; percent of each row" in written
    titled = texts(plot_confusion(Answers(3), data, title="Pets"))
    assert "Pets" in [text.strip() for text in titled]


def test_classes_have_their_names_along_both_sides() -> None:
    """Names are shown as they are, and long ones cut."""
    class_names = ["cat", "$dog$", "a bird of a very rare kind"]
    figure = plot_confusion(Answers(3), answering(SAID, LABELS), class_names=class_names)
    shown = ["cat", "$dog$", "a bird of a very…"]
    assert names(figure) == (shown, shown)
    assert names(plot_confusion(Answers(3), answering(SAID, LABELS)))[0] == ["0", "1", "2"]


@pytest.mark.parametrize(("classes", "numbers"), [(12, 2), (13, 1), (30, 1), (31, 0)])
def test_more_classes_have_fewer_numbers(classes: int, numbers: int) -> None:
    """Cells that are too small for two numbers hold one, and then none."""
    every = list(range(classes))
    figure = plot_confusion(Answers(classes), answering(every, every))
    assert len(cell(figure, 5, 5)) == numbers


def test_many_classes_come_with_a_list_of_their_commonest_mistakes() -> None:
    """What cells cannot show is written at the side, the commonest first."""
    said = [3, 3, 3, 7, 7, *range(40)]
    labels = [1, 1, 1, 2, 2, *range(40)]
    figure = plot_confusion(Answers(50), answering(said, labels))
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written[:5] == [
        "Commonest mistakes",
        "1 as 3",
        "3, 75% of the row",
        "2 as 7",
        "2, 67% of the row",
    ]
    assert written[-1].startswith("10 classes without samples:\n40, 41, 42")


@pytest.mark.parametrize(("classes", "most"), [(60, 60), (100, 20), (1000, 20)])
def test_axes_of_many_classes_name_some(classes: int, most: int) -> None:
    """There are never more names than fit, and the first is always there."""
    every = list(range(classes))
    shown, _ = names(plot_confusion(Answers(classes), answering(every, every)))
    assert len(shown) <= most
    assert shown[0] == "0"


def test_two_classes_are_drawn() -> None:
    """The smallest matrix has four cells."""
    figure = plot_confusion(Answers(2), answering([0, 1, 1], [0, 1, 0]))
    assert matrix(figure) == [[0.5, 0.5], [0, 1]]


IMAGES, TARGETS = answering(SAID, LABELS)


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
def test_data_may_have_every_form_that_evaluate_takes(data: Any) -> None:
    """Whoever evaluates can draw, with the same argument."""
    assert matrix(plot_confusion(Answers(3), data)) == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]


def test_batches_do_not_change_what_is_counted() -> None:
    """A short last batch counts as any other."""
    figure = plot_confusion(Answers(3), answering(SAID, LABELS), batch_size=4, normalize=False)
    assert matrix(figure) == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_ignored_targets_are_passed_over() -> None:
    """What cross-entropy does not count is not counted here."""
    figure = plot_confusion(Answers(3), answering([0, 1, 2], [0, -100, 1]), normalize=False)
    assert matrix(figure) == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_outputs_with_logits_are_read_as_those_of_transformers() -> None:
    """An object with `.logits` is a classifier's output too."""

    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    model = Function(lambda inputs: Output(Answers(3)(inputs)))
    assert matrix(plot_confusion(model, (IMAGES, TARGETS)))[0] == [0.75, 0.25, 0]


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"class_names": ["a", "b"]}, InvalidArgumentError, "3 names.*holds 2"),
        ({"class_names": "abc"}, InvalidTypeError, "`class_names`"),
        ({"class_names": ["a", 2, "c"]}, InvalidTypeError, r"`class_names\[1\]`.*2 \(int\)"),
        ({"normalize": 1}, InvalidTypeError, "`normalize`.*1"),
        ({"batch_size": 0}, InvalidArgumentError, "`batch_size`.*0"),
        ({"num_workers": -1}, InvalidArgumentError, "`num_workers`.*-1"),
    ],
)
def test_option_that_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], named: str
) -> None:
    """The message names the argument and the value."""
    with pytest.raises(error, match=named):
        plot_confusion(Answers(3), (IMAGES, TARGETS), **options)


@pytest.mark.parametrize(
    ("targets", "error", "named"),
    [
        (TARGETS.float(), InvalidTargetError, "torch.float32"),
        (torch.eye(3).long()[TARGETS], InvalidTargetError, r"\(6, 3\)"),
        (TARGETS + 2, InvalidTargetError, "0 to 2.*2 to 3"),
        (torch.full((6,), -100), EmptyDataError, "-100"),
    ],
)
def test_targets_that_are_no_classes_are_refused(
    targets: Tensor, error: type[Exception], named: str
) -> None:
    """The message says what the targets are, and what to make of them."""
    with pytest.raises(error, match=named):
        plot_confusion(Answers(3), (IMAGES, targets))


def test_bad_target_in_a_later_batch_is_refused() -> None:
    """Every batch is looked at, and not the first alone."""
    with pytest.raises(InvalidTargetError, match="range from 0 to 9"):
        plot_confusion(Answers(3), answering([0, 0, 0, 0], [0, 0, 0, 9]), batch_size=2)


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
def test_what_is_no_classifier_is_refused(outputs: Any, error: type[Exception], named: str) -> None:
    """The message says what the model returns, and what it should."""
    with pytest.raises(error, match=named):
        plot_confusion(Function(outputs), (IMAGES, TARGETS))


def test_later_sample_that_is_not_finite_is_named() -> None:
    """The number is the sample's place in the data, also across batches."""
    images, targets = answering([0, 1, 2, 0], [0, 1, 2, 0], [0.9, 0.9, 0.9, float("nan")])
    with pytest.raises(DataError, match="sample 3 are not finite"):
        plot_confusion(Answers(3), (images, targets), batch_size=2)


@pytest.mark.parametrize(
    ("model", "error", "named"),
    [
        (nn.Linear, InvalidTypeError, "`model`"),
        (nn.LazyLinear(3), InvalidArgumentError, "lazy"),
        (nn.Linear(6, 3, device="meta"), InvalidArgumentError, "meta"),
    ],
)
def test_model_that_predicts_nothing_is_refused(
    model: Any, error: type[Exception], named: str
) -> None:
    """A class, a layer without weights and one without values are named as such."""
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
def test_data_without_labels_is_refused(data: Any, error: type[Exception], named: str) -> None:
    """The message says which form is needed."""
    with pytest.raises(error, match=named):
        plot_confusion(Answers(3), data)


def test_iterator_is_read_once_and_whole() -> None:
    """Data that can be read only once is enough, and its first batch is not lost."""
    batches: Sequence[tuple[Tensor, Tensor]] = [
        (IMAGES[:2], TARGETS[:2]),
        (IMAGES[2:], TARGETS[2:]),
    ]
    assert sum(map(sum, matrix(plot_confusion(Answers(3), iter(batches), normalize=False)))) == 6
