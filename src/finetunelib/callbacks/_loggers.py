"""Callbacks that write an epoch's measurements where other programs read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetunelib._files import check_writable
from finetunelib._optional import require
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.training import Callback, TrainContext


@public("finetunelib.callbacks")
class CSVLogger(Callback):
    """Keeps the history in a CSV file, written anew after each epoch, whole or not at all.

    Args:
        path: The file. A former one is replaced at the end of the first epoch.

    Raises:
        PathNotWritableError: Nothing can be written there.

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

    def on_epoch_end(self, context: TrainContext) -> None:
        """Write the history with the new row."""
        context.history.to_csv(self.path)


@public("finetunelib.callbacks")
class TensorBoardLogger(Callback):
    """Writes every measurement of an epoch for TensorBoard, over the number of steps.

    Needs the extra `tensorboard`.

    Args:
        folder: Where the event files go; made where it is missing.

    Raises:
        MissingDependencyError: TensorBoard is not installed.

    Example:
        >>> from finetunelib.callbacks import TensorBoardLogger
        >>> logger = TensorBoardLogger("runs/tensorboard")  # doctest: +SKIP
        >>> trainer = Trainer(model, callbacks=[logger])  # doctest: +SKIP
    """

    def __init__(self, folder: StrPath) -> None:
        require("tensorboard", extra="tensorboard")
        self.folder: Path = Path(folder)
        self._writer: Any = None  # torch's SummaryWriter, which has no types

    def on_fit_start(self, context: TrainContext) -> None:  # noqa: ARG002 - the hook's form
        """Open an event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self.folder)

    def on_epoch_end(self, context: TrainContext) -> None:
        """Write the epoch's row."""
        row = context.history.rows[-1]
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def on_fit_end(self, context: TrainContext) -> None:  # noqa: ARG002 - the hook's form
        """Close the event file."""
        self._writer.close()
