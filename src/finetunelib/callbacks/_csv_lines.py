"""A CSV file with lines for steps and lines for the rows of the history, under one header."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from finetunelib._files.append import append
from finetunelib._files.atomic import write_atomically
from finetunelib.training import TrainContext
from finetunelib.training._history import as_csv

#: A line by column: numbers, or their text if they were read from the file.
Line: TypeAlias = Mapping[str, Any]

#: The column that only a row of the history has.
_ONLY_IN_ROWS = "seconds"


class CSVLines:
    """Writes lines as they come, and continues a file where a checkpoint was written.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: tuple[str, ...] = ()
        self._before: list[Line] = []
        self._size = 0

    def start(self, context: TrainContext, every_n_steps: int, *, continues: bool) -> None:
        """Prepare for a `fit`. Nothing is written before the first line.

        Args:
            context: The run, with all columns that it measures.
            every_n_steps: The number of steps between two lines of steps.
            continues: Whether the file is that of the same run.
        """
        names = ("epoch", "step", *context.measures)
        steps = self._read_steps(context.state.step) if continues else []
        self._names = tuple(dict.fromkeys([*names, *(n for line in steps for n in line)]))
        if context.resumed and context.state.step >= every_n_steps and not steps:
            warnings.warn(
                f"`{self._path}` has no lines of the steps before the checkpoint, so it will only "
                "contain the rows of the history from before.",
                stacklevel=2,
            )
        self._before = _merged(steps, context.history.rows)
        self._size = 0

    def add(self, line: Line) -> None:
        """Append a line. A new column, or another change of the file, rewrites the file.

        Raises:
            PathNotWritableError: If the file cannot be written.
        """
        if not self._size:
            self._rewrite([*self._before, line], self._names)
            self._before = []
            return
        if new := [name for name in line if name not in self._names]:
            self._rewrite([*self._read(), line], (*self._names, *new))
            return
        content = as_csv([line], self._names, header=False)
        if append(self._path, content, size=self._size):
            self._size += len(content)
        else:  # Something else has changed or removed the file.
            self._rewrite([*self._read(), line], self._names)

    def _rewrite(self, lines: Iterable[Line], names: Sequence[str]) -> None:
        content = as_csv(list(lines), names, header=True)
        write_atomically(self._path, content)
        self._names, self._size = tuple(names), len(content)

    def _read_steps(self, last: int) -> list[Line]:
        """Return the lines of the file for steps up to the last one of a checkpoint."""
        lines = self._read()
        return [line for line in lines if not line[_ONLY_IN_ROWS] and int(line["step"]) <= last]

    def _read(self) -> list[Line]:
        """Return the lines of the file, or none if it is missing or not one of these files."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return []
        lines = list(csv.DictReader(io.StringIO(text)))
        known = all(
            None not in line
            and None not in line.values()
            and line.get("step", "").isdecimal()
            and _ONLY_IN_ROWS in line
            for line in lines
        )
        return list(lines) if known else []


def _merged(steps: Iterable[Line], rows: Iterable[Line]) -> list[Line]:
    """Return lines in the order in which they were written: a row comes after its last step."""
    lines = [*steps, *rows]
    return sorted(lines, key=lambda line: (int(line["step"]), bool(line.get(_ONLY_IN_ROWS))))
