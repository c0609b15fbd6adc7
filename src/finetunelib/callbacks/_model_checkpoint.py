"""Regular checkpoints of a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from finetunelib._arguments import check_at_least, check_whole
from finetunelib._files.locks import FolderLock
from finetunelib._files.paths import check_folder_writable
from finetunelib._public import public
from finetunelib._typing import Mode, StrPath
from finetunelib.callbacks._improvement import Improvement
from finetunelib.callbacks._saved_state import check_improvement, check_keys, check_value
from finetunelib.errors import CheckpointError, InvalidArgumentError
from finetunelib.training import Callback, TrainContext
from finetunelib.training._callbacks.context import OnError
from finetunelib.training._checkpointing.folder import checkpoints_in, remove_checkpoint, sweep
from finetunelib.training._checkpointing.ownership import check_own, is_other, lock_checkpoints

#: The names of the folders that this callback writes and may delete.
_NAME = re.compile(r"epoch-\d{4,}-step-\d{8,}")


@public("finetunelib.callbacks")
class ModelCheckpoint(Callback):
    """Writes checkpoints into a folder, from which `fit(resume_from=folder)` resumes.

    Checkpoints are written atomically, and older ones are deleted only after the new one is on
    disk. However abruptly a run is killed, at least one complete checkpoint survives. Other files
    in the folder are left alone.

    Of frozen tensors that the run has never trained, such as the base model of adapters, a
    checkpoint contains only digests. Resuming compares them with the model, so the script must
    build or load the same base.

    A folder belongs to one run. A run that does not resume from it is refused if it contains
    checkpoints of another run, as is a second process while the first one trains (except on file
    systems without locks and on Windows).

    Args:
        folder: The folder for the checkpoints of this run. It is created if it does not exist.
        every_n_steps: Write a checkpoint every `every_n_steps` updates, at least 1.
        every_n_epochs: Write a checkpoint every `every_n_epochs` epochs, at least 1. If neither
            is given, one is written after each row of the history: after each epoch, or with
            `fit(validate_every_n_steps=...)` after each validation.
        keep: The number of newest checkpoints to keep, at least 2: one must stay complete while
            the next one is written.
        monitor: A column of the history. The checkpoint of its best row, `best_path`, is kept
            in addition to the newest ones. A checkpoint is written after each row that is the best
            so far. With `every_n_epochs=n`, only every n-th epoch is compared, unless rows follow
            validations.
        mode: Whether a lower (`"min"`) or higher (`"max"`) value is better. `None` means the
            direction that is known: lower for the loss, higher for `Accuracy`, and what a metric
            declares with `higher_is_better`. For any other column, `mode` is required.
        blocking: Whether training waits until a checkpoint is on disk. With `False`, it waits only
            while the state is copied in memory, which takes as much memory on the CPU as the
            checkpoint has; a thread writes the copy. The next checkpoint and the end of `fit` wait
            for it. Older checkpoints are deleted, and errors raised, after a later step.
        on_error: What to do if a checkpoint cannot be written: stop training (`"raise"`), or warn
            and continue (`"warn"`). Existing checkpoints stay intact in both cases.

    Attributes:
        folder: The folder.
        best_path: The checkpoint of the best row so far, or `None` without `monitor` or before
            the first row. `load_weights(model, checkpoint.best_path)` loads the weights that were
            measured: with `EMA`, the averages.

    Raises:
        InvalidArgumentError: If a number is too small, `on_error` is unknown, or `mode` is given
            without `monitor`.
        InvalidTypeError: If a number is not a whole number.
        PathNotWritableError: If the folder is not writable.

    Example:
        One line starts and restarts a training run:

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
        mode: Mode | None = None,
        blocking: bool = True,
        on_error: OnError = "raise",
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_n_epochs", every_n_epochs)):
            if value is not None:
                check_at_least(1, **{name: value})
        check_whole(keep=keep)
        if keep < 2:
            raise InvalidArgumentError(
                f"`keep` must be at least 2, got {keep}: one checkpoint must stay complete while "
                "the next one is written."
            )
        if on_error not in ("raise", "warn"):
            raise InvalidArgumentError(f'`on_error` must be "raise" or "warn", got {on_error!r}.')
        self.folder: Path = check_folder_writable(folder)
        self.best_path: Path | None = None
        self._lock = FolderLock(None)
        self._every_n_steps = every_n_steps
        self._every_n_epochs = every_n_epochs
        self._keep = keep
        self._blocking = blocking
        self._on_error: OnError = on_error
        if monitor is None and mode is not None:
            raise InvalidArgumentError(f"`mode` is {mode!r}, but there is no `monitor`. Pass both.")
        self._improvement = None if monitor is None else Improvement(monitor, mode)
        self._unwritten: tuple[Path, float] | None = None

    def on_fit_start(self, context: TrainContext) -> None:
        """Check that resuming will be exact, take the folder, and remove what a killed run left.

        Raises:
            CheckpointError: If resuming would not be exact, or another process or run uses the
                folder.
            InvalidArgumentError: If `monitor` is not measured or needs a `mode`.
        """
        by_steps = context.validate_every_n_steps is not None
        inside_epoch = self._every_n_steps is not None or (by_steps and self._follows_rows)
        context.check_resumable(inside_epoch=inside_epoch)
        self._unwritten = None
        if self._improvement is not None:
            if not self._improvement.start(context):
                self.best_path = None
            if self._improvement.monitor.startswith("val_"):
                context.keep_measured_weights()
        self._lock.release()
        self._lock = lock_checkpoints(self.folder)
        check_own(self.folder, self._written(), context.run_id)
        sweep(self.folder)

    def on_step_end(self, context: TrainContext) -> None:
        """Request a checkpoint if one is due."""
        self._forget_unwritten(context)
        if self._is_due_after_step(context) and not self._row_follows(context):
            self._request(context, self._path_for(context))

    def on_row(self, context: TrainContext) -> None:
        """Request a checkpoint if one is due, and remember it if it is the best."""
        n = self._every_n_epochs
        follows_epochs = context.validate_every_n_steps is None
        if follows_epochs and n is not None and context.state.epoch % n:
            return
        path = self._path_for(context)
        is_best = self._improves(context, path)
        due = (follows_epochs and n is not None) or self._is_due_after_row(context)
        if is_best or due:
            self._request(context, path, measured=is_best)

    def on_epoch_end(self, context: TrainContext) -> None:
        """Request a checkpoint if one is due at the end of an epoch without a row."""
        n = self._every_n_epochs
        follows_steps = context.validate_every_n_steps is not None
        if follows_steps and n is not None and context.state.epoch % n == 0:
            self._request(context, self._path_for(context))

    @property
    def _follows_rows(self) -> bool:
        """Whether checkpoints are written after rows of the history."""
        return self._writes_each_row or self._improvement is not None

    @property
    def _writes_each_row(self) -> bool:
        return self._every_n_steps is None and self._every_n_epochs is None

    def _is_due_after_step(self, context: TrainContext) -> bool:
        n = self._every_n_steps
        return n is not None and context.state.step % n == 0

    def _row_follows(self, context: TrainContext) -> bool:
        """Return whether a row follows the step, whose checkpoint will contain it."""
        n = context.validate_every_n_steps
        return n is not None and context.state.step % n == 0

    def _is_due_after_row(self, context: TrainContext) -> bool:
        return self._writes_each_row or (
            self._row_follows(context) and self._is_due_after_step(context)
        )

    def _improves(self, context: TrainContext, path: Path) -> bool:
        """Return whether the row is the best so far, whose checkpoint will be at a path."""
        improvement = self._improvement
        if improvement is None:
            return False
        self._forget_unwritten(context)
        before = improvement.best
        if not improvement.update(context.history.rows[-1][improvement.monitor]):
            return False
        self._unwritten = path, before
        return True

    def _forget_unwritten(self, context: TrainContext) -> None:
        """Forget a best row whose checkpoint could not be written."""
        if self._unwritten is None or self._unwritten[0] in context.requested_checkpoints:
            return  # There is none, or a thread still writes it.
        if self._improvement is not None:
            self._improvement.best = self._unwritten[1]
        self._unwritten = None

    def on_interrupt(self, context: TrainContext) -> None:
        """Request a last checkpoint, unless there is one or resuming would not be exact."""
        self._forget_unwritten(context)
        path = self._path_for(context)
        exact = context.why_not_resumable(context.state.batch > 0) is None
        if exact and context.last_checkpoint != path:
            self._request(context, path)

    def on_fit_end(self, context: TrainContext) -> None:
        """Let other runs use the folder, and forget a best row without a checkpoint."""
        self._lock.release()
        self._forget_unwritten(context)

    def on_checkpoint(self, context: TrainContext) -> None:
        """Delete all checkpoints except the newest ones and the best one."""
        if context.last_checkpoint is None or context.last_checkpoint.parent != self.folder:
            return
        if self._unwritten is not None and self._unwritten[0] == context.last_checkpoint:
            self.best_path, self._unwritten = self._unwritten[0], None
        # Other checkpoints in the folder are neither counted nor deleted.
        own = [path for path in self._written() if not is_other(path, context.run_id)]
        for old in own[: -self._keep]:
            if old != self.best_path:
                remove_checkpoint(old)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and the name of its checkpoint in the folder."""
        if self._improvement is None:
            return {"improvement": None, "best": None}
        # The checkpoint that is being written contains its own name if it is the best.
        path = self.best_path if self._unwritten is None else self._unwritten[0]
        best = None if path is None else path.name
        return {"improvement": self._improvement.state_dict(), "best": best}

    def check_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:  # noqa: ARG002 - the form of the method
        """Raise if the saved values are not those of this callback.

        Raises:
            CheckpointError: If a key is missing, or a value has another type.
        """
        check_keys(self, state, "improvement", "best")
        if state["improvement"] is not None:
            check_improvement(self, state["improvement"])
        best = state["best"]
        check_value(self, best is None or isinstance(best, str), "best", "the name of a folder")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: If the name of the best checkpoint is not one that this class gives.
                A name from a file must not lead outside the folder.
        """
        if self._improvement is None or state["improvement"] is None:
            return
        name = state["best"]
        if name is not None and not _NAME.fullmatch(str(name)):
            raise CheckpointError(
                f"The best checkpoint of ModelCheckpoint must be a name such as "
                f"'epoch-0001-step-00000100', got {name!r}. Resume from another checkpoint."
            )
        self._improvement.load_state_dict(state["improvement"])
        self.best_path = None if name is None else self.folder / str(name)

    def _request(self, context: TrainContext, path: Path, *, measured: bool = False) -> None:
        context.request_checkpoint(
            path, on_error=self._on_error, blocking=self._blocking, measured=measured
        )

    def _written(self) -> list[Path]:
        """Return the checkpoints in the folder that this class wrote, oldest first."""
        return [path for path in checkpoints_in(self.folder) if _NAME.fullmatch(path.name)]

    def _path_for(self, context: TrainContext) -> Path:
        state = context.state
        return self.folder / f"epoch-{state.epoch:04d}-step-{state.step:08d}"
