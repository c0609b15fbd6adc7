"""The history of a training run: one row per epoch, or per validation after n steps."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, overload

from finetunelib._arguments import LARGEST_IN_FILES, is_number
from finetunelib._escapes import one_line
from finetunelib._files.atomic import write_atomically
from finetunelib._files.paths import check_readable
from finetunelib._html import html_table
from finetunelib._public import public
from finetunelib._tables import text_table
from finetunelib._typing import StrPath
from finetunelib.errors import CorruptFileError, InvalidArgumentError
from finetunelib.finetuning._freezing.certificate import Certificate

#: The columns of whole numbers from 0.
_COUNTERS = ("epoch", "step")

#: The most rows that a notebook shows, and how many of them are the first ones.
_MOST_ROWS, _FIRST_ROWS = 60, 5


@public("finetunelib.training")
class History:
    """The measurements of a training run: one row per epoch, or per validation.

    A row of the default task has `epoch` (from 1), `step` (updates so far), `train_loss`,
    `train_accuracy`, `val_loss` and `val_accuracy` (if there is validation data), `lr` (the
    learning rate of the last step), `seconds` (the complete epoch, including validation) and
    `samples_per_second` (of training alone).

    With `fit(validate_every_n_steps=n)` there is a row for each validation. `epoch` is then the
    number of the epoch that its last step belongs to, so several rows may have the same one.
    `train_loss`, the other columns of training, `seconds` and `samples_per_second` are about the
    steps since the row before.

    `history["val_loss"]` is a column of floats, `history.rows` contains all rows, and
    `print(history)` prints a table. A value that was not measured in an epoch is `nan`.

    Args:
        rows: The first rows.

    Attributes:
        rows: The rows.
        certificate: Which frozen tensors stayed bitwise unchanged during training. `None` if
            nothing was frozen, and in a history that was read from a file.
        cached_features: Whether the last `fit` trained the head on cached features.
        cached_data: Whether the last `fit` read the samples of its training data once and took the
            batches of later epochs from memory, up to its end.

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
        self.cached_features: bool = False
        self.cached_data: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in the order in which they first appear."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row."""
        self.rows.append(dict(row))

    def __getitem__(self, name: str) -> Sequence[float]:
        """Return a column.

        It is a view of the rows that exist now, so `history["train_loss"][-1]` takes the same time
        whatever the number of rows. It compares equal to a list of the same numbers, and
        `list(history["train_loss"])` is one.

        Raises:
            InvalidArgumentError: If there is no such column; the message lists the columns.
        """
        if name not in self:
            raise InvalidArgumentError(
                f"The history has no column {name!r}. It has {', '.join(self.names) or 'no rows'}."
            )
        return _Column(self.rows, len(self.rows), name)

    def __contains__(self, name: object) -> bool:
        # Most columns are in the last row, however many rows there are.
        return any(name in row for row in reversed(self.rows))

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
        epochs = len({row.get("epoch", number) for number, row in enumerate(self.rows)})
        extent = f"{epochs} epochs"
        if epochs < len(self):
            extent = f"{len(self)} rows of {epochs} epoch{'s' if epochs > 1 else ''}"
        return f"History({extent}: {one_line(', '.join(self.names), 55)})"

    def __str__(self) -> str:
        if not self.rows:
            return "History (0 epochs)"
        titles = [one_line(name) for name in self.names]
        return "\n".join(text_table(titles, self._cells(self.rows), numeric=titles))

    def _repr_html_(self) -> str:
        titles = [one_line(name) for name in self.names]
        rows, notes = self._cells(self.rows), []
        if len(rows) > _MOST_ROWS:
            left_out = len(rows) - _MOST_ROWS
            rows[_FIRST_ROWS : _FIRST_ROWS + left_out] = [["\u2026"] * len(titles)]
            notes.append(f"{left_out:,} rows are not shown: `history.rows` contains all of them.")
        if self.certificate is not None:
            notes.append(str(self.certificate))
        title = "History (0 epochs)" if not self.rows else ""
        return html_table(titles, rows, title=title, notes=notes, numeric=titles)

    def _cells(self, rows: Sequence[Mapping[str, float]]) -> list[list[str]]:
        names = self.names
        return [[_readable(name, row.get(name)) for name in names] for row in rows]

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
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptFileError(
                f"`{file}` is not a history: {error}. Pass a file that `History.to_json` wrote."
            ) from error

    def to_csv(self, path: StrPath) -> Path:
        """Write the rows to `path` as CSV with a header, and return the path.

        Raises:
            PathNotWritableError: If the file cannot be written.
        """
        return write_atomically(path, as_csv(self.rows, self.names, header=True))


class _Column(Sequence[float]):
    """One value of each of the first rows, read when it is asked for."""

    __slots__ = ("_length", "_name", "_rows")

    def __init__(self, rows: list[dict[str, float]], length: int, name: str) -> None:
        self._rows = rows
        self._length = length
        self._name = name

    def __len__(self) -> int:
        return min(self._length, len(self._rows))

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return self._rows[chosen].get(self._name, math.nan)
        return [self._rows[number].get(self._name, math.nan) for number in chosen]

    def __iter__(self) -> Iterator[float]:
        return iter(self[:])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Column | list | tuple):
            return self[:] == list(other)
        return NotImplemented

    __hash__: ClassVar[None]  # type: ignore[assignment]  # its rows can change

    def __add__(self, other: Sequence[float]) -> list[float]:
        return [*self, *other]

    def __radd__(self, other: Sequence[float]) -> list[float]:
        return [*other, *self]

    def __reduce__(self) -> tuple[type[list[float]], tuple[list[float]]]:
        return list, (self[:],)  # A copy does not need the other columns.

    def __repr__(self) -> str:
        return repr(self[:])


def as_json(history: History) -> bytes:
    """Return the content of the file that `History.to_json` writes: one row in each line."""
    # Not `indent=1`, for which `json` is five times slower.
    rows = ",\n".join(
        json.dumps({name: _in_json(value) for name, value in row.items()}) for row in history.rows
    )
    return f"[\n{rows}\n]\n".encode() if rows else b"[]\n"


def as_csv(rows: Sequence[Mapping[str, float]], names: Sequence[str], *, header: bool) -> bytes:
    """Return rows as CSV, with or without the line that names the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _readable(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in _COUNTERS and math.isfinite(value):
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
    """Return the rows of a file.

    Raises:
        TypeError: If it is not a list of rows of numbers.
        ValueError: If a name or a number is not one that `as_json` writes.
    """
    if not isinstance(content, list):
        raise TypeError(f"expected a list of rows, got {type(content).__name__}")
    rows = []
    for row in content:
        if not isinstance(row, dict):
            raise TypeError(f"a row must be an object, got {type(row).__name__}")
        rows.append({_name(name): _number(name, value) for name, value in row.items()})
    return rows


def _name(name: str) -> str:
    name.encode()  # JSON can contain half of a surrogate pair, which no file or terminal can.
    return name


def _number(name: str, value: object) -> float:
    if name in _COUNTERS:
        # A counter of another program may be 3.0.
        if not is_number(value) or not (0 <= value <= LARGEST_IN_FILES and value == int(value)):
            raise ValueError(f"{name!r} must be a whole number from 0, got {_shown(value)}")
        return value
    if value is None:
        return math.nan
    if value in ("Infinity", "-Infinity"):
        return float(str(value))
    if not is_number(value):
        raise TypeError(f"{name!r} must be a number, got {_shown(value)}")
    if isinstance(value, int) and abs(value) > LARGEST_IN_FILES:
        raise ValueError(f"{name!r} is too large: {_shown(value)}")
    return value


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > LARGEST_IN_FILES:
        return "a number of more than 19 digits"  # Python refuses to print very long ones.
    return one_line(repr(value), 60)
