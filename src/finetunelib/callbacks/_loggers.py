"""Callbacks that write the history for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetunelib._files.append import append
from finetunelib._files.paths import as_path, check_writable
from finetunelib._optional import require
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.training import Callback, History, TrainContext
from finetunelib.training._history import as_csv


@public("finetunelib.callbacks")
class CSVLogger(Callback):
    """Writes the history to a CSV file after each epoch.

    The file is complete at any time: it is written atomically after the first epoch of a `fit`,
    and each later epoch appends a line, which takes the same time after any number of epochs. A
    row with a new column makes it write the whole file again, as does a change of the file by
    something else.

    Args:
        path: The file. An existing one is replaced at the end of the first epoch.

    Raises:
        PathNotWritableError: If `path` is not writable.

    Example:
        >>> import os, tempfile, torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.callbacks import CSVLogger
        >>> data = (torch.zeros(8, 4), torch.zeros(8).long())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = CSVLogger(os.path.join(folder, "log.csv"))
        ...     _ = Trainer(build_mlp(4, [], 2), callbacks=[log], progress=False).fit(
        ...         data, epochs=2
        ...     )
        ...     print(log.path.read_text().splitlines()[0])
        epoch,step,train_loss,train_accuracy,lr,seconds,samples_per_second
    """

    def __init__(self, path: StrPath) -> None:
        self.path: Path = check_writable(path)
        self._names: tuple[str, ...] = ()
        self._rows = self._size = 0

    def on_fit_start(self, context: TrainContext) -> None:  # noqa: ARG002 - the hook's form
        """Write the whole file after the first epoch: it may be that of another run."""
        self._rows = self._size = 0

    def on_row(self, context: TrainContext) -> None:
        """Add the new row to the file."""
        history = context.history
        if not self._append(history):
            history.to_csv(self.path)
            self._names, self._size = history.names, self.path.stat().st_size
        self._rows = len(history)

    def _append(self, history: History) -> bool:
        """Append the last row, and return whether that makes the file complete."""
        row = history.rows[-1]
        if not self._size or len(history) != self._rows + 1 or not row.keys() <= {*self._names}:
            return False
        line = as_csv([row], self._names, header=False)
        appended = append(self.path, line, size=self._size)
        self._size += len(line)
        return appended


@public("finetunelib.callbacks")
class TensorBoardLogger(Callback):
    """Writes the history for TensorBoard after each epoch, over the number of steps.

    It needs the extra `tensorboard`.

    Args:
        folder: The folder for event files. It is created if it does not exist.

    Raises:
        MissingDependencyError: If TensorBoard is not installed.

    Example:
        >>> from finetunelib.callbacks import TensorBoardLogger
        >>> logger = TensorBoardLogger("runs/tensorboard")  # doctest: +SKIP
        >>> trainer = Trainer(model, callbacks=[logger])  # doctest: +SKIP
    """

    def __init__(self, folder: StrPath) -> None:
        require("tensorboard", extra="tensorboard")
        self.folder: Path = as_path(folder)
        self._writer: Any = None  # a SummaryWriter of torch, which has no types

    def on_fit_start(self, context: TrainContext) -> None:  # noqa: ARG002 - the hook's form
        """Open an event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self.folder)

    def on_row(self, context: TrainContext) -> None:
        """Write the new row."""
        row = context.history.rows[-1]
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def on_fit_end(self, context: TrainContext) -> None:  # noqa: ARG002 - the hook's form
        """Close the event file."""
        self._writer.close()
