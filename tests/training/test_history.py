"""The history of a run: rows, columns, printing and files."""

from __future__ import annotations

import copy
import csv
import json
import math
import operator
import pickle
from pathlib import Path
from typing import Any, cast

import pytest

from finetunelib.errors import (
    CorruptFileError,
    FileMissingError,
    InvalidArgumentError,
    PathNotWritableError,
)
from finetunelib.training import History
from training.tiny import plain_network, points, quiet_trainer


def two_epochs() -> History:
    """Return a history whose second epoch has one more value."""
    return History(
        [
            {"epoch": 1, "step": 10, "train_loss": 0.5, "lr": 0.00012345},
            {"epoch": 2, "step": 20, "train_loss": 0.25, "lr": 0.1, "val_loss": 1.5},
        ]
    )


# Reading


def test_column_has_the_values_of_a_list() -> None:
    """A name gives one value per epoch, which can be compared, printed and sliced like a list."""
    column: Any = cast("Any", two_epochs()["train_loss"])  # Its type is that of a sequence.
    assert column == [0.5, 0.25]
    assert [0.5, 0.25] == column  # noqa: SIM300 - a list asks the column
    assert column == two_epochs()["train_loss"]
    assert column != [0.5]
    assert column[-1] == column[1] == 0.25
    assert column[:1] == [0.5]
    assert operator.add(column, [1.0]) == [0.5, 0.25, 1.0]
    assert operator.add([1.0], column) == [1.0, 0.5, 0.25]
    assert (repr(column), len(column), min(column), 0.5 in column) == ("[0.5, 0.25]", 2, 0.25, True)
    assert copy.deepcopy(column) == pickle.loads(pickle.dumps(column)) == [0.5, 0.25]
    with pytest.raises(IndexError):
        column[2]


def test_column_does_not_grow() -> None:
    """Later epochs do not change a column that was read before."""
    history = two_epochs()
    column = history["train_loss"]
    history.append({"epoch": 3, "train_loss": 0.1})
    assert column == [0.5, 0.25]
    assert history["train_loss"] == [0.5, 0.25, 0.1]


def test_last_value_does_not_read_the_other_rows() -> None:
    """Its cost does not depend on the number of epochs."""
    reads = []

    class Row(dict[str, float]):
        def __contains__(self, name: object) -> bool:
            reads.append("in")
            return super().__contains__(name)

        def get(self, *args: Any) -> Any:
            reads.append("get")
            return super().get(*args)

    history = History()
    history.rows.extend(Row(epoch=number, train_loss=0.5) for number in range(1, 1001))
    assert history["train_loss"][-1] == 0.5
    assert len(reads) == 2


def test_value_that_was_not_measured_is_nan() -> None:
    """A column that begins later is filled with nan."""
    first, second = two_epochs()["val_loss"]
    assert math.isnan(first)
    assert second == 1.5


def test_unknown_column_is_an_error_that_lists_the_columns() -> None:
    """A misspelled name is reported with the names that exist."""
    with pytest.raises(InvalidArgumentError) as caught:
        two_epochs()["val_los"]
    assert "'val_los'" in str(caught.value)
    assert "epoch, step, train_loss, lr, val_loss" in str(caught.value)


def test_column_of_an_empty_history_is_an_error_that_names_it() -> None:
    """Before the first epoch there is no column."""
    with pytest.raises(InvalidArgumentError, match="'train_loss'"):
        History()["train_loss"]


def test_names_are_in_the_order_of_their_first_measurement() -> None:
    """Columns that are added later come last."""
    assert two_epochs().names == ("epoch", "step", "train_loss", "lr", "val_loss")


def test_history_has_the_protocols_of_a_sequence_of_rows() -> None:
    """It has a length, can be iterated, and supports `in` for columns."""
    history = two_epochs()
    assert len(history) == 2
    assert [row["epoch"] for row in history] == [1, 2]
    assert "val_loss" in history
    assert "val_accuracy" not in history


def test_histories_of_the_same_rows_are_equal() -> None:
    """Histories are equal if their rows are equal."""
    assert two_epochs() == two_epochs()
    assert two_epochs() != History()
    assert two_epochs() != two_epochs().rows


def test_history_keeps_its_own_rows() -> None:
    """Rows that are passed in are copied, so later changes have no effect."""
    row = {"epoch": 1.0}
    history = History([row])
    history.append(row)
    row["epoch"] = 7.0
    assert history["epoch"] == [1.0, 1.0]


def test_history_cannot_be_a_key() -> None:
    """It can change, so it has no hash."""
    with pytest.raises(TypeError):
        hash(History())


# Printing


def test_print_is_a_table() -> None:
    """Columns are aligned, numbers are rounded, and a missing value is a dash."""
    assert str(two_epochs()).splitlines() == [
        "epoch  step  train_loss        lr  val_loss",
        "    1    10      0.5000  0.000123         -",
        "    2    20      0.2500       0.1    1.5000",
    ]


def test_print_of_a_run_is_readable() -> None:
    """Seconds have two decimals, and samples per second none."""
    history = History([{"seconds": 1.2345, "samples_per_second": 12345.6}])
    assert str(history).splitlines()[1].split() == ["1.23", "12,346"]


def test_print_of_an_empty_history_is_one_line() -> None:
    """An empty history prints the number of epochs."""
    assert str(History()) == "History (0 epochs)"


def test_repr_is_short() -> None:
    """A notebook cell that ends in a history shows one line."""
    assert repr(two_epochs()) == "History(2 epochs: epoch, step, train_loss, lr, val_loss)"


@pytest.mark.parametrize(
    ("epochs", "extent"), [([1, 1, 2], "3 rows of 2 epochs"), ([1, 1], "2 rows of 1 epoch")]
)
def test_several_rows_of_an_epoch_are_counted_apart(epochs: list[int], extent: str) -> None:
    """The table and the file have a row for each validation."""
    rows = [{"epoch": epoch, "step": 5.0 * n} for n, epoch in enumerate(epochs, start=1)]
    history = History(rows)
    assert repr(history) == f"History({extent}: epoch, step)"
    assert str(history).splitlines()[1].split() == ["1", "5"]
    assert len(str(history).splitlines()) == len(epochs) + 1


def test_print_of_odd_rows_is_readable() -> None:
    """A counter that is not a number is shown, and control characters in names are escaped."""
    history = History([{"epoch": math.nan, "step": math.inf, "a\x1b[2J": 1.0}])
    assert str(history).splitlines()[0].split() == ["epoch", "step", "a\\x1b[2J"]
    assert str(history).splitlines()[1].split() == ["nan", "inf", "1.0000"]


# JSON


def test_json_round_trip_gives_an_equal_history(tmp_path: Path) -> None:
    """Every number is read back exactly."""
    history = History([{"epoch": 1, "train_loss": 0.1 + 0.2}, {"epoch": 2, "train_loss": 1e-300}])
    path = history.to_json(tmp_path / "history.json")
    assert path == tmp_path / "history.json"
    assert History.from_json(path) == history


def test_json_is_a_list_of_rows(tmp_path: Path) -> None:
    """Other programs can read it without this library."""
    path = two_epochs().to_json(tmp_path / "history.json")
    assert json.loads(path.read_text()) == two_epochs().rows


@pytest.mark.parametrize(
    ("value", "word"), [(math.nan, None), (math.inf, "Infinity"), (-math.inf, "-Infinity")]
)
def test_json_keeps_non_finite_values(tmp_path: Path, value: float, word: str | None) -> None:
    """They are written as null and strings, and read back unchanged."""
    path = History([{"epoch": 1, "train_loss": value}]).to_json(tmp_path / "history.json")
    assert json.loads(path.read_text())[0]["train_loss"] == word
    assert repr(History.from_json(path)["train_loss"][0]) == repr(value)


def test_json_of_a_run_is_read_back(tmp_path: Path) -> None:
    """The history that `fit` returns contains plain numbers only."""
    history = quiet_trainer(plain_network()).fit(points(), points(8), epochs=2)
    assert History.from_json(history.to_json(tmp_path / "history.json")) == history


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "null",
        "{}",
        '""',
        '{"epoch": 1}',
        "[1, 2]",
        '[{"epoch": "one"}]',
        '[{"epoch": [1]}]',
        "[[]]",
        '[{"epoch": null}]',
        '[{"epoch": NaN}]',
        '[{"epoch": "Infinity"}]',
        '[{"epoch": -1}]',
        '[{"step": 1.5}]',
        '[{"epoch": true}]',
        '[{"loss": true}]',
        f'[{{"loss": 1{"0" * 400}}}]',
        f'[{{"loss": 1{"0" * 5000}}}]',
        f'[{{"epoch": {2**63}}}]',
        '[{"\\ud800": 1.0}]',
    ],
    ids=lambda text: text[:30],
)
def test_json_with_other_content_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    """A damaged file, or one with other content, is refused."""
    path = tmp_path / "history.json"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=r"history\.json"):
        History.from_json(path)


def test_json_that_is_not_text_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are refused."""
    path = tmp_path / "history.json"
    path.write_bytes(b"\xff\xfe[]")
    with pytest.raises(CorruptFileError, match=r"history\.json"):
        History.from_json(path)


def test_json_of_endless_nesting_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """A file that is nested too deeply for Python is refused."""
    path = tmp_path / "history.json"
    path.write_text("[" * 200_000)
    with pytest.raises(CorruptFileError, match=r"history\.json"):
        History.from_json(path)


def test_missing_json_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """A path without a file is refused."""
    with pytest.raises(FileMissingError, match=r"nowhere\.json"):
        History.from_json(tmp_path / "nowhere.json")


def test_json_has_one_line_for_each_row(tmp_path: Path) -> None:
    """The file can be compared line by line, and an empty history is an empty list."""
    text = two_epochs().to_json(tmp_path / "history.json").read_text()
    assert len(text.splitlines()) == 4
    assert History().to_json(tmp_path / "empty.json").read_text() == "[]\n"


# CSV


def test_csv_has_a_header_and_one_line_per_epoch(tmp_path: Path) -> None:
    """Numbers have full precision, and missing values are empty."""
    path = two_epochs().to_csv(tmp_path / "history.csv")
    assert path.read_text() == (
        "epoch,step,train_loss,lr,val_loss\n1,10,0.5,0.00012345,\n2,20,0.25,0.1,1.5\n"
    )


def test_csv_of_a_run_has_full_precision(tmp_path: Path) -> None:
    """Numbers that are read from it equal those of the history."""
    history = quiet_trainer(plain_network()).fit(points(), epochs=2)
    with history.to_csv(tmp_path / "history.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == history.rows


def test_csv_replaces_an_existing_file(tmp_path: Path) -> None:
    """Writing twice leaves the second file."""
    path = tmp_path / "history.csv"
    two_epochs().to_csv(path)
    History([{"epoch": 1}]).to_csv(path)
    assert path.read_text() == "epoch\n1\n"


@pytest.mark.parametrize("write", [History.to_json, History.to_csv], ids=["json", "csv"])
def test_path_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, write: Any) -> None:
    """The path of a folder is refused."""
    with pytest.raises(PathNotWritableError) as caught:
        write(two_epochs(), tmp_path)
    assert str(tmp_path) in str(caught.value)
