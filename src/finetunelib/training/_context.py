"""What a callback sees of a training, and the requests that it can make."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from finetunelib.training._history import History
from finetunelib.training._state import TrainState


@dataclass(slots=True)
class TrainContext:
    """A training as its callbacks see it: to read, with a request that the loop carries out.

    Attributes:
        model: The user's own model, with the weights of training.
        optimizer: The optimizer.
        state: How far the training is.
        history: The measurements of the epochs so far.
        measures: The names of what an epoch's row will hold, known from the start.
        stop_reason: Why a stop was requested, or `None`.

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
    stop_reason: str | None = field(default=None, init=False)

    def request_stop(self, reason: str) -> None:
        """Ask the loop to end after the step in progress; the epoch's row is still written.

        Args:
            reason: Why, in a few words; the loop says it.
        """
        self.stop_reason = self.stop_reason or reason
