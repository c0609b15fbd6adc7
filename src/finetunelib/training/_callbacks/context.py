"""What a callback sees of a training, and the requests that it can make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import nn

from finetunelib._files import check_folder_writable
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.errors import CheckpointError
from finetunelib.training._history import History
from finetunelib.training._state import TrainState

#: What happens where a checkpoint cannot be written.
OnError: TypeAlias = Literal["raise", "warn"]


@public("finetunelib.training")
@dataclass(slots=True)
class TrainContext:
    """A training as its callbacks see it: to read, with requests that the loop carries out.

    Attributes:
        model: The user's own model, with the weights of training.
        optimizer: The optimizer.
        state: How far the training is.
        history: The measurements of the epochs so far.
        measures: The names of what an epoch's row will hold, known from the start.
        why_not_resumable: Returns why resuming from a checkpoint would not be exact, or `None` if
            it would be. Pass `True` for a checkpoint taken in the middle of an epoch.
        requested_checkpoints: The folders that are still to be written, and what is done where
            that fails.
        stop_reason: Why a stop was requested, or `None`.
        resumed: Whether this `fit` goes on from a checkpoint.
        last_checkpoint: The folder of the last checkpoint that this `fit` wrote, or `None`.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> from finetunelib.training import Callback
        >>> class StopAfterThreeSteps(Callback):
        ...     def on_step_end(self, context):
        ...         if context.state.step == 3:
        ...             context.request_stop("three steps are enough")
        >>> data = (torch.zeros(50, 4), torch.zeros(50).long())
        >>> trainer = Trainer(
        ...     build_mlp(4, [], 2), batch_size=5, callbacks=[StopAfterThreeSteps()], progress=False
        ... )
        >>> trainer.fit(data, epochs=9)["step"]
        [3]
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    state: TrainState
    history: History
    measures: tuple[str, ...]
    why_not_resumable: Callable[[bool], str | None] = lambda _: None
    resumed: bool = False
    stop_reason: str | None = field(default=None, init=False)
    last_checkpoint: Path | None = field(default=None, init=False)
    requested_checkpoints: dict[Path, OnError] = field(default_factory=dict, init=False)

    def request_stop(self, reason: str) -> None:
        """Ask the loop to end after the step in progress; the epoch's row is still written.

        Args:
            reason: Why, in a few words; the loop says it.
        """
        self.stop_reason = self.stop_reason or reason

    def request_checkpoint(self, path: StrPath, *, on_error: OnError = "raise") -> None:
        """Ask the loop to write a checkpoint after the step or epoch in progress.

        It is written when every callback has seen the step, or the epoch, so that it holds
        their states too; then `on_checkpoint` is called.

        Args:
            path: The folder to write. A former checkpoint there is replaced.
            on_error: Whether a disk that cannot take it ends the training (`"raise"`) or is told
                in a warning (`"warn"`). What was written before is intact in both cases.

        Raises:
            PathNotWritableError: Nothing can be written there, and `on_error` is `"raise"`.
        """
        if on_error == "raise":
            check_folder_writable(path)
        self.requested_checkpoints[Path(path)] = on_error

    def check_resumable(self, *, inside_epoch: bool = True) -> None:
        """Raise when this training could not go on exactly from a checkpoint.

        Args:
            inside_epoch: Whether from one in the middle of an epoch, or at its end.

        Raises:
            CheckpointError: A metric has no `state_dict`, the data cannot be read again, or a
                state holds an object that could not be read back safely.
        """
        reason = self.why_not_resumable(inside_epoch)
        if reason is not None:
            raise CheckpointError(reason)
