"""Writes the checkpoints that callbacks request."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from finetunelib.errors import PathNotWritableError
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._checkpointing.position import EpochPosition
from finetunelib.training._checkpointing.run import TrainingRun
from finetunelib.training._loop.moments import Hook
from finetunelib.training._state import TrainState


@dataclass(frozen=True, slots=True)
class CheckpointWriter:
    """Writes checkpoints of a run at its current position.

    Attributes:
        run: The run to save.
        position: Returns where the run is in its data.
        check: Raises if the weights are not worth saving.
        on_checkpoint: Called after each checkpoint.
    """

    run: TrainingRun
    position: Callable[[TrainState], EpochPosition]
    check: Callable[[], None]
    on_checkpoint: Hook

    def write_requested(self, context: TrainContext) -> None:
        """Write the checkpoints that callbacks have requested, if any.

        Raises:
            CheckpointError: If resuming from here would not be exact.
            NonFiniteError: If a loss since the last check was not finite.
            PathNotWritableError: If one cannot be written and its request says `"raise"`.
        """
        if not context.requested_checkpoints:
            return
        self.check()
        if context.state.batch:
            context.check_resumable()
        position = self.position(context.state)
        requests = dict(context.requested_checkpoints)
        context.requested_checkpoints.clear()
        for path, on_error in requests.items():
            try:
                measured = context.weights_for(path)
                context.last_checkpoint = self.run.save(path, position, measured)
            except PathNotWritableError as error:
                if on_error == "raise":
                    raise
                warnings.warn(f"A checkpoint is missing: {error} Training continues.", stacklevel=2)
                continue
            self.on_checkpoint(context)
