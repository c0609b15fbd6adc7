"""The history of a training run: one row per epoch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from finetunelib._files.atomic import write_atomically
from finetunelib._files.paths import check_readable
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.errors import CorruptFileError, InvalidArgumentError
from finetunelib.finetuning._freezing.certificate import Certificate


@public("finetunelib.training")
class History:
    """The measurements of a training run, one row per epoch.

    A row of the default task has `epoch` (from 1), `step` (updates so far), `train_loss`,
    `train_accuracy`, `val_loss` and `val_accuracy` (if there is validation data), `lr` (the
    learning rate of the last step), `seconds` (the complete epoch, including validation) and
    `samples_per_second` (of training alone).

    `history["val_loss"]` is a column as a list of floats, `history.rows` contains all rows, and
    `print(history)` prints a table. A value that was not measured in an epoch is `nan`.

    Args:
        rows: The first rows.

    Attributes:
        rows: The rows.
        certificate: Which frozen tensors stayed bitwise unchanged during training. `None` if
            nothing was frozen, and in a history that was read from a file.

    Example:
        >>> from finetunelib.training import History
        >>> history = History([{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25}])
        >>> history["train_loss"]
        [0.5, 0.25]
        >>> print(history)
        epoch  train_loss
            1      0.5000
            2      0.2500
    """

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows: list[dict[str, float]] = [dict(row) for row in rows or []]
        self.certificate: Certificate | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in the order in which they first appear."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def append(self, row: Mapping[str, float]) -> None:
        """Add the row of an epoch."""
        self.rows.append(dict(row))

    def __getitem__(self, name: str) -> list[float]:
        """Return a column.

        Raises:
            InvalidArgumentError: If there is no such column; the message lists the columns.
        """
        if name not in self.names:
            raise InvalidArgumentError(
                f"The history has no column {name!r}. It has {', '.join(self.names) or 'no rows'}."
            )
        return [row.get(name, math.nan) for row in self.rows]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, float]]:
        return iter(self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        return self.rows == other.rows

    __hash__: ClassVar[None]  # type: ignore[assignment]  # it changes, so it cannot be hashed

    def __repr__(self) -> str:
        return f"History({len(self)} epochs: {', '.join(self.names)})"

    def __str__(self) -> str:
        if not self.rows:
            return "History (0 epochs)"
        names = self.names
        lines = [[_readable(name, row.get(name)) for name in names] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            for cells in [list(names), *lines]
        )

    def to_json(self, path: StrPath) -> Path:
        """Write the rows to `path` as a JSON list of objects, and return the path.

        JSON cannot represent non-finite numbers, so `nan` is written as null, and infinities as
        "Infinity" and "-Infinity".

        Raises:
            PathNotWritableError: If the file cannot be written.
        """
        return write_atomically(path, as_json(self))

    @classmethod
    def from_json(cls, path: StrPath) -> History:
        """Read a file that `to_json` wrote.

        Raises:
            FileMissingError: If there is no such file.
            CorruptFileError: If the file is not a list of rows of numbers.
        """
        file = check_readable(path, purpose="history")
        try:
            return cls(_rows(json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFileError(
                f"`{file}` is not a history: {error}. Pass a file that `History.to_json` wrote."
            ) from error

    def to_csv(self, path: StrPath) -> Path:
        """Write the rows to `path` as CSV with a header, and return the path.

        Raises:
            PathNotWritableError: If the file cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return write_atomically(path, text.getvalue().encode())


def as_json(history: History) -> bytes:
    """Return the content of the file that `History.to_json` writes."""
    rows = [{name: _in_json(value) for name, value in row.items()} for row in history.rows]
    return (json.dumps(rows, indent=1) + "\n").encode()


def _readable(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("epoch", "step"):
        return str(int(value))
    if name == "lr":
        return f"{value:.3g}"
    if name == "seconds":
        return f"{value:.2f}"
    if name == "samples_per_second":
        return f"{value:,.0f}"
    return f"{value:.4f}"


def _in_json(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"


def _rows(content: object) -> list[dict[str, float]]:
    if not isinstance(content, list):
        raise TypeError(f"expected a list of rows, got {type(content).__name__}")
    return [{str(name): _number(name, value) for name, value in row.items()} for row in content]


def _number(name: str, value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, int | float):
        return value
    if value in ("Infinity", "-Infinity"):
        return float(str(value))
    raise TypeError(f"{name!r} must be a number, got {value!r}")
