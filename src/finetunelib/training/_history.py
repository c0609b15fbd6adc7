"""What a training measured: one row an epoch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from finetunelib._files import check_readable, write_atomically
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.errors import CorruptFileError, InvalidArgumentError
from finetunelib.finetuning._freezing.certificate import Certificate


@public("finetunelib.training")
class History:
    """The measurements of a training, one row an epoch.

    A row of the default task has `epoch` (from 1), `step` (updates so far), `train_loss`,
    `train_accuracy`, `val_loss`, `val_accuracy` (where there was validation data), `lr` (the
    learning rate of the epoch's last step), `seconds` (the whole epoch, validation included) and
    `samples_per_second` (of training alone).

    `history["val_loss"]` is a column as a list of floats, `history.rows` all rows,
    `print(history)` a table. A value that an epoch did not measure is `nan`.

    Args:
        rows: The rows to begin with.

    Attributes:
        rows: The rows.
        certificate: Which frozen tensors the training left bit for bit as they were; `None` where
            nothing was frozen in it, and in a history that was read from a file.

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
        """The names of the columns, in the order in which they were first measured."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def append(self, row: Mapping[str, float]) -> None:
        """Add the row of one more epoch."""
        self.rows.append(dict(row))

    def __getitem__(self, name: str) -> list[float]:
        """Return a column.

        Raises:
            InvalidArgumentError: No epoch measured it; the message lists those that there are.
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

    __hash__: ClassVar[None]  # type: ignore[assignment]  # it grows, so it is no key

    def __repr__(self) -> str:
        return f"History({len(self)} epochs: {', '.join(self.names)})"

    def __str__(self) -> str:
        if not self.rows:
            return "History of no epochs"
        names = self.names
        lines = [[_readable(name, row.get(name)) for name in names] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            for cells in [list(names), *lines]
        )

    def to_json(self, path: StrPath) -> Path:
        """Write the rows to `path` as a JSON list of objects, and return the path.

        JSON has no word for what is not finite: `nan` is written as null, and the infinities as
        the strings "Infinity" and "-Infinity".

        Raises:
            PathNotWritableError: The file cannot be written.
        """
        return write_atomically(path, as_json(self))

    @classmethod
    def from_json(cls, path: StrPath) -> History:
        """Read what `to_json` wrote.

        Raises:
            FileMissingError: There is no such file.
            CorruptFileError: The file is not a list of rows of numbers.
        """
        file = check_readable(path, purpose="history")
        try:
            return cls(_rows(json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFileError(
                f"`{file}` is not a history: {error}. Expected what `History.to_json` writes."
            ) from error

    def to_csv(self, path: StrPath) -> Path:
        """Write the rows to `path` as comma-separated values with a header; return the path.

        Raises:
            PathNotWritableError: The file cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return write_atomically(path, text.getvalue().encode())


def as_json(history: History) -> bytes:
    """Return what `History.to_json` writes."""
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
        raise TypeError(f"it holds a {type(content).__name__} and not a list of rows")
    return [{str(name): _number(name, value) for name, value in row.items()} for row in content]


def _number(name: str, value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, int | float):
        return value
    if value in ("Infinity", "-Infinity"):
        return float(str(value))
    raise TypeError(f"{name!r} is {value!r} and not a number")
