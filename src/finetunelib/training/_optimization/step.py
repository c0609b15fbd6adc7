"""One step: an update of the weights from the micro-batches of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from finetunelib._typing import Batch
from finetunelib.training._optimization.gradients import Clipping, mean_over
from finetunelib.training._optimization.guard import Guard
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._optimization.schedule import Schedule
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.task import StepOutput, Task, validate_output


@dataclass(frozen=True, slots=True)
class Step:
    """Updates the weights of a model.

    Attributes:
        model: The model to call; it may be a compiled form of the user's model.
        task: Computes the loss of a micro-batch.
        optimizer: The optimizer.
        precision: The number format of the forward pass, and the scale of the loss.
        guard: Stops the run if the loss is not finite.
        clip: Clips the gradients.
        schedule: The learning-rate schedule.
        state: The counters; each call adds one to `step`.
        parameters: The parameters of the optimizer.
    """

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    precision: Precision
    guard: Guard
    clip: Clipping
    schedule: Schedule
    state: TrainState
    parameters: list[nn.Parameter]

    def __call__(self, window: Sequence[Batch], measure: Callable[[StepOutput], None]) -> None:
        """Update the weights once.

        Args:
            window: The micro-batches of the update, on the device.
            measure: Called with the output of the task for each micro-batch.

        Raises:
            NonFiniteError: If a loss is not finite. There is no update then.
        """
        self.guard.start()
        self.optimizer.zero_grad()
        mean = mean_over(window)
        for micro_batch in window:
            with self.precision.autocast():
                output = validate_output(self.task.step(self.model, micro_batch), self.task)
            self.guard.check(output, micro_batch)
            self.precision.backward(mean.scale_loss(output.loss, output.weight))
            measure(output)
        self.precision.unscale(self.optimizer)
        mean.normalize(self.parameters)
        self.guard.check_norm(self.clip(self.parameters), window[-1])
        self.precision.step(self.optimizer)
        self.schedule.after_step()
        self.state.step += 1
