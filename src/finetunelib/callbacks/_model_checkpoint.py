"""Checkpoints of a training while it runs, so that it can be stopped at any moment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetunelib._files import check_folder_writable
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.callbacks._improvement import Improvement
from finetunelib.errors import CheckpointError, InvalidArgumentError
from finetunelib.training import Callback, TrainContext
from finetunelib.training._callbacks.context import OnError
from finetunelib.training._checkpointing.folder import checkpoints_in, remove_checkpoint, sweep

#: What the folders are called that this callback writes, and may delete.
_NAME = re.compile(r"epoch-\d{4,}-step-\d{8,}")


@public("finetunelib.callbacks")
class ModelCheckpoint(Callback):
    """Writes checkpoints into a folder, from which `fit(resume_from=folder)` goes on.

    A checkpoint is written whole or not at all, and the older ones are deleted only when it is on
    the disk. What else is in the folder is not touched. A training that is killed at any instant
    finds at least one of them whole.

    Args:
        folder: The folder of this training's checkpoints; made where it is missing.
        every_n_steps: Write one after every so many updates, at least 1.
        every_n_epochs: Write one after every so many epochs, at least 1. Where neither is given,
            after every epoch.
        keep: How many of the newest ones to keep, at least 2: one of them has to be whole while
            another is written.
        monitor: A column of the history. The checkpoint of its best epoch is kept besides the
            newest ones, as `best_path`; needs checkpoints at the ends of epochs.
        on_error: Whether a disk that cannot take a checkpoint ends the training (`"raise"`) or is
            told in a warning (`"warn"`). The checkpoints before are intact in both cases.

    Attributes:
        folder: The folder.
        best_path: The checkpoint of the best epoch so far, `None` before the first or without
            `monitor`.

    Raises:
        InvalidArgumentError: A number is too small, `monitor` without checkpoints at epochs, or
            `on_error` is unknown.
        PathNotWritableError: Nothing can be written into the folder.

    Example:
        One line starts and restarts a training:

        >>> import tempfile, torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.callbacks import ModelCheckpoint
        >>> data = (torch.zeros(8, 4), torch.zeros(8).long())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for _ in range(2):
        ...         trainer = Trainer(
        ...             build_mlp(4, [], 2), callbacks=[ModelCheckpoint(folder)], progress=False
        ...         )
        ...         print(len(trainer.fit(data, epochs=3, resume_from=folder)))
        3
        3
    """

    def __init__(
        self,
        folder: StrPath,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        keep: int = 2,
        monitor: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_n_epochs", every_n_epochs)):
            if value is not None and value < 1:
                raise InvalidArgumentError(f"`{name}` must be at least 1, but is {value}.")
        if keep < 2:
            raise InvalidArgumentError(
                f"`keep` must be at least 2, but is {keep}: one checkpoint has to be whole while "
                "another is written."
            )
        if every_n_steps is None and every_n_epochs is None:
            every_n_epochs = 1
        if monitor is not None and every_n_epochs is None:
            raise InvalidArgumentError(
                f"`monitor` is {monitor!r}, which is measured at the ends of epochs, but "
                "checkpoints are written after steps alone. Pass `every_n_epochs=1` too."
            )
        if on_error not in ("raise", "warn"):
            raise InvalidArgumentError(
                f'`on_error` must be "raise" or "warn", but is {on_error!r}.'
            )
        self.folder: Path = check_folder_writable(folder)
        self.best_path: Path | None = None
        self._every_n_steps = every_n_steps
        self._every_n_epochs = every_n_epochs
        self._keep = keep
        self._on_error: OnError = on_error
        self._improvement = None if monitor is None else Improvement(monitor, None)

    def on_fit_start(self, context: TrainContext) -> None:
        """Check that checkpoints can be exact, and clean up after a process that was killed."""
        context.check_resumable(inside_epoch=self._every_n_steps is not None)
        if self._improvement is not None:
            self._improvement.check_measured(context.measures)
        sweep(self.folder)

    def on_step_end(self, context: TrainContext) -> None:
        """Ask for a checkpoint where one is due."""
        if self._every_n_steps is not None and context.state.step % self._every_n_steps == 0:
            context.request_checkpoint(self._next(context), on_error=self._on_error)

    def on_epoch_end(self, context: TrainContext) -> None:
        """Ask for a checkpoint where one is due, and note whether it is the best."""
        if self._every_n_epochs is None or context.state.epoch % self._every_n_epochs:
            return
        path = self._next(context)
        if self._improvement is not None:
            value = context.history.rows[-1][self._improvement.monitor]
            if self._improvement.update(value):
                self.best_path = path
        context.request_checkpoint(path, on_error=self._on_error)

    def on_interrupt(self, context: TrainContext) -> None:
        """Ask for a last checkpoint, where this moment has none yet and can be gone on from."""
        path = self._next(context)
        exact = context.why_not_resumable(context.state.batch > 0) is None
        if exact and context.last_checkpoint != path:
            context.request_checkpoint(path, on_error=self._on_error)

    def on_checkpoint(self, context: TrainContext) -> None:
        """Delete what is older than the newest ones, but for the best."""
        if context.last_checkpoint is None or context.last_checkpoint.parent != self.folder:
            return
        # What else the user keeps in the folder is neither counted nor deleted.
        own = [path for path in checkpoints_in(self.folder) if _NAME.fullmatch(path.name)]
        for old in own[: -self._keep]:
            if old != self.best_path:
                remove_checkpoint(old)

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoint is the best, by its name in the folder."""
        if self._improvement is None:
            return {"improvement": None, "best": None}
        best = None if self.best_path is None else self.best_path.name
        return {"improvement": self._improvement.state_dict(), "best": best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            CheckpointError: The best one's name is not of this class's making: a file must not
                lead out of the folder.
        """
        if self._improvement is None or state["improvement"] is None:
            return
        name = state["best"]
        if name is not None and not _NAME.fullmatch(str(name)):
            raise CheckpointError(
                f"The state of ModelCheckpoint names {name!r} as the best checkpoint, which is no "
                f"name of a checkpoint in `{self.folder}`. Use another checkpoint."
            )
        self._improvement.load_state_dict(state["improvement"])
        self.best_path = None if name is None else self.folder / str(name)

    def _next(self, context: TrainContext) -> Path:
        state = context.state
        return self.folder / f"epoch-{state.epoch:04d}-step-{state.step:08d}"
