"""Callbacks that write the history for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetunelib._arguments import check_at_least
from finetunelib._files.append import append
from finetunelib._files.paths import as_path, check_writable
from finetunelib._optional import require
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.callbacks._csv_lines import CSVLines
from finetunelib.training import Callback, History, TrainContext
from finetunelib.training._history import as_csv


@public("finetunelib.callbacks")
class CSVLogger(Callback):
    """Writes the history to a CSV file: a line for each row, which is usually an epoch.

    The file is complete at any time: it is written atomically after the first row of a `fit`, and
    each later row appends a line, which takes the same time after any number of rows. A row with a
    new column makes it write the whole file again, as does a change of the file by something else.

    With `every_n_steps`, the same file also has a line after every n steps, under the same header.
    In such a line `train_loss` is the loss of the last step, `samples_per_second` is the speed in
    this epoch so far, and apart from `epoch`, `step` and `lr` all other columns are empty. A line
    of a row is the one whose `seconds` are not empty; if both have the same step, it is the second
    one. A run that is killed and resumed has the same lines as one that was not: those after the
    checkpoint are dropped and written again.

    Args:
        path: The file. An existing one is replaced when the first line is written, unless the run
            is resumed.
        every_n_steps: Also write a line after every step that this number divides, at least 1. On
            an accelerator, each of these lines waits for its step. `None` writes rows only.

    Raises:
        PathNotWritableError: If `path` is not writable.
        InvalidArgumentError: If `every_n_steps` is below 1.
        InvalidTypeError: If `every_n_steps` is not a whole number.

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

    def __init__(self, path: StrPath, *, every_n_steps: int | None = None) -> None:
        _check_steps(every_n_steps)
        self.path: Path = check_writable(path)
        self._names: tuple[str, ...] = ()
        self._rows = self._size = 0
        self._every_n_steps = every_n_steps
        self._lines = CSVLines(self.path)
        self._history: History | None = None

    def on_fit_start(self, context: TrainContext) -> None:
        """Write the whole file after the first row: it may be that of another run."""
        self._rows = self._size = 0
        if self._every_n_steps is not None:
            same_run = self._history is context.history
            continues = context.resumed or same_run
            self._lines.start(context, self._every_n_steps, continues=continues)
        self._history = context.history

    def on_step_end(self, context: TrainContext) -> None:
        """Add the line of a step, if one is due."""
        if _is_due(self._every_n_steps, context):
            state = context.state
            self._lines.add({"epoch": state.epoch + 1, "step": state.step, **_values_of(context)})

    def on_row(self, context: TrainContext) -> None:
        """Add the new row to the file."""
        history = context.history
        if self._every_n_steps is not None:
            self._lines.add(history.rows[-1])
            return
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
    """Writes each row of the history for TensorBoard, over the number of steps.

    A row is usually an epoch. A resumed run hides what a killed one wrote after the checkpoint. It
    needs the extra `tensorboard`.

    Args:
        folder: The folder for event files. It is created if it does not exist.
        every_n_steps: Also write `steps/train_loss`, the loss of the last step, `steps/lr` and
            `steps/samples_per_second` after every step that this number divides, at least 1. On an
            accelerator, each of these waits for its step. `None` writes rows only.

    Raises:
        MissingDependencyError: If TensorBoard is not installed.
        InvalidArgumentError: If `every_n_steps` is below 1.
        InvalidTypeError: If `every_n_steps` is not a whole number.

    Example:
        >>> from finetunelib.callbacks import TensorBoardLogger
        >>> logger = TensorBoardLogger("runs/tensorboard")  # doctest: +SKIP
        >>> trainer = Trainer(model, callbacks=[logger])  # doctest: +SKIP
    """

    def __init__(self, folder: StrPath, *, every_n_steps: int | None = None) -> None:
        _check_steps(every_n_steps)
        require("tensorboard", extra="tensorboard")
        self.folder: Path = as_path(folder)
        self._every_n_steps = every_n_steps
        self._writer: Any = None  # a SummaryWriter of torch, which has no types

    def on_fit_start(self, context: TrainContext) -> None:
        """Open an event file."""
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote after the checkpoint is written again.
        purged = context.state.step + 1 if context.resumed else None
        self._writer = SummaryWriter(self.folder, purge_step=purged)

    def on_step_end(self, context: TrainContext) -> None:
        """Write the values of a step, if they are due."""
        if _is_due(self._every_n_steps, context):
            for name, value in _values_of(context).items():
                self._writer.add_scalar(f"steps/{name}", value, context.state.step)

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


def _check_steps(every_n_steps: int | None) -> None:
    """Raise if the argument `every_n_steps` is neither `None` nor at least 1."""
    if every_n_steps is not None:
        check_at_least(1, every_n_steps=every_n_steps)


def _is_due(every_n_steps: int | None, context: TrainContext) -> bool:
    """Return whether the values of a step are to be written."""
    return every_n_steps is not None and context.state.step % every_n_steps == 0


def _values_of(context: TrainContext) -> dict[str, float | None]:
    """Return the values of the last step."""
    return {
        "train_loss": context.last_loss,
        "lr": context.lr,
        "samples_per_second": context.samples_per_second,
    }
