"""Writes the checkpoints that callbacks request."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from finetunelib.errors import PathNotWritableError
from finetunelib.training._callbacks.context import OnError, TrainContext
from finetunelib.training._checkpointing.background import BackgroundWrite
from finetunelib.training._checkpointing.content import Staging
from finetunelib.training._checkpointing.position import EpochPosition
from finetunelib.training._checkpointing.run import TrainingRun
from finetunelib.training._loop.moments import Hook


@dataclass(slots=True)
class CheckpointWriter:
    """Writes checkpoints of a run at its current position: at once, or in a thread.

    Attributes:
        run: The run to save.
        position: Returns where the run is in its data.
        check: Raises if the weights must not be saved.
        on_checkpoint: Called after each checkpoint.
    """

    run: TrainingRun
    position: Callable[[TrainContext], EpochPosition]
    check: Callable[[], None]
    on_checkpoint: Hook
    _staging: Staging = field(default_factory=Staging, init=False)
    _unfinished: tuple[BackgroundWrite, Path, OnError] | None = field(default=None, init=False)

    def write_requested(self, context: TrainContext) -> None:
        """Write the checkpoints that callbacks have requested, if any.

        Raises:
            CheckpointError: If resuming from here would not be exact.
            NonFiniteError: If a loss since the last check was not finite.
            PathNotWritableError: If one cannot be written and its request says `"raise"`.
        """
        requests = context.requested_checkpoints
        if not requests or not any(not request.started for request in requests.values()):
            return
        self.check()
        position = self.position(context)
        if position.is_inside:
            context.check_resumable(inside_epoch=position.batch > 0)
        for path, request in [entry for entry in requests.items() if not entry[1].started]:
            del requests[path]
            self.finish(context)
            measured = context.weights_for(path)
            if request.blocking:
                write = partial(self.run.save, path, position, measured)
                self._keep_result(context, write, request.on_error)
                continue
            with self.run.content(position, measured) as content:
                copied = self._staging.copy(content)
            self._unfinished = BackgroundWrite(path, copied), path, request.on_error
            requests[path] = replace(request, started=True)

    def poll(self, context: TrainContext) -> None:
        """Report a checkpoint that a thread has finished, if there is one. Does not wait.

        Raises:
            PathNotWritableError: If it could not be written and its request says `"raise"`.
        """
        if self._unfinished is not None and self._unfinished[0].done:
            self.finish(context)

    def finish(self, context: TrainContext) -> None:
        """Wait for the checkpoint that a thread writes, if there is one, and report it.

        Raises:
            PathNotWritableError: If it could not be written and its request says `"raise"`.
        """
        if self._unfinished is not None:
            (write, path, on_error), self._unfinished = self._unfinished, None
            try:
                write.wait()
            finally:
                # A callback may have requested the same folder again.
                request = context.requested_checkpoints.get(path)
                if request is not None and request.started:
                    del context.requested_checkpoints[path]
            self._keep_result(context, write.result, on_error)

    def _keep_result(
        self, context: TrainContext, write: Callable[[], Path], on_error: OnError
    ) -> None:
        """Call a function that returns a written checkpoint, and `on_checkpoint` after it."""
        try:
            context.last_checkpoint = write()
        except PathNotWritableError as error:
            if on_error == "raise":
                raise
            warnings.warn(f"A checkpoint is missing: {error} Training continues.", stacklevel=2)
            return
        self.on_checkpoint(context)
